"""MXNet's operators that reshape, slice, join and repeat arrays, in PyTorch; needs PyTorch."""

from __future__ import annotations

from typing import Optional, Union

import torch  # type: ignore[import-not-found]
from torch.nn import functional  # type: ignore[import-not-found]

from bridge.graph.symbol_shapes import reshaped, reshaped_like, span
from bridge.graph.symbol_table import Tensor, operator

Axes = Union[None, int, tuple[int, ...]]
Ends = tuple[Optional[int], ...]


def as_tuple(axes: Axes) -> tuple[int, ...]:
    return (axes,) if isinstance(axes, int) else tuple(axes or ())


def with_axes(x: Tensor) -> Tensor:
    return x.reshape(1) if x.ndim == 0 else x


@operator("Reshape", "reshape")
def reshape(x: Tensor, *, shape: Union[int, tuple[int, ...]] = (), reverse: bool = False) -> Tensor:
    codes = (shape,) if isinstance(shape, int) else shape
    # Already so: a tensor in channels_last keeps its layout.
    target = reshaped(x.shape, codes, reverse)
    return x if target == tuple(x.shape) else x.reshape(target)


@operator("reshape_like")
def reshape_like(
    x: Tensor,
    like: Tensor,
    *,
    lhs_begin: Optional[int] = None,
    lhs_end: Optional[int] = None,
    rhs_begin: Optional[int] = None,
    rhs_end: Optional[int] = None,
) -> Tensor:
    parts = (lhs_begin, lhs_end), (rhs_begin, rhs_end)
    return x.reshape(reshaped_like(x.shape, like.shape, *parts))


@operator("Flatten", "flatten")
def flatten(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], -1)


@operator("expand_dims")
def expand_dims(x: Tensor, *, axis: int) -> Tensor:
    return x.unsqueeze(axis)


@operator("squeeze")
def squeeze(x: Tensor, *, axis: Axes = None) -> Tensor:
    if axis is None:
        return with_axes(x.squeeze())
    return with_axes(x.squeeze(axis))


@operator("transpose")
def transpose(x: Tensor, *, axes: tuple[int, ...] = ()) -> Tensor:
    return x.permute(axes or tuple(range(x.ndim))[::-1])


@operator("SwapAxis", "swapaxes")
def swap_axes(x: Tensor, *, dim1: int = 0, dim2: int = 0) -> Tensor:
    return x.transpose(dim1, dim2)


@operator("Concat", "concat")
def concat(*arrays: Tensor, num_args: Optional[int] = None, dim: int = 1) -> Tensor:
    return torch.cat(arrays, dim)


@operator("stack")
def stack(*arrays: Tensor, num_args: Optional[int] = None, axis: int = 0) -> Tensor:
    return torch.stack(arrays, axis)


@operator("SliceChannel", "split", several=True)
def slice_channel(
    x: Tensor, *, num_outputs: int, axis: int = 1, squeeze_axis: bool = False
) -> tuple[Tensor, ...]:
    if squeeze_axis:
        return tuple(x.unbind(axis))
    return tuple(x.split(x.shape[axis] // num_outputs, axis))


@operator("slice_axis")
def slice_axis(x: Tensor, *, axis: int, begin: int, end: Optional[int] = None) -> Tensor:
    first, last = span(x.shape[axis], begin, end)
    return x.narrow(axis, first, last - first)


@operator("slice", "crop")
def slice_(x: Tensor, *, begin: Ends, end: Ends, step: Ends = ()) -> Tensor:
    for axis, (first, last) in enumerate(zip(begin, end)):
        stride = (step[axis] if axis < len(step) else None) or 1
        if stride < 0:  # PyTorch slices forwards only
            entries = range(x.shape[axis])[first:last:stride]
            index = torch.tensor(list(entries), dtype=torch.int64, device=x.device)
            x = x.index_select(axis, index)
        else:
            x = x[(slice(None),) * axis + (slice(first, last, stride),)]
    return x


@operator("slice_like")
def slice_like(x: Tensor, like: Tensor, *, axes: Axes = ()) -> Tensor:
    chosen = (axes,) if isinstance(axes, int) else axes or tuple(range(x.ndim))
    for axis in chosen:
        x = x.narrow(axis, 0, like.shape[axis])
    return x


@operator("broadcast_like")
def broadcast_like(
    x: Tensor, like: Tensor, *, lhs_axes: Axes = None, rhs_axes: Axes = None
) -> Tensor:
    if lhs_axes is None or rhs_axes is None:
        return x.expand(like.shape)
    left = (lhs_axes,) if isinstance(lhs_axes, int) else lhs_axes
    right = (rhs_axes,) if isinstance(rhs_axes, int) else rhs_axes
    shape = list(x.shape)
    for axis, other in zip(left, right):
        shape[axis] = like.shape[other]
    return x.expand(shape)


@operator("broadcast_to")
def broadcast_to(x: Tensor, *, shape: tuple[int, ...] = ()) -> Tensor:
    return x.expand([size or own for size, own in zip(shape, x.shape)])


@operator("broadcast_axis", "broadcast_axes")
def broadcast_axis(x: Tensor, *, axis: Axes = (), size: Axes = ()) -> Tensor:
    shape = list(x.shape)
    for place, length in zip(as_tuple(axis), as_tuple(size)):
        shape[place] = length
    return x.expand(shape)


@operator("tile")
def tile(x: Tensor, *, reps: Axes) -> Tensor:
    return x.tile(as_tuple(reps))


@operator("repeat")
def repeat(x: Tensor, *, repeats: int, axis: Optional[int] = None) -> Tensor:
    return x.repeat_interleave(repeats, axis)


@operator("Pad", "pad")
def pad(x: Tensor, *, mode: str, pad_width: tuple[int, ...], constant_value: float = 0.0) -> Tensor:
    # (before, after) of each axis, first axis first; PyTorch wants the last one first.
    pairs = list(zip(pad_width[::2], pad_width[1::2]))[::-1]
    if mode == "constant":
        widths = [width for pair in pairs for width in pair]
        return functional.pad(x, widths, value=constant_value)
    widths = [width for pair in pairs[: x.ndim - 2] for width in pair]
    return functional.pad(x, widths, mode={"edge": "replicate", "reflect": "reflect"}[mode])
