"""Ending a run on a signal, or going on unread, without losing what it has computed."""

from __future__ import annotations

import errno
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from types import FrameType
from typing import Any, Optional, TextIO, TypeVar

from formats.errors import UserError

T = TypeVar("T")
GONE = (errno.EPIPE, errno.EIO)  # of a pipe and of a terminal that nobody reads any more


class Interrupted(Exception):
    """Raised out of the loop when a signal asks the run to save and end."""


class DataLost(Exception):
    """The data cannot be read any more, or no longer: what was computed until then is to be saved.

    Its text says why.
    """


def readable(batches: Iterable[T]) -> Iterator[T]:
    """Give the same batches; what goes wrong with reading them becomes `DataLost`."""
    try:
        yield from batches
    except (UserError, OSError) as error:
        raise DataLost(str(error)) from error


def stop_signals() -> list[int]:
    """Return the signals that ask a training to save and end; not SIGHUP where it is ignored."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        signals.append(signal.SIGHUP)
    return list(map(int, signals))


class Interruption:
    """Turns SIGINT, SIGTERM and SIGHUP into a flag that the loop reads after every step.

    SIGHUP comes when the terminal is closed; under nohup it stays ignored. A second SIGINT ends the
    process at once, by KeyboardInterrupt. In a thread other than the main one, where Python lets
    nobody handle signals, the flag stays down.
    """

    def __init__(self) -> None:
        self.signal: Optional[int] = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in stop_signals():
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._old.items():
            # None: the handler was not set by Python and cannot be set back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _handle(self, number: int, _: Optional[FrameType]) -> None:
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def stop(self) -> bool:
        """Return True when the run should save and end."""
        return self.signal is not None


class _Lasting:
    """A text stream that writes to nowhere from when its reader has gone, instead of failing."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._lasting(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._lasting(self._stream.flush)

    def finish(self) -> None:
        """Write what is left, which would fail at the end of Python; of a full disk that tells."""
        with suppress(OSError):
            self.flush()

    def _lasting(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except OSError as error:
            if error.errno not in GONE:
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        return action()


@contextmanager
def lasting_streams() -> Iterator[None]:
    """Let standard output and error outlive their readers in this block.

    Such are a closed terminal, ``| head``, and a ``tee`` that Ctrl-C ends along with the training.
    """
    with ExitStack() as held:
        for redirect, stream in ((redirect_stdout, sys.stdout), (redirect_stderr, sys.stderr)):
            if stream is None:  # a program may be started without one
                continue
            lasting = _Lasting(stream)
            held.enter_context(redirect(lasting))
            held.callback(lasting.finish)
        yield


@contextmanager
def only_new_objects() -> Iterator[None]:
    """Let collections look at nothing that is older than this block.

    An update makes thousands of short-lived objects, so Python goes through all objects again and
    again; modules, network and data are most of them, and they stay.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
