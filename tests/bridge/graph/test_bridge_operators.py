"""MXNet's operators in PyTorch: outputs and gradients of small graphs, compared with MXNet."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any, Callable

import mxnet as mx
import numpy as np
import pytest

from benchmarks.bridge.bridge_pair import Pair
from benchmarks.harness.interleave import Worker

S = mx.sym
x, y, z = S.var("x"), S.var("y"), S.var("z")
SHAPES = {"x": (2, 3, 4, 5), "y": (2, 3, 4, 5), "z": (1, 3, 1, 1)}


@pytest.fixture(scope="module")
def pair(torch_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    command = [torch_python, "-m", "benchmarks.bridge.torch_symbol"]
    folder = str(tmp_path_factory.mktemp("pair"))
    with Worker("PyTorch", command, {"OMP_NUM_THREADS": "1"}, timeout_sec=250) as worker:
        yield Pair(worker, folder)


def norm(data: Any, **attributes: Any) -> Any:
    names = ("gamma", "beta", "mean", "var")
    return S.BatchNorm(data, *(S.var(name) for name in names), **attributes)


def flat(data: Any) -> Any:
    return S.reshape(data, shape=(-3, 0, 0))


# Shapes of arrays that only some graphs have.
WEIGHTS = {"gamma": (3,), "beta": (3,), "mean": (3,), "var": (3,)}

GRAPHS: dict[str, Callable[[], Any]] = {
    # Element by element
    "unary": lambda: S.Group(
        [f(x) for f in (S.abs, S.cos, S.exp, S.relu, S.sigmoid, S.sin, S.square, S.tanh, S.erf)]
    ),
    "positive": lambda: S.Group([f(S.abs(x) + 1) for f in (S.log, S.rsqrt, S.sqrt, S.reciprocal)]),
    "rounding": lambda: S.Group([S.floor(x), S.ceil(x), S.sign(x), S.trunc(x)]),
    "activations": lambda: S.Group(
        [S.Activation(x, act_type=t) for t in ("relu", "sigmoid", "tanh", "softrelu", "softsign")]
    ),
    "leaky": lambda: S.Group([S.LeakyReLU(x, slope=0.1), S.LeakyReLU(x, act_type="elu")]),
    "binary": lambda: S.Group([x + y, x - y, x * y, x / (S.abs(y) + 1), S.add_n(x, y, x)]),
    "broadcast": lambda: S.Group(
        [S.broadcast_add(x, z), S.broadcast_sub(x, z), S.broadcast_mul(x, z)]
    ),
    "ties": lambda: S.Group(
        [
            S.broadcast_maximum(S.relu(x), S.relu(y)),
            S.broadcast_minimum(S.relu(x), S.relu(y)),
            S._internal._maximum_scalar(S.relu(x), scalar=0),
            S._internal._minimum_scalar(S.relu(x), scalar=0),
            S.clip(S.relu(x), 0, 1),
        ]
    ),
    "comparisons": lambda: S.Group(
        [S.broadcast_greater(x, z), S.broadcast_equal(x, x), x > 0.1, x <= 0.1, x == y]
    ),
    "scalars": lambda: S.Group([x + 2, x - 2, 2 - x, x * 3, x / 4, 4 / (S.abs(x) + 1), x**2]),
    "integers": lambda: S.Group(
        [
            S.cast((S.cast(x * 9, "int32") * 7 + 2) / 2, "float32"),
            S.cast(S.one_hot(S.argmax(y, axis=3), depth=5, dtype="int32") * 3 / 2, "float32"),
            S.cast(S.clip(S.cast(x * 9, "int32"), -5, 5) / 2, "float32"),
        ]
    ),
    "where": lambda: S.where(x > 0, x, y),
    "blocked": lambda: S.BlockGrad(x) * y + S.identity(x),
    # Shapes
    "reshape": lambda: S.Group(
        [
            S.reshape(x, shape=shape)
            for shape in [
                (0, -1),
                (-3, -3),
                (0, 0, -4, 2, -1, 0),
                (-1,),
                (-2,),
                (0, -3, 0),
                (1, 0, -1),
            ]
        ]
    ),
    "reshape_like": lambda: S.Group(
        [
            S.reshape_like(S.reshape(x, shape=(0, 0, -1)), S.BlockGrad(x)),
            S.reshape_like(
                S.reshape(x, shape=(0, 0, -1)), x, lhs_begin=2, lhs_end=3, rhs_begin=2, rhs_end=4
            ),
            S.reshape_like(S.reshape(x, shape=(-3, -2)), x, lhs_begin=0, lhs_end=1, rhs_end=2),
        ]
    ),
    "axes": lambda: S.Group(
        [S.transpose(x), S.transpose(x, axes=(0, 1, 3, 2)), S.swapaxes(x, 1, 3), S.flatten(x)]
    ),
    "expand": lambda: S.Group([S.expand_dims(x, axis=0), S.expand_dims(x, axis=2), S.squeeze(z)]),
    "concat": lambda: S.Group(
        [S.concat(x, y, dim=1), S.concat(x, y, dim=-1), S.stack(x, y, axis=1)]
    ),
    "split": lambda: S.Group(
        [
            S.split(x, num_outputs=3, axis=1)[2] * 2,
            S.split(x, num_outputs=4, axis=2, squeeze_axis=True)[1],
            S.split(x, num_outputs=1, axis=1),
        ]
    ),
    "slices": lambda: S.Group(
        [
            S.slice_axis(x, axis=1, begin=-1, end=None),
            S.slice_axis(x, axis=3, begin=1, end=-1),
            S.slice(x, begin=(0, None, 1), end=(None, None, 3)),
            S.slice(x, begin=(None, None, None, None), end=(None,) * 4, step=(1, 2, -1, 2)),
            S.slice_like(x, S.slice_axis(y, axis=3, begin=0, end=2), axes=(3,)),
        ]
    ),
    "broadcast_like": lambda: S.Group(
        [
            S.broadcast_like(z, x),
            S.broadcast_to(z, shape=(2, 0, 4, 5)),
            S.tile(z, reps=(2, 1, 2, 1)),
        ]
    ),
    "pad": lambda: S.Group(
        [
            S.pad(x, mode="constant", pad_width=(0, 0, 0, 0, 1, 2, 3, 0), constant_value=0.5),
            S.pad(x, mode="edge", pad_width=(0, 0, 0, 0, 1, 2, 3, 0)),
            S.pad(x, mode="reflect", pad_width=(0, 0, 0, 0, 1, 2, 3, 0)),
        ]
    ),
    "counting": lambda: S.Group(
        [
            S.broadcast_add(S.contrib.arange_like(x, axis=2), S.sum(x)),
            S.broadcast_add(S.arange(2, 9, 2), S.sum(x)),
            S.broadcast_add(S.zeros((2, 3)), S.reshape(S.sum(x), shape=(1, 1))),
            S.ones_like(x) + S.zeros_like(x) * x,
        ]
    ),
    # Reductions and choices
    "reductions": lambda: S.Group(
        [
            S.sum(x, axis=(2, 3)),
            S.mean(x, axis=1, keepdims=True),
            S.sum(x),
            S.mean(x, axis=1, exclude=True),
            S.max(x, axis=(1, 2)),
            S.min(x, axis=3, keepdims=True),
        ]
    ),
    "max_of_equals": lambda: S.max(S.relu(x), axis=3),
    "softmax": lambda: S.Group(
        [S.softmax(x, axis=1), S.log_softmax(x), S.softmax(x, temperature=2)]
    ),
    "choices": lambda: S.Group(
        [
            S.argmax(x, axis=1),
            S.pick(x, S.argmax(y, axis=-1), axis=-1),
            S.pick(x, S.argmax(y, axis=1), axis=1, keepdims=True),
            S.one_hot(S.argmax(y, axis=3), depth=5),
        ]
    ),
    "take": lambda: S.Group(
        [
            S.take(S.reshape(x, shape=(-1,)), S.cast(y * 50, "int32")),
            S.take(x, S.argmax(y, axis=2), axis=2),
            S.take(x, S.argmax(y, axis=2) + 3, axis=1, mode="wrap"),
        ]
    ),
    "gather_nd": lambda: S.gather_nd(x, S.reshape(S.argmax(z, axis=1), shape=(1, 1))),
    "norms": lambda: S.Group(
        [S.L2Normalization(x, mode=m) for m in ("instance", "channel", "spatial")]
    ),
    # Products
    "dot": lambda: S.Group(
        [
            S.dot(S.transpose(x, axes=(0, 1, 3, 2)), S.reshape(y, shape=(4, -1))),
            S.dot(x, S.reshape(y, shape=(-1, 5)), transpose_b=True),
            S.dot(S.reshape(x, shape=(6, -1)), S.reshape(y, shape=(6, 4, 5)), transpose_a=True),
            S.dot(S.reshape(x, shape=(-1,)), S.reshape(y, shape=(-1,))),
        ]
    ),
    "batch_dot": lambda: S.Group(
        [
            S.batch_dot(
                S.reshape(x, shape=(-3, 0, 0)), S.reshape(y, shape=(-3, 0, 0)), transpose_b=True
            ),
            S.batch_dot(
                S.reshape(x, shape=(-3, 0, 0)), S.reshape(y, shape=(-3, 0, 0)), transpose_a=True
            ),
        ]
    ),
    # Layers
    "dense": lambda: S.Group(
        [
            S.FullyConnected(x, S.reshape(y, shape=(-1, 60)), num_hidden=2, no_bias=True),
            S.FullyConnected(
                x,
                S.reshape(y, shape=(-1, 5)),
                S.reshape(S.sum(y, axis=3), shape=(-1,)),
                num_hidden=24,
                flatten=False,
            ),
        ]
    ),
    "convolution": lambda: S.Group(
        [
            S.Convolution(
                x,
                S.reshape(y, shape=(-1, 3, 2, 2)),
                kernel=(2, 2),
                num_filter=10,
                stride=(2, 1),
                pad=(1, 0),
                no_bias=True,
            ),
            S.Convolution(
                x,
                S.reshape(y, shape=(-1, 1, 2, 2)),
                kernel=(2, 2),
                num_filter=30,
                num_group=3,
                dilate=(1, 2),
                no_bias=True,
            ),
            S.Convolution(
                S.reshape(x, shape=(0, 0, -1)),
                S.reshape(y, shape=(-1, 3, 4)),
                S.reshape(S.sum(y, axis=(1, 2)), shape=(-1,)),
                kernel=(4,),
                num_filter=10,
                pad=(2,),
            ),
        ]
    ),
    "max_pooling": lambda: S.Group(
        [
            S.Pooling(x, kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="max"),
            S.Pooling(x, kernel=(2, 2), stride=(2, 2), pool_type="max", pooling_convention="full"),
            S.Pooling(x, kernel=(1, 1), global_pool=True, pool_type="max"),
            S.Pooling(x, kernel=(3, 1), pool_type="max"),
            S.Pooling(x, kernel=(3, 3), pad=(2, 2), pool_type="max"),
        ]
    ),
    "average_pooling": lambda: S.Group(
        [
            S.Pooling(x, kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="avg"),
            S.Pooling(
                x,
                kernel=(3, 3),
                stride=(2, 2),
                pad=(1, 1),
                pool_type="avg",
                count_include_pad=False,
            ),
            S.Pooling(x, kernel=(2, 2), stride=(2, 2), pool_type="avg", pooling_convention="full"),
            S.Pooling(x, kernel=(1, 1), global_pool=True, pool_type="avg"),
            S.Pooling(x, kernel=(2, 2), stride=(2, 1), pool_type="sum"),
        ]
    ),
    "resizing": lambda: S.Group(
        [
            S.contrib.BilinearResize2D(x, height=7, width=9),
            S.contrib.BilinearResize2D(x, height=3, width=2),
            S.contrib.BilinearResize2D(x, height=8, width=6, align_corners=False),
            S.contrib.BilinearResize2D(x, scale_height=2, scale_width=1.5),
            S.contrib.BilinearResize2D(x, height=7, width=9, scale_width=3),
            S.contrib.BilinearResize2D(S.slice_axis(x, axis=3, begin=0, end=2), x, mode="like"),
            S.contrib.AdaptiveAvgPooling2D(x, output_size=(2, 3)),
            S.UpSampling(x, scale=2, sample_type="nearest"),
        ]
    ),
    "batch_norm": lambda: norm(x, fix_gamma=False, eps=1e-5, momentum=0.8),
    "batch_norm_defaults": lambda: norm(x),
    "batch_norm_global": lambda: norm(x, fix_gamma=False, use_global_stats=True),
    "batch_norm_last_axis": lambda: norm(
        S.transpose(x, axes=(0, 2, 3, 1)), fix_gamma=False, axis=3
    ),
    "batch_norm_one_value": lambda: norm(S.mean(x, axis=(0, 2, 3), keepdims=True), fix_gamma=False),
    "batch_norm_flat": lambda: norm(S.mean(x, axis=(2, 3)), fix_gamma=False, eps=1e-5),
    "layer_norm": lambda: S.LayerNorm(x, S.var("gamma"), S.var("beta"), axis=1, eps=1e-5),
}


def arrays_of(symbol: Any, name: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return values of weights and of inputs."""
    generator = np.random.RandomState(zlib.crc32(name.encode()))
    names = symbol.list_inputs()
    weights = {
        n: generator.rand(*WEIGHTS[n]).astype(np.float32) + 0.5 for n in names if n in WEIGHTS
    }
    inputs = {
        n: generator.standard_normal(SHAPES[n]).astype(np.float32) for n in names if n in SHAPES
    }
    return weights, inputs


MODES = [(name, True) for name in GRAPHS] + [(n, False) for n in GRAPHS if "batch_norm" in n]


@pytest.mark.parametrize(("name", "train"), MODES)
def test_an_operator_computes_what_mxnet_does(name: str, train: bool, pair: Pair) -> None:
    symbol = GRAPHS[name]()
    weights, inputs = arrays_of(symbol, name)
    found = pair.compare(symbol.tojson(), weights, inputs, train)
    assert found["forward"] < 2e-6
    assert found.get("gradients", 0.0) < 2e-5
    assert found.get("statistics", 0.0) < 1e-6
