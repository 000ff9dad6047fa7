"""Variants of the CIFAR ResNet with channel attention: settings and names.

A name says version, depth, unit and gate: ``resnet164``, ``resnet164_ram``, ``resnet20_basic_se``,
``preresnet164_ram``. Other depths, steps and widths are overrides:
``create_model("resnet164_ram", depth=47, steps=3)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

# Convolutions of a unit, and how many times wider than its 3x3 convolution its output is.
CONVOLUTIONS = {"bottleneck": 3, "basic": 2}
EXPANSION = {"bottleneck": 4, "basic": 1}
ATTENTIONS = ("none", "static", "ram", "se", "eca", "dia", "srm", "cbam")
REDUCTIONS = {"se": 16, "cbam": 16, "dia": 4}
STAGES = 3
# A tensor that only networks with this gate have, by its name within a unit or stage.
GATE_TENSORS = {
    "static": "gate.b",
    "ram": "gate.w",
    "se": "gate.fc1.weight",
    "eca": "gate.conv.weight",
    "dia": "x1.weight",
    "srm": "gate.cfc",
    "cbam": "gate.spatial.weight",
}


@dataclass(frozen=True)
class ResNetSpec:
    """What makes one network of the family.

    Parameters
    ----------
    depth
        Layers on the longest way: 9n + 2 with bottlenecks, 6n + 2 with basic units, n units in each
        of three stages.
    block
        ``bottleneck`` (1x1, 3x3, 1x1; output 4 times wider) or ``basic`` (3x3, 3x3).
    version
        1: activation after the addition (He et al. 2015, arXiv 1512.03385); 2: before each
        convolution (He et al. 2016, arXiv 1603.05027).
    attention
        What scales the channels of the residual branch, see `model.layers.channel_attention`: one
        of `ATTENTIONS`.
    steps, w_init, b_init
        Linear steps T and first values of w and b; only for ``ram`` (b_init for ``static`` too).
        One step is the gate called IE.
    reduction
        Narrowing of the hidden layer; only for ``se``, ``cbam`` (16) and ``dia`` (4).
    channels
        Width of the 3x3 convolutions in each stage; the stem has the first.
    ungated
        (stage from 1, unit from 0) of units without a gate, as `model.execution.gate_folding`
        leaves them.
    image_size
        Edge of the images that the variant is meant for; any size will do.
    """

    depth: int = 164
    block: str = "bottleneck"
    version: int = 1
    attention: str = "none"
    steps: int = 2
    w_init: float = 0.0
    b_init: float = -1.0
    reduction: Optional[int] = None
    channels: tuple[int, ...] = (16, 32, 64)
    ungated: tuple[tuple[int, int], ...] = ()
    classes: int = 10
    image_size: int = 32

    def __post_init__(self) -> None:
        for what, given, known in (
            ("block", self.block, tuple(CONVOLUTIONS)),
            ("version", self.version, (1, 2)),
            ("attention", self.attention, ATTENTIONS),
        ):
            if given not in known:
                available = ", ".join(str(name) for name in known)
                raise ValueError(f"unknown {what} {given!r}; available: {available}")
        layers = STAGES * CONVOLUTIONS[self.block]
        if self.depth < layers + 2 or (self.depth - 2) % layers:
            below = max(1, (self.depth - 2) // layers)
            raise ValueError(
                f"depth of a network of {self.block} units must be {layers}n + 2, got "
                f"{self.depth}; near it are {layers * below + 2} and {layers * (below + 1) + 2}"
            )
        if len(self.channels) != STAGES or min(self.channels) < 1:
            raise ValueError(f"channels must be {STAGES} positive numbers, got {self.channels}")
        self._check_gate()

    def _check_gate(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be 1 or more, got {self.steps}")
        if self.reduction is not None and self.reduction < 1:
            raise ValueError(f"reduction must be 1 or more, got {self.reduction}")
        for field, users in (
            ("steps", ("ram",)),
            ("w_init", ("ram",)),
            ("b_init", ("ram", "static")),
            ("reduction", tuple(REDUCTIONS)),
        ):
            default = type(self).__dataclass_fields__[field].default
            if getattr(self, field) != default and self.attention not in users:
                raise ValueError(
                    f"{field} is a setting of attention {' and '.join(users)}, "
                    f"here attention is {self.attention!r}"
                )

    @property
    def units(self) -> int:
        """Units per stage, n."""
        return (self.depth - 2) // (STAGES * CONVOLUTIONS[self.block])

    @property
    def expansion(self) -> int:
        """Output channels of a unit over those of its 3x3 convolution."""
        return EXPANSION[self.block]

    def hidden(self, channels: int) -> int:
        """Width of the gate's hidden layer for this many channels."""
        return max(1, channels // (self.reduction or REDUCTIONS[self.attention]))

    def may_fit(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Tell from units, width and gates whether tensors, by name, may be this network's."""
        inner = {name.split(".", 2)[-1] for name in shapes if name.startswith("layer")}
        gated = any(name.startswith(("gate.", "x1.")) for name in inner)
        has_steps = self.steps == 1 or f"gate.bn{self.steps - 1}.gamma" in inner
        return (
            shapes.get("conv1.weight", ())[:1] == self.channels[:1]
            and f"layer1.{self.units - 1}.conv1.weight" in shapes
            and f"layer1.{self.units}.conv1.weight" not in shapes
            and ("conv3.weight" in inner) == (self.block == "bottleneck")
            and ("bn1.gamma" in shapes) == (self.version == 1)
            and (GATE_TENSORS[self.attention] in inner if self.attention != "none" else not gated)
            and ("gate.w" in inner) == (self.attention == "ram")
            and (self.attention != "ram" or has_steps)
            and (self.attention != "ram" or f"gate.bn{self.steps}.gamma" not in inner)
        )


DEPTHS = {"bottleneck": (20, 29, 83, 164, 245), "basic": (20, 56, 110)}
GATES: dict[str, dict[str, Any]] = {
    "": {},
    "_static": {"attention": "static"},
    "_ie": {"attention": "ram", "steps": 1},
    "_ram": {"attention": "ram"},
    "_se": {"attention": "se"},
    "_eca": {"attention": "eca"},
    "_dia": {"attention": "dia"},
    "_srm": {"attention": "srm"},
    "_cbam": {"attention": "cbam"},
}

SPECS: dict[str, ResNetSpec] = {
    f"{prefix}resnet{depth}{unit}{suffix}": ResNetSpec(depth, block, version, **gate)
    for prefix, version in (("", 1), ("pre", 2))
    for block, unit in (("bottleneck", ""), ("basic", "_basic"))
    for depth in DEPTHS[block]
    for suffix, gate in GATES.items()
}
