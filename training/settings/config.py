"""Settings of a script as a frozen dataclass: one list of fields for command line, file and help.

A script writes its fields with :func:`option` and calls :func:`parse`; nothing here knows any
field::

    @dataclass(frozen=True)
    class Config:
        model: str = option("attention92", "network", group="network")
        lr_steps: tuple[int, ...] = option((), "epochs at which the learning rate falls")
        batch_size: int = option(128, "images per step", flags=("-b",))

    config = parse(Config, sys.argv[1:])

Field types: ``int``, ``float``, ``str``, ``bool``, ``Optional`` of these, and ``tuple[..., ...]``
of the first three.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, Optional, TypeVar

from formats.errors import UserError
from training.settings.fields import LOOSE, REPEATED, Kind, as_text, field_kinds, nearest

__all__ = [
    "diff_from_default",
    "from_dict",
    "parse",
    "parse_overrides",
    "to_dict",
]

C = TypeVar("C")


def parse(
    config_class: type[C],
    argv: Sequence[str],
    prog: Optional[str] = None,
    description: Optional[str] = None,
) -> C:
    """The config that ``argv`` describes, checked by its ``check()`` method when it has one.

    A flag is the field's name with dashes (underscores are accepted). Bad input prints one line,
    ``error: ...``, on standard error and exits with code 2.
    """
    try:
        config = config_class(**parse_overrides(config_class, argv, prog, description))
        check = getattr(config, "check", None)
        if check is not None:
            check()
    except UserError as error:
        _exit(str(error))
    return config


def parse_overrides(
    config_class: type,
    argv: Sequence[str],
    prog: Optional[str] = None,
    description: Optional[str] = None,
    without: Sequence[str] = (),
) -> dict[str, Any]:
    """Only the fields that ``argv`` gives, to lay over the settings of a saved run.

    The fields ``without`` have no flag here. Exits like :func:`parse`.
    """
    parser = _parser(config_class, prog, description, without)
    given, rest = parser.parse_known_args([_dashed(word) for word in argv])
    words = None if _positional(config_class) in without else _positional(config_class)
    wrong = next((word for word in rest if word.startswith("-") or not words), None)
    if wrong is not None:
        parser.error(_unknown(wrong, parser))
    return {**vars(given), **({words: tuple(rest)} if words and rest else {})}


def _positional(config_class: type) -> Optional[str]:
    """The field that takes the words without a flag, if there is one."""
    fields = dataclasses.fields(config_class)
    return next((field.name for field in fields if field.metadata.get("words") == LOOSE), None)


def to_dict(config: Any) -> dict[str, Any]:
    """Names and values of the fields, in order, as JSON holds them (tuples become lists)."""
    values = ((field.name, getattr(config, field.name)) for field in dataclasses.fields(config))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values}


def from_dict(config_class: type[C], mapping: Mapping[str, Any]) -> C:
    """The inverse of :func:`to_dict`; fields that are missing get their defaults.

    Raises
    ------
    UserError
        When a key is not a field (with the nearest name) or a value does not have the
        field's type or is not among its choices. ``check()`` is left to the caller.
    """
    kinds = field_kinds(config_class)
    values = {}
    for name, value in mapping.items():
        if name not in kinds:
            raise UserError(f"unknown setting {name!r}{nearest(name, kinds)}")
        try:
            values[name] = kinds[name].coerce(value)
        except ValueError as error:
            raise UserError(f"setting {name}: {error}") from None
    return config_class(**values)


def diff_from_default(config: Any, but: Sequence[str] = ()) -> str:
    """What differs from the defaults, as ``lr 0.1->0.05, epochs 220->3``; empty for nothing.

    Fields called `but` are left out.
    """
    changed = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default and field.name not in but:
            changed.append(f"{field.name} {as_text(field.default)}->{as_text(value)}")
    return ", ".join(changed)


_METAVAR = {int: "N", float: "X", str: "TEXT", bool: ""}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _exit(message.removeprefix("argument "))


class _Help(argparse.HelpFormatter):
    def _format_action_invocation(self, action: argparse.Action) -> str:
        spellings = ", ".join(action.option_strings)
        if action.nargs in (0, "?"):  # the value of --flag=false is optional and would only clutter
            return spellings
        default_metavar = self._get_default_metavar_for_optional(action)
        return f"{spellings} {self._format_args(action, default_metavar)}"

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Fill paragraphs, but leave lines that are indented, as examples are, as they stand."""
        shown = []
        for paragraph in text.strip().split("\n\n"):
            lines = paragraph.splitlines()
            if all(line.startswith("    ") for line in lines):
                shown.append("\n".join(indent + line for line in lines))
            else:
                shown.append(super()._fill_text(paragraph, width, indent))
        return "\n\n".join(shown)


class _Assign(argparse.Action):
    """Put the value of one flag into the namespace, read by the field's kind."""

    kind: Kind
    negative: Optional[str] = None
    repeated = False

    def __call__(
        self, parser: Any, namespace: Any, values: Any, option_string: Optional[str] = None
    ) -> None:
        try:
            if option_string == self.negative and option_string is not None:
                if values is not None:
                    raise ValueError(f"{option_string} takes no value")
                value: Any = False
            elif values is None:
                value = True
            elif self.repeated:
                value = (*getattr(namespace, self.dest, ()), values)
            else:
                value = self.kind.read_many(values) if self.kind.many else self.kind.read(values)
        except ValueError as error:
            raise argparse.ArgumentError(self, str(error)) from None
        setattr(namespace, self.dest, value)


def _parser(
    config_class: type,
    prog: Optional[str],
    description: Optional[str],
    without: Sequence[str] = (),
) -> _Parser:
    parser = _Parser(
        prog=prog,
        description=description,
        usage="%(prog)s [--flag value ...]",
        allow_abbrev=False,
        formatter_class=lambda prog: _Help(prog, max_help_position=32),
        argument_default=argparse.SUPPRESS,
    )
    group: Any = parser
    for name, kind in field_kinds(config_class).items():
        field = config_class.__dataclass_fields__[name]  # type: ignore[attr-defined]
        if field.metadata.get("group"):
            group = parser.add_argument_group(field.metadata["group"])
        if field.metadata.get("words") == LOOSE or name in without:
            continue
        _add_flag(group, field, kind)
    return parser


def _add_flag(group: Any, field: dataclasses.Field, kind: Kind) -> None:
    metadata = field.metadata
    flag = _dashed("--" + field.name)
    negative = "--no-" + flag[2:] if kind.basic is bool else None
    spellings = [flag, *([negative] if negative else []), *map(_dashed, metadata.get("flags", ()))]
    repeated = metadata.get("words") == REPEATED
    shown = "|".join(map(str, kind.choices)) if kind.choices else _METAVAR[kind.basic]
    action = group.add_argument(
        *spellings,
        action=_Assign,
        dest=field.name,
        nargs="?" if negative else "+" if kind.many and not repeated else None,
        metavar=metadata.get("metavar") or shown,
        help=f"{metadata.get('help', '')} (default: {as_text(field.default)})".replace("%", "%%"),
    )
    action.kind, action.negative, action.repeated = kind, negative, repeated


def _dashed(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def _unknown(word: str, parser: argparse.ArgumentParser) -> str:
    if not word.startswith("-"):
        return f"unexpected word {word!r}; every setting is a flag (--help lists all)"
    name = word.partition("=")[0]
    known = [flag for flag in parser._option_string_actions if flag.startswith("--")]
    return f"unknown option {name}{nearest(name, known)} (--help lists all)"


def _exit(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
