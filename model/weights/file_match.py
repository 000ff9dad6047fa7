"""Comparing a parameter file's names, shapes and element types with a network."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Optional, Union

import numpy as np
from mxnet import gluon

from formats.atomic import PathLike
from formats.weight_file import read_weight_shapes
from model.registry import FAMILIES, ModelError, create_model, list_models
from model.weights.dialects import (
    CLASS_LAYERS,
    HEAD,
    WIRINGS,
    describe,
    detect_dialect,
    fits,
    preference,
    rename,
)
from model.weights.flat_names import find_flat, is_flat

SHOWN = 3  # names listed per kind of mismatch
SHOWN_LETTERS = 120  # of one name

_MODULE = re.compile(r"attention_module(\d+)(?:_\d+)?\.")

Shape = tuple[int, ...]
Parameters = Mapping[str, gluon.Parameter]


class LoadError(Exception):
    """A sound parameter file does not fit the network, or the network cannot take it.

    The message says what the file looks like, what the network has and what to do.
    """


def mixed_names(path: PathLike, error: ValueError) -> LoadError:
    """Return the error of a file whose names `model.weights.dialects.rename` refuses."""
    return LoadError(
        f"{os.fspath(path)}: its names mix two dialects: {error}. Expected the names of one "
        "network. Save the file again from the network."
    )


def class_names(arrays: Mapping[str, np.ndarray], parameters: Parameters) -> tuple[str, ...]:
    """Return the classifier's parameters that differ in the number of classes and nothing else."""
    return tuple(
        name
        for name, parameter in parameters.items()
        if name.rpartition(".")[0] in CLASS_LAYERS
        and name in arrays
        and not fits(parameter.shape, arrays[name].shape)
        and fits((0, *parameter.shape[1:]), arrays[name].shape)
    )


def check_match(
    arrays: Mapping[str, np.ndarray],
    parameters: Parameters,
    fresh: Sequence[str],
    path: PathLike,
    stored: Mapping[str, Shape],
) -> None:
    """Raise LoadError unless names and shapes are the network's; `fresh` names may differ.

    `stored` has the file's own names and shapes, before `arrays` got the network's dialect.
    """
    missing = [name for name in parameters if name not in arrays]
    unexpected = [name for name in arrays if name not in parameters]
    wrong = [
        name
        for name, parameter in parameters.items()
        if name in arrays and name not in fresh and not fits(parameter.shape, arrays[name].shape)
    ]
    if not (missing or unexpected or wrong):
        return
    shapes = {name: array.shape for name, array in arrays.items()}
    own = describe({name: p.shape or () for name, p in parameters.items()})
    parts = [f"{os.fspath(path)}: looks like {describe(stored)}, the network is {own}"]
    if missing:
        parts.append(f"missing in the file: {_some(missing)}")
    if unexpected:
        parts.append(f"not in the network: {_some([_quoted(name) for name in unexpected])}")
    if wrong:
        pairs = [
            f"{n} {shapes[n]} in the file, {parameters[n].shape} in the network" for n in wrong
        ]
        parts.append(f"other shapes: {_some(pairs, '; ')}")
    classes_only = not (missing or unexpected) and set(wrong) == set(
        class_names(arrays, parameters)
    )
    raise LoadError(f"{'; '.join(parts)}. {_remedy(stored, classes_only)}")


def _some(items: Sequence[str], separator: str = ", ") -> str:
    rest = f"{separator}... ({len(items)} in all)" if len(items) > SHOWN else ""
    return separator.join(items[:SHOWN]) + rest


def _quoted(name: str) -> str:
    """Return a name from a file as it may stand in an error: of bounded length, printable."""
    text = name if name.isprintable() else repr(name)
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}..."


def _remedy(shapes: Mapping[str, Shape], classes_only: bool) -> str:
    if classes_only:
        return (
            "Only the number of classes differs: build the network with the file's number, or "
            "finetune (`--finetune FILE`, allow_classes_mismatch=True)."
        )
    name, classes = find_model(shapes)
    if name is not None:
        wiring = _other_wiring(name, detect_dialect(shapes))
        return f"Use `--model {name}`, in Python create_model({name!r}, classes={classes}{wiring})."
    return "No model of this project fits; give a file that was saved from this network."


def find_model(source: Union[PathLike, Mapping[str, Shape]]) -> tuple[Optional[str], int]:
    """Find the model of the registry that a file belongs to.

    Models with the same tensors differ in what they compute: the wiring that belongs to the file's
    dialect is preferred, then attention residual learning with mixed attention.

    Parameters
    ----------
    source
        The file, of any format that `formats.weight_file` reads, or name to shape as in the file;
        in any dialect.

    Returns
    -------
    tuple
        Name for `model.create_model`, None when no model fits, and number of classes (0 when the
        file has no known classifier).

    Raises
    ------
    formats.param_reader.ParamFileError
        When the file cannot be read.
    """
    shapes = source if isinstance(source, Mapping) else read_weight_shapes(source)
    if is_flat(shapes):
        return find_flat(shapes)
    classes = count_classes(shapes)
    if not classes:
        return None, 0
    wiring = WIRINGS.get(detect_dialect(shapes) or "", "legacy")
    try:
        shapes = rename(shapes, HEAD)
    except ValueError:  # names of two dialects
        return None, classes
    modules, stem = _modules(shapes), (shapes.get("conv1.0.weight") or (0,))[0]
    candidates = []
    for name in list_models():
        spec = _spec(name)
        # Building a network takes long: those are built whose spec agrees as far as a spec tells.
        if not getattr(spec, "may_fit", lambda _: True)(shapes):
            continue
        if getattr(spec, "modules", ()) == modules and getattr(spec, "stem_channels", stem) == stem:
            candidates.append(preference(name, spec, wiring))
    for _, _, name in sorted(candidates):
        known = network_shapes(name, classes)
        if known.keys() == shapes.keys() and all(fits(known[n], shapes[n]) for n in known):
            return name, classes
    return None, classes


def count_classes(shapes: Mapping[str, Shape]) -> int:
    """Return the number of classes that the classifier has, in any dialect; 0 without one."""
    heads = [shapes[f"{layer}.weight"] for layer in CLASS_LAYERS if f"{layer}.weight" in shapes]
    return heads[0][0] if heads and heads[0] else 0


def _spec(name: str) -> object:
    return FAMILIES[name][0]


def model_wiring(name: Optional[str]) -> Optional[str]:
    """Return the wiring of a model's soft masks; None without a model or without masks."""
    return getattr(_spec(name), "wiring", None) if name else None


def _other_wiring(name: str, dialect: Optional[str]) -> str:
    """What `create_model` also needs so that a file of this dialect computes what it did."""
    trained, has = WIRINGS.get(dialect or ""), model_wiring(name)
    return f", wiring={trained!r}" if trained and has and trained != has else ""


def _modules(shapes: Mapping[str, Shape]) -> tuple[int, ...]:
    """Number of attention modules per stage, in this project's names; empty without any."""
    found = {m[0]: m[1] for m in map(_MODULE.match, shapes) if m}
    counts = Counter(found.values())
    return tuple(counts[stage] for stage in sorted(counts, key=int))


@lru_cache(maxsize=32)
def network_shapes(name: str, classes: int) -> dict[str, Optional[Shape]]:
    """Return name to shape of a model of the registry, as `save_parameters` orders them.

    The names are this project's, also for models with older ones. Empty when the model cannot be
    built for this number of classes.
    """
    try:
        net = create_model(name, classes=classes)
    except ModelError:
        return {}
    return rename({n: p.shape for n, p in net._collect_params_with_prefix().items()}, HEAD)


def differs(arrays: Mapping[str, np.ndarray], parameters: Parameters, name: str) -> bool:
    """Tell whether a parameter has another element type in the file than in the network."""
    return bool(arrays[name].dtype != np.dtype(parameters[name].dtype))


def cast(
    array: np.ndarray,
    parameter: gluon.Parameter,
    name: str,
    path: PathLike,
) -> np.ndarray:
    """Convert between floating-point types; rounding is accepted, overflow is not."""
    wanted = np.dtype(parameter.dtype)
    if array.dtype == wanted:
        return array
    if array.dtype.kind != "f" or wanted.kind != "f":
        raise LoadError(
            f"{os.fspath(path)}: {name} has element type {array.dtype}. Expected {wanted} or "
            "another floating-point type. Give a file with the weights themselves."
        )
    with np.errstate(over="ignore"):
        converted = array.astype(wanted)
    if np.any(np.isfinite(array) & ~np.isfinite(converted)):
        raise LoadError(
            f"{os.fspath(path)}: {name} holds {np.abs(array[np.isfinite(array)]).max():g}, too "
            f"large for the network's {wanted}. Expected at most {np.finfo(wanted).max:g}. Cast "
            "the network to a larger type first."
        )
    return converted
