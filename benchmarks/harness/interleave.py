"""Measure several programs side by side, their rounds in turn: A B A B ...

Each worker is a process of its own, in an environment of its own, that stays alive and answers
requests (``worker.py``). Whatever else the machine does meanwhile falls on all of them alike, so a
ratio is firmer than the times. As a program, for workers that are started by hand::

    python -m benchmarks.harness.interleave --cases train \\
        --workers "ours=.venv/bin/python x.py" "theirs=.venv-torch/bin/python y.py"
"""

from __future__ import annotations

import json
import os
import selectors
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Optional, Protocol

from benchmarks.harness.report import begin, header, headline, row, store
from benchmarks.harness.series import Series, compare
from formats.errors import UserError
from machine.processor import library_caps
from training.settings.config import parse
from training.settings.exit_code import exits
from training.settings.fields import option
from training.settings.run_config import check_least

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PAUSE_SEC = 0.1  # after a round: threads of the last worker that still spin give up their cores


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Parameters
    ----------
    rounds
        Timed rounds of each worker and case.
    warm_up
        Rounds before them that are not counted.
    round_sec
        About how long a round lasts: steps are repeated until it is filled.
    timeout_sec
        Longest wait for an answer.
    repeat
        Steps of each of the two requests, not counted, that find out how long a step takes.
    limit_sec
        No further round is begun after so long, but `least` are made.
    least
        Rounds that are made in any case.
    """

    rounds: int = 15
    warm_up: int = 2
    round_sec: float = 0.5
    timeout_sec: float = 600.0
    repeat: int = 2
    limit_sec: float = float("inf")
    least: int = 3


class Asked(Protocol):
    """What `interleave` needs of a worker."""

    @property
    def name(self) -> str:
        """Return the name of the row in the table."""
        ...

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and return the answer."""


class Worker:
    """A running worker; ``with Worker(name, command) as worker: worker.ask(do="time", ...)``.

    Parameters
    ----------
    name
        Of the row in the table.
    command
        Program and arguments.
    environment
        Variables besides those of this process, and besides
        `machine.processor.library_caps`: what ``ATTENTION_ISA`` leaves out no system has.
    timeout_sec
        Longest wait for an answer, the first one included.

    Raises
    ------
    UserError
        From every method, when the worker cannot be started, ends, answers what is no answer, or
        says that it failed; the message names the worker and gives its last words.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Optional[Mapping[str, str]] = None,
        timeout_sec: float = 600.0,
    ) -> None:
        self.name, self.timeout_sec = name, timeout_sec
        self._unread = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the worker is)
        try:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                cwd=ROOT,
                env={**os.environ, **library_caps(), **(environment or {})},
            )
        except OSError as error:
            self._errors.close()
            raise UserError(f"worker {name}: cannot start {command[0]}: {error.strerror}") from None
        try:
            self.about = self._answer()
        except BaseException:
            self.close()
            raise

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send one request and return the answer."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            self._fail("ended")
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._line()
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            self._fail(f"answered {line[:80]!r} where a JSON object was expected")
        if "error" in answer:
            raise UserError(f"worker {self.name}: {answer['error']}")
        return answer

    def _line(self) -> str:
        assert self._process.stdout is not None
        end = time.monotonic() + self.timeout_sec
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, end - time.monotonic())):
                    self._process.kill()  # or its late answer would be taken for the next one
                    self._fail(f"did not answer within {self.timeout_sec:g} s")
                read = os.read(self._process.stdout.fileno(), 65536)
                if not read:
                    self._fail("ended")
                self._unread += read
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode(errors="replace")

    def _fail(self, what: str) -> None:
        if what == "ended":
            what = f"ended with exit code {self._process.wait()} before it answered"
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip().splitlines()
        raise UserError(f"worker {self.name} {what}" + (f": {words[-1]}" if words else ""))

    def close(self) -> None:
        """End the process; wait for it a little, then make it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(2.0)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def interleave(workers: Sequence[Asked], case: str, plan: Plan) -> dict[str, Series]:
    """Run the rounds of one case, all workers in turn, and return the series by worker's name."""
    repeats, series = {}, {worker.name: Series() for worker in workers}
    for worker in workers:
        worker.ask(do="time", case=case, repeat=plan.repeat)
        once = worker.ask(do="time", case=case, repeat=plan.repeat)["seconds"]
        repeats[worker.name] = max(1, round(plan.round_sec / max(once, 1e-9)))
    end = time.monotonic() + plan.limit_sec
    for number in range(plan.warm_up + plan.rounds):
        if number >= plan.warm_up + plan.least and time.monotonic() > end:
            break
        for worker in workers:
            time.sleep(PAUSE_SEC)
            answer = worker.ask(do="time", case=case, repeat=repeats[worker.name])
            if number >= plan.warm_up:
                found = series[worker.name]
                found.seconds.append(answer["seconds"])
                found.cpu_seconds.append(answer.get("cpu_seconds", answer["seconds"]))
                found.peak_mib = max(found.peak_mib, answer.get("peak_mib", 0.0))
    return series


def measure(workers: Sequence[Worker], cases: Sequence[str], plan: Plan) -> dict[str, Any]:
    """Return `compare` of each case, by case."""
    return {case: compare(interleave(workers, case, plan)) for case in cases}


@dataclass(frozen=True)
class Config:
    """Settings of the program."""

    workers: tuple[str, ...] = option((), "NAME=COMMAND of each worker; ratios are to the first")
    cases: tuple[str, ...] = option((), "what they are asked to time")
    rounds: int = option(15, "timed rounds of each worker and case")
    round_sec: float = option(0.5, "about how long a round lasts, seconds")
    out: str = option("runs/bench/interleave.json", "file that the figures are stored in")

    def check(self) -> None:
        """Refuse what measures nothing."""
        if not self.workers or not all(name and rest for name, rest in self.split()):
            raise UserError(f"--workers {' '.join(self.workers)}; give NAME=COMMAND for each")
        if not self.cases:
            raise UserError("--cases is missing; name what the workers shall time, as train")
        check_least(self, 1, "rounds")

    def split(self) -> list[tuple[str, str]]:
        """Return name and command of each worker."""
        parts = (worker.partition("=") for worker in self.workers)
        return [(name, command) for name, _, command in parts]


def measure_point(worker: Worker, case: str, point_sec: float) -> float:
    """Return the median seconds of a step, after one that builds the graph."""
    worker.ask(do="time", case=case, repeat=1)
    end = time.monotonic() + point_sec
    seconds: list[float] = []
    while len(seconds) < 3 or (time.monotonic() < end and len(seconds) < 50):
        seconds.append(worker.ask(do="time", case=case, repeat=1)["seconds"])
    return statistics.median(seconds)


@exits()
def main(argv: Sequence[str]) -> int:
    """Measure, print the table, store the figures; 2 for bad input or a worker that failed."""
    config = parse(Config, argv, "interleave.py", __doc__)
    known = begin()
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(name, shlex.split(command)))
            for name, command in config.split()
        ]
        found = measure(workers, config.cases, Plan(config.rounds, round_sec=config.round_sec))
        about = {worker.name: worker.about for worker in workers}
    print(headline(known) + "\n")
    print(header(["case", "worker"], "ms"))
    for case, rows in found.items():
        for name, one in rows.items():
            print(row([case, name], one))
    store(config.out, {"environment": known, "workers": about, "cases": found})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
