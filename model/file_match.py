"""Comparing a parameter file's names, shapes and element types with a network."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Optional

import numpy as np
from mxnet import gluon

from bridge.param_file import PathLike
from model.dialects import describe, detect_dialect, rename

# Attributes that hold the classifier, in this project's networks and in gluoncv's.
CLASS_LAYERS = ("fc", "output")
SHOWN = 3  # names listed per kind of mismatch

Shape = tuple[int, ...]
Parameters = Mapping[str, gluon.Parameter]


class LoadError(Exception):
    """A sound parameter file does not fit the network, or the network cannot take it.

    The message says what the file looks like, what the network has and what to do.
    """


def fits(known: Optional[Shape], shape: Shape) -> bool:
    """Compare with a parameter's shape, in which 0 and -1 stand for unknown."""
    if known is None:
        return True
    return len(known) == len(shape) and all(k in (0, -1, s) for k, s in zip(known, shape))


def class_names(arrays: Mapping[str, np.ndarray], parameters: Parameters) -> tuple[str, ...]:
    """Return the classifier's parameters that differ in the number of classes and nothing else."""
    return tuple(
        name
        for name, parameter in parameters.items()
        if name.split(".")[0] in CLASS_LAYERS
        and name in arrays
        and not fits(parameter.shape, arrays[name].shape)
        and fits((0, *parameter.shape[1:]), arrays[name].shape)
    )


def check_match(
    arrays: Mapping[str, np.ndarray],
    parameters: Parameters,
    fresh: Sequence[str],
    path: PathLike,
) -> None:
    """Raise LoadError unless names and shapes are the network's; `fresh` names may differ."""
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
    parts = [f"{os.fspath(path)}: looks like {describe(shapes)}, the network is {own}"]
    if missing:
        parts.append(f"missing in the file: {_some(missing)}")
    if unexpected:
        parts.append(f"not in the network: {_some(unexpected)}")
    if wrong:
        pairs = [
            f"{n} {shapes[n]} in the file, {parameters[n].shape} in the network" for n in wrong
        ]
        parts.append(f"other shapes: {_some(pairs, '; ')}")
    classes_only = not (missing or unexpected) and set(wrong) == set(
        class_names(arrays, parameters)
    )
    raise LoadError(f"{'; '.join(parts)}. {_remedy(shapes, classes_only)}")


def _some(items: Sequence[str], separator: str = ", ") -> str:
    rest = f"{separator}... ({len(items)} in all)" if len(items) > SHOWN else ""
    return separator.join(items[:SHOWN]) + rest


def _remedy(shapes: Mapping[str, Shape], classes_only: bool) -> str:
    if classes_only:
        return (
            "Only the number of classes differs: build the network with the file's number, or "
            "finetune (`--finetune FILE`, allow_classes_mismatch=True)."
        )
    name, classes = find_model(shapes)
    if name is not None:
        return f"Use `--model {name}`, in Python create_model({name!r}, classes={classes})."
    return "No model of this project fits; give a file that was saved from this network."


def find_model(shapes: Mapping[str, Shape]) -> tuple[Optional[str], int]:
    """Find the model of the registry that a parameter file belongs to.

    Parameters
    ----------
    shapes
        Name to shape, as in the file, in any dialect.

    Returns
    -------
    tuple
        Name for `model.create_model`, None when no model fits, and number of classes (0 when the
        file has no known classifier).
    """
    from model.registry import ModelError, create_model, list_models  # only needed for advice

    heads = [shapes[f"{layer}.weight"] for layer in CLASS_LAYERS if f"{layer}.weight" in shapes]
    if not heads or not heads[0]:
        return None, 0
    for name in list_models():
        try:
            parameters = create_model(name, classes=heads[0][0])._collect_params_with_prefix()
            named = rename(shapes, detect_dialect(parameters) or "head")
        except (ModelError, ValueError):
            continue
        if named.keys() == parameters.keys() and all(
            fits(parameters[key].shape, shape) for key, shape in named.items()
        ):
            return name, heads[0][0]
    return None, heads[0][0]


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
