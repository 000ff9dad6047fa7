"""One attention module for every stage of the Residual Attention Network.

Source: Wang et al. 2017, section 3 and figure 2, arXiv 1704.06904; names of the children from
PistonY/ResidualAttentionNetwork (MIT), whose ``.param`` files must keep loading. That code has one
class for every stage; here one class takes the number of poolings in the mask, ``mask_depth``.
"""

from __future__ import annotations

from typing import Any, Optional

from mxnet.gluon import nn

from model.basic_layer import ResidualBlock, norm, pointwise, upsample_like

WIRINGS = ("legacy", "paper")
LEARNINGS = ("arl", "nal")
ATTENTIONS = ("mixed", "channel", "spatial")
STANDARDIZATION_EPSILON = 1e-5  # keeps a constant map finite; not in the paper

# Names before the refactoring of 2018-10-15, for the first CIFAR stage (mask_depth 2) only.
OLD_NAMES_DEPTH_2 = {
    "softmax1_blocks": "down_residual_blocks1",
    "softmax2_blocks": "middle_2r_blocks",
    "softmax3_blocks": "up_residual_blocks1",
    "softmax4_blocks": "conv1_1_blocks",
}


def units(channels: int, count: int, norm_kwargs: Optional[dict[str, Any]]) -> nn.HybridSequential:
    """Return `count` residual units in a row, named 0, 1, ..."""
    row = nn.HybridSequential(prefix="")
    for _ in range(count):
        row.add(ResidualBlock(channels, norm_kwargs=norm_kwargs))
    return row


def soft_mask(F: Any, y: Any, attention: str) -> Any:
    """Turn the mask branch's output into attention weights M (Wang et al. 2017, section 3.2).

    - ``mixed`` (f1): ``sigmoid(y)``.
    - ``channel`` (f2): ``y / ||y||``, the L2 norm over all channels at each position.
    - ``spatial`` (f3): ``sigmoid((y - mean) / std)`` over the positions of each channel.

    Inputs and outputs are (N, C, H, W).
    """
    if attention == "channel":
        return F.L2Normalization(y, mode="channel", name="soft_mask")
    if attention == "spatial":
        centred = F.broadcast_sub(y, F.mean(y, axis=(2, 3), keepdims=True))
        variance = F.mean(F.square(centred), axis=(2, 3), keepdims=True)
        y = F.broadcast_mul(centred, F.rsqrt(variance + STANDARDIZATION_EPSILON))
    return F.Activation(y, act_type="sigmoid", name="soft_mask")


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
    p, t, r
        Units before and after the branches, in the trunk, and between two poolings (section 3).
    wiring
        ``legacy`` or ``paper``.
    learning
        ``arl`` or ``nal``.
    attention
        ``mixed``, ``channel`` or ``spatial``, see `soft_mask`.
    names
        Other attribute names for children, for parameter files of other times.
    norm_kwargs
        Passed on to every batch normalisation.

    Inputs
        - **x**: (N, channels, H, W) float32; H and W of any size from 1.

    Outputs
        - (N, channels, H, W) float32.

    Raises
    ------
    ValueError
        When `wiring`, `learning` or `attention` is unknown, `mask_depth` is negative or p, t or r
        is below 1.
    """

    def __init__(
        self,
        channels: int,
        mask_depth: int,
        ptr: tuple[int, int, int] = (1, 2, 1),
        *,
        wiring: str = "legacy",
        learning: str = "arl",
        attention: str = "mixed",
        names: Optional[dict[str, str]] = None,
        norm_kwargs: Optional[dict[str, Any]] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for what, given, available in (
            ("wiring", wiring, WIRINGS),
            ("learning", learning, LEARNINGS),
            ("attention", attention, ATTENTIONS),
        ):
            if given not in available:
                raise ValueError(f"unknown {what} {given!r}; available: {', '.join(available)}")
        if mask_depth < 0 or min(ptr) < 1:
            raise ValueError(f"need mask_depth >= 0 and p, t, r >= 1, got {mask_depth} and {ptr}")
        self._channels, self._norm_kwargs = channels, norm_kwargs
        self._mask_depth, self._wiring, self._names = mask_depth, wiring, names or {}
        self._learning, self._attention = learning, attention
        p, t, r = ptr
        with self.name_scope():
            self.first_residual_blocks = self._units(p)
            self.trunk_branches = units(channels, t, norm_kwargs)
            self._build_mask(r)
            self.last_blocks = self._units(p)

    def _units(self, count: int) -> nn.HybridBlock:
        """One unit stands alone, without an index in its name: this is how the files have it."""
        if count == 1:
            return ResidualBlock(self._channels, norm_kwargs=self._norm_kwargs)
        return units(self._channels, count, self._norm_kwargs)

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
        self._add(f"softmax{max(depth, 1)}_blocks", units(self._channels, 2 * r, self._norm_kwargs))
        for level in range(depth - 1, 0, -1):
            self._add(f"softmax{2 * depth - level}_blocks", self._units(r))
        self._add(f"softmax{2 * max(depth, 1)}_blocks", self._build_head())

    def _build_head(self) -> nn.HybridSequential:
        head = nn.HybridSequential(prefix="")
        for _ in range(2):
            head.add(
                norm(self._channels, self._norm_kwargs),
                nn.Activation("relu"),
                pointwise(self._channels, self._channels),
            )
        return head

    def _soft_mask(self, F: Any, x: Any, trunk: Any) -> Any:
        """Return M (N, C, H, W) for the module's input after the first units."""
        depth, legacy = self._mask_depth, self._wiring == "legacy"
        down: list[Any] = []  # maps of the way down, largest first
        skips: list[Any] = []
        y = x
        for level in range(1, max(depth, 1) + 1):
            if depth:
                y = F.Pooling(y, kernel=(3, 3), stride=(2, 2), pad=(1, 1), pool_type="max")
            y = self._child(f"softmax{level}_blocks")(y)
            if level < depth:
                down.append(y)
                skips.append(self._child(f"skip{level}_connection_residual_block")(y))
        for level in range(depth - 1, 0, -1):
            y = upsample_like(F, y, skips[level - 1]) + skips[level - 1]
            if legacy:
                y = y + down[level - 1]
            y = self._child(f"softmax{2 * depth - level}_blocks")(y)
        if depth:
            y = upsample_like(F, y, x)
            if legacy:
                y = y + trunk
        y = self._child(f"softmax{2 * max(depth, 1)}_blocks")(y)
        return soft_mask(F, y, self._attention)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        x = self.first_residual_blocks(x)
        trunk = self.trunk_branches(x)

        mask = self._soft_mask(F, x, trunk)

        attended = F.elemwise_mul(mask, trunk)
        if self._learning == "arl":
            attended = trunk + attended
        return self.last_blocks(attended)
