"""Names that other authors' networks give the tensors, to this project's names and back.

- tengshaofeng/ResidualAttentionNetwork-pytorch: PyTorch's words for a batch normalisation, a dense
  classifier, other names inside the modules of the 32x32 networks, and a projection (``conv4``) in
  every unit, most of them never used.
- haoxintong/ResidualAttentionNetwork-Gluon: a flat row ``features.N`` and the paper's wiring of the
  soft mask. Its modules hold the same units, in other groups.
- osmr/imgclsmob (pytorchcv), networks for 224x224 images: ``features.stageN.unitN``, the mask as an
  hourglass of ``down``, ``up`` and ``skip``, the trunk as the first skip.

Facts were read in their sources (commits 88ed90f and a4b13d9, pytorchcv 0.0.74). Works on names
and, for the classifier, on arrays or shapes; without MXNet.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Optional, TypeVar

import numpy as np

T = TypeVar("T")

# Inside a module whose mask has 2 poolings, before 2018-10-15 and in PyTorch; HEAD's name behind.
OLD_CHILDREN = {
    "down_residual_blocks1": "softmax1_blocks",
    "middle_2r_blocks": "softmax2_blocks",
    "up_residual_blocks1": "softmax3_blocks",
    "conv1_1_blocks": "softmax4_blocks",
}
# The same with 1 pooling or none: PyTorch only.
TORCH_CHILDREN = {"middle_2r_blocks": "softmax1_blocks", "conv1_1_blocks": "softmax2_blocks"}

_MODULE = re.compile(r"(attention_module\d+(?:_\d+)?)\.([^.]+)")
_UNUSED = re.compile(r"(?:attention_module\w+\..+|residual_block[56])\.conv4\.weight$")
COUNTER = ".num_batches_tracked"  # of PyTorch's batch normalisations
_NORM_WORDS = {"weight": "gamma", "bias": "beta"}
_TORCH_WORDS = {"gamma": "weight", "beta": "bias"}

_STAGE = re.compile(r"features\.stage(\d+)\.unit(\d+)\.(.+)")
_HOURGLASS = re.compile(r"hg\.(down|up|skip)_seq\.[a-z]+(\d+)\.(.+)")
_ROW = re.compile(r"(?:res_blocks\.)?blocks\.block(\d+)\.(.+)")
_PYTORCHCV_UNIT = (
    (re.compile(r"body\.conv(\d)\.bn\."), r"bn\1."),
    (re.compile(r"body\.conv(\d)\.conv\."), r"conv\1."),
    (re.compile(r"identity_conv\."), "conv4."),
)
_PYTORCHCV_ENDS = (
    (re.compile(r"^features\.init_block\.conv\.conv\."), "conv1.0."),
    (re.compile(r"^features\.init_block\.conv\.bn\."), "conv1.1."),
    (re.compile(r"^features\.post_activ\.bn\."), "mpool2.0."),
    (re.compile(r"^output\."), "fc."),
)
# The mask's end: two rows of norm, ReLU, convolution.
_PYTORCHCV_MIDDLE = {"conv1.bn": 0, "conv1.conv": 2, "conv2.bn": 3, "conv2.conv": 5}

_FEATURE = re.compile(r"features\.(\d+)\.(.+)")
_HAO_CHILDREN = (
    (re.compile(r"pre\."), "first_residual_blocks."),
    (re.compile(r"post\."), "last_blocks."),
    (re.compile(r"trunk_branch\."), "trunk_branches."),
)
_HAO_MASK = re.compile(
    r"mask_branch\.(down_res_unit|up_res_unit|skip_connection)_(\d+)\.(?:(\d+)\.)?"
)


def pooled_twice(names: Iterable[str]) -> bool:
    """Tell whether the first module's mask has 2 poolings, in this project's names.

    Those are the networks for 32x32 images; only they had other names before 2018-10-15.
    """
    first = {m[2] for m in map(_MODULE.match, names) if m and m[1] == "attention_module1"}
    return "softmax4_blocks" in first and "softmax5_blocks" not in first


def pair(names: list[str], values: Iterable[T]) -> dict[str, T]:
    """Pair names with values; raises ValueError when a name occurs twice."""
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two tensors would be called {twice!r}")
    return dict(zip(names, values))


def as_pointwise(value: T) -> T:
    """Give a dense classifier's weight (array or shape) the shape of a 1x1 convolution's."""
    shape = _shape(value)
    return _reshaped(value, (*shape, 1, 1)) if shape is not None and len(shape) == 2 else value


def as_dense(value: T) -> T:
    """Give a 1x1 convolution's weight (array or shape) the shape of a dense layer's."""
    shape = _shape(value)
    pointwise = shape is not None and len(shape) == 4 and shape[2:] == (1, 1)
    return _reshaped(value, shape[:2]) if shape is not None and pointwise else value


def _shape(value: object) -> Optional[tuple[int, ...]]:
    if isinstance(value, tuple):
        return value
    return value.shape if isinstance(value, np.ndarray) else None


def _reshaped(value: Any, shape: tuple[int, ...]) -> Any:
    return value.reshape(shape) if isinstance(value, np.ndarray) else shape


def swap_children(names: Iterable[str], tables: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Rename the children of modules: module name to (old child to new child)."""

    def swap(match: re.Match[str]) -> str:
        return f"{match[1]}.{tables.get(match[1], {}).get(match[2], match[2])}"

    return [_MODULE.sub(swap, name, count=1) for name in names]


def is_torch(names: Iterable[str]) -> bool:
    """Tell whether batch normalisations are called in PyTorch's words."""
    known = set(names)
    return any(
        name.endswith(".running_mean") and f"{name[: -len('running_mean')]}weight" in known
        for name in known
    )


def from_torch(tensors: Mapping[str, T]) -> dict[str, T]:
    """Turn tengshaofeng's names into this project's; unused and counting entries are left out."""
    kept = {
        name: value
        for name, value in tensors.items()
        if not _UNUSED.match(name) and not name.endswith(COUNTER)
    }
    children: dict[str, set[str]] = {}
    for match in filter(None, map(_MODULE.match, kept)):
        children.setdefault(match[1], set()).add(match[2])
    tables = {
        module: OLD_CHILDREN if "down_residual_blocks1" in own else TORCH_CHILDREN
        for module, own in children.items()
        if "middle_2r_blocks" in own
    }
    names = swap_children(kept, tables)
    named = [
        gluon_words(name, f"{old.rpartition('.')[0]}.running_mean" in kept)
        for name, old in zip(names, kept)
    ]
    return {
        name: as_pointwise(value) if name == "fc.weight" else value
        for name, value in pair(named, kept.values()).items()
    }


def gluon_words(name: str, norm: bool) -> str:
    """Return PyTorch's name of a tensor in Gluon's words; `norm`: it is of a normalisation."""
    block, _, word = name.rpartition(".")
    return f"{block}.{_NORM_WORDS.get(word, word)}" if norm else name


def torch_words(name: str) -> str:
    """Return Gluon's name of a tensor in PyTorch's words."""
    block, _, word = name.rpartition(".")
    return f"{block}.{_TORCH_WORDS.get(word, word)}" if block else name


def to_torch(tensors: Mapping[str, T]) -> dict[str, T]:
    """Turn this project's names into tengshaofeng's, without the entries that he never uses."""
    tables: dict[str, dict[str, str]] = {}
    if pooled_twice(tensors):
        four = {new: old for old, new in OLD_CHILDREN.items()}
        two = {new: old for old, new in TORCH_CHILDREN.items()}
        large = {m[1] for m in map(_MODULE.match, tensors) if m and m[2] == "softmax4_blocks"}
        modules = {m[1] for m in map(_MODULE.match, tensors) if m}
        tables = {module: four if module in large else two for module in modules}
    names = [torch_words(name) for name in swap_children(tensors, tables)]
    return {
        name: as_dense(value) if name == "fc.weight" else value
        for name, value in pair(names, tensors.values()).items()
    }


def is_hao(names: Iterable[str]) -> bool:
    """Tell whether these are names of haoxintong's attention networks."""
    return any(_FEATURE.match(name) and ".trunk_branch." in name for name in names)


def from_hao(tensors: Mapping[str, T]) -> dict[str, T]:
    """Turn haoxintong's names into this project's."""
    groups: dict[int, list[str]] = {}
    for name in tensors:
        match = _FEATURE.match(name)
        if match:
            groups.setdefault(int(match[1]), []).append(match[2])
    prefixes = _hao_prefixes(groups)
    names = []
    for name in tensors:
        match = _FEATURE.match(name)
        if match:
            inner = _hao_module(match[2], groups[int(match[1])])
            name = prefixes[int(match[1])] + inner.replace("downsample.", "conv4.")
        names.append(re.sub(r"^output\.", "fc.", name))
    return {
        name: as_pointwise(value) if name == "fc.weight" else value
        for name, value in pair(names, tensors.values()).items()
    }


def _hao_prefixes(groups: Mapping[int, list[str]]) -> dict[int, str]:
    """What replaces ``features.N.``, from the order and the content of the groups."""
    prefixes: dict[int, str] = {}
    stage = modules = 0
    for index in sorted(groups):
        inner = groups[index]
        if any(name.startswith("trunk_branch.") for name in inner):
            modules += 1
            suffix = f"_{modules}" if modules > 1 else ""
            prefixes[index] = f"attention_module{stage}{suffix}."
        elif any(name.startswith("conv1.") for name in inner):
            stage, modules = stage + 1, 0
            prefixes[index] = f"residual_block{stage}."
        elif inner == ["weight"]:
            prefixes[index] = "conv1.0."
        else:
            prefixes[index] = "mpool2.0." if stage else "conv1.1."
    return prefixes


def _hao_module(inner: str, group: list[str]) -> str:
    """Name within one module; a unit that is alone in its row has no index here."""
    levels = [m for m in map(_HAO_MASK.match, group) if m]
    depth = max((int(m[2]) for m in levels), default=0)
    match = _HAO_MASK.match(inner)
    if match:
        kind, level, index, rest = match[1], int(match[2]), int(match[3] or 0), inner[match.end() :]
        row = {int(m[3]) for m in levels if m[1] == kind and int(m[2]) == level and m[3]}
        alone = len(row) < 2
        if kind == "skip_connection":
            return f"skip{level}_connection_residual_block.{rest}"
        if level == depth:  # the units around the lowest map make one row
            below = index + (max(row) + 1 if kind == "up_res_unit" else 0)
            return f"softmax{depth}_blocks.{below}.{rest}"
        step = level if kind == "down_res_unit" else 2 * depth - level
        return f"softmax{step}_blocks.{rest}" if alone else f"softmax{step}_blocks.{index}.{rest}"
    if inner.startswith("mask_branch.output."):
        return inner.replace("mask_branch.output.", f"softmax{2 * max(depth, 1)}_blocks.", 1)
    for pattern, name in _HAO_CHILDREN:
        if pattern.match(inner):
            single = pattern.pattern != r"trunk_branch\." and not any(
                other.startswith(inner.split(".")[0] + ".1.") for other in group
            )
            moved = pattern.sub(name, inner, count=1)
            return moved.replace(f"{name}0.", name, 1) if single else moved
    return inner


def is_pytorchcv(names: Iterable[str]) -> bool:
    """Tell whether these are names of pytorchcv's attention networks."""
    return any(_STAGE.match(name) and ".hg." in name for name in names)


def from_pytorchcv(tensors: Mapping[str, T]) -> dict[str, T]:
    """Turn pytorchcv's names into this project's; the counters of batches are left out."""
    kept = {name: value for name, value in tensors.items() if not name.endswith(COUNTER)}
    modules: dict[tuple[int, int], list[str]] = {}
    for found in filter(None, map(_STAGE.match, kept)):
        modules.setdefault((int(found[1]), int(found[2])), []).append(found[3])
    # Of a stage without modules, the last, each unit counts as a stage of its own.
    attentive = {stage for (stage, _), group in modules.items() if any("hg." in n for n in group)}
    names = []
    for old in kept:
        name, match = old, _STAGE.match(old)
        if match:
            stage, unit = int(match[1]), int(match[2])
            if stage in attentive and unit > 1:
                suffix = f"_{unit - 1}" if unit > 2 else ""
                inner = _pytorchcv_module(match[3], modules[stage, unit])
                name = f"attention_module{stage}{suffix}.{inner}"
            else:
                name = f"residual_block{stage + unit - 1}.{match[3]}"
        for pattern, ours in (*_PYTORCHCV_ENDS, *_PYTORCHCV_UNIT):
            name = pattern.sub(ours, name, count=1)
        names.append(gluon_words(name, f"{old.rpartition('.')[0]}.running_mean" in kept))
    return {
        name: as_pointwise(value) if name == "fc.weight" else value
        for name, value in pair(names, kept.values()).items()
    }


def _pytorchcv_module(inner: str, group: list[str]) -> str:
    """Name within one module, up to the unit, whose own words are left."""
    if inner.startswith("init_blocks."):
        return f"first_residual_blocks.{_pytorchcv_row(inner, group)}"
    if inner.startswith("final_block."):
        return inner.replace("final_block.", "last_blocks.", 1)
    levels = [m for m in map(_HOURGLASS.match, group) if m]
    depth = max((int(m[2]) for m in levels), default=1)
    match = _HOURGLASS.match(inner)
    if not match:
        place, _, word = inner.replace("middle_block.", "", 1).rpartition(".")
        layer = _PYTORCHCV_MIDDLE.get(place, place)
        return f"softmax{2 * depth}_blocks.{layer}.{word}"
    kind, level, rest = match[1], int(match[2]), match[3]
    if kind == "skip" and level == 1:
        return f"trunk_branches.{_pytorchcv_row(inner, group, always=True)}"
    if kind == "skip":
        return f"skip{level - 1}_connection_residual_block.{rest.replace('skip1.', '', 1)}"
    if level == depth:  # the units around the lowest map make one row
        below = _pytorchcv_units(f"hg.down_seq.down{depth}.", group) if kind == "up" else 0
        return f"softmax{depth}_blocks.{_pytorchcv_row(inner, group, below, always=True)}"
    step = level if kind == "down" else 2 * depth - level
    return f"softmax{step}_blocks.{_pytorchcv_row(inner, group)}"


def _pytorchcv_units(start: str, group: list[str]) -> int:
    rows = (_ROW.match(name[len(start) :]) for name in group if name.startswith(start))
    return max((int(row[1]) for row in rows if row), default=0)


def _pytorchcv_row(inner: str, group: list[str], below: int = 0, always: bool = False) -> str:
    """Name from the index in a row of units on; a unit that is alone in its row has none."""
    row = _ROW.search(inner)
    if not row:
        return inner
    several = always or _pytorchcv_units(inner[: row.start()], group) > 1
    return f"{int(row[1]) - 1 + below}.{row[2]}" if several else row[2]
