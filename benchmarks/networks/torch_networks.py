"""The networks of this project in PyTorch, to measure ours against.

Same formulas and same names of parameters as ``model/residual_attention_network.py`` and
``model/ram_resnet.py``, as far as the benchmark needs them: bottleneck units, mixed attention,
attention residual learning, no gate or the gate of RAM-ResNet. Written as PyTorch wants it: no
layout tricks, only operators that PyTorch has a fast kernel for.

A network is described by the fields of our spec, so that this file needs PyTorch alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]
from torch import nn
from torch.nn import functional  # type: ignore[import-not-found]

Tensor = Any
Spec = Mapping[str, Any]
EPSILON = 1e-5
STEMS = {"3x3": (3, 1)}


def norm(channels: int) -> nn.Module:
    """Return a batch normalisation."""
    return nn.BatchNorm2d(channels, eps=EPSILON)


def conv(out_channels: int, in_channels: int, kernel: int, stride: int = 1) -> nn.Module:
    """Return a convolution without bias that keeps the size."""
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)


class PreUnit(nn.Module):
    """Pre-activation bottleneck, as `model.layers.basic_layer.ResidualBlock`."""

    def __init__(self, channels: int, in_channels: int, stride: int = 1) -> None:
        super().__init__()
        narrow = channels // 4
        self.bn1, self.conv1 = norm(in_channels), conv(narrow, in_channels, 1)
        self.bn2, self.conv2 = norm(narrow), conv(narrow, narrow, 3, stride)
        self.bn3, self.conv3 = norm(narrow), conv(channels, narrow, 1)
        changes = stride != 1 or in_channels != channels
        self.conv4 = conv(channels, in_channels, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = functional.relu(self.bn1(x), inplace=True)
        shortcut = x if self.conv4 is None else self.conv4(activated)
        y = functional.relu(self.bn2(self.conv1(activated)), inplace=True)
        y = functional.relu(self.bn3(self.conv2(y)), inplace=True)
        return self.conv3(y) + shortcut


def row(channels: int, count: int) -> nn.Sequential:
    """Return `count` units in a row."""
    return nn.Sequential(*(PreUnit(channels, channels) for _ in range(count)))


def units(channels: int, count: int) -> nn.Module:
    """Return one unit, or a row of several."""
    return PreUnit(channels, channels) if count == 1 else row(channels, count)


class Attention(nn.Module):
    """Attention module, as `model.layers.attention_module.AttentionModule`."""

    def __init__(self, channels: int, depth: int, ptr: tuple[int, int, int], wiring: str) -> None:
        super().__init__()
        p, t, r = ptr
        self.depth, self.legacy = depth, wiring == "legacy"
        self.first_residual_blocks, self.last_blocks = units(channels, p), units(channels, p)
        self.trunk_branches = row(channels, t)
        for level in range(1, depth):
            self.add_module(f"softmax{level}_blocks", units(channels, r))
            self.add_module(f"skip{level}_connection_residual_block", units(channels, 1))
            self.add_module(f"softmax{2 * depth - level}_blocks", units(channels, r))
        self.add_module(f"softmax{max(depth, 1)}_blocks", row(channels, 2 * r))
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [norm(channels), nn.ReLU(inplace=True), conv(channels, channels, 1)]
        layers[1] = nn.ReLU()  # its input, the map of the mask, is the upper level's to keep
        self.add_module(f"softmax{2 * max(depth, 1)}_blocks", nn.Sequential(*layers))

    def child(self, name: str) -> nn.Module:
        """Return a part by name."""
        return getattr(self, name)

    def up(self, y: Tensor, like: Tensor) -> Tensor:
        """Return `y` in the size of `like`."""
        size = like.shape[2:]
        return functional.interpolate(y, size=size, mode="bilinear", align_corners=True)

    def mask(self, x: Tensor, trunk: Tensor) -> Tensor:
        """Return the soft mask, 0 to 1."""
        down, skips, y, depth = [], [], x, self.depth
        for level in range(1, max(depth, 1) + 1):
            if depth:
                y = functional.max_pool2d(y, 3, 2, 1)
            y = self.child(f"softmax{level}_blocks")(y)
            if level < depth:
                down.append(y)
                skips.append(self.child(f"skip{level}_connection_residual_block")(y))
        for level in range(depth - 1, 0, -1):
            y = self.up(y, skips[level - 1]) + skips[level - 1]
            y = y + down[level - 1] if self.legacy else y
            y = self.child(f"softmax{2 * depth - level}_blocks")(y)
        if depth:
            y = self.up(y, x)
            y = y + trunk if self.legacy else y
        return torch.sigmoid(self.child(f"softmax{2 * max(depth, 1)}_blocks")(y))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first_residual_blocks(x)
        trunk = self.trunk_branches(x)
        return self.last_blocks(trunk + self.mask(x, trunk) * trunk)


class AttentionNetwork(nn.Module):
    """Residual attention network, as `model.residual_attention_network`."""

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__()
        kernel, stride = STEMS[spec["stem"]]
        width = spec["stem_channels"]
        self.conv1 = nn.Sequential(conv(width, 3, kernel, stride), norm(width), nn.ReLU(True))
        names = ["conv1"]
        first = spec["first_stage"]
        for index, channels in enumerate(spec["channels"]):
            names.append(f"residual_block{first + index}")
            self.add_module(names[-1], PreUnit(channels, width, 2 if index else 1))
            for number in range(1, spec["modules"][index] + 1):
                suffix = f"_{number}" if number > 1 else ""
                names.append(f"attention_module{first + index}{suffix}")
                depth, ptr = spec["mask_depths"][index], tuple(spec["ptr"])
                self.add_module(names[-1], Attention(channels, depth, ptr, spec["wiring"]))
            width = channels
        for index in range(spec["tail_units"]):
            names.append(f"residual_block{first + len(spec['channels']) + index}")
            stride = 1 if index else spec["tail_stride"]
            self.add_module(names[-1], PreUnit(spec["tail_channels"], width, stride))
            width = spec["tail_channels"]
        self.mpool2 = nn.Sequential(norm(width), nn.ReLU(True))
        self.fc = nn.Conv2d(width, classes, 1)
        self.names = [*names, "mpool2"]

    def forward(self, image: Tensor) -> Tensor:
        for name in self.names:
            image = getattr(self, name)(image)
        return self.fc(image.mean((2, 3), keepdim=True)).flatten(1)


class RecurrentGate(nn.Module):
    """``sigmoid(w bn(w g + b) + b)``, as `model.layers.channel_attention.RecurrentGate` of two
    steps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.b = nn.Parameter(torch.full((1, channels, 1, 1), -1.0))
        self.bn1 = norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(x.mean((2, 3), keepdim=True) * self.w + self.b)
        return x * torch.sigmoid(y * self.w + self.b)


class PostUnit(nn.Module):
    """Bottleneck of version 1, as `model.layers.resnet_unit.Unit`."""

    def __init__(self, channels: int, in_channels: int, stride: int, gated: bool) -> None:
        super().__init__()
        wide = 4 * channels
        self.conv1, self.bn1 = conv(channels, in_channels, 1), norm(channels)
        self.conv2, self.bn2 = conv(channels, channels, 3, stride), norm(channels)
        self.conv3, self.bn3 = conv(wide, channels, 1), norm(wide)
        self.gate = RecurrentGate(wide) if gated else None
        self.downsample = None
        if stride != 1 or in_channels != wide:
            self.downsample = nn.Sequential(conv(wide, in_channels, 1, stride), norm(wide))

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        y = functional.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y = y if self.gate is None else self.gate(y)
        y = y + (x if self.downsample is None else self.downsample(x))
        return functional.relu(y, inplace=True)


class ResNet(nn.Module):
    """CIFAR ResNet of bottlenecks, version 1, as `model.ram_resnet.ResNet`."""

    def __init__(self, spec: Spec, classes: int) -> None:
        super().__init__()
        if (spec["block"], spec["version"]) != ("bottleneck", 1):
            raise ValueError("only bottlenecks of version 1 are written for PyTorch here")
        if spec["attention"] not in ("none", "ram"):
            raise ValueError(f"attention {spec['attention']!r} is not written for PyTorch here")
        width, gated = spec["channels"][0], spec["attention"] == "ram"
        self.conv1, self.bn1 = conv(width, 3, 3), norm(width)
        for stage, channels in enumerate(spec["channels"], 1):
            blocks = []
            for index in range((spec["depth"] - 2) // 9):
                stride = 2 if index == 0 and stage > 1 else 1
                blocks.append(PostUnit(channels, width, stride, gated))
                width = 4 * channels
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        y = functional.relu(self.bn1(self.conv1(image)), inplace=True)
        y = self.layer3(self.layer2(self.layer1(y)))
        return self.fc(y.mean((2, 3)))


def build(family: str, spec: Spec, classes: int) -> nn.Module:
    """Return the network of a family, ``attention`` or ``resnet``, that the spec describes."""
    return {"attention": AttentionNetwork, "resnet": ResNet}[family](spec, classes)


def load(net: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Set all parameters from arrays under our names; KeyError or RuntimeError when one differs."""
    words = {"gamma": "weight", "beta": "bias"}
    renamed = {}
    for name, array in arrays.items():
        base, _, last = name.rpartition(".")
        renamed[f"{base}.{words.get(last, last)}"] = torch.from_numpy(array)
    counters = [name for name in net.state_dict() if name.endswith("num_batches_tracked")]
    net.load_state_dict({**renamed, **{name: torch.tensor(0) for name in counters}})
