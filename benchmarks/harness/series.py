"""What interleaved rounds gave, and how two systems compare."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Series:
    """What one worker gave for one case: one entry a round."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak_mib: float = 0.0

    @property
    def spread(self) -> float:
        """How many times as long as the fastest round the slowest took."""
        return max(self.seconds) / min(self.seconds)

    def summary(self) -> dict[str, Any]:
        """Median, least and most seconds of a step, with the rest as JSON holds it."""
        return {
            "median": statistics.median(self.seconds),
            "min": min(self.seconds),
            "max": max(self.seconds),
            "cpu_median": statistics.median(self.cpu_seconds),
            "peak_mib": self.peak_mib,
            "rounds": self.seconds,
        }


def ratio(other: Series, ours: Series) -> dict[str, float]:
    """How many times as long the other takes: ratio of the medians, and its least and most.

    The spread is that of the ratios round by round, whose two times were measured in turn.
    """
    by_round = [b / a for a, b in zip(ours.seconds, other.seconds)]
    medians = statistics.median(other.seconds) / statistics.median(ours.seconds)
    return {"ratio": medians, "min": min(by_round), "max": max(by_round)}


def compare(series: Mapping[str, Series]) -> dict[str, Any]:
    """Return what is recorded of a case; ratios are those to the first worker."""
    first = next(iter(series.values()))
    return {
        name: {**found.summary(), "ratio": ratio(found, first)} for name, found in series.items()
    }
