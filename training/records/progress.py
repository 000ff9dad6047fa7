"""The progress bar: images/s, loss, accuracy and time left."""

from __future__ import annotations

import math
import sys
import time
from typing import Any, Callable

SECONDS_BETWEEN_LINES = 30.0  # where the output is a file, every refresh is a line


class ProgressBar:
    """A tqdm bar that counts images, on standard error; quiet in log files but for a line at times.

    Parameters
    ----------
    total
        Images in all.
    description
        Text in front.
    done
        Images done before, by an earlier process.
    quiet
        Show nothing: another worker has the bar.
    """

    def __init__(self, total: int, description: str, done: int = 0, quiet: bool = False) -> None:
        from tqdm import tqdm

        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=description,
            unit=" images",
            file=sys.stderr,
            leave=False,
            dynamic_ncols=terminal,
            ascii=not terminal,
            mininterval=0.2 if terminal else SECONDS_BETWEEN_LINES,
            maxinterval=1.0 if terminal else SECONDS_BETWEEN_LINES,
            # A bar that ends within the first interval leaves no trace in a log file.
            delay=0.0 if terminal else SECONDS_BETWEEN_LINES,
            disable=quiet,
        )

    def advance(self, images: int, **values: float) -> None:
        """Count `images` more and show the values, such as the loss so far."""
        if values:
            text = " ".join(f"{name} {value:.4f}" for name, value in values.items())
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(images)

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar.disable:
            return
        if sys.stderr.isatty():
            self._bar.write(text, file=sys.stderr)
        else:  # in a log the bar would be drawn again behind the text, and never cleared
            print(text, file=sys.stderr, flush=True)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()


def duration(seconds: float) -> str:
    """Return a length of time as people say it: ``50 s``, ``4 min``, ``2 h 05 min``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h"


class DurationNote:
    """Says once, from the first steps of this process, how long the rest will take."""

    STEPS, SECONDS = 3, 5.0

    def __init__(self) -> None:
        self._steps = self._images = 0
        self._begun = math.nan

    def tell(
        self, bar: ProgressBar, images: int, epochs: int, steps_left: Callable[[], float]
    ) -> None:
        """Count a step of `images`; print the estimate once.

        ``steps_left()`` is how many steps that take as long as this one are left of `epochs`.
        """
        if self._steps < 0:
            return
        now = time.monotonic()
        if not self._steps:  # the first step also builds the graph: it starts the clock
            self._begun = now
        else:
            self._images += images
        self._steps += 1
        seconds = now - self._begun
        if self._steps <= self.STEPS or seconds < self.SECONDS:
            return
        self._steps = -1
        left = steps_left() * images
        rate = self._images / seconds
        bar.note(
            f"{rate:.0f} images/s: about {duration(left / rate)} for the training that is left "
            f"({epochs} epochs in all), evaluations not counted"
        )
