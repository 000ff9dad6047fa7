"""MXNet's layers in PyTorch: convolution, batch normalisation, pooling, resizing; needs PyTorch.

Batch normalisation as MXNet computes it: the running variance follows the variance that divides by
the number of values n (PyTorch's follows the one that divides by n - 1), one value per channel is
allowed, and ``fix_gamma`` means a scale of 1. MXNet on a CPU moves the statistics in the backward
pass, here it is in the forward pass: one update a training step in both.
"""

from __future__ import annotations

from typing import Optional, Union

import torch  # type: ignore[import-not-found]
from torch.nn import functional  # type: ignore[import-not-found]

from bridge.graph.symbol_shapes import pooled_length
from bridge.graph.symbol_table import Tensor, operator

Sizes = tuple[int, ...]
CHANNELS_FIRST = (None, "None", "NCW", "NCHW", "NCDHW")
CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
LANES = 8  # float32 numbers in a vector of AVX2
MAX_POOLINGS = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


def check_layout(layout: Optional[str]) -> None:
    if layout not in CHANNELS_FIRST:
        raise ValueError(
            f"layout {layout!r} in the graph; channels come first in symbols here. PyTorch's own "
            "layout is chosen with module.to(memory_format=torch.channels_last)"
        )


@operator("Convolution")
def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor = None,
    *,
    kernel: Sizes,
    num_filter: int,
    stride: Sizes = (),
    dilate: Sizes = (),
    pad: Sizes = (),
    num_group: int = 1,
    no_bias: bool = False,
    layout: Optional[str] = None,
) -> Tensor:
    check_layout(layout)
    axes = len(kernel)
    if _writes_out_of_bounds(weight.shape, stride, pad):
        x, stride = x[(..., *(slice(None, None, step) for step in stride))], ()
    return CONVOLUTIONS[axes](x, weight, bias, stride or 1, pad or 0, dilate or 1, num_group)


def _writes_out_of_bounds(weight: Sizes, stride: Sizes, pad: Sizes) -> bool:
    """Tell whether a convolution must not reach oneDNN with its stride.

    On processors with AVX2 and without AVX-512 the gradient of the weights of a strided 1x1
    convolution with fewer input channels than a vector has lanes, in channels_last, writes past a
    buffer (oneDNN's issue 6035): the process ends, or goes on with damaged memory. Which layout
    PyTorch takes depends on the strides of image and weight, and on torch.compile, so that a plain
    layout cannot be had for sure. The same convolution of the pixels that it reads has no stride.
    """
    channels, *kernel = weight[1:]
    strided = any(step > 1 for step in stride)
    return channels < LANES and strided and set(kernel) == {1} and not any(pad)


@operator("FullyConnected")
def fully_connected(
    x: Tensor,
    weight: Tensor,
    bias: Tensor = None,
    *,
    num_hidden: int,
    no_bias: bool = False,
    flatten: bool = True,
) -> Tensor:
    return functional.linear(x.reshape(x.shape[0], -1) if flatten else x, weight, bias)


@operator("BatchNorm")
def batch_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    moving_mean: Tensor,
    moving_var: Tensor,
    *,
    eps: float = 1e-3,
    momentum: float = 0.9,
    fix_gamma: bool = True,
    use_global_stats: bool = False,
    output_mean_var: bool = False,
    axis: int = 1,
    training: bool,
) -> Tensor:
    if output_mean_var:
        raise ValueError("BatchNorm that returns its statistics is not known here")
    last = axis % x.ndim != 1
    x = x.movedim(axis, 1) if last else x
    gamma = None if fix_gamma else gamma
    if not training or use_global_stats:
        y = functional.batch_norm(x, moving_mean, moving_var, gamma, beta, eps=eps)
    else:
        y = _normalise_batch(x, (gamma, beta), (moving_mean, moving_var), momentum, eps)
    return y.movedim(1, axis) if last else y


def _normalise_batch(
    x: Tensor,
    affine: tuple[Optional[Tensor], Tensor],
    statistics: tuple[Tensor, Tensor],
    momentum: float,
    eps: float,
) -> Tensor:
    mean, variance = statistics
    count = x.numel() // x.shape[1]
    if count == 1:  # the value is its own mean: what is left is beta
        with torch.no_grad():
            mean.lerp_(x.detach().reshape(-1).to(mean.dtype), 1 - momentum)
            variance.mul_(momentum)
        shape = (1, -1, *[1] * (x.ndim - 2))
        return (x - x) + affine[1].reshape(shape)
    # Copies, because what batch_norm has written must stay as it is until the backward pass.
    new_mean, new_variance = mean.clone(), variance.clone()
    y = functional.batch_norm(x, new_mean, new_variance, *affine, True, 1 - momentum, eps)
    with torch.no_grad():
        mean.copy_(new_mean)
        # PyTorch has added (1 - momentum) * n / (n - 1) times the variance of the batch.
        variance.mul_(momentum / count).add_(new_variance, alpha=1 - 1 / count)
    return y


@operator("Pooling")
def pooling(
    x: Tensor,
    *,
    kernel: Sizes = (),
    pool_type: str = "max",
    global_pool: bool = False,
    pooling_convention: str = "valid",
    stride: Sizes = (),
    pad: Sizes = (),
    p_value: int = 2,
    count_include_pad: bool = True,
    layout: Optional[str] = None,
) -> Tensor:
    check_layout(layout)
    if pool_type not in ("max", "avg", "sum"):
        raise ValueError(f"Pooling of type {pool_type!r}; available: max, avg, sum")
    if pooling_convention not in ("valid", "full"):
        raise ValueError(f"pooling convention {pooling_convention!r}; available: valid, full")
    axes = x.ndim - 2
    if global_pool:
        kernel, stride, pad = tuple(x.shape[2:]), (1,) * axes, (0,) * axes
    stride, pad = stride or (1,) * axes, pad or (0,) * axes
    full = pooling_convention == "full"
    counts = [pooled_length(*window, full) for window in zip(x.shape[2:], kernel, stride, pad)]
    # How far the last window sticks out behind the padding; MXNet counts it, PyTorch may not.
    beyond = [
        max(0, (n - 1) * s + k - length - 2 * p)
        for n, s, k, length, p in zip(counts, stride, kernel, x.shape[2:], pad)
    ]
    if pool_type == "max":
        # PyTorch itself pads by at most half a window.
        if any(beyond) or any(2 * p > k for p, k in zip(pad, kernel)):
            x, pad = _padded(x, pad, beyond, float("-inf")), (0,) * axes
        return MAX_POOLINGS[axes](x, kernel, stride, pad)
    return _average(x, (kernel, stride, pad), beyond, pool_type, count_include_pad)


def _padded(x: Tensor, pad: Sizes, beyond: list[int], value: float) -> Tensor:
    widths = [w for p, b in zip(pad[::-1], beyond[::-1]) for w in (p, p + b)]
    return functional.pad(x, widths, value=value) if any(widths) else x


def _average(
    x: Tensor, window: tuple[Sizes, Sizes, Sizes], beyond: list[int], kind: str, with_pad: bool
) -> Tensor:
    kernel, stride, pad = window
    axes = len(kernel)
    mean = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[axes - 1]
    size = 1
    for length in kernel:
        size *= length
    y = mean(_padded(x, pad, beyond, 0.0), kernel, stride) * size
    if kind == "sum":
        return y
    # How many places each window has: those within the image, or within the padding too.
    ones = torch.ones((1, 1, *x.shape[2:]), dtype=y.dtype, device=x.device)
    if with_pad:
        ones = _padded(ones, pad, [0] * axes, 1.0)
        counted = _padded(ones, (0,) * axes, beyond, 0.0)
    else:
        counted = _padded(ones, pad, beyond, 0.0)
    return y / (mean(counted, kernel, stride) * size).round()


@operator("_contrib_AdaptiveAvgPooling2D")
def adaptive_average(x: Tensor, *, output_size: Union[int, Sizes] = ()) -> Tensor:
    return functional.adaptive_avg_pool2d(x, output_size or 1)


@operator("_contrib_BilinearResize2D")
def bilinear_resize(
    x: Tensor,
    like: Tensor = None,
    *,
    height: int = 1,
    width: int = 1,
    scale_height: Optional[float] = None,
    scale_width: Optional[float] = None,
    mode: str = "size",
    align_corners: bool = True,
) -> Tensor:
    if mode not in ("size", "like"):
        raise ValueError(f"BilinearResize2D in mode {mode!r}; available: size, like")
    if mode == "like":
        target = tuple(like.shape[2:])
    elif scale_height is not None:  # which alone decides for both in MXNet
        if scale_width is None:
            raise ValueError("BilinearResize2D with scale_height needs scale_width too")
        scales = scale_height, scale_width
        target = tuple(int(scale * length) for scale, length in zip(scales, x.shape[2:]))
    else:
        target = (height, width)
    return functional.interpolate(x, target, mode="bilinear", align_corners=align_corners)


@operator("UpSampling")
def up_sampling(
    x: Tensor,
    *,
    scale: int,
    sample_type: str,
    num_args: int = 1,
    num_filter: int = 0,
    multi_input_mode: str = "concat",
) -> Tensor:
    if sample_type != "nearest" or num_args != 1:
        raise ValueError("UpSampling other than nearest of one array is not known here")
    return functional.interpolate(x, scale_factor=scale, mode="nearest")


@operator("Dropout")
def dropout(
    x: Tensor, *, p: float = 0.5, mode: str = "training", axes: Sizes = (), training: bool
) -> Tensor:
    if axes:
        raise ValueError(f"Dropout over the axes {axes} is not known here; leave the axes out")
    return functional.dropout(x, p, training or mode == "always")


@operator("LayerNorm")
def layer_norm(
    x: Tensor,
    gamma: Tensor,
    beta: Tensor,
    *,
    axis: int = -1,
    eps: float = 1e-5,
    output_mean_var: bool = False,
) -> Tensor:
    if output_mean_var:
        raise ValueError("LayerNorm that returns its statistics is not known here")
    moved = x.movedim(axis, -1)
    return functional.layer_norm(moved, gamma.shape, gamma, beta, eps).movedim(-1, axis)
