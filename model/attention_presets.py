"""Variants of the Residual Attention Network: one table of specs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionSpec:
    """What makes one network of the family.

    `modules`, `channels` and `mask_depths` have one entry per stage; `ptr` are the paper's p, t and
    r; the tail has three units of `tail_channels`; `wiring`, `learning` and `attention` are those
    of `model.attention_module.AttentionModule`. `old_names` gives stage 1 the names from before
    2018-10-15.
    """

    modules: tuple[int, int, int]
    stem_channels: int = 32
    channels: tuple[int, int, int] = (128, 256, 512)
    tail_channels: int = 1024
    mask_depths: tuple[int, int, int] = (2, 1, 0)
    ptr: tuple[int, int, int] = (1, 2, 1)
    wiring: str = "legacy"
    learning: str = "arl"
    attention: str = "mixed"
    old_names: bool = False

    def __post_init__(self) -> None:
        if min(self.modules) < 1 or min(self.stem_channels, *self.channels) < 1:
            raise ValueError(
                f"modules and channels must be positive, got {self.modules} and "
                f"{(self.stem_channels, *self.channels)}"
            )


MODULES_56, MODULES_92 = (1, 1, 1), (1, 2, 3)
# Bottlenecks of 8 channels would leave oneDNN its slow batch-norm code, hence 64 and not 32.
SMALL = {"stem_channels": 16, "channels": (64, 64, 128), "tail_channels": 256}

SPECS: dict[str, AttentionSpec] = {
    "attention56": AttentionSpec(MODULES_56),
    "attention92": AttentionSpec(MODULES_92),
    "attention56_small": AttentionSpec(MODULES_56, **SMALL),  # type: ignore[arg-type]
}
