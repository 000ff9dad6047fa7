"""A network as the part of a card that makes it again (see `formats.card`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Optional

from formats.atomic import PathLike
from model.layers.gluoncv_zoo import PREFIX as GLUONCV
from model.registry import DEFAULT_CLASSES, FAMILIES, ModelError, create_model, spec_of
from model.weights.file_match import LoadError, Shape, count_classes
from model.weights.known import ITS_RUN, Known


def network_section(name: str, net: Any, classes: int) -> dict[str, Any]:
    """Return name, classes, and every field of the spec that differs from the named network's."""
    if name not in FAMILIES:  # of gluoncv's zoo
        return {"model": name, "classes": classes, "settings": {}}
    usual = FAMILIES[name][0]
    settings = {
        field.name: _plain(getattr(net.spec, field.name))
        for field in dataclasses.fields(net.spec)
        if field.name != "classes" and getattr(net.spec, field.name) != getattr(usual, field.name)
    }
    return {"model": name, "classes": classes, "settings": settings}


def overrides_in(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of `network_section` as `create_model` takes them."""
    return {name: _tuples(value) for name, value in section.get("settings", {}).items()}


def network_from(section: Mapping[str, Any], **more: Any) -> Any:
    """Return the network of `network_section`, uninitialized; raises as `create_model`."""
    classes = section.get("classes")
    return create_model(section["model"], classes, **{**overrides_in(section), **more})


def recorded_network(
    path: PathLike, known: Known, shapes: Mapping[str, Shape], named: Mapping[str, Any]
) -> Optional[tuple[str, int, dict[str, Any]]]:
    """Return name, classes and settings of a file's network as they are on record.

    Parameters
    ----------
    path, known, shapes
        The file, what `model.weights.known` knows of it, and its tensors.
    named
        What a user has named: ``model``, ``classes``, fields of the spec; None counts as not named.

    Returns
    -------
    tuple
        As `create_model` takes them; None when nothing is on record.

    Raises
    ------
    LoadError
        When the network is unknown here, or another one than what is `named`.
    """
    section = known.card.get("network", {})
    model = section.get("model")
    if model is None:
        return None
    source, settings = known.sources["network"], overrides_in(section)
    if source == ITS_RUN:
        # Its settings need not be all that the network has.
        further = {n: v for n, v in named.items() if n not in ("model", "classes", *known.recorded)}
        settings.update({name: value for name, value in further.items() if value is not None})
    if model not in FAMILIES and not model.startswith(GLUONCV):
        raise LoadError(
            f"{path}: {source} says that its network is {model!r}, which this project does not "
            f"have. Take a later version of the project. {known.remedy(path)}."
        )
    classes = section.get("classes") or count_classes(shapes) or None
    wrong = _contradictions(model, classes, settings, named)
    if wrong:
        has = {**_fields(_spec(model, settings)), "classes": classes, "model": model}
        raise LoadError(
            f"{path}: {source} says {_list(has, wrong)}; {_list(named, wrong)} was asked for, "
            f"which would make another network of it. Leave that out. {known.remedy(path)}."
        )
    return model, classes or DEFAULT_CLASSES, settings


def _contradictions(
    model: str, classes: Optional[int], settings: Mapping[str, Any], named: Mapping[str, Any]
) -> list[str]:
    """Return what of `named` is not so in the network."""
    asked = {name: value for name, value in named.items() if value not in (None, "")}
    count, other = asked.pop("classes", 0), asked.pop("model", model)
    spec = _spec(model, settings)
    wrong = ["classes"] * bool(count and classes and count != classes)
    wrong += [
        name
        for name, value in asked.items()
        if other == model and getattr(spec, name, None) != value
    ]
    if other not in FAMILIES:
        create_model(other)  # says what there is
    if other != model:
        try:
            same = dataclasses.replace(spec_of(other, **asked), classes=spec.classes) == spec
        except (AttributeError, ModelError, TypeError):
            same = False
        wrong += ["model", *asked] if not same else []
    return wrong


def _spec(model: str, settings: Mapping[str, Any]) -> Any:
    """Return the spec of a network; None for one of gluoncv's zoo, where names say all."""
    return None if model.startswith(GLUONCV) else spec_of(model, **settings)


def _fields(spec: Any) -> dict[str, Any]:
    fields = () if spec is None else dataclasses.fields(spec)
    return {field.name: getattr(spec, field.name) for field in fields}


def _list(values: Mapping[str, Any], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {values[name]}" for name in names if name in values)


def _plain(value: Any) -> Any:
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
