"""Ending a run on a signal without losing what it has computed."""

from __future__ import annotations

import gc
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Optional, TypeVar

from formats.errors import UserError

T = TypeVar("T")


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
