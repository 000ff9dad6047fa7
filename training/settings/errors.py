"""The one exception for what a user can cause and mend."""

from __future__ import annotations


class UserError(Exception):
    """Wrong input: the message says what was given, what is allowed and what to do.

    Scripts print it as ``error: ...`` on standard error and exit with code 2, without a traceback.
    """


def last_line(error: Exception) -> str:
    """Return the last line of what an error says, where MXNet's have the reason; else its name."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
