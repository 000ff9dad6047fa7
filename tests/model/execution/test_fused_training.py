"""Training by fused operators gives what the network's own graph gives."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon
from mxnet.gluon import nn

from machine.processor import Unavailable
from model import create_model
from model.execution.fused_graph import training_graph
from model.execution.fused_limits import Unsupported
from model.execution.fused_training import fuse
from model.layers.basic_layer import ResidualBlock
from model.layers.network import Network
from model.native.build import block_channels
from tests.model import golden_runs as golden
from tests.model.test_golden_runs import errors as golden_errors
from tests.model.test_golden_runs import tolerance

TOLERANCE = 1e-5
# No ReLU's input is so near to 0 that rounding decides it, with 1, 2 or 4 threads.
SEED = 8
SMALL: dict[str, Any] = {
    "modules": (1,),
    "stem_channels": 16,
    "channels": (64,),
    "mask_depths": (2,),
    "ptr": (1, 1, 1),
    "tail_channels": 64,
    "tail_units": 1,
}
# The networks of the golden runs that the operators know. Not attention_nal, where rounding puts a
# ReLU's input on the other side of 0.
KNOWN = [
    case
    for case in golden.CASES
    if case in ("attention_legacy", "attention_paper", "attention_spatial", "attention_channel")
    or case in ("attention_odd", "resnet20", "preresnet20")
    or case.endswith(("_ram", "_ie", "_static"))
]
FULL_BLOCKS = {"attention_odd": 8}  # the largest blocks that the channels of a network fill


pytestmark = pytest.mark.usefixtures("unit_operators")


@pytest.mark.parametrize("case", KNOWN)
def test_a_golden_run_is_repeated(case: str) -> None:
    expected = np.load(golden.FOLDER / f"run_{case}.npz")
    if FULL_BLOCKS.get(case, 16) < block_channels():
        with pytest.raises(Unavailable, match="8 channels, which are no multiple of 16"):
            golden.run(case, fuse)
        return
    nets = []

    def prepare(net: Any) -> None:
        fuse(net)
        nets.append(net)

    found = golden.run(case, prepare)
    assert nets[0].fused._graphs  # they did compute it
    errors = golden_errors(found, expected)
    # Never narrower than what rounding does to the graph itself on another kind of processor.
    # The gate's offset has a gradient whose terms cancel: the normalisation removes the offset.
    own = {n: 5 * TOLERANCE if n.endswith("gate.b") else TOLERANCE for n in errors}
    limits = {name: max(limit, tolerance(name)) for name, limit in own.items()}
    assert not {name: e for name, e in errors.items() if not e <= limits[name]}


def gradients(net: Any, image: Any, prepare: Any = lambda net: None) -> dict[str, np.ndarray]:
    """Return logits, gradients and running statistics after one pass from the same start."""
    prepare(net)
    label = mx.nd.arange(len(image)) % 10
    parameters = net._collect_params_with_prefix()
    kept = {k: p.data().copy() for k, p in parameters.items() if p.grad_req == "null"}
    with autograd.record():
        logits = net(image)
        loss = gluon.loss.SoftmaxCrossEntropyLoss()(logits, label)
    loss.backward()
    mx.nd.waitall()
    found = {"logits": logits.asnumpy()}
    for name, parameter in parameters.items():
        array = parameter.data() if parameter.grad_req == "null" else parameter.grad()
        found[name] = array.asnumpy()
        if name in kept:
            parameter.set_data(kept[name])
    return found


def network(name: str, **overrides: Any) -> Any:
    net = create_model(name, classes=10, **overrides)
    net.initialize(mx.init.Xavier())
    net.hybridize()
    return net


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    largest = max(np.abs(v).max() for k, v in expected.items() if "running" not in k)
    for name, array in expected.items():
        scale = max(np.abs(array).max(), 0.05 * largest)
        assert np.abs(found[name] - array).max() <= 5 * TOLERANCE * scale, name


@pytest.mark.parametrize("shape", [(8, 3, 8, 8), (6, 3, 9, 7), (5, 3, 6, 11)])
@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("attention56", SMALL),
        ("attention56_paper", {**SMALL, "mask_depths": (0,)}),
        *(("attention56", {**SMALL, "attention": a}) for a in ("spatial", "channel", "tanh")),
        ("attention56", {**SMALL, "learning": "nal"}),
        ("resnet20_ram", {"steps": 3, "w_init": 0.5}),
        ("preresnet20_basic_static", {}),
    ],
)
def test_any_size_and_batch(model: str, overrides: dict[str, Any], shape: tuple[int, ...]) -> None:
    mx.random.seed(SEED)
    net = network(model, **overrides)
    image = mx.nd.random.normal(shape=shape)
    expected = gradients(net, image)
    assert_same(gradients(net, image, fuse), expected)


def decide_all_relus(net: Any) -> None:
    """Give a network of version 1 normalisations after which no ReLU's input is near 0.

    A normalised number would have to be 8 standard deviations from the mean; of those here none is
    further than 6. Before a unit's last ReLU its input is added, which is 0 or more: channels that
    are shut are so far below 0 that it does not matter.
    """
    for name, parameter in net._collect_params_with_prefix().items():
        shut = np.arange(parameter.shape[0]) % 2
        if name.endswith("gamma"):
            parameter.set_data(mx.nd.full(parameter.shape, 1 / 4))
        elif name.endswith("beta"):
            parameter.set_data(mx.nd.array(np.where(shut, -100 if ".bn3" in name else -2, 2)))


def test_a_batch_of_one_and_then_another_size() -> None:
    net = network("resnet20", depth=11)
    decide_all_relus(net)
    images = [
        mx.nd.random.normal(shape=s) for s in ((1, 3, 16, 16), (4, 3, 16, 16), (2, 3, 18, 16))
    ]
    expected = [gradients(net, image) for image in images]
    fuse(net)
    for image, one in zip([*images, images[0]], [*expected, expected[0]]):
        assert_same(gradients(net, image), one)


def test_gradients_add_up_over_micro_batches() -> None:
    net = network("resnet20_ram", w_init=0.5)
    fuse(net)
    images = [mx.nd.random.normal(shape=(3, 3, 8, 8)) for _ in range(2)]
    parts = [gradients(net, image) for image in images]
    for parameter in net.collect_params().values():
        if parameter.grad_req != "null":
            parameter.grad_req = "add"
            parameter.zero_grad()
    for image in images:
        total = gradients(net, image)
    for name, parameter in net._collect_params_with_prefix().items():
        if parameter.grad_req != "null":
            expected = parts[0][name] + parts[1][name]
            np.testing.assert_allclose(total[name], expected, rtol=1e-4, atol=1e-5)


def test_several_devices() -> None:
    contexts = [mx.cpu(0), mx.cpu(1)]
    net = create_model("resnet20_ram", w_init=0.5)
    net.initialize(ctx=contexts)
    fuse(net)
    image = mx.nd.random.normal(shape=(4, 3, 8, 8))
    found = []
    with autograd.record():
        losses = [net(image.as_in_context(context)).square().sum() for context in contexts]
    autograd.backward(losses)
    for context in contexts:
        found.append(net.layer1._children["0"].conv1.weight.grad(context).asnumpy())
    assert np.abs(found[0]).max() > 0
    np.testing.assert_array_equal(found[0], found[1])


def test_a_training_pass_without_gradients_is_not_fused() -> None:
    net = network("resnet20")
    fuse(net)
    net(mx.nd.zeros((2, 3, 8, 8)))
    with autograd.train_mode():
        net(mx.nd.zeros((2, 3, 8, 8)))
    assert not net.fused._graphs


def test_an_exported_network_has_none_of_the_operators(tmp_path: Path) -> None:
    net = network("resnet20_ram")
    fuse(net)
    gradients(net, mx.nd.random.normal(shape=(2, 3, 8, 8)))
    net(mx.nd.zeros((1, 3, 8, 8)))
    net.export(str(tmp_path / "net"))
    assert "attn_" not in (tmp_path / "net-symbol.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("model", "overrides", "reason"),
    [
        ("resnet20_se", {}, "SqueezeExcitation"),
        ("resnet20_dia", {}, "shared"),
        ("attention56", {**SMALL, "unit": "resnext", "groups": 4}, "ResNeXtUnit"),
        ("attention56", {**SMALL, "channels": (16,)}, "4 channels, which are no multiple of "),
        ("resnet20", {"norm_layer": gluon.nn.InstanceNorm}, "normalisation"),
    ],
)
def test_what_the_operators_do_not_know_is_said(
    model: str, overrides: dict[str, Any], reason: str
) -> None:
    net = network(model, **overrides)
    with pytest.raises(Unavailable, match=reason):
        fuse(net)
    assert net.fused is None


class Twofold(nn.HybridBlock):
    """A block that the project does not know: two units side by side, with its own tracing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.left, self.right = ResidualBlock(channels), ResidualBlock(channels)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return self.left(x) + self.right(x)

    def trace(self, ops: Any, x: Any) -> Any:
        return ops.run(self.left, x) + ops.run(self.right, x)


class Untraced(Twofold):
    """Computes otherwise, and does not say how that is traced."""

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return self.left(self.right(x))


class Foreign(Network):
    """A network that the project does not know."""

    image_shape = (3, 8, 8)

    def __init__(self, block: Any, channels: int = 64) -> None:
        super().__init__()
        self.stem = nn.Conv2D(channels, 3, padding=1, use_bias=False, in_channels=3)
        self.block, self.fc = block(channels), nn.Dense(10, in_units=channels)

    def hybrid_forward(self, F: Any, image: Any) -> Any:
        return self.fc(F.mean(self.block(self.stem(image)), axis=(2, 3)))

    def trace(self, ops: Any, image: Any) -> Any:
        maps = ops.blocked(self.stem(image), 64)
        return self.fc(ops.mean(ops.run(self.block, maps), None))


def test_another_network_says_itself_how_it_is_traced() -> None:
    mx.random.seed(SEED)
    net = Foreign(Twofold)
    net.initialize(mx.init.Xavier())
    image = mx.nd.random.normal(shape=(8, 3, 8, 8))
    expected = gradients(net, image)
    assert_same(gradients(net, image, fuse), expected)
    assert net.fused._graphs
    with pytest.raises(Unavailable, match="do not know a Untraced in the network"):
        fuse(Foreign(Untraced))


def test_a_frozen_network_is_refused() -> None:
    net = network("resnet20")
    net.layer1._children["0"].conv1.weight.grad_req = "null"
    with pytest.raises(Unsupported, match="parameters that are frozen"):
        training_graph(net, (1, 3, 8, 8), copied=False)


@pytest.mark.parametrize("frozen", ["conv1.weight", "bn2.gamma", "bn2.beta"])
def test_each_frozen_parameter_is_seen(frozen: str) -> None:
    net = network("resnet20")
    net._collect_params_with_prefix()[f"layer1.0.{frozen}"].grad_req = "null"
    with pytest.raises(Unavailable, match="do not know parameters that are frozen"):
        fuse(net)


def test_another_precision_is_refused() -> None:
    net = network("resnet20")
    with pytest.raises(Unavailable, match="compute float32 or bfloat16, not float16"):
        fuse(net, "float16")
    assert net.fused is None


LOCALE = "de_DE.utf8"
WITH_COMMAS = f"""
import locale, sys
import numpy as np
import mxnet as mx
from mxnet import autograd
from model import create_model
from model.execution.fused_training import fuse

locale.setlocale(locale.LC_ALL, "{LOCALE}")
assert locale.localeconv()["decimal_point"] == ","
found = []
for fused in (False, True):
    mx.random.seed(0)
    net = create_model("resnet20", 10)
    net.initialize()
    if fused:
        fuse(net)
    with autograd.record():
        net(mx.nd.random.normal(shape=(2, 3, 8, 8))).sum().backward()
    found.append(net.layer1._children["0"].bn1.running_mean.data().asnumpy())
np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)
"""


def test_numbers_are_read_alike_where_a_comma_is_the_point(tmp_path: Path) -> None:
    # The path of a locale: LOCPATH.
    made = shutil.which("localedef") and subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / LOCALE)], capture_output=True
    )
    if not (tmp_path / LOCALE).is_dir():
        pytest.skip(f"cannot make the locale {LOCALE}: {made}")
    done = subprocess.run(
        [sys.executable, "-c", WITH_COMMAS],
        env={**os.environ, "LOCPATH": str(tmp_path)},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_not_a_number_stays_one() -> None:
    net = network("resnet20")
    fuse(net)
    net.layer1._children["0"].conv1.weight.data()[:] = np.nan
    with autograd.record():
        logits = net(mx.nd.ones((2, 3, 8, 8)))
    assert np.isnan(logits.asnumpy()).all()


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("attention56", {**SMALL, "mask_depths": (0,)}),
        ("resnet20_ram", {"depth": 11, "steps": 3, "w_init": 0.5}),
        ("preresnet20_basic_static", {"depth": 8}),
    ],
)
def test_bfloat16_rounds_what_is_multiplied(
    model: str, overrides: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network(model, **overrides)
    image = mx.nd.random.normal(shape=(8, 3, 16, 16))
    if block_channels() == 8:
        with pytest.raises(Unavailable, match=r"^bfloat16 takes a processor with AVX-512$"):
            fuse(net, "bfloat16")
        assert net.fused is None
        return
    float32 = gradients(net, image)
    found = gradients(net, image, lambda net: fuse(net, "bfloat16"))
    weights = [name for name in found if name.endswith("weight")]
    errors = [distance(found[name], float32[name]) for name in weights]
    assert min(errors) > 1e-5
    assert max(errors) < 0.3  # some are small sums of large terms of both signs
    net.hybridize(active=False)
    monkeypatch.setattr(nn.Conv2D, "hybrid_forward", rounded_convolution)
    with autograd.record():
        net(image)
    expected = {name: p.data().asnumpy() for name, p in net._collect_params_with_prefix().items()}
    # Not many convolutions behind these maps: later, what is nearly equal is rounded apart.
    endings = ("layer1.0.bn2.running_var", "residual_block1.bn3.running_var")
    name = next(name for name in found if name.endswith(endings))
    distant = distance(found[name], expected[name])
    assert distant < 0.1 * distance(float32[name], expected[name])


def rounded_convolution(self: Any, F: Any, x: Any, weight: Any, bias: Any = None) -> Any:
    if x.shape[1] == 3 or bias is not None:  # neither the stem nor the classifier is a unit
        return F.Convolution(x, weight, *([] if bias is None else [bias]), **self._kwargs)
    return bfloat16(F.Convolution(bfloat16(x), bfloat16(weight), **self._kwargs))


def bfloat16(x: Any) -> Any:
    bits = x.asnumpy().view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return mx.nd.array(bits.astype(np.uint32).view(np.float32))


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
