"""The fields of a config class: their types, reading values from words or JSON.

Knows neither argparse nor files; :mod:`training.settings.config` builds both from it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any, Optional, Union, get_args, get_origin, get_type_hints

LOOSE, REPEATED = "loose", "repeated"
_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_NONE = "none"  # the word for an Optional that is not set, and for an empty tuple
_ARTICLE = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def option(
    default: Any,
    help: str,
    *,
    choices: Optional[Sequence[Any]] = None,
    flags: Sequence[str] = (),
    metavar: Optional[str] = None,
    group: Optional[str] = None,
    words: str = "",
) -> Any:
    """One field of a config class, with what the command line needs to know about it.

    Parameters
    ----------
    default
        Value when the flag is not given.
    help
        One line for ``--help``.
    choices
        Allowed values (for a tuple: of each element).
    flags
        Further spellings, such as ``-b`` or ``--gpu``.
    metavar
        What ``--help`` shows for the value.
    group
        Heading in ``--help``, for this field and the fields after it until the next heading.
    words
        Of a tuple of str, whose values are then taken as they are: `LOOSE`, those that belong to no
        flag (it has none; one field per class); `REPEATED`, one for each time that its flag is
        given.
    """
    metadata = {
        "help": help,
        "choices": choices,
        "flags": flags,
        "metavar": metavar,
        "group": group,
        "words": words,
    }
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A field's type, taken apart: the basic type, perhaps None, perhaps a tuple of it."""

    basic: type
    optional: bool
    many: bool
    choices: Optional[Sequence[Any]]

    def read(self, word: str) -> Any:
        """One value from a word of the command line; ValueError says what is allowed."""
        if self.optional and word.lower() == _NONE:
            return None
        try:
            value = _BOOLS[word.lower()] if self.basic is bool else self.basic(word)
        except (ValueError, KeyError):
            raise ValueError(f"{word!r} is not {_ARTICLE[self.basic]}") from None
        return self._allowed(value)

    def read_many(self, words: Iterable[str]) -> tuple:
        """A tuple from words that may hold several values with commas between them."""
        parts = [part.strip() for word in words for part in word.split(",") if part.strip()]
        if [part.lower() for part in parts] == [_NONE]:
            return ()
        return tuple(self.read(part) for part in parts)

    def coerce(self, value: Any) -> Any:
        """A value from JSON as the field's type; ValueError when it is another type."""
        if self.many:
            if not isinstance(value, (list, tuple)):
                raise ValueError(f"{value!r} is not a list")
            return tuple(dataclasses.replace(self, many=False).coerce(element) for element in value)
        if value is None and self.optional:
            return None
        if self.basic is float and type(value) is int:
            value = float(value)
        if type(value) is not self.basic:
            raise ValueError(f"{value!r} is not {_ARTICLE[self.basic]}")
        return self._allowed(value)

    def _allowed(self, value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
        if self.choices is not None and value not in self.choices:
            allowed = [str(choice) for choice in self.choices]
            near = nearest(str(value), allowed)
            raise ValueError(f"{value!r} is not one of {', '.join(allowed)}{near}")
        return value


def field_kinds(config_class: type) -> dict[str, Kind]:
    """The kind of each field, by name; TypeError for a type that no flag can give."""
    hints = get_type_hints(config_class)
    fields = dataclasses.fields(config_class)
    return {field.name: _kind(hints[field.name], field.metadata.get("choices")) for field in fields}


def _kind(hint: Any, choices: Optional[Sequence[Any]]) -> Kind:
    arguments = get_args(hint)
    optional = get_origin(hint) is Union and len(arguments) == 2 and type(None) in arguments
    many = get_origin(hint) is tuple and len(arguments) == 2 and arguments[1] is Ellipsis
    basic = next(a for a in arguments if a is not type(None)) if optional or many else hint
    if basic not in _ARTICLE or (many and basic is bool):
        raise TypeError(f"a config field cannot have the type {hint}")
    return Kind(basic, optional, many, choices)


def as_text(value: Any) -> str:
    """A value as the command line would give it."""
    if isinstance(value, tuple):
        return ",".join(map(as_text, value)) or _NONE
    return _NONE if value is None else str(value)


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean ...?`` with the closest known word; empty when none is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""
