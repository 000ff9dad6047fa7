"""The one exception for what a user can cause and mend."""

from __future__ import annotations

import shlex
from typing import Any


class UserError(Exception):
    """Wrong input: the message says what was given, what is allowed and what to do.

    Scripts print it as ``error: ...`` on standard error and exit with code 2, without a traceback.
    """


def printable(text: str) -> str:
    """Return a name that a user gave, with escapes for what no terminal can show or should get.

    Names of files may be bytes of no encoding (surrogates in Python), or have control characters.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def quoted(place: Any) -> str:
    """Return a path as a shell takes it, for commands that a user is to repeat."""
    return shlex.quote(str(place))


def last_line(error: Exception) -> str:
    """Return the last line of what an error says, where MXNet's have the reason; else its name."""
    return _lines(error)[-1].strip()


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, where PyTorch has the reason; else its name."""
    return _lines(error)[0]


def _lines(error: Exception) -> list[str]:
    return (str(error).strip() or type(error).__name__).splitlines()
