"""Exit codes of the scripts, and errors as one line."""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Optional

from formats.errors import UserError, first_line
from formats.param_reader import ParamFileError
from machine.processor import Unavailable
from training.settings.config import parse_overrides

WRONG_INPUT_EXIT = 2
PATCHED = ("mxnet", "gluoncv", "mxboard")  # what compat/ makes run on newer Pythons and NumPy
INTERRUPTED_EXIT = 130  # what a shell reports for a program that Ctrl-C ended


def _package_importing(error: BaseException) -> str:
    """Return which of MXNet, GluonCV and MXBoard was being imported when `error` came; or ""."""
    trace = error.__traceback__
    while trace is not None:
        package = str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0]
        if trace.tb_frame.f_code.co_name == "<module>" and package in PATCHED:
            return package
        trace = trace.tb_next
    return ""


def escape_unprintable() -> None:
    """Let the terminal get an escape, not the user a traceback, for what it cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def exit_code(action: Callable[[], int], *errors: type[Exception]) -> int:
    """Return what `action` returns; for what users can mend, and `errors`, print one line.

    So does what the system refuses (a full disk, a folder that has gone) and nobody has explained.

    Ctrl-C outside of the training loop, which saves first, ends without a word.
    """
    escape_unprintable()
    handled: tuple[type[Exception], ...] = (UserError, ParamFileError, Unavailable, *errors)
    try:
        return action()
    except KeyboardInterrupt:
        return INTERRUPTED_EXIT
    except handled as error:
        print(f"error: {error}", file=sys.stderr)
    except (AttributeError, ImportError, TypeError) as error:
        if not (package := _package_importing(error)):
            raise
        print(
            f"error: {package} cannot be imported in this environment: "
            f"{first_line(error).rstrip('.')}. On NumPy 1.24, protobuf 4, Python 3.12 and later "
            "ones: python -m compat --install, once",
            file=sys.stderr,
        )
    except MemoryError as error:
        print(
            f"error: there is not enough memory ({first_line(error)}). Smaller batches or images "
            "need less; a run goes on with --resume",
            file=sys.stderr,
        )
    except BrokenPipeError:
        # Whoever read our words, such as head, has gone; Python would complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        place = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        print(
            f"error: {place}{error.strerror or error}. Check the path, its permissions and the "
            "disk; a run goes on with --resume",
            file=sys.stderr,
        )
    return WRONG_INPUT_EXIT


def exits(*errors: type[Exception]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Decorate a ``main`` whose exit code is that of `exit_code`, which also takes `errors`."""

    def decorate(main: Callable[..., int]) -> Callable[..., int]:
        return functools.wraps(main)(lambda *given: exit_code(lambda: main(*given), *errors))

    return decorate


def check_flags(
    config_class: type,
    description: Optional[str],
    translate: Callable[[Sequence[str]], Sequence[str]] = list,
) -> None:
    """End a program where its command line asks for help or has a wrong flag.

    For the beginning of a script, before MXNet is loaded, for which nobody should then wait.
    `translate` makes our flags of those of others.
    """

    def read() -> int:
        parse_overrides(config_class, translate(sys.argv[1:]), description=description)
        return 0

    if code := exit_code(read):
        sys.exit(code)
