"""Variants of the Residual Attention Network: one table of specs.

Source: Wang et al. 2017, "Residual Attention Network for Image Classification", arXiv 1704.06904.
The number in a name counts the layers of the trunk, on the longest way that avoids the masks:
``36 m + 20`` with m modules per stage on average.

- ``attentionD``: widths and mask depths of PistonY and gluoncv for 32x32 images. Their files load.
- ``attentionD_paper``: 64/128/256 channels, m modules in each stage and the authors' wiring. The
  paper publishes no widths; these give its 1.9M (92) and 5.1M (236) parameters within 2 %. For 452
  it states 8.6M, which no simple rule gives; here it has 10.1M.
- ``attentionD_tf``: the structure in the README of a TensorFlow implementation
  (rahullokesh/Residual-Attention-Network-For-Image-Classification), with the paper's residual unit
  and mask: that code drops the output of one module, projects every shortcut, and has no norms
  in the mask's head.
- ``attentionD_imagenet``: for 224x224, wired as PistonY and gluoncv are;
  ``attentionD_imagenet_paper`` as the authors' Caffe models are. Both have the same parameters.
- ``attention452_gluoncv``, ``attention452_imagenet_gluoncv``: what gluoncv calls 452. It has one
  unit after the branches where p is 2, hence 398 layers.
- ``attentionnext56_imagenet``: the authors' model of ResNeXt units; its mask ends with tanh.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Optional


class Stem(NamedTuple):
    """First convolution and the max pooling after it; ``pool`` is (size, stride, padding)."""

    kernel: int
    stride: int
    pool: Optional[tuple[int, int, int]] = None


STEMS = {"3x3": Stem(3, 1), "5x5": Stem(5, 1, (2, 2, 0)), "7x7": Stem(7, 2, (3, 2, 1))}


@dataclass(frozen=True)
class AttentionSpec:
    """What makes one network of the family.

    `modules`, `channels` and `mask_depths` have one entry per stage, `first_stage` is the first
    one's number in names; `ptr` are the paper's p, t and r. `stem` is a key of `STEMS`. The tail
    has `tail_units` units of `tail_channels`, the first with `tail_stride`. `post_units`, `wiring`,
    `learning`, `attention`, `unit` and `groups` are those of
    `model.layers.attention_module.AttentionModule`. `old_names` gives stage 1 the names from before
    2018-10-15. `classes` and `image_size` are those of the data set that the variant is for.
    """

    modules: tuple[int, ...]
    stem_channels: int = 32
    channels: tuple[int, ...] = (128, 256, 512)
    tail_channels: int = 1024
    mask_depths: tuple[int, ...] = (2, 1, 0)
    ptr: tuple[int, int, int] = (1, 2, 1)
    wiring: str = "legacy"
    learning: str = "arl"
    attention: str = "mixed"
    old_names: bool = False
    post_units: Optional[int] = None
    unit: str = "bottleneck"
    groups: int = 32
    stem: str = "3x3"
    tail_units: int = 3
    tail_stride: int = 1
    first_stage: int = 1
    classes: int = 10
    image_size: int = 32

    def __post_init__(self) -> None:
        stages = (self.modules, self.channels, self.mask_depths)
        if len({len(entries) for entries in stages}) != 1:
            raise ValueError(
                "modules, channels and mask_depths need one entry per stage each, got "
                f"{self.modules}, {self.channels} and {self.mask_depths}"
            )
        if min(self.modules) < 1 or min(self.stem_channels, *self.channels) < 1:
            raise ValueError(
                f"modules and channels must be positive, got {self.modules} and "
                f"{(self.stem_channels, *self.channels)}"
            )
        if self.stem not in STEMS:
            raise ValueError(f"unknown stem {self.stem!r}; available: {', '.join(STEMS)}")
        if self.tail_units < 1 or self.tail_stride < 1:
            raise ValueError(
                f"tail_units and tail_stride must be 1 or more, got {self.tail_units} and "
                f"{self.tail_stride}"
            )


# Modules per stage in the networks of PistonY, gluoncv and the authors' Caffe models.
GROWING: dict[int, tuple[int, int, int]] = {
    56: (1, 1, 1),
    92: (1, 2, 3),
    128: (2, 3, 4),
    164: (3, 4, 5),
    200: (4, 5, 6),
    236: (5, 6, 7),
    452: (5, 6, 7),
}
# Modules in every stage of the paper's networks for CIFAR.
EQUAL = {56: 1, 92: 2, 128: 3, 164: 4, 236: 6, 452: 6}
PTR_452 = (2, 4, 3)

PAPER: dict[str, Any] = {
    "stem_channels": 16,
    "channels": (64, 128, 256),
    "tail_channels": 256,
    "mask_depths": (2, 2, 1),
    "wiring": "paper",
}
TF: dict[str, Any] = {
    "stem": "5x5",
    "stem_channels": 64,
    "channels": (64, 128, 256),
    "tail_channels": 512,
    "mask_depths": (3, 2, 1),
    "wiring": "paper",
    "tail_units": 4,
}
IMAGENET: dict[str, Any] = {
    "stem": "7x7",
    "stem_channels": 64,
    "channels": (256, 512, 1024),
    "tail_channels": 2048,
    "tail_stride": 2,
    "mask_depths": (3, 2, 1),
    "classes": 1000,
    "image_size": 224,
}
# A network for 448x448 has one stage more, before the others.
IMAGENET_448: dict[str, Any] = {
    **IMAGENET,
    "channels": (128, 256, 512, 1024),
    "mask_depths": (4, 3, 2, 1),
    "first_stage": 0,
    "image_size": 448,
}
# Bottlenecks of 8 channels would leave oneDNN its slow batch-norm code, hence 64 and not 32.
SMALL: dict[str, Any] = {"stem_channels": 16, "channels": (64, 64, 128), "tail_channels": 256}


def _ptr(depth: int) -> dict[str, Any]:
    return {"ptr": PTR_452} if depth == 452 else {}


_LEGACY = {d: AttentionSpec(GROWING[d], **_ptr(d)) for d in (56, 92, 128, 164, 236, 452)}
_IMAGENET = {d: AttentionSpec(GROWING[d], **_ptr(d), **IMAGENET) for d in GROWING}

SPECS: dict[str, AttentionSpec] = {
    **{f"attention{d}": spec for d, spec in _LEGACY.items()},
    "attention56_small": AttentionSpec(GROWING[56], **SMALL),
    "attention452_gluoncv": replace(_LEGACY[452], post_units=1),
    **{
        f"attention{d}_paper": AttentionSpec((m,) * 3, **_ptr(d), **PAPER) for d, m in EQUAL.items()
    },
    **{f"attention{d}_tf": AttentionSpec(GROWING[d], **TF) for d in (56, 92)},
    **{f"attention{d}_imagenet": _IMAGENET[d] for d in (56, 92, 128, 164, 200, 236)},
    "attention452_imagenet_gluoncv": replace(_IMAGENET[452], post_units=1),
    **{f"attention{d}_imagenet_paper": replace(_IMAGENET[d], wiring="paper") for d in (56, 92)},
    **{
        f"attention{d}_imagenet448": AttentionSpec((1, *GROWING[d]), **IMAGENET_448)
        for d in (56, 92)
    },
    "attentionnext56_imagenet": replace(
        _IMAGENET[56], unit="resnext", wiring="paper", attention="tanh"
    ),
}
