"""Words of a command line, for those who look at them before, or beside, its parser.

The standard library alone: `training.compute.thread_choice` reads ``--threads`` before NumPy is
loaded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Optional


def flags_of(names: Iterable[str]) -> list[str]:
    """Return the flags of settings, as users write them: ``w_init`` is ``--w-init``."""
    return ["--" + name.replace("_", "-") for name in names]


def is_given(argv: Sequence[str], flag: str) -> bool:
    """Return whether a flag is in a command line, with a value or without."""
    return any(word.partition("=")[0] == flag for word in argv)


def value_of(argv: Sequence[str], *flags: str) -> Optional[str]:
    """Return the value of a flag, by any of its spellings: the last one that is given.

    Empty where no value follows; None where the flag is not there.
    """
    found = None
    for word, following in zip(argv, [*argv[1:], ""]):
        name, equals, value = word.partition("=")
        if name in flags:
            found = value if equals else following
    return found
