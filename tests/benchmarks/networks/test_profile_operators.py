"""Sums of a profile: time and calls by operator."""

from __future__ import annotations

from typing import Any

from benchmarks.networks.profile_operators import by_operator, table


def event(name: str, phase: str, microseconds: float, thread: int = 0, **more: Any) -> dict:
    known = {"cat": "operator", "pid": 1, "tid": thread, "name": name, "ph": phase}
    return {**known, "ts": microseconds, **more}


EVENTS = [
    event("early", "E", 5.0),  # begun before the profile
    event("conv", "B", 10.0),
    event("conv", "B", 12.0, thread=1),
    event("conv", "E", 1012.0, thread=1),
    event("conv", "E", 2010.0),
    event("add", "B", 3000.0),
    event("add", "E", 3100.0),
    event("tiny", "B", 3100.0),
    event("tiny", "E", 3101.0),
    event("step", "B", 0.0, cat="event"),
    event("step", "E", 4000.0, cat="event"),
    event("late", "B", 5000.0),
]


def test_times_and_calls_are_those_of_a_step() -> None:
    found = by_operator(EVENTS, steps=2)
    assert found == {"conv": (1.5, 1.0), "add": (0.05, 0.5), "tiny": (0.0005, 0.5)}


def test_the_longest_is_first_and_what_is_small_is_in_one_line() -> None:
    lines = table(by_operator(EVENTS, steps=1), least=1.0).splitlines()[2:]
    assert lines == [
        "| conv | 3.0 | 97% | 2 |",
        "| add | 0.1 | 3% | 1 |",
        "| others | 0.0 | 0% | 1 |",
        "| all | 3.1 | 100% | 4 |",
    ]
