"""Names of networks: ``create_model("attention92", classes=100)``.

A family of networks is a module with a table ``FAMILY``: name to (spec, builder). The spec is a
frozen dataclass whose fields can be overridden; ``builder(spec, classes, *, option=...)`` returns
the network, and its keyword-only parameters can be given as well.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

from mxnet.gluon import nn

from model.layers.gluoncv_zoo import PREFIX, build_zoo_network
from model.ram_resnet import FAMILY as RESNET
from model.recurrent_attention import FAMILY as GLIMPSE
from model.residual_attention_network import FAMILY as ATTENTION

FAMILIES: dict[str, tuple[Any, Callable[..., nn.HybridBlock]]] = {**ATTENTION, **GLIMPSE, **RESNET}

DEFAULT_CLASSES = 10
LISTED, NEAREST = 40, 12  # names in a message: all up to so many, else only the nearest


class ModelError(Exception):
    """An unknown network or override: the message names what is available."""


def list_models() -> list[str]:
    """Return the names that `create_model` takes, sorted."""
    return sorted(FAMILIES)


def create_model(name: str, classes: Optional[int] = None, **overrides: Any) -> nn.HybridBlock:
    """Return the network called `name`, uninitialized and on no device.

    Parameters
    ----------
    name
        One of `list_models`, or ``gluoncv:`` and the name of a classifier of gluoncv's model zoo,
        such as ``gluoncv:cifar_resnet56_v1``.
    classes
        Number of classes. None: those of the variant's data set, 1000 for the ImageNet variants
        and 10 for most others.
    overrides
        Fields of the variant's spec to replace (``channels=(64, 128, 256)``, ``wiring="paper"``),
        or options of its builder (``norm_kwargs={"epsilon": 1e-4}``).

    Raises
    ------
    ModelError
        When the name, an override or its value is impossible; the message gives the nearest name
        and everything that is available.
    """
    if classes is not None and classes < 1:
        raise ModelError(f"cannot build {name}: {classes} classes; give 1 or more")
    if name.startswith(PREFIX):
        try:
            number = DEFAULT_CLASSES if classes is None else classes
            return build_zoo_network(name, number, **overrides)
        except (ValueError, TypeError) as error:
            raise ModelError(f"cannot build {name}: {error}") from error
    if name not in FAMILIES:
        raise ModelError(_unknown("model", name, list_models()))
    spec, build = FAMILIES[name]
    fields, options = overrides_of(name)
    for key in overrides:
        if key not in fields and key not in options:
            raise ModelError(_unknown(f"override of {name}", key, [*fields, *options]))
    changed = {key: value for key, value in overrides.items() if key in fields}
    given = {key: value for key, value in overrides.items() if key in options}
    if classes is None:
        classes = getattr(spec, "classes", DEFAULT_CLASSES)
    try:
        return build(dataclasses.replace(spec, **changed), classes, **given)
    except (ValueError, TypeError) as error:
        raise ModelError(f"cannot build {name}: {error}") from error


def overrides_of(name: str) -> tuple[list[str], list[str]]:
    """Return what can be replaced in a network of `list_models`: fields of its spec, options."""
    spec, build = FAMILIES[name]
    _, _, *parameters = inspect.signature(build).parameters.values()  # beside spec and classes
    options = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
    return [field.name for field in dataclasses.fields(spec)], options


def spec_of(name: str, **overrides: Any) -> Any:
    """Return the spec of a network with some fields replaced; ModelError as in `create_model`."""
    return create_model(name, **overrides).spec


def read_settings(words: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a spec that ``--set FIELD=VALUE`` names, each VALUE as Python has it.

    Raises
    ------
    ModelError
        When a word has another form or a field occurs twice.
    """
    settings: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.isidentifier():
            raise ModelError(f"--set {word}: give FIELD=VALUE, such as --set channels=64,64,128")
        if name in settings:
            raise ModelError(f"--set {word}: {name} occurs twice; give it once")
        try:
            settings[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            settings[name] = text
    return settings


def settings_words(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the words that `read_settings` reads these fields from."""
    return tuple(f"{name}={value!r}" for name, value in settings.items())


def _unknown(what: str, given: str, available: list[str]) -> str:
    close = difflib.get_close_matches(str(given), available, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    listed = ", ".join(available)
    if len(available) > LISTED:
        near = difflib.get_close_matches(str(given), available, n=NEAREST, cutoff=0.0)
        listed = f"{', '.join(near)}, ... ({len(available)} in all: --list-models, list_models())"
    return f"unknown {what} {given!r}{hint} Available: {listed}"
