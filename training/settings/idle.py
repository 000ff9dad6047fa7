"""Settings that would do nothing beside others: refused where a user has named them, or told.

`RunConfig.IDLE` and its subclasses have the table, which ``tests/training/settings/test_idle.py``
walks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Callable

from formats.errors import UserError
from training.settings.words import flags_of


@dataclass(frozen=True)
class Idle:
    """Settings that do nothing beside others.

    Parameters
    ----------
    names
        The settings. One that is off anyway (0, none) is no contradiction.
    beside
        Whether the settings of a config leave them without effect.
    why
        For the message, in which ``{name}`` is the setting `name`: what they are beside, and what
        to do.
    told
        It is no mistake, so it is told only: a limit that cannot be reached, a place that is not
        looked at.
    always
        It is told also where a recipe or a default has brought the setting.
    """

    names: tuple[str, ...]
    beside: Callable[[Any], bool]
    why: str
    told: bool = False
    always: bool = False


def check_idle(config: Any, given: Mapping[str, Any], strict: bool = True) -> None:
    """Refuse or tell settings of a training that would do nothing.

    Parameters
    ----------
    config
        All settings, of a class with a table ``IDLE``.
    given
        Those that the user has named.
    strict
        False tells what would be refused: the command line is another program's, translated.

    Raises
    ------
    UserError
        When a setting that the user has named would do nothing.
    """
    for rule in config.IDLE:
        on = [name for name in rule.names if getattr(config, name) not in (None, 0, "none", ())]
        named = [name for name in on if name in given]
        if not (named or (on and rule.always)) or not rule.beside(config):
            continue
        values = {name: getattr(config, name) for name in config.__dataclass_fields__}
        text = f"{', '.join(flags_of(named or on))} would do nothing: {rule.why.format(**values)}"
        if named and strict and not rule.told:
            raise UserError(text)
        print(f"note: {text}")


def tell_unheeded(action: str, given: Mapping[str, Any], heeded: Collection[str]) -> None:
    """Say which settings that the user has named do nothing for an action, such as ``test``."""
    names = [name for name in given if name not in (action, *heeded)]
    if names:
        flag, *others = flags_of([action, *names])
        print(f"note: {', '.join(others)}: without effect with {flag}")
