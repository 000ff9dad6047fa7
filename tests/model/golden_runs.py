"""What the networks computed before their graphs were rewritten for speed: golden runs.

A case is a small network with parameters and images from a fixed seed. Its run gives the logits, a
digest of every parameter's gradient, and the losses and batch statistics of a few NAG steps. The
files ``golden/run_*.npz`` were written once, by ``python tests/model/golden_runs.py``, at the
commit that added them, and are never written again: whoever changes results changes the network.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Callable

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parents[1] / "golden"
STEPS, BATCH, SAMPLES = 3, 8, 24
RATE = 0.005

# Shallow, because rounding grows from unit to unit: in the whole Attention-56 one changed order of
# summation moves the third loss by a percent.
ONE: dict[str, Any] = {
    "modules": (1,),
    "stem_channels": 16,
    "channels": (64,),
    "mask_depths": (2,),
    "ptr": (1, 1, 1),
    "tail_channels": 64,
    "tail_units": 1,
}
# The first bottleneck has 8 channels: below 16 oneDNN takes other code.
TWO: dict[str, Any] = {**ONE, "modules": (1, 1), "channels": (32, 64), "mask_depths": (1, 0)}
SHALLOW: dict[str, Any] = {**ONE, "mask_depths": (1,)}
# The seeds are such that no ReLU input is so near to 0 that rounding decides it.
CASES: dict[str, tuple[str, dict[str, Any], int, int]] = {  # model, overrides, image size, seed
    "attention_legacy": ("attention56", ONE, 9, 2),
    "attention_paper": ("attention56_paper", ONE, 9, 2),
    "attention_odd": ("attention56", TWO, 7, 2),
    "attention_nal": ("attention56", {**SHALLOW, "learning": "nal"}, 8, 1),
    "attention_spatial": ("attention56", {**SHALLOW, "attention": "spatial"}, 8, 4),
    "attention_channel": ("attention56", {**SHALLOW, "attention": "channel"}, 8, 4),
    "attentionnext": ("attentionnext56_imagenet", {**SHALLOW, "stem": "3x3", "groups": 8}, 8, 4),
    **{
        name: (name, {"w_init": 0.5} if name.endswith("ram") else {}, 8, 2)
        for name in (
            "resnet20",
            "resnet20_ram",
            "resnet20_ie",
            "resnet20_static",
            "resnet20_se",
            "resnet20_eca",
            "resnet20_srm",
            "resnet20_cbam",
            "resnet20_dia",
            "resnet20_basic_ram",
            "preresnet20",
            "preresnet20_ram",
        )
    },
}

OFFSETS = {"w": 0.5, "b": -1.0}  # of gates


def run(case: str, prepare: Callable[[Any], Any] = lambda net: None) -> dict[str, np.ndarray]:
    """Return the arrays of a case, by name; all are float64. `prepare` is given the network."""
    import mxnet as mx
    from mxnet import autograd, gluon

    model, overrides, size, seed = CASES[case]
    net, image, label = _prepared(model, overrides, size, seed)
    prepare(net)
    found = {"infer": net(image).asnumpy()}
    trainer = gluon.Trainer(
        net.collect_params(), "nag", {"learning_rate": RATE, "momentum": 0.9, "wd": 1e-4}
    )
    loss_function = gluon.loss.SoftmaxCrossEntropyLoss()
    parameters = net._collect_params_with_prefix()
    losses = []
    for step in range(STEPS):
        with autograd.record():
            logits = net(image)
            loss = loss_function(logits, label)
        loss.backward()
        losses.append(loss.asnumpy())
        if step == 0:
            found["train"] = logits.asnumpy()
            for name, parameter in parameters.items():
                if parameter.grad_req != "null":
                    found[f"gradient:{name}"] = digest(parameter.grad().asnumpy())
        trainer.step(BATCH)
    mx.nd.waitall()  # batch statistics are written by the backward pass, unseen by the engine
    found["losses"] = np.stack(losses)
    for name, parameter in parameters.items():
        if parameter.grad_req == "null":
            found[f"statistics:{name}"] = digest(parameter.data().asnumpy())
    found["infer_after"] = net(image).asnumpy()
    return {name: np.asarray(array, np.float64) for name, array in found.items()}


def digest(array: np.ndarray) -> np.ndarray:
    """Return evenly spread values of an array, then its L2 norm and its mean absolute value."""
    flat = array.astype(np.float64).ravel()
    spread = flat[np.linspace(0, len(flat) - 1, min(SAMPLES, len(flat))).astype(int)]
    return np.append(spread, [np.sqrt(np.square(flat).sum()), np.abs(flat).mean()])


def _prepared(model: str, overrides: dict[str, Any], size: int, seed: int) -> tuple[Any, Any, Any]:
    """Return the hybridized network, images and labels, all from the seed."""
    import mxnet as mx

    from model import create_model

    random = np.random.RandomState(seed)
    net = create_model(model, classes=10, **overrides)
    net.initialize()
    image = mx.nd.array(random.standard_normal((BATCH, 3, size, size)))
    net(image)
    for name, parameter in sorted(net._collect_params_with_prefix().items()):
        shape = parameter.shape
        if name.endswith("weight"):
            value = random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(("gamma", "running_var")):
            value = random.uniform(0.7, 1.3, shape)
        else:
            value = random.uniform(-0.3, 0.3, shape) + OFFSETS.get(name.rpartition("gate.")[2], 0)
        parameter.set_data(mx.nd.array(value))
    net.hybridize(static_alloc=True, static_shape=True)
    return net, image, mx.nd.array(np.arange(BATCH) % 10)


def main() -> None:
    """Write the files that are not there yet."""
    for case in CASES:
        path = FOLDER / f"run_{case}.npz"
        if not path.exists():
            np.savez_compressed(path, **run(case))
            print(path.name)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
