"""The progress line of a training: images/s, loss, accuracy, time left; without any package."""

from __future__ import annotations

import sys
import time
from typing import Optional, TextIO

SECONDS = 1.0  # between two looks at the device, which make it wait
SECONDS_IN_FILES = 30.0  # where the output is no terminal, every refresh is a line


class StatusLine:
    """One line on standard error that is written over; in log files a line at times.

    Parameters
    ----------
    total
        Images of the whole training.
    done
        Images done before, by earlier processes.
    """

    def __init__(self, total: int, done: int, stream: Optional[TextIO] = None) -> None:
        self.total, self.done, self.stream = total, done, stream or sys.stderr
        self.terminal = self.stream.isatty()
        self._first, self._begun = done, time.monotonic()
        self._shown, self._width = self._begun, 0

    def show(self, text: str, done: int, now: float) -> None:
        """Show `text` with the speed since the start and the time left, if it is time to."""
        self.done = done
        if not self.terminal and now - self._shown < SECONDS_IN_FILES:
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._begun, 1e-9)
        left = clock((self.total - done) / rate) if rate else "?"
        line = f"{text}  {rate:,.0f} images/s  {left} left"
        if self.terminal:
            self._width = max(self._width, len(line))
            print("\r" + line.ljust(self._width), end="", file=self.stream, flush=True)
        else:
            print(line, file=self.stream, flush=True)

    def clear(self) -> None:
        """Take the line away before something else is printed."""
        if self.terminal and self._width:
            print("\r" + " " * self._width + "\r", end="", file=self.stream, flush=True)


def clock(seconds: float) -> str:
    """Return ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
