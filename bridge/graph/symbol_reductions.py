"""MXNet's operators that reduce, index, multiply and count, in PyTorch; needs PyTorch.

MXNet has no array without axes: a sum over everything has shape (1,).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Optional

import torch  # type: ignore[import-not-found]
from torch.nn import functional  # type: ignore[import-not-found]

from bridge.graph.symbol_arrays import Axes, as_tuple, with_axes
from bridge.graph.symbol_elementwise import DTYPES
from bridge.graph.symbol_table import Tensor, operator


def reduced_axes(x: Tensor, axis: Axes, exclude: bool) -> tuple[int, ...]:
    named = {place % x.ndim for place in as_tuple(axis)}
    chosen = named or set(range(x.ndim))
    return tuple(sorted(set(range(x.ndim)) - chosen if exclude and named else chosen))


@operator("sum", "sum_axis")
def sum_(x: Tensor, *, axis: Axes = None, keepdims: bool = False, exclude: bool = False) -> Tensor:
    return with_axes(x.sum(reduced_axes(x, axis, exclude), keepdim=keepdims))


@operator("mean")
def mean(x: Tensor, *, axis: Axes = None, keepdims: bool = False, exclude: bool = False) -> Tensor:
    return with_axes(x.mean(reduced_axes(x, axis, exclude), keepdim=keepdims))


@operator("max", "max_axis")
def max_(x: Tensor, *, axis: Axes = None, keepdims: bool = False, exclude: bool = False) -> Tensor:
    return _extreme(torch.amax, x, reduced_axes(x, axis, exclude), keepdims)


@operator("min", "min_axis")
def min_(x: Tensor, *, axis: Axes = None, keepdims: bool = False, exclude: bool = False) -> Tensor:
    return _extreme(torch.amin, x, reduced_axes(x, axis, exclude), keepdims)


def _extreme(function: Any, x: Tensor, axes: tuple[int, ...], keepdims: bool) -> Tensor:
    """Return the extreme; every entry that has it gets the whole gradient, as in MXNet."""
    found = function(x.detach(), axes, keepdim=True)
    if x.requires_grad:
        zero = torch.where(x.detach() == found, x - x.detach(), 0)
        found = found + zero.sum(axes, keepdim=True)
    if keepdims:
        return found
    return with_axes(found.reshape([n for i, n in enumerate(found.shape) if i not in axes]))


@operator("argmax")
def argmax(x: Tensor, *, axis: Optional[int] = None, keepdims: bool = False) -> Tensor:
    found = x.argmax(axis, keepdim=keepdims) if axis is not None else x.reshape(-1).argmax()
    return with_axes(found).to(torch.float32)


@operator("L2Normalization")
def l2_normalization(x: Tensor, *, eps: float = 1e-10, mode: str = "instance") -> Tensor:
    axes = {
        "instance": tuple(range(1, x.ndim)),
        "channel": (1,),
        "spatial": tuple(range(2, x.ndim)),
    }[mode]
    return x / (x.square().sum(axes, keepdim=True) + eps).sqrt()


def _register_softmax(name: str, function: Callable[[Tensor, int], Tensor]) -> None:
    @operator(name)
    def softmax(
        x: Tensor, *, axis: int = -1, temperature: Optional[float] = None, use_length: bool = False
    ) -> Tensor:
        if use_length:
            raise ValueError("softmax with use_length is not known here")
        return function(x if temperature is None else x / temperature, axis)


_register_softmax("softmax", functional.softmax)
_register_softmax("log_softmax", functional.log_softmax)


@operator("take")
def take(a: Tensor, indices: Tensor, *, axis: int = 0, mode: str = "clip") -> Tensor:
    axis %= a.ndim
    index = _bounded(indices, a.shape[axis], mode)
    found = a.index_select(axis, index.reshape(-1))
    return found.reshape(*a.shape[:axis], *indices.shape, *a.shape[axis + 1 :])


def _bounded(index: Tensor, length: int, mode: str) -> Tensor:
    """Return indices as whole numbers inside of an axis."""
    whole = index if index.dtype in (torch.int32, torch.int64) else index.to(torch.int64)
    if mode == "clip":
        return whole.clamp(0, length - 1)
    if mode == "wrap":
        return whole % length
    return whole  # "raise": PyTorch refuses what is outside


@operator("pick", "choose_element_0index")
def pick(
    x: Tensor, index: Tensor, *, axis: int = -1, keepdims: bool = False, mode: str = "clip"
) -> Tensor:
    axis = axis % x.ndim
    place = _bounded(index, x.shape[axis], mode).to(torch.int64)
    place = place if place.ndim == x.ndim else place.unsqueeze(axis)
    found = x.gather(axis, place)
    return found if keepdims else with_axes(found.squeeze(axis))


@operator("one_hot")
def one_hot(
    indices: Tensor,
    *,
    depth: int,
    on_value: float = 1.0,
    off_value: float = 0.0,
    dtype: str = "float32",
) -> Tensor:
    places = torch.arange(depth, device=indices.device)
    hit = indices.to(torch.int64).unsqueeze(-1) == places
    kind = DTYPES[dtype]
    return (off_value + hit.to(kind) * (on_value - off_value)).to(kind)


@operator("gather_nd")
def gather_nd(data: Tensor, indices: Tensor) -> Tensor:
    return data[tuple(indices.to(torch.int64).unbind(0))]


@operator("dot")
def dot(a: Tensor, b: Tensor, *, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
    """Sum over the last axis of `a` and the first of `b`; a transposed one lends its other end."""
    left = a.movedim(0, -1) if transpose_a else a
    right = b.movedim(-1, 0) if transpose_b else b
    if right.ndim <= 2:
        return with_axes(torch.matmul(left, right))
    return with_axes(torch.tensordot(left, right, 1))


@operator("batch_dot")
def batch_dot(
    a: Tensor, b: Tensor, *, transpose_a: bool = False, transpose_b: bool = False
) -> Tensor:
    left = a.transpose(-1, -2) if transpose_a else a
    return torch.matmul(left, b.transpose(-1, -2) if transpose_b else b)


def counting(x: Tensor) -> Any:
    """Return the type to count in beside `x`: half a precision cannot tell 256 from 257."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


@operator("_contrib_arange_like")
def arange_like(
    x: Tensor,
    *,
    start: float = 0.0,
    step: float = 1.0,
    repeat: int = 1,
    axis: Optional[int] = None,
) -> Tensor:
    count = x.numel() if axis is None else x.shape[axis]
    numbers = torch.arange(-(-count // repeat), dtype=counting(x), device=x.device) * step + start
    numbers = numbers.to(counting(x))  # a fraction would make floats of whole numbers
    numbers = numbers.repeat_interleave(repeat)[:count] if repeat > 1 else numbers
    return numbers.reshape(x.shape) if axis is None else numbers


@operator("_arange")
def arange(
    *,
    start: float = 0.0,
    stop: Optional[float] = None,
    step: float = 1.0,
    repeat: int = 1,
    infer_range: bool = False,
    dtype: str = "float32",
    device: Any,
) -> Tensor:
    if infer_range:
        raise ValueError("arange whose length is inferred is not known here")
    first, last = (0.0, start) if stop is None else (start, stop)
    count = max(0, math.ceil((last - first) / step))
    numbers = torch.arange(count, device=device).to(torch.float64) * step + first
    return numbers.repeat_interleave(repeat).to(DTYPES[dtype])


@operator("_zeros")
def zeros(*, shape: Axes, dtype: str = "float32", device: Any) -> Tensor:
    return torch.zeros(as_tuple(shape), dtype=DTYPES[dtype], device=device)


@operator("_ones")
def ones(*, shape: Axes, dtype: str = "float32", device: Any) -> Tensor:
    return torch.ones(as_tuple(shape), dtype=DTYPES[dtype], device=device)


@operator("_full")
def full(*, shape: Axes, value: float, dtype: str = "float32", device: Any) -> Tensor:
    return torch.full(as_tuple(shape), value, dtype=DTYPES[dtype], device=device)
