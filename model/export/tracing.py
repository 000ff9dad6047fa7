"""A network as a plain MXNet graph: symbol, arrays, and what its inputs and outputs are called.

`training.apply.export` writes such a graph; none of this project's code is needed to run it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import nn

from model.recurrent_attention import RecurrentAttention, Rollouts

Length = Union[int, str]  # of an axis: a number, or the name of a length that is free
ODD_SIZES = ((13, -5), (-11, 7))  # what is added to height and width to see whether any size works


class Traced(NamedTuple):
    """A network's graph.

    Attributes
    ----------
    symbol
        Its outputs, grouped when there are several.
    arrays
        Parameter name in the symbol to float32 array.
    inputs, outputs
        Name to shape, in order; a str in a shape is a length that may be anything.
    sizes
        Heights and widths that the network is meant for and checked at; the first is its own.
    """

    symbol: Any
    arrays: dict[str, np.ndarray]
    inputs: dict[str, tuple[Length, ...]]
    outputs: dict[str, tuple[Length, ...]]
    sizes: tuple[tuple[int, int], ...]

    def parameter_file(self) -> dict[str, np.ndarray]:
        """Return the arrays as a ``.params`` file of ``HybridBlock.export`` names them."""
        auxiliary = set(self.symbol.list_auxiliary_states())
        return {
            f"{'aux' if name in auxiliary else 'arg'}:{name}": array
            for name, array in self.arrays.items()
        }

    def example(self, batch: int, size: tuple[int, int], seed: int = 0) -> dict[str, np.ndarray]:
        """Return random inputs of one size: images as after normalization, places in [-1, 1]."""
        lengths = {"N": batch, "H": size[0], "W": size[1], "R": 2}
        random = np.random.RandomState(seed)
        arrays = {}
        for name, shape in self.inputs.items():
            values = random.standard_normal(numbers(shape, lengths))
            if name == "first_location":
                values = np.clip(values, -1, 1)
            elif name == "noise":
                values = values / 10
            elif "noise" in self.inputs:
                values = np.abs(values) % 1  # glimpse models see pixels from 0 to 1
            arrays[name] = values.astype(np.float32)
        return arrays


def numbers(shape: tuple[Length, ...], lengths: Mapping[str, int]) -> list[int]:
    """Return a shape with a number for each free length."""
    return [lengths[length] if isinstance(length, str) else length for length in shape]


def trace(net: nn.HybridBlock) -> Traced:
    """Return the graph of an initialized network of this project.

    Parameters
    ----------
    net
        Takes images (N, C, H, W), or is a `model.recurrent_attention.RecurrentAttention`, which
        also takes first locations and noise.

    Raises
    ------
    ValueError
        When a parameter is not float32.
    """
    channels, height, width = net.image_shape
    if isinstance(net, RecurrentAttention):
        glimpses, classes = net.spec.num_glimpses, net.classifier.fc._units
        inputs: dict[str, tuple[Length, ...]] = {
            "image": ("N", channels, height, width),
            "first_location": ("N", "R", 2),
            "noise": ("N", "R", glimpses, 2),
        }
        ends = ((classes,), (), (2,), (2,), (2,))
        outputs: dict[str, tuple[Length, ...]] = {
            name: ("N", "R", glimpses, *end) for name, end in zip(Rollouts._fields, ends)
        }
        sizes: tuple[tuple[int, int], ...] = ((height, width),)
    else:
        inputs = {"image": ("N", channels, "H", "W")}
        outputs = {"logits": ("N", _classes(net))}
        sizes = ((height, width), *((height + y, width + x) for y, x in ODD_SIZES))
    operator = getattr(net, "uses_operator", False)
    if operator:  # it is compiled here; other machines have MXNet's own operators alone
        net.use_operator(False)
    with mx.name.NameManager():  # names that do not depend on what was built before
        results = net(*(mx.sym.var(name) for name in inputs))
    if operator:
        net.use_operator()
    several = isinstance(results, (list, tuple))
    symbol = mx.sym.Group(list(results)) if several else results
    arrays = {}
    used = set(symbol.list_inputs())
    for name, parameter in net.collect_params().items():
        array = parameter.data(parameter.list_ctx()[0]).asnumpy()
        if array.dtype != np.float32:
            raise ValueError(f"{name} is {array.dtype}; only float32 networks are exported")
        if name in used:
            arrays[name] = array
    if not all(_fits(symbol, arrays, channels, size) for size in sizes[1:]):
        inputs, sizes = {"image": ("N", channels, height, width)}, sizes[:1]
    return Traced(symbol, arrays, inputs, outputs, sizes)


def _fits(
    symbol: Any, arrays: Mapping[str, np.ndarray], channels: int, size: tuple[int, int]
) -> bool:
    """Return whether a graph takes images of a size: one with a layer for all pixels does not."""
    shapes = {name: array.shape for name, array in arrays.items()}
    try:
        symbol.infer_shape(image=(1, channels, *size), **shapes)
    except mx.MXNetError:
        return False
    return True


def _classes(net: nn.HybridBlock) -> int:
    """Return the width of the logits, whatever the last layer is called."""
    with mx.name.NameManager():
        logits = net(mx.sym.var("image"))
    return int(logits.infer_shape(image=(1, *net.image_shape))[1][0][1])


def run_symbol(traced: Traced, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Compute a graph with MXNet on the CPU; the outputs in order."""
    names = traced.symbol.list_inputs()
    values = {**traced.arrays, **inputs}
    operator = mx.nd.CachedOp(traced.symbol)
    found = operator(*(mx.nd.array(values[name], dtype="float32") for name in names))
    return [value.asnumpy() for value in (found if isinstance(found, list) else [found])]
