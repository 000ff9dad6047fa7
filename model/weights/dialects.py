"""The ways in which public code names the tensors of one and the same attention network.

- ``head``: PistonY/ResidualAttentionNetwork since 2018-10-15, and this project.
- ``pre``: the same before; only the first module of the networks for 32x32 images differs.
- ``gluoncv``: gluoncv's ``residual_attentionnet.py``, which puts every group into a sequence.
- ``torch``: tengshaofeng/ResidualAttentionNetwork-pytorch (see `model.weights.foreign_names`).
- ``hao``: haoxintong/ResidualAttentionNetwork-Gluon; read, but not written.
- ``pytorchcv``: osmr/imgclsmob's PyTorch networks for 224x224 images; read, but not written.
- ``resnet``: this project's CIFAR ResNets; ``torch-resnet``: zhongshsh/RAM's and bearpaw's (see
  `model.weights.resnet_names`).

A file of one dialect holds the weights that another one wants, under other names: here they are
renamed, dict to dict, without MXNet. `tests/golden/*_attention*.json` list the names of each.

Here too is what finding the network of a file needs, by whichever names: where a classifier is,
when a shape is that of a parameter, which of several networks is the likeliest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Optional, TypeVar

from formats.images.preprocessing import IMAGENET_CROP, IMAGENET_MEAN, IMAGENET_STD
from model.weights.foreign_names import (
    OLD_CHILDREN,
    from_hao,
    from_pytorchcv,
    from_torch,
    is_hao,
    is_pytorchcv,
    is_torch,
    pair,
    pooled_twice,
    swap_children,
    to_torch,
)
from model.weights.resnet_names import (
    from_torch_resnet,
    is_resnet,
    is_torch_resnet,
    resnet_depth,
    to_torch_resnet,
)

T = TypeVar("T")

HEAD, PRE, GLUONCV, TORCH, HAO = "head", "pre", "gluoncv", "torch", "hao"
PYTORCHCV = "pytorchcv"
RESNET, TORCH_RESNET = "resnet", "torch-resnet"
TITLES = {
    HEAD: "PistonY HEAD",
    PRE: "PistonY before 2018-10-15",
    GLUONCV: "gluoncv",
    TORCH: "tengshaofeng's PyTorch",
    HAO: "haoxintong's Gluon",
    PYTORCHCV: "pytorchcv's",
    RESNET: "this project's",
    TORCH_RESNET: "zhongshsh/RAM's PyTorch",
}
TARGETS = (HEAD, PRE, GLUONCV, TORCH, RESNET, TORCH_RESNET)
# Wiring of the soft mask (see `model.layers.attention_module`) in the code that a dialect belongs
# to.
WIRINGS = {PRE: "legacy", GLUONCV: "legacy", TORCH: "legacy", HAO: "paper", PYTORCHCV: "legacy"}
# What that code does to images before the network gets them, where one answer holds for all of its
# files: the section ``image`` of a card.
IMAGES: dict[str, dict[str, Any]] = {
    TORCH: {"mean": [0.0] * 3, "deviation": [1.0] * 3},  # pixels from 0 to 1
    PYTORCHCV: {
        "mean": list(IMAGENET_MEAN),
        "deviation": list(IMAGENET_STD),
        "crop": IMAGENET_CROP,
    },
}

# Where networks have their classifier: attention networks, other Gluon networks, glimpse models.
CLASS_LAYERS = ("fc", "output", "classifier.fc")

# Channels before the classifier of PistonY's networks; other widths came later, with his names.
_HEAD_WIDTHS = (1024, 2048)

_FIRST = "attention_module1"

_HEAD_MODULE = re.compile(r"attention_module(\d+)(?:_(\d+))?\.")
_GLUONCV_MODULE = re.compile(r"attention_module(\d+)\.(\d+)\.")
# Residual units; the lookahead excludes the mask's last layers ("softmax4_blocks.0.gamma").
_GROUP = r"(attention_module\w+\.(?:first_residual_blocks|softmax\d+_blocks))\."
_UNIT = r"(?=(?:bn|conv)\d\.)"
_BARE_UNIT = re.compile(_GROUP + _UNIT)
_INDEXED_UNIT = re.compile(_GROUP + r"(\d+)\." + _UNIT)
_TRUNK_UNIT = re.compile(
    r"(?:residual_block\d+|attention_module\w+\.(?:first_residual|last)_blocks(?:\.\d+)?"
    r"|attention_module\w+\.trunk_branches\.\d+)\.conv1\.weight$"
)


def detect_dialect(names: Iterable[str]) -> Optional[str]:
    """Return a key of `TITLES`, or None when these are no such network."""
    known = list(names)
    if is_resnet(known):
        return RESNET
    if is_torch_resnet(known):
        return TORCH_RESNET
    if is_hao(known):
        return HAO
    if is_pytorchcv(known):
        return PYTORCHCV
    dialect = None
    for name in known:
        if _GLUONCV_MODULE.match(name):
            return GLUONCV
        if _HEAD_MODULE.match(name) and dialect != PRE:
            dialect = PRE if name.split(".")[1] in OLD_CHILDREN else HEAD
    return TORCH if dialect and is_torch(known) else dialect


def fits(known: Optional[tuple[int, ...]], shape: tuple[int, ...]) -> bool:
    """Compare with a parameter's shape, in which 0 and -1 stand for unknown."""
    if known is None:
        return True
    return len(known) == len(shape) and all(k in (0, -1, s) for k, s in zip(known, shape))


def preference(name: str, spec: object, wiring: str = "legacy") -> tuple[list[bool], int, str]:
    """Return what sorts networks with the same tensors, which differ in what they compute.

    First come those with this wiring, then those with attention residual learning, then those with
    mixed attention, then those with a shorter name.
    """
    usual = {"wiring": wiring, "learning": "arl", "attention": "mixed"}
    other = [getattr(spec, field, "") not in ("", value) for field, value in usual.items()]
    return other, len(name), name


def rename(tensors: Mapping[str, T], target: str) -> dict[str, T]:
    """Give every tensor the name that it has in another dialect.

    Parameters
    ----------
    tensors
        Name to anything (array, shape), in any of the dialects. Order is kept. Only the weight of
        the classifier changes its shape, when it is an array or a shape: PyTorch has it as
        (classes, C), the others as (classes, C, 1, 1).
    target
        One of `TARGETS`. Of a CIFAR ResNet, ``torch`` and ``torch-resnet`` are PyTorch's names and
        all others this project's.

    Returns
    -------
    dict
        The same values, without those that `model.weights.foreign_names` says are never used;
        unchanged names when `tensors` are in no known dialect, or `target` is ``pre`` and the
        network has no older names.

    Raises
    ------
    ValueError
        When `target` is unknown, or two tensors would get the same name.
    """
    if target not in TARGETS:
        raise ValueError(f"unknown dialect {target!r}; available: {', '.join(TARGETS)}")
    source = detect_dialect(tensors)
    if source is None or source == target:
        return dict(tensors)
    if source in (RESNET, TORCH_RESNET):
        own = from_torch_resnet(tensors) if source == TORCH_RESNET else dict(tensors)
        return to_torch_resnet(own) if target in (TORCH, TORCH_RESNET) else own
    head = _to_head(tensors, source)
    if target == PRE and pooled_twice(head):
        table = {new: old for old, new in OLD_CHILDREN.items()}
        return pair(swap_children(head, {_FIRST: table}), head.values())
    if target == GLUONCV:
        return pair([_head_to_gluoncv(name) for name in head], head.values())
    return to_torch(head) if target == TORCH else head


def _to_head(tensors: Mapping[str, T], source: str) -> dict[str, T]:
    if source == TORCH:
        return from_torch(tensors)
    if source == HAO:
        return from_hao(tensors)
    if source == PYTORCHCV:
        return from_pytorchcv(tensors)
    names = list(tensors)
    if source == PRE:
        names = swap_children(names, {_FIRST: OLD_CHILDREN})
    elif source == GLUONCV:
        names = _gluoncv_to_head(names)
    return pair(names, tensors.values())


def _head_to_gluoncv(name: str) -> str:
    grouped = _BARE_UNIT.sub(r"\1.0.", name)
    return _HEAD_MODULE.sub(
        lambda m: f"attention_module{m[1]}.{int(m[2] or 1) - 1}.", grouped, count=1
    )


def _gluoncv_to_head(names: list[str]) -> list[str]:
    flat = [
        _GLUONCV_MODULE.sub(
            lambda m: f"attention_module{m[1]}" + (f"_{int(m[2]) + 1}." if int(m[2]) else "."),
            name,
            count=1,
        )
        for name in names
    ]
    # A unit that stands alone loses its index; of several, all keep theirs.
    units = [_INDEXED_UNIT.match(name) for name in flat]
    several = {unit[1] for unit in units if unit and int(unit[2]) > 0}
    return [
        _INDEXED_UNIT.sub(r"\1.", name) if unit and unit[1] not in several else name
        for name, unit in zip(flat, units)
    ]


def describe(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Say what these tensors look like: ``"PistonY HEAD Attention-56 (450 tensors, ...)"``.

    Parameters
    ----------
    shapes
        Name to shape.
    """
    details = [f"{len(shapes)} tensors"]
    if shapes:
        details.append(f"{sum(math.prod(shape) for shape in shapes.values()):,} numbers")
    classifier = _classifier(shapes)
    if classifier:
        details.append(f"{classifier[0]} classes")
    return f"{_title(shapes)} ({', '.join(details)})"


def _classifier(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    return shapes.get("fc.weight") or shapes.get("output.weight") or ()


def _title(shapes: Mapping[str, tuple[int, ...]]) -> str:
    dialect = detect_dialect(shapes)
    if dialect in (RESNET, TORCH_RESNET):
        return f"{TITLES[dialect]} ResNet-{resnet_depth(shapes)}"
    if dialect is not None:
        named = _to_head(shapes, dialect)
        # Three layers per unit of the trunk, the stem's and the classifier (36m + 20 in the paper).
        size = f"Attention-{3 * sum(bool(_TRUNK_UNIT.match(name)) for name in named) + 2}"
        stem = named.get("conv1.0.weight", ())
        image = " for 224x224 images" if stem[2:] == (7, 7) else ""
        width = _classifier(shapes)[1:2]
        if dialect == HEAD and width and width[0] not in _HEAD_WIDTHS:
            return f"{TITLES[RESNET]} {size}{image}, with PistonY's names"
        return f"{TITLES[dialect]} {size}{image}"
    names = list(shapes)
    if not names:
        return "a file without arrays"
    if names == [str(index) for index in range(len(names))]:
        return "a list of arrays without names"
    if is_torch(names):
        return "another network, saved by PyTorch"
    if not any("." in name for name in names):
        return "a file with block prefixes as names (HybridBlock.export, Module or save_params)"
    return "another network"
