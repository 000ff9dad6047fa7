"""Channel gates against numbers and formulas in NumPy."""

from __future__ import annotations

from typing import Any, Callable

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from model.layers.channel_attention import (
    ChannelGate,
    ConvolutionalGate,
    EfficientGate,
    RecurrentGate,
    SharedLSTM,
    SqueezeExcitation,
    StaticGate,
    StyleGate,
    eca_taps,
    global_mean,
    scale,
)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _ready(gate: Any) -> Any:
    gate.initialize(mx.init.Normal(0.5))
    gate.cast("float64")
    return gate


def _value(gate: ChannelGate, x: np.ndarray, train: bool = False) -> np.ndarray:
    """The gate (N, C) of maps in float64."""
    array = mx.nd.array(x, dtype="float64")
    parameters = {key: p.data() for key, p in gate._reg_params.items()}
    with autograd.pause(train_mode=train):
        return gate._gate(mx.nd, array, **parameters).asnumpy()[:, :, 0]


def _p(block: Any, *names: str) -> list[np.ndarray]:
    parameters = block._collect_params_with_prefix()
    return [parameters[name].data().asnumpy() for name in names]


@pytest.fixture
def maps() -> np.ndarray:
    return np.random.RandomState(3).normal(0.3, 1, (5, 16, 4, 6))


LINE = np.array([1.0, 2.0, 3.0, 4.0]).reshape(4, 1, 1, 1)  # one channel, one pixel, four images
T2 = [0.158316, 0.227303, 0.315097, 0.418438]
# Computed from the released formula in float64, apart from this project.
REFERENCE = [
    (1, 0.5, [0.377541, 0.5, 0.622459, 0.731059]),
    (2, 0.5, T2),
    (3, 0.5, [0.158317, 0.227303, 0.315097, 0.418437]),
    (2, -0.5, T2),  # an even number of steps loses the sign of w
]


@pytest.mark.parametrize(("steps", "w", "expected"), REFERENCE)
def test_recurrent_gate_in_training(steps: int, w: float, expected: list[float]) -> None:
    gate = _ready(RecurrentGate(1, steps, w_init=w))
    np.testing.assert_allclose(_value(gate, LINE, train=True)[:, 0], expected, atol=6e-7)


def test_recurrent_gate_with_running_statistics() -> None:
    gate = _ready(RecurrentGate(1, 2, w_init=0.5))
    gate.bn1.running_mean.set_data(mx.nd.array([0.1]))
    gate.bn1.running_var.set_data(mx.nd.array([2.0]))
    expected = [0.229324, 0.262047, 0.297636, 0.335859]
    np.testing.assert_allclose(_value(gate, LINE)[:, 0], expected, atol=6e-7)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_first_gates_are_sigmoid_of_minus_one(maps: np.ndarray, steps: int) -> None:
    gates = [_ready(RecurrentGate(16, steps)), _ready(StaticGate(16))]
    for gate in gates:
        for train in (False, True):
            np.testing.assert_allclose(_value(gate, maps, train), 0.2689414, atol=1e-7)


def _gradients(steps: int, w_init: float, dtype: str) -> dict[str, np.ndarray]:
    gate = RecurrentGate(16, steps, w_init)
    gate.initialize()
    gate.cast(dtype)
    x = mx.nd.array(np.random.RandomState(1).normal(0, 1, (8, 16, 4, 4)), dtype=dtype)
    with autograd.record():
        loss = (gate(x) ** 2).sum()
    loss.backward()
    return {
        name: parameter.grad().asnumpy()
        for name, parameter in gate._collect_params_with_prefix().items()
        if parameter.grad_req != "null"
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("steps", [2, 3])
def test_zero_weights_are_stationary_with_two_steps_or_more(steps: int, dtype: str) -> None:
    for name, gradient in _gradients(steps, 0.0, dtype).items():
        if name == "b":
            assert np.abs(gradient).min() > 0.1
        else:
            np.testing.assert_array_equal(gradient, 0, err_msg=name)


@pytest.mark.parametrize(("steps", "w_init"), [(1, 0.0), (2, 0.1), (3, 0.1)])
def test_every_parameter_learns_otherwise(steps: int, w_init: float) -> None:
    for name, gradient in _gradients(steps, w_init, "float64").items():
        if steps == 3 and name == "bn1.beta":  # the next normalisation takes it out again
            assert np.abs(gradient).max() < 1e-12
        else:
            assert np.abs(gradient).min() > 1e-7, name


def test_mean_and_product_with_their_gradients(maps: np.ndarray) -> None:
    x = mx.nd.array(maps, dtype="float64")
    weight = mx.nd.array(np.random.RandomState(2).normal(size=maps.shape), dtype="float64")
    results = []
    for mean, times in (
        (
            lambda x: mx.nd.mean(x, axis=(2, 3), keepdims=True),
            mx.nd.broadcast_mul,
        ),
        (
            lambda x: global_mean(mx.nd, x).expand_dims(3),
            lambda x, gate: scale(mx.nd, x, gate.reshape((0, 0, 1))),
        ),
    ):
        x.attach_grad()
        with autograd.record():
            y = times(x, mx.nd.sigmoid(mean(x)))
            loss = (y * weight).sum()
        loss.backward()
        results.append((y.asnumpy(), x.grad.asnumpy()))
    for expected, found in zip(*results):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


def _se(gate: Any, x: np.ndarray, squeezed: np.ndarray) -> np.ndarray:
    w1, b1, w2, b2 = _p(gate, "fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    return np.maximum(squeezed @ w1.T + b1, 0) @ w2.T + b2


def test_squeeze_excitation(maps: np.ndarray) -> None:
    gate = _ready(SqueezeExcitation(16, 3))
    expected = _sigmoid(_se(gate, maps, maps.mean((2, 3))))
    np.testing.assert_allclose(_value(gate, maps), expected, rtol=1e-10)


def test_eca(maps: np.ndarray) -> None:
    assert [eca_taps(c) for c in (16, 32, 64, 128, 256, 512)] == [3, 3, 3, 5, 5, 5]
    gate = _ready(EfficientGate(16))
    mean = np.pad(maps.mean((2, 3)), ((0, 0), (1, 1)))
    (weight,) = _p(gate, "conv.weight")
    expected = _sigmoid(sum(weight[0, 0, k] * mean[:, k : k + 16] for k in range(3)))
    np.testing.assert_allclose(_value(gate, maps), expected, rtol=1e-10)


def test_srm(maps: np.ndarray) -> None:
    gate = _ready(StyleGate(16))
    cfc = np.random.RandomState(4).normal(size=(16, 2))
    gate.cfc.set_data(mx.nd.array(cfc, dtype="float64"))
    deviation = np.sqrt(maps.reshape(5, 16, -1).var(2, ddof=1) + 1e-5)
    z = cfc[:, 0] * maps.mean((2, 3)) + cfc[:, 1] * deviation
    expected = _sigmoid((z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5))
    # MXNet keeps epsilon as a float32.
    np.testing.assert_allclose(_value(gate, maps, train=True), expected, rtol=1e-6)


def test_cbam(maps: np.ndarray) -> None:
    gate = _ready(ConvolutionalGate(16, 3))
    channel = _sigmoid(_se(gate, maps, maps.mean((2, 3))) + _se(gate, maps, maps.max((2, 3))))
    np.testing.assert_allclose(_value(gate, maps), channel, rtol=1e-10)
    y = maps * channel[:, :, None, None]
    both = np.pad(np.stack([y.max(1), y.mean(1)], 1), ((0, 0), (0, 0), (3, 3), (3, 3)))
    (weight,) = _p(gate, "spatial.weight")
    windows = np.lib.stride_tricks.sliding_window_view(
        both,
        (7, 7),
        axis=(2, 3),  # type: ignore[call-overload]  # its stub takes one axis
    )
    logits = np.einsum("nchwij,ocij->nohw", windows, weight) / np.sqrt(1 + 1e-5)
    found = gate(mx.nd.array(maps, dtype="float64")).asnumpy()
    np.testing.assert_allclose(found, y * _sigmoid(logits), rtol=1e-6, atol=1e-9)


def test_dia_goes_on_from_unit_to_unit(maps: np.ndarray) -> None:
    cell = _ready(SharedLSTM(16, 4))
    x, state, h, c = mx.nd.array(maps, dtype="float64"), (), np.zeros((5, 16)), np.zeros((5, 16))
    for _ in range(3):
        y, *state = cell(x, *state)
        logits = np.zeros((5, 64))
        for kind, value in (("x", maps.mean((2, 3))), ("h", h)):
            w1, b1 = _p(cell, f"{kind}1.weight", f"{kind}1.bias")
            w2, b2 = _p(cell, f"{kind}2.weight", f"{kind}2.bias")
            logits += np.maximum(value @ w1.T + b1, 0) @ w2.T + b2
        i, f, g, o = np.split(logits, 4, axis=1)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        h = _sigmoid(o) * _sigmoid(c)
        np.testing.assert_allclose(y.asnumpy(), maps * h[:, :, None, None], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "build",
    [
        lambda: RecurrentGate(16, 2, w_init=0.3),
        lambda: StaticGate(16),
        lambda: EfficientGate(16),
        lambda: ConvolutionalGate(16, 2),
    ],
)
def test_gates_multiply_the_maps(build: Callable[[], ChannelGate], maps: np.ndarray) -> None:
    gate = _ready(build())
    found = gate(mx.nd.array(maps, dtype="float64")).asnumpy()
    ratio = found / maps
    assert (ratio > 0).all()
    assert (ratio < 1).all()
    if not isinstance(gate, ConvolutionalGate):
        np.testing.assert_allclose(
            ratio, np.broadcast_to(_value(gate, maps)[:, :, None, None], maps.shape), rtol=1e-10
        )
