"""One thread against all, alone and beside a busy process.

    python -m benchmarks.networks.bench_threads

Training steps of attention56_small and of the glimpse model in images/s, with each way in which
OpenMP's threads can wait for each other. Every combination is a process of its own; all take turns,
first on the machine as it is, then beside an endless loop that may run on any core. The table says
which way is never much slower than one thread, which `training.compute.thread_choice.WAIT_POLICY`
is to be. Takes at most about eight minutes with two cores; use no other machine than a quiet one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks.glimpse.bench_glimpse import compile_operators
from benchmarks.harness.interleave import Plan, Worker, interleave
from benchmarks.harness.report import begin, headline, store
from benchmarks.harness.series import Series, compare
from formats.errors import UserError
from machine.cores import physical_cores
from training.compute.thread_choice import REASON_VARIABLE, WAIT_VARIABLES
from training.settings.config import parse
from training.settings.exit_code import exits
from training.settings.fields import option
from training.settings.run_config import check_least

GLIMPSE = "glimpse_mnist"
GLIMPSE_BATCH = 128
# Ways to wait by name. Without any, libgomp spins some milliseconds before a thread sleeps.
POLICIES: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "GOMP_SPINCOUNT=0": {"GOMP_SPINCOUNT": "0"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "OMP_WAIT_POLICY=passive": {"OMP_WAIT_POLICY": "passive"},
    "OMP_DYNAMIC=true": {"OMP_DYNAMIC": "true"},
}
SITUATIONS = ("alone", "beside a busy process")
BUSY = "while True: pass"
LIMIT_SEC, LEAST_ROUNDS = 75.0, 3  # of a network in one situation, which some ways make very slow
# Not as programs: those choose a way to wait by themselves.
CLASSIFIER = """
from benchmarks.networks.mxnet_classifier import Config, make
from benchmarks.harness.worker import serve
serve(lambda: make(Config(model={model!r})))
"""
RECURRENT = """
from benchmarks.glimpse.mxnet_glimpse import Config, make
from benchmarks.harness.worker import serve
serve(lambda: make(Config(task="mnist")))
"""


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    models: tuple[str, ...] = option(
        ("attention56_small", GLIMPSE), f"networks, by name; {GLIMPSE} is the glimpse model"
    )
    policies: tuple[str, ...] = option(
        tuple(POLICIES), "ways to wait", choices=tuple(POLICIES), metavar="NAME"
    )
    threads: int = option(0, "threads that are compared with one; 0: all physical cores")
    batch_size: int = option(64, "images of a step of the other networks", flags=("-b",))
    rounds: int = option(5, "timed rounds of each combination")
    round_sec: float = option(0.5, "about how long a round lasts, seconds")
    out: str = option("runs/bench/threads.json", "file that the figures are stored in")

    def check(self) -> None:
        """Refuse what measures nothing."""
        check_least(self, 1, "batch_size", "rounds")
        if self.threads < 0 or not self.policies or not self.models:
            raise UserError("--threads must be 0 or more; name one of --models and --policies")


def combinations(config: Config, threads: int) -> dict[str, dict[str, str]]:
    """Return the environment of each combination by its name; that of one thread is the first."""
    found = {"1 thread": {"OMP_NUM_THREADS": "1"}}
    for name in config.policies if threads > 1 else ():
        variables = {"OMP_NUM_THREADS": str(threads), **POLICIES[name]}
        found[f"{threads} threads, {name}"] = variables
    return found


@contextlib.contextmanager
def beside(situation: str) -> Iterator[None]:
    """Keep one core busy, where that is the situation."""
    if situation == SITUATIONS[0]:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure(model: str, config: Config, threads: int) -> dict[str, dict[str, Any]]:
    """Return `benchmarks.harness.series.compare` of the combinations of a network, by situation."""
    code = RECURRENT if model == GLIMPSE else CLASSIFIER.format(model=model)
    case = "train" if model == GLIMPSE else f"train_float32_{config.batch_size}"
    plan = Plan(config.rounds, 1, config.round_sec, 600.0, 1, LIMIT_SEC, LEAST_ROUNDS)
    found = {}
    with ExitStack() as stack:
        workers = []
        for name, variables in combinations(config, threads).items():
            print(f"{model}, {name}: starts", file=sys.stderr, flush=True)
            command = [sys.executable, "-c", code]
            workers.append(stack.enter_context(Worker(name, command, variables)))
        for situation in SITUATIONS:
            print(f"{model}, {situation}", file=sys.stderr, flush=True)
            with beside(situation):
                series: dict[str, Series] = interleave(workers, case, plan)
            found[situation] = compare(series)
    return found


def images_of(model: str, config: Config) -> int:
    """Return the number of images of a training step."""
    return GLIMPSE_BATCH if model == GLIMPSE else config.batch_size


def table(found: Mapping[str, Mapping[str, Any]], config: Config) -> str:
    """Return the Markdown table: images/s of each combination, and times as fast as one thread."""
    cells = [column for name in SITUATIONS for column in (f"{name}: images/s", "x 1 thread")]
    titles = ["network", "threads, waiting", *cells]
    ruler = ["---"] * 2 + ["--:"] * len(cells)
    lines = ["| " + " | ".join(line) + " |" for line in (titles, ruler)]
    for model, situations in found.items():
        images = images_of(model, config)
        for name in situations[SITUATIONS[0]]:
            cells = []
            for rows in situations.values():
                seconds = rows[name]["median"]
                cells += [f"{images / seconds:,.0f}", f"{1 / rows[name]['ratio']['ratio']:.2f}"]
            lines.append("| " + " | ".join([model, name, *cells]) + " |")
    return "\n".join(lines)


def worst(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a line for each combination: how fast it is at worst, against one thread."""
    lines = []
    rows = [row for situations in found.values() for row in situations.values()]
    for name in list(rows[0])[1:]:
        least = min(1 / row[name]["ratio"]["ratio"] for row in rows)
        lines.append(f"{name}: at worst {least:.2f} x 1 thread")
    return "\n".join(lines)


@exits()
def main(argv: Sequence[str]) -> int:
    """Measure, print the table and store the figures; 2 for bad input or a worker that failed."""
    config = parse(Config, argv, "bench_threads.py", __doc__)
    for name in (*WAIT_VARIABLES, "OMP_DYNAMIC", REASON_VARIABLE):
        os.environ.pop(name, None)  # each worker is to have its own alone
    known, cores = begin(), physical_cores()
    threads = config.threads or cores.number
    print(f"{headline(known)}; {threads} threads ({cores.number}: {cores.reason})\n", flush=True)
    compile_operators()
    found = {model: measure(model, config, threads) for model in config.models}
    print(table(found, config))
    print(worst(found))
    store(config.out, {"environment": known, "threads": threads, "found": found})
    print(f"stored in {config.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
