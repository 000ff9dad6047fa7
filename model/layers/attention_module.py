"""One attention module for every stage of the Residual Attention Network.

Source: Wang et al. 2017, section 3 and figure 2, arXiv 1704.06904; names of the children from
PistonY/ResidualAttentionNetwork (MIT), whose ``.param`` files must keep loading. That code has one
class for every stage; here one class takes the number of poolings in the mask, ``mask_depth``.
"""

from __future__ import annotations

import re
from functools import partial, reduce
from operator import add
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

from mxnet.gluon import nn

from model.layers.basic_layer import ResidualBlock, norm, pointwise, upsample_like
from model.layers.resnext_unit import ResNeXtUnit

WIRINGS = ("legacy", "paper")
LEARNINGS = ("arl", "nal")
UNITS = ("bottleneck", "resnext")
SOFT_MASK = "soft_mask"  # ends the name of every mask in a graph

# Names before the refactoring of 2018-10-15, for the first CIFAR stage (mask_depth 2) only.
OLD_NAMES_DEPTH_2 = {
    "softmax1_blocks": "down_residual_blocks1",
    "softmax2_blocks": "middle_2r_blocks",
    "softmax3_blocks": "up_residual_blocks1",
    "softmax4_blocks": "conv1_1_blocks",
}

# Called as unit(channels), unit(channels, in_channels, stride).
Unit = Callable[..., nn.HybridBlock]
NormLayer = Callable[..., nn.HybridBlock]
Run = Callable[[nn.HybridBlock, Any], Any]
Up = Callable[[Any, Any, list[Any]], Any]


class Activation(NamedTuple):
    """A row of the table of activations, see `soft_mask`."""

    divided: str
    end: str
    epsilon: float


def read_activations(text: str) -> dict[str, Activation]:
    """Return the table that the operators in C++ are made from, by name."""
    rows = re.findall(r"^ACTIVATION\((\w+), *(\w+), *(\w+), *([\d.e-]+)\)$", text, re.M)
    return {name: Activation(divided, end, float(eps)) for name, divided, end, eps in rows}


_TABLE = Path(__file__).parents[1] / "native" / "units" / "mask_activations.def"
ACTIVATIONS = read_activations(_TABLE.read_text(encoding="utf-8"))
ATTENTIONS = tuple(ACTIVATIONS)


def unit_builder(
    kind: str,
    groups: int = 32,
    norm_layer: Optional[NormLayer] = None,
    norm_kwargs: Optional[dict[str, Any]] = None,
) -> Unit:
    """Return what builds a residual unit: ``unit(channels, in_channels=None, stride=1)``.

    Parameters
    ----------
    kind
        ``bottleneck``, `model.layers.basic_layer.ResidualBlock`, or ``resnext``,
        `model.layers.resnext_unit.ResNeXtUnit`.
    groups
        Groups of a ResNeXt unit; a bottleneck has none.
    norm_layer, norm_kwargs
        See `model.layers.basic_layer.norm`.

    Raises
    ------
    ValueError
        When `kind` is unknown.
    """
    _check_choice("unit", kind, UNITS)
    if kind == "resnext":
        return partial(ResNeXtUnit, groups=groups, norm_layer=norm_layer, norm_kwargs=norm_kwargs)
    return partial(ResidualBlock, norm_layer=norm_layer, norm_kwargs=norm_kwargs)


def soft_mask(F: Any, y: Any, attention: str) -> Any:
    """Turn the mask branch's output into attention weights M (Wang et al. 2017, section 3.2).

    - ``mixed`` (f1): ``sigmoid(y)``.
    - ``channel`` (f2): ``y / ||y||``, the L2 norm over all channels at each position.
    - ``spatial`` (f3): ``sigmoid((y - mean) / std)`` over the positions of each channel.
    - ``tanh``: ``tanh(y)``, not in the paper but in the authors' AttentionNeXt-56.

    The table ``model/native/units/mask_activations.def`` has these as rows: what the maps are
    divided by (the norm over the channels of each of the ``PIXELS``, the deviation of each of the
    ``MAPS``, or ``NOWHERE``), the function at the end, and what keeps a division finite, which the
    paper does not have. Fused training computes the same in C++ from the same table. Inputs and
    outputs are (N, C, H, W); ValueError for an unknown name.
    """
    _check_choice("attention", attention, ATTENTIONS)
    divided, end, epsilon = ACTIVATIONS[attention]
    if divided == "PIXELS":
        return F.L2Normalization(y, mode="channel", eps=epsilon, name=SOFT_MASK)
    if divided == "MAPS":
        centred = F.broadcast_sub(y, F.mean(y, axis=(2, 3), keepdims=True))
        variance = F.mean(F.square(centred), axis=(2, 3), keepdims=True)
        y = F.broadcast_mul(centred, F.rsqrt(variance + epsilon))
    return F.Activation(y, act_type=end.lower(), name=SOFT_MASK)


class AttentionModule(nn.HybridBlock):
    """``H(x) = post((1 + M(pre(x))) * T(pre(x)))``: trunk T, soft mask M (equation 3).

    The soft mask goes down by `mask_depth` max poolings, up again by bilinear resizing with skip
    connections, and ends with two 1x1 convolutions and `soft_mask`. This is attention residual
    learning, ``arl``; naive attention learning, ``nal``, leaves out the 1 (equation 1).

    Wiring of the way up, with ``u`` the upsampled map: ``paper`` (the authors' prototxt) adds the
    skip unit's output, ``u + skip``; ``legacy`` (PistonY, gluoncv) also adds the raw map of the way
    down, and the trunk's output at the top: ``u + down + skip``, ``u + T``. The parameters are the
    same in both; a file trained with one wiring needs that wiring.

    Parameters
    ----------
    channels
        Channels of trunk, mask and output.
    mask_depth
        Max poolings in the mask, 0 or more. With 0 the mask is two units at full size.
    ptr
        p, t, r: units before and after the branches, in the trunk, and between two poolings
        (section 3).
    post_units
        Units after the branches where they are not p. gluoncv has 1 whatever p is.
    wiring
        ``legacy`` or ``paper``.
    learning
        ``arl`` or ``nal``.
    attention
        ``mixed``, ``channel``, ``spatial`` or ``tanh``, see `soft_mask`.
    unit, groups
        Kind of the residual units, see `unit_builder`.
    names
        Other attribute names for children, for parameter files of other times.
    norm_layer, norm_kwargs
        Normalisation in place of batch normalisation, and its settings.

    Inputs
        - **x**: (N, channels, H, W) float32; H and W of any size from 1.

    Outputs
        - (N, channels, H, W) float32.

    Raises
    ------
    ValueError
        When `wiring`, `learning`, `attention` or `unit` is unknown, `mask_depth` is negative or a
        number of units is below 1.
    """

    def __init__(
        self,
        channels: int,
        mask_depth: int,
        ptr: tuple[int, int, int] = (1, 2, 1),
        *,
        post_units: Optional[int] = None,
        wiring: str = "legacy",
        learning: str = "arl",
        attention: str = "mixed",
        unit: str = "bottleneck",
        groups: int = 32,
        names: Optional[dict[str, str]] = None,
        norm_layer: Optional[NormLayer] = None,
        norm_kwargs: Optional[dict[str, Any]] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check_choice("wiring", wiring, WIRINGS)
        _check_choice("learning", learning, LEARNINGS)
        _check_choice("attention", attention, ATTENTIONS)
        p, t, r = ptr
        post_units = p if post_units is None else post_units
        if mask_depth < 0 or min(*ptr, post_units) < 1:
            raise ValueError(
                "need mask_depth >= 0 and p, t, r, post_units >= 1, got "
                f"{mask_depth}, {tuple(ptr)} and {post_units}"
            )
        self._channels, self._mask_depth, self._names = channels, mask_depth, names or {}
        self._wiring, self._learning, self._attention = wiring, learning, attention
        self._unit = unit_builder(unit, groups, norm_layer, norm_kwargs)
        with self.name_scope():
            self.first_residual_blocks = self._units(p)
            self.trunk_branches = self._row(t)
            self._build_mask(r)
            # A unit that ends with its activation is followed by a convolution, not by a norm.
            activates = unit == "resnext"
            self._add(
                f"softmax{2 * max(mask_depth, 1)}_blocks",
                self._head(activates, norm_layer, norm_kwargs),
            )
            self.last_blocks = self._units(post_units)

    def _row(self, count: int) -> nn.HybridSequential:
        """Return `count` residual units in a row, named 0, 1, ..."""
        row = nn.HybridSequential(prefix="")
        for _ in range(count):
            row.add(self._unit(self._channels))
        return row

    def _units(self, count: int) -> nn.HybridBlock:
        """One unit stands alone, without an index in its name: this is how the files have it."""
        return self._unit(self._channels) if count == 1 else self._row(count)

    def _child(self, name: str) -> nn.HybridBlock:
        block: nn.HybridBlock = getattr(self, self._names.get(name, name))
        return block

    def _add(self, name: str, block: nn.HybridBlock) -> None:
        setattr(self, self._names.get(name, name), block)

    def _build_mask(self, r: int) -> None:
        depth = self._mask_depth
        for level in range(1, depth):
            self._add(f"softmax{level}_blocks", self._units(r))
            self._add(f"skip{level}_connection_residual_block", self._units(1))
        self._add(f"softmax{max(depth, 1)}_blocks", self._row(2 * r))
        for level in range(depth - 1, 0, -1):
            self._add(f"softmax{2 * depth - level}_blocks", self._units(r))

    def _head(
        self,
        activated: bool,
        norm_layer: Optional[NormLayer],
        norm_kwargs: Optional[dict[str, Any]],
    ) -> nn.HybridSequential:
        """Return the two 1x1 convolutions; an `activated` input needs no norm and ReLU before."""
        head = nn.HybridSequential(prefix="")
        for first in (True, False):
            if not (first and activated):
                head.add(norm(self._channels, norm_layer, norm_kwargs), nn.Activation("relu"))
            head.add(pointwise(self._channels, self._channels))
        return head

    def _mask_way(self, x: Any, trunk: Any, run: Run, pool: Callable[[Any], Any], up: Up) -> Any:
        """Go down and up again from the module's input after the first units, by these operators.

        ``up(y, like, added)`` resizes ``y`` to the size of ``like`` and adds all of ``added``.
        """
        depth, legacy = self._mask_depth, self._wiring == "legacy"
        down: list[Any] = []  # maps of the way down, largest first
        skips: list[Any] = []
        y = x
        for level in range(1, max(depth, 1) + 1):
            y = run(self._child(f"softmax{level}_blocks"), pool(y) if depth else y)
            if level < depth:
                down.append(y)
                skips.append(run(self._child(f"skip{level}_connection_residual_block"), y))
        for level in range(depth - 1, 0, -1):
            added = [skips[level - 1], *([down[level - 1]] if legacy else [])]
            y = up(y, skips[level - 1], added)
            y = run(self._child(f"softmax{2 * depth - level}_blocks"), y)
        return up(y, x, [trunk] if legacy else []) if depth else y

    def _soft_mask(self, F: Any, x: Any, trunk: Any) -> Any:
        """Return M (N, C, H, W) for the module's input after the first units."""
        y = self._mask_way(
            x,
            trunk,
            run=lambda block, y: block(y),
            pool=lambda y: F.Pooling(y, kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="max"),
            up=lambda y, like, added: reduce(add, added, upsample_like(F, y, like)),
        )
        y = self._child(f"softmax{2 * max(self._mask_depth, 1)}_blocks")(y)
        return soft_mask(F, y, self._attention)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        x = self.first_residual_blocks(x)
        trunk = self.trunk_branches(x)
        attended = F.elemwise_mul(self._soft_mask(F, x, trunk), trunk)
        if self._learning == "arl":
            attended = trunk + attended
        return self.last_blocks(attended)

    def trace(self, ops: Any, x: Any) -> Any:
        """Return blocked maps by fused operators; see `model.execution.fused_graph.Trace`."""
        x = ops.run(self.first_residual_blocks, x)
        trunk = ops.run(self.trunk_branches, x)
        y = self._mask_way(x, trunk, ops.run, partial(ops.emit, "pool"), ops.upsample)
        norm1, _, conv1, norm2, _, conv2 = self._child(
            f"softmax{2 * max(self._mask_depth, 1)}_blocks"
        )
        y = ops.unit(2, [conv1, conv2], [norm1, norm2], y, shortcut="none")
        attended = ops.emit("mask", y, trunk, attention=self._attention, learning=self._learning)
        return ops.run(self.last_blocks, attended)


def _check_choice(what: str, given: str, available: tuple[str, ...]) -> None:
    if given not in available:
        raise ValueError(f"unknown {what} {given!r}; available: {', '.join(available)}")
