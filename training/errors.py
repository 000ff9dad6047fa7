"""The one exception for what a user can cause and mend."""

from __future__ import annotations


class UserError(Exception):
    """Wrong input: the message says what was given, what is allowed and what to do.

    Scripts print it as ``error: ...`` on standard error and exit with code 2, without a traceback.
    """
