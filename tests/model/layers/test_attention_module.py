"""The attention module and its layers against hand-worked values and MXNet's own operators."""

from __future__ import annotations

from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

from model.layers.attention_module import ATTENTIONS, AttentionModule, soft_mask
from model.layers.basic_layer import ResidualBlock, upsample_like
from model.layers.resnext_unit import ResNeXtUnit


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ((4, 4), (8, 8)),
        ((16, 16), (32, 32)),
        ((7, 5), (13, 9)),
        ((1, 1), (1, 1)),
        ((1, 2), (2, 4)),
        ((5, 7), (11, 3)),
    ],
)
def test_upsampling_equals_bilinear_resize(low: tuple[int, int], high: tuple[int, int]) -> None:
    source = mx.nd.random.normal(shape=(2, 3, *low))
    target = mx.nd.random.normal(shape=(2, 3, *high))
    weight = mx.nd.random.normal(shape=(2, 3, *high))
    results, gradients = [], []
    for resize in (upsample_like, _bilinear_resize):
        source.attach_grad()
        target.attach_grad()
        with autograd.record():
            out = resize(mx.nd, source, target)
            loss = (out * weight).sum()
        loss.backward()
        results.append(out.asnumpy())
        gradients.append(source.grad.asnumpy())
        assert not target.grad.asnumpy().any()
    np.testing.assert_allclose(results[0], results[1], atol=2e-6)
    np.testing.assert_allclose(gradients[0], gradients[1], atol=1e-5)


def _bilinear_resize(F: Any, low: Any, high: Any) -> Any:
    return F.contrib.BilinearResize2D(low, high, mode="like")


def test_upsampling_aligns_corners() -> None:
    row = mx.nd.array([0, 1, 2, 3]).reshape((1, 1, 1, 4))
    found = upsample_like(mx.nd, row, mx.nd.zeros((1, 1, 1, 8))).asnumpy().ravel()
    np.testing.assert_allclose(found, np.arange(8) * 3 / 7, atol=1e-6)


def test_residual_block_by_hand() -> None:
    """One pixel, so that a 3x3 convolution is its centre weight: y = conv3 conv2 conv1 relu(x) + x.

    Batch normalisation is the identity up to 1 / sqrt(1 + 1e-5).
    """
    block = ResidualBlock(4)
    block.initialize()
    assert block.conv4 is None
    block.conv1.weight.set_data(mx.nd.array([1.0, 2.0, 3.0, 4.0]).reshape((1, 4, 1, 1)))
    centre = np.zeros((1, 1, 3, 3))
    centre[0, 0, 1, 1] = 0.5
    block.conv2.weight.set_data(mx.nd.array(centre))
    block.conv3.weight.set_data(mx.nd.array([1.0, -1.0, 2.0, 0.0]).reshape((4, 1, 1, 1)))
    x = np.array([1.0, -5.0, 2.0, 0.5])
    narrow = (1 * 1 + 3 * 2 + 4 * 0.5) * 0.5  # -5 is cut off by the first ReLU
    expected = x + narrow * np.array([1.0, -1.0, 2.0, 0.0])
    found = block(mx.nd.array(x).reshape((1, 4, 1, 1))).asnumpy().ravel()
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_projection_reads_the_activated_input() -> None:
    block = ResidualBlock(8, in_channels=4, stride=2)
    block.initialize()
    block.conv3.weight.set_data(mx.nd.zeros(block.conv3.weight.shape))
    assert block.conv4 is not None
    block.conv4.weight.set_data(mx.nd.ones(block.conv4.weight.shape))
    x = mx.nd.array(np.arange(-8, 8)).reshape((1, 4, 2, 2))
    found = block(x).asnumpy()
    assert found.shape == (1, 8, 1, 1)
    np.testing.assert_allclose(found, np.maximum(x.asnumpy()[0, :, 0, 0], 0).sum(), rtol=1e-4)


def _module(depth: int, wiring: str = "legacy", learning: str = "arl") -> AttentionModule:
    module = AttentionModule(8, depth, wiring=wiring, learning=learning)
    module.initialize(mx.init.Normal(0.5))
    return module


def _head(module: AttentionModule, depth: int) -> gluon.nn.HybridSequential:
    head: gluon.nn.HybridSequential = getattr(module, f"softmax{2 * max(depth, 1)}_blocks")
    return head


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("gain", [-100.0, 0.0, 100.0])
@pytest.mark.parametrize("learning", ["arl", "nal"])
def test_attention_learning(depth: int, gain: float, learning: str) -> None:
    """With M forced to 0, 1/2 or 1 the module is post((1 + M) * trunk), or post(M * trunk)."""
    module = _module(depth, learning=learning)
    head = _head(module, depth)
    # The head's last batch normalisation gives 1 in every channel, its convolution `gain`.
    head[3].gamma.set_data(mx.nd.zeros(8))
    head[3].beta.set_data(mx.nd.ones(8))
    head[5].weight.set_data(mx.nd.ones((8, 8, 1, 1)) * gain / 8)
    x = mx.nd.random.normal(shape=(2, 8, 16, 16))
    inner = module.first_residual_blocks(x)
    trunk = module.trunk_branches(inner)
    factor = {-100.0: 0.0, 0.0: 0.5, 100.0: 1.0}[gain] + (1.0 if learning == "arl" else 0.0)
    expected = module.last_blocks(factor * trunk).asnumpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(module(x).asnumpy(), expected, atol=1e-5 * scale)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_wirings_share_parameters_and_differ_in_what_is_added(depth: int) -> None:
    legacy, paper = _module(depth), _module(depth, "paper")
    names = legacy._collect_params_with_prefix()
    assert list(names) == list(paper._collect_params_with_prefix())
    for name, parameter in paper._collect_params_with_prefix().items():
        parameter.set_data(names[name].data())
    x = mx.nd.random.normal(shape=(1, 8, 16, 16))
    assert np.abs(legacy(x).asnumpy() - paper(x).asnumpy()).max() > 1e-3
    # Without trunk and without the maps of the way down, both add the same.
    for name in ["trunk_branches", *[f"softmax{level}_blocks" for level in range(1, depth)]]:
        for module in (legacy, paper):
            _silence(getattr(module, name))
    trunk = mx.nd.zeros((1, 8, 16, 16))
    masks = [m._soft_mask(mx.nd, x, trunk).asnumpy() for m in (legacy, paper)]
    np.testing.assert_allclose(masks[0], masks[1], atol=1e-6)


def _silence(block: gluon.HybridBlock) -> None:
    """Make a block return zeros whatever it gets."""
    block.hybrid_forward = lambda F, x: F.zeros_like(x)


def test_a_soft_mask_lies_between_0_and_1() -> None:
    module = _module(2)
    module.initialize(mx.init.Normal(0.1), force_reinit=True)  # larger ones saturate the sigmoid
    x = mx.nd.random.normal(shape=(2, 8, 16, 16))
    mask = module._soft_mask(mx.nd, x, x).asnumpy()
    assert mask.shape == x.shape
    assert mask.min() > 0
    assert mask.max() < 1
    assert mask.std() > 1e-6


def test_p_t_r_count_units() -> None:
    module = AttentionModule(8, 2, ptr=(2, 3, 2))
    names = {name.rpartition(".conv1.")[0] for name in module._collect_params_with_prefix()}
    rows = {name for name in names if name}
    assert {f"first_residual_blocks.{i}" for i in range(2)} <= rows
    assert {f"last_blocks.{i}" for i in range(2)} <= rows
    assert {f"trunk_branches.{i}" for i in range(3)} <= rows
    assert {f"softmax1_blocks.{i}" for i in range(2)} <= rows
    assert {f"softmax2_blocks.{i}" for i in range(4)} <= rows
    assert {f"softmax3_blocks.{i}" for i in range(2)} <= rows
    assert len(rows) == 2 + 2 + 3 + 2 + 4 + 2 + 1  # and one skip unit


def test_attention_types_by_hand() -> None:
    """Two channels of two pixels: (3, 0) and (4, 2)."""
    y = mx.nd.array([3.0, 0.0, 4.0, 2.0]).reshape((1, 2, 1, 2))

    def sigmoid(values: list[float]) -> np.ndarray:
        return 1 / (1 + np.exp(-np.array(values)))

    expected = {
        "mixed": sigmoid([3, 0, 4, 2]),
        # Norms over the channels: 5 at the first pixel, 2 at the second.
        "channel": np.array([3 / 5, 0 / 2, 4 / 5, 2 / 2]),
        # Each channel lies one standard deviation to both sides of its mean.
        "spatial": sigmoid([1, -1, 1, -1]),
        "tanh": np.array([0.995055, 0.0, 0.999329, 0.964028]),
    }
    for attention, values in expected.items():
        found = soft_mask(mx.nd, y, attention).asnumpy().ravel()
        np.testing.assert_allclose(found, values, atol=1e-5, err_msg=attention)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_attention_gradients_by_finite_differences(attention: str) -> None:
    data = mx.sym.var("data")
    graph = soft_mask(mx.sym, data, attention)
    value = np.random.normal(size=(2, 3, 2, 4))
    mx.test_utils.check_numeric_gradient(
        graph, {"data": value}, numeric_eps=1e-4, rtol=1e-3, atol=1e-4, dtype=np.float64
    )


class _Times(gluon.HybridBlock):
    """Multiplies by a number: a unit whose result can be followed by hand."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return x * self.factor


@pytest.mark.parametrize(
    ("wiring", "learning", "expected"),
    [
        # Way down: pool 1, unit 2, pool 2, bottom 6. Way up: 6 + skip 20 = 26, unit 2.6, mask 0.26.
        ("paper", "arl", 5 * (1 + 0.5646363)),
        ("paper", "nal", 5 * 0.5646363),
        # 6 + skip 20 + down 2 = 28, unit 2.8, + trunk 5 = 7.8, mask 0.78.
        ("legacy", "arl", 5 * (1 + 0.6856801)),
        ("legacy", "nal", 5 * 0.6856801),
    ],
)
def test_wirings_and_learnings_by_hand(wiring: str, learning: str, expected: float) -> None:
    module = AttentionModule(4, 2, wiring=wiring, learning=learning)
    for name, factor in {
        "first_residual_blocks": 1.0,
        "trunk_branches": 5.0,
        "softmax1_blocks": 2.0,
        "skip1_connection_residual_block": 10.0,
        "softmax2_blocks": 3.0,
        "softmax3_blocks": 0.1,
        "softmax4_blocks": 0.1,
        "last_blocks": 1.0,
    }.items():
        module._children.pop(name)
        object.__setattr__(module, name, _Times(factor))
    found = module(mx.nd.ones((1, 4, 4, 4))).asnumpy()
    np.testing.assert_allclose(found, np.full((1, 4, 4, 4), expected), rtol=1e-6)


@pytest.mark.parametrize("learning", ["arl", "nal"])
@pytest.mark.parametrize("wiring", ["legacy", "paper"])
@pytest.mark.parametrize("unit", ["bottleneck", "resnext"])
def test_module_gradients_by_finite_differences(unit: str, wiring: str, learning: str) -> None:
    """Along a random direction of all parameters and the input, in float64."""
    module = AttentionModule(8, 2, wiring=wiring, learning=learning, unit=unit, groups=2)
    module.initialize(mx.init.Normal(0.5))
    module.cast("float64")
    places = [mx.nd.random.normal(shape=(2, 8, 6, 5), dtype="float64")]
    places[0].attach_grad()
    places += [p.data() for p in module.collect_params().values() if p.grad_req != "null"]
    weight = mx.nd.random.normal(shape=places[0].shape, dtype="float64")

    def loss() -> mx.nd.NDArray:
        with autograd.record():
            return (module(places[0]) * weight).sum()

    loss().backward()
    steps = [mx.nd.random.normal(shape=place.shape, dtype="float64") * 1e-6 for place in places]
    slope = sum(float((p.grad * step).sum().asscalar()) for p, step in zip(places, steps))
    difference = []
    for sign in (1, -2):
        for place, step in zip(places, steps):
            place[:] = place + sign * step
        difference.append(float(loss().asscalar()))
    assert abs(slope) > 1e-6
    assert (difference[0] - difference[1]) / 2 == pytest.approx(slope, rel=1e-4)


def test_resnext_unit_by_hand() -> None:
    """One pixel and two groups: y = relu(W3 relu(W2 relu(W1 x)) + x)."""
    unit = ResNeXtUnit(8, groups=2)
    unit.initialize()
    assert unit.projection is None
    assert unit.conv2.weight.shape == (4, 2, 3, 3)
    unit.conv1.weight.set_data(mx.nd.ones((4, 8, 1, 1)))
    centre = np.zeros((4, 2, 3, 3))
    # The second group's outputs, 2 and 3, read the inner channels 2 and 3.
    centre[:, :, 1, 1] = [[1, 0], [0, -1], [1, 1], [0, 2]]
    unit.conv2.weight.set_data(mx.nd.array(centre))
    unit.conv3.weight.set_data(mx.nd.array(np.arange(32)).reshape((8, 4, 1, 1)))
    x = np.array([3.0, -2.0, 0.5, 0.0, 1.0, 0.0, -1.0, -1.0])  # its sum, W1 x, is 0.5
    inner = np.array([0.5, 0.0, 1.0, 1.0])  # after W2 and its ReLU
    expected = np.maximum(np.arange(32).reshape(8, 4) @ inner + x, 0)
    found = unit(mx.nd.array(x).reshape((1, 8, 1, 1))).asnumpy().ravel()
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    unit.conv3.weight.set_data(mx.nd.zeros((8, 4, 1, 1)))
    found = unit(mx.nd.array(x).reshape((1, 8, 1, 1))).asnumpy().ravel()
    np.testing.assert_array_equal(found, np.maximum(x, 0))
