"""The three ways in which public code names the tensors of one and the same attention network.

- ``head``: PistonY/ResidualAttentionNetwork since 2018-10-15, and this project.
- ``pre``: the same before; only the first module of the networks for 32x32 images differs.
- ``gluoncv``: gluoncv's ``residual_attentionnet.py``, which puts every group into a sequence.

A file of one dialect holds the weights that another one wants, under other names: here they are
renamed, dict to dict, without MXNet. `tests/golden/*_attention*.json` list the names of each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Optional, TypeVar

T = TypeVar("T")

HEAD, PRE, GLUONCV = "head", "pre", "gluoncv"
TITLES = {
    HEAD: "PistonY HEAD",
    PRE: "PistonY before 2018-10-15",
    GLUONCV: "gluoncv",
}

_PRE_TO_HEAD = {
    "down_residual_blocks1": "softmax1_blocks",
    "middle_2r_blocks": "softmax2_blocks",
    "up_residual_blocks1": "softmax3_blocks",
    "conv1_1_blocks": "softmax4_blocks",
}
_HEAD_TO_PRE = {new: old for old, new in _PRE_TO_HEAD.items()}

_HEAD_MODULE = re.compile(r"attention_module(\d+)(?:_(\d+))?\.")
_GLUONCV_MODULE = re.compile(r"attention_module(\d+)\.(\d+)\.")
# Residual units; the lookahead excludes the mask's last layers ("softmax4_blocks.0.gamma").
_GROUP = r"(attention_module\w+\.(?:first_residual_blocks|softmax\d+_blocks))\."
_UNIT = r"(?=(?:bn|conv)\d\.)"
_BARE_UNIT = re.compile(_GROUP + _UNIT)
_INDEXED_UNIT = re.compile(_GROUP + r"(\d+)\." + _UNIT)


def detect_dialect(names: Iterable[str]) -> Optional[str]:
    """Return ``head``, ``pre`` or ``gluoncv``, or None when these are no such attention network."""
    dialect = None
    for name in names:
        if _GLUONCV_MODULE.match(name):
            return GLUONCV
        if _HEAD_MODULE.match(name):
            if name.split(".")[1] in _PRE_TO_HEAD:
                return PRE
            dialect = HEAD
    return dialect


def rename(tensors: Mapping[str, T], target: str) -> dict[str, T]:
    """Give every tensor the name that it has in another dialect.

    Parameters
    ----------
    tensors
        Name to anything (array, shape), in any of the dialects. Order is kept.
    target
        ``head``, ``pre`` or ``gluoncv``.

    Returns
    -------
    dict
        The same values; unchanged names when `tensors` are in no known dialect.

    Raises
    ------
    ValueError
        When `target` is unknown, or two tensors would get the same name.
    """
    if target not in TITLES:
        raise ValueError(f"unknown dialect {target!r}; available: {', '.join(TITLES)}")
    source = detect_dialect(tensors)
    if source is None or source == target:
        return dict(tensors)
    names = list(tensors)
    if source == PRE:
        names = [_swap_child(name, _PRE_TO_HEAD) for name in names]
    elif source == GLUONCV:
        names = _gluoncv_to_head(names)
    if target == PRE:
        names = [_swap_child(name, _HEAD_TO_PRE) for name in names]
    elif target == GLUONCV:
        names = [_head_to_gluoncv(name) for name in names]
    renamed = dict(zip(names, tensors.values()))
    if len(renamed) != len(tensors):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two tensors would be called {twice!r} in the dialect {target}")
    return renamed


def _swap_child(name: str, table: Mapping[str, str]) -> str:
    parts = name.split(".")
    if parts[0] == "attention_module1" and len(parts) > 1:
        parts[1] = table.get(parts[1], parts[1])
    return ".".join(parts)


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
    if shapes.get("fc.weight"):
        details.append(f"{shapes['fc.weight'][0]} classes")
    return f"{_title(shapes)} ({', '.join(details)})"


def _title(shapes: Mapping[str, tuple[int, ...]]) -> str:
    dialect = detect_dialect(shapes)
    if dialect is not None:
        modules = [m[0] for m in map(_HEAD_MODULE.match, rename(shapes, HEAD)) if m]
        size = {3: "Attention-56", 6: "Attention-92"}.get(len(set(modules)), "attention network")
        stem = shapes.get("conv1.0.weight", ())
        image = " for 224x224 images" if stem[2:] == (7, 7) else ""
        return f"{TITLES[dialect]} {size}{image}"
    names = list(shapes)
    if not names:
        return "a file without arrays"
    if names == [str(index) for index in range(len(names))]:
        return "a list of arrays without names"
    if any(".trunk_branch." in name for name in names):
        return "haoxintong's ResidualAttentionNetwork-Gluon, which has another topology"
    if not any("." in name for name in names):
        return "a file with block prefixes as names (HybridBlock.export, Module or save_params)"
    return "another network"
