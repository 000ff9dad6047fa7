"""Names of zhongshsh/RAM's and bearpaw's PyTorch CIFAR ResNets, to this project's and back.

They differ in PyTorch's words for a normalisation, and a gate is not a child there: its w and b
belong to the unit, its normalisations count on from the unit's own (``bn4`` of a bottleneck).
Networks of version 2 are left alone: bearpaw's have the same names, but project the raw input.

Facts were read in zhongshsh/RAM ``model/ram.py`` (commit 55abaa8). Works on names; without MXNet.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeVar

from model.weights.foreign_names import COUNTER, gluon_words, pair, torch_words

T = TypeVar("T")

_UNIT = re.compile(r"(layer\d+\.\d+)\.(.+)")
_CONV = re.compile(r"conv\d+\.weight")
_OWN = ("conv1.weight", "layer1.0.conv1.weight", "layer3.0.conv1.weight", "fc.weight")


def is_resnet(names: Iterable[str]) -> bool:
    """Tell whether these are this project's names of a CIFAR ResNet."""
    known = set(names)
    return _is_cifar(known) and "layer1.0.bn1.gamma" in known


def is_torch_resnet(names: Iterable[str]) -> bool:
    """Tell whether these are PyTorch's names of a CIFAR ResNet of version 1."""
    known = set(names)
    norms = ("bn1.running_mean", "layer1.0.bn1.weight", "layer1.0.bn1.running_mean")
    return _is_cifar(known) and all(name in known for name in norms)


def _is_cifar(known: set[str]) -> bool:
    # Four stages are torchvision's networks for larger images.
    return all(name in known for name in _OWN) and "layer4.0.conv1.weight" not in known


def from_torch_resnet(tensors: Mapping[str, T]) -> dict[str, T]:
    """Turn PyTorch's names into this project's; the counters of batches are left out."""
    kept = {n: value for n, value in tensors.items() if not n.endswith(COUNTER)}
    convolutions = _convolutions(kept)
    names = []
    for name in kept:
        name = gluon_words(name, f"{name.rpartition('.')[0]}.running_mean" in kept)
        unit = _UNIT.match(name)
        if unit:
            name = f"{unit[1]}.{_inside(unit[2], convolutions[unit[1]])}"
        names.append(name)
    return pair(names, kept.values())


def to_torch_resnet(tensors: Mapping[str, T]) -> dict[str, T]:
    """Turn this project's names into PyTorch's; version 2 has none and is returned as it is."""
    if "bn1.gamma" not in tensors:
        return dict(tensors)
    convolutions = _convolutions(tensors)
    names = []
    for name in tensors:
        unit = _UNIT.match(name)
        if unit:
            name = f"{unit[1]}.{_outside(unit[2], convolutions[unit[1]])}"
        names.append(torch_words(name))
    return pair(names, tensors.values())


def _convolutions(names: Iterable[str]) -> Counter[str]:
    """Number of convolutions of each unit, its projection not counted."""
    units = (_UNIT.match(name) for name in names)
    return Counter(unit[1] for unit in units if unit and _CONV.fullmatch(unit[2]))


def _inside(name: str, convolutions: int) -> str:
    norm = re.match(r"bn(\d+)\.", name)
    if norm and int(norm[1]) > convolutions:
        return f"gate.bn{int(norm[1]) - convolutions}.{name[norm.end() :]}"
    return f"gate.{name}" if name in ("w", "b") else name


def _outside(name: str, convolutions: int) -> str:
    norm = re.match(r"gate\.bn(\d+)\.", name)
    if norm:
        return f"bn{int(norm[1]) + convolutions}.{name[norm.end() :]}"
    return name[5:] if name in ("gate.w", "gate.b") else name


def resnet_depth(names: Iterable[str]) -> int:
    """Return the layers of a CIFAR ResNet in this project's names, as its name counts them."""
    return sum(_convolutions(names).values()) + 2
