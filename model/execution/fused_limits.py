"""What the operators in ``model/native/units`` can compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mxnet.gluon import nn

from model.native.build import block_channels


class Unsupported(Exception):
    """What the operators cannot compute; MXNet computes the network then."""


def check_channels(channels: int) -> None:
    """Refuse channels that do not fill blocks."""
    block = block_channels()
    if channels % block:
        raise Unsupported(f"{channels} channels, which are no multiple of {block}")


def constants_of(norms: Sequence[Any]) -> tuple[float, float]:
    """Return epsilon and momentum, which must be the same for all; their defaults for none."""
    found = {(bn._kwargs["eps"], bn._kwargs["momentum"]) for bn in norms} or {(1e-5, 0.9)}
    if len(found) > 1:
        raise Unsupported("normalisations with different settings")
    return found.pop()


def check_learning(*parameters: Any) -> None:
    """Refuse parameters without gradients."""
    if any(parameter.grad_req == "null" for parameter in parameters):
        raise Unsupported("parameters that are frozen")


def stride_of(conv: Any, trained: bool) -> int:
    """Return the stride of a convolution; refuse one that the operators do not know.

    `trained`: gradients are wanted, which the operators write for every parameter.
    """
    settings = conv._kwargs
    kernel, stride = settings["kernel"], settings["stride"]
    if (
        type(conv) is not nn.Conv2D
        or kernel not in ((1, 1), (3, 3))
        or stride[0] != stride[1]
        or settings["pad"] != (kernel[0] // 2, kernel[0] // 2)
        or settings["dilate"] != (1, 1)
        or settings["num_group"] != 1
        or not settings["no_bias"]
    ):
        raise Unsupported("a convolution other than 1x1 or 3x3 without bias")
    if trained:
        check_learning(conv.weight)
    for channels in conv.weight.shape[:2]:
        check_channels(channels)
    return int(stride[0])
