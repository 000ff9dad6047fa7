"""Loss scaling on the CPU, with MXNet's own scaler; float16 itself as far as types tell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet import gluon
from mxnet.contrib.amp import amp

from formats.errors import UserError
from training.batches.in_memory import Batch
from training.compute.devices import use_precision
from training.compute.loss_scaling import loss_scale, with_loss_scaling
from training.loop.engine import Updater
from training.loop.nonfinite import SkipGuard
from training.loop.task import ClassificationTask

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _mixed_precision_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the trainer believe it; the arithmetic stays float32."""
    from mxnet.contrib.amp.loss_scaler import LossScaler

    monkeypatch.setattr(amp, "_amp_initialized", True)
    monkeypatch.setattr(amp, "_amp_loss_scale_initialized", False)
    monkeypatch.setattr(amp, "_loss_scaler", LossScaler())


def updater(precision: str, contexts: int = 1, clip: float = 0.0) -> Updater:
    places = [mx.cpu(i) for i in range(contexts)]
    net = gluon.nn.HybridSequential()
    net.add(gluon.nn.Flatten(), gluon.nn.Dense(3, in_units=4))
    net.initialize(mx.init.Zero(), ctx=places)
    net[1].weight.set_data(mx.nd.array(np.arange(12).reshape(3, 4) / 10))
    trainer = gluon.Trainer(
        net.collect_params(), "nag", {"learning_rate": 0.5, "momentum": 0.9},
        kvstore="device", update_on_kvstore=False,
    )  # fmt: skip
    return Updater(
        ClassificationTask(net, with_loss_scaling(trainer, precision), places), clip_gradient=clip
    )


def batch(value: float = 1.0) -> Batch:
    image = np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 1, 2, 2) * np.float32(value)
    return Batch(image, np.array([0, 1, 2, 0, 1, 2], np.int32))


def weights(one: Updater) -> np.ndarray:
    values: np.ndarray = one.net[1].weight.data(mx.cpu(0)).asnumpy()
    return values


@pytest.mark.parametrize("contexts", [1, 2])
@pytest.mark.parametrize("clip", [0.0, 0.01])
def test_scaling_does_not_change_the_updates(contexts: int, clip: float) -> None:
    plain, scaled = (updater(p, contexts, clip) for p in ("float32", "float16"))
    assert (loss_scale(plain.trainer), loss_scale(scaled.trainer)) == (1, 2.0**16)
    start = weights(plain)
    for _ in range(3):
        for one in (plain, scaled):
            one.step(batch())
    np.testing.assert_allclose(weights(scaled), weights(plain), rtol=1e-6)
    assert np.abs(weights(plain) - start).max() > 1e-3
    gradients = [one.net[1].weight.grad(mx.cpu(0)).asnumpy() for one in (plain, scaled)]
    if not clip:
        np.testing.assert_allclose(gradients[1], gradients[0] * 2**16, rtol=1e-6)


def test_an_overflow_leaves_the_update_out_and_halves_the_scale() -> None:
    one = updater("float16")
    before = weights(one)
    one.step(batch(np.inf))
    assert (weights(one) == before).all()
    one.step(batch())  # the scaler acts on what it saw one update later
    one.step(batch())
    assert loss_scale(one.trainer) == 2.0**15
    assert np.isfinite(weights(one)).all()
    assert (weights(one) != before).any()


def test_a_guard_leaves_an_overflow_to_the_scaler() -> None:
    """Else the scale would stay as it is, and every update after it would be left out too."""
    one = updater("float16")
    one.guard = SkipGuard(one.net, 2)
    one.trainer._amp_loss_scaler._loss_scale = 2.0**127
    for _ in range(3):
        results = one.step(batch(64.0))
        assert all(np.isfinite(result.losses.asnumpy()).all() for result in results)
        assert not one.guard.skipped
    assert loss_scale(one.trainer) < 2.0**127
    assert np.isfinite(weights(one)).all()


def test_float16_is_refused_on_the_cpu_with_the_reason() -> None:
    with pytest.raises(UserError, match=r"FP16 gemm on cpu not implemented.*bfloat16"):
        use_precision("float16", [mx.cpu()])


TYPES = """
import json, sys
import numpy as np
import mxnet as mx
from training.compute.devices import use_precision

class Gpu:
    device_type = "gpu"

try:
    use_precision("bfloat16", [Gpu()])
except Exception as error:
    print(error)
use_precision("float16", [Gpu()])
from model import create_model

internals = create_model("attention56_small")(mx.sym.var("image")).get_internals()
names = {n["name"]: n["op"] for n in json.loads(internals.tojson())["nodes"]}
found = {}
for output, kind in zip(internals.list_outputs(), internals.infer_type(image="float32")[1]):
    op = names.get(output[: -len("_output")] if output.endswith("_output") else output)
    found.setdefault(op, set()).add(np.dtype(kind).name)
print(json.dumps({op: sorted(kinds) for op, kinds in found.items() if op}))
"""


def test_float16_reaches_convolutions_and_spares_positions() -> None:
    """The graph that a GPU would be given; its types are known without one."""
    import json

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TYPES], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    refusal, types = done.stdout.splitlines()
    assert "bfloat16 is for the CPU" in refusal
    found: dict[str, Any] = json.loads(types)
    assert found["Convolution"] == ["float16"]
    assert found["null"] == ["float32"]  # parameters, and with them the files
    for operator in ("_contrib_arange_like", "broadcast_sub", "abs", "dot", "mean"):
        assert found[operator] == ["float32"], operator
