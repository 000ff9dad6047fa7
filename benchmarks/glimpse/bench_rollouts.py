"""Time of a training step of the glimpse model by its number of rollouts.

    python -m benchmarks.glimpse.bench_rollouts --data-dir DIR --docs

Steps with 1, 4 and 10 rollouts take turns in one process (``rollout_worker.py``), by task, state of
the weights, instruction sets and number of threads. A row takes about a quarter of a minute; rows
that were measured by the same commit on the same machine are kept in the JSON file, so that few can
be measured at a time. With --docs the tables of all of them go into docs/glimpse.md.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from benchmarks.glimpse.rollout_worker import DATA, SETTINGS, WEIGHTS
from benchmarks.harness.interleave import Plan, Worker, interleave
from benchmarks.harness.report import begin, check_threads, headline, machine, store, write_between
from benchmarks.harness.series import compare
from formats.errors import UserError
from machine.processor import AVX2, ISA_VARIABLE, LIMITS
from training.settings.config import parse
from training.settings.exit_code import exits
from training.settings.fields import option
from training.settings.run_config import check_least

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "glimpse.md"
BEGIN, END = (
    "<!-- rollouts: made by benchmarks/glimpse/bench_rollouts.py -->",
    "<!-- end of rollouts -->",
)
EPOCH = 60_000  # images
NATIVE = "native"
CAPS: Mapping[str, Mapping[str, str]] = {NATIVE: {}, AVX2: {ISA_VARIABLE: AVX2, **LIMITS}}


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    tasks: tuple[str, ...] = option(tuple(SETTINGS), "what is trained", choices=tuple(SETTINGS))
    weights: tuple[str, ...] = option(
        WEIGHTS, "trained: the shipped files, where there is one; initial", choices=WEIGHTS
    )
    isa: tuple[str, ...] = option(
        (NATIVE,), "instruction sets; avx2 leaves out those beyond", choices=tuple(CAPS)
    )
    threads: tuple[int, ...] = option((1,), "threads of one operator, measured one by one")
    rollouts: tuple[int, ...] = option((1, 4, 10), "rollouts of an image")
    data: str = option("mnist", "images before they are put on a canvas", choices=DATA)
    data_dir: Optional[str] = option(None, "folder with the files of MNIST")
    rounds: int = option(5, "timed rounds of each number of rollouts")
    round_sec: float = option(0.4, "about how long a round lasts, seconds")
    out: str = option("runs/bench/rollouts.json", "file that the figures are stored in")
    docs: bool = option(False, "also write the tables into docs/glimpse.md")

    def check(self) -> None:
        """Refuse what measures nothing, and instruction sets that are left out from outside."""
        check_least(self, 1, "rounds")
        check_threads(self.threads)
        if not self.rollouts or min(self.rollouts) < 1:
            raise UserError("--rollouts: name numbers of 1 or more")
        if NATIVE in self.isa and os.environ.get(ISA_VARIABLE):
            raise UserError(f"--isa {NATIVE} with {ISA_VARIABLE} set: unset it, or --isa {AVX2}")


class Case:
    """One number of rollouts of a worker, which `interleave` takes for a worker of its own."""

    def __init__(self, worker: Worker, rollouts: int) -> None:
        self.name, self._worker = str(rollouts), worker

    def ask(self, **request: Any) -> dict[str, Any]:
        """Ask the worker for this case."""
        return self._worker.ask(**{**request, "case": self.name})


def measure_row(config: Config, task: str, weights: str, isa: str, threads: int) -> dict[str, Any]:
    """Return one row: what it is of, and `compare` by number of rollouts."""
    command = [sys.executable, "-m", "benchmarks.glimpse.rollout_worker", "--worker"]
    command += ["--setting", task, "--weights", weights, "--data", config.data, "--rollouts"]
    command += map(str, config.rollouts)
    if config.data_dir:
        command += ["--data-dir", os.path.abspath(config.data_dir)]
    variables = {"OMP_NUM_THREADS": str(threads), **CAPS[isa]}
    plan = Plan(config.rounds, 1, config.round_sec, repeat=1)
    with Worker(task, command, variables) as worker:
        cases = [Case(worker, rollouts) for rollouts in config.rollouts]
        found = compare(interleave(cases, "", plan))
        names = {"task": task, "weights": weights, "isa": isa, "threads": threads}
        about = {"rounds": config.rounds, "data": config.data}
        return {**names, **worker.about, **about, "rollouts": found}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table: ms of a step by rollouts, and how many times that of the fewest."""
    counts = list(rows[0]["rollouts"])
    titles = ["task", "weights", "instructions", "threads", *(f"{n}, ms" for n in counts)]
    titles += [f"{n} / {counts[0]}" for n in counts[1:]]
    lines = [_line(titles), _line(["---"] * 4 + ["--:"] * (len(titles) - 4))]
    for row in rows:
        found = row["rollouts"]
        cells = [row["task"], row["weights"], row["instructions"].partition(" (")[0]]
        cells += [str(row["threads"]), *(f"{1e3 * found[n]['median']:.1f}" for n in counts)]
        cells += [f"{found[n]['ratio']['ratio']:.2f}" for n in counts[1:]]
        lines.append(_line(cells))
    return "\n".join(lines)


def epochs_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of the rows with one thread: images/s, and seconds of an epoch of MNIST."""
    chosen = [row for row in rows if row["threads"] == 1 and row["isa"] == NATIVE]
    if not chosen:
        return ""
    counts = list(rows[0]["rollouts"])
    titles = ["task", "weights", *(f"{n}: images/s (s an epoch)" for n in counts)]
    lines = [_line(titles), _line(["---"] * 2 + ["--:"] * len(counts))]
    for row in chosen:
        speeds = [row["batch_size"] / row["rollouts"][n]["median"] for n in counts]
        cells = [f"{speed:,.0f} ({EPOCH / speed:.0f})" for speed in speeds]
        lines.append(_line([row["task"], row["weights"], *cells]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def kept_rows(path: str, known: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """Return the rows of an earlier call of the same commit on the same machine, by their names.

    Those of other data, rounds or numbers of rollouts do not stand in one table with new ones.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    before = record.get("environment", {})
    same = before.get("git") == known["git"] and before and machine(before) == machine(known)
    counts = list(map(str, config.rollouts))
    return {
        key: row
        for key, row in (record["rows"] if same else {}).items()
        if (row["rounds"], row.get("data")) == (config.rounds, config.data)
        and list(row["rollouts"]) == counts
    }


def write_docs(text: str, path: Path = PAGE) -> None:
    """Put the text between the two marks of the page; UserError where they are missing."""
    write_between(path, BEGIN, END, text)


@exits()
def main(argv: Sequence[str]) -> int:
    """Measure, print the tables and store the figures; 2 for bad input or a worker that failed."""
    config = parse(Config, argv, "bench_rollouts.py", __doc__)
    known = begin()
    rows = kept_rows(config.out, known, config)
    for task in config.tasks:
        for weights in config.weights:
            if weights == "trained" and not SETTINGS[task].file:
                continue
            for isa in config.isa:
                for threads in config.threads:
                    key = f"{task} {weights} {isa} {threads}"
                    print(f"{key}: starts", file=sys.stderr, flush=True)
                    rows[key] = measure_row(config, task, weights, isa, threads)
                    store(config.out, {"environment": known, "rows": rows})
    order = [*SETTINGS, *WEIGHTS, *CAPS]
    names = ("task", "weights", "isa")
    found = sorted(
        rows.values(),
        key=lambda row: (*(order.index(row[name]) for name in names), row["threads"]),
    )
    first = f"{headline(known)}; medians of {config.rounds} rounds, `--data {config.data}`:"
    text = "\n\n".join(filter(None, (first, table(found), epochs_table(found))))
    print(text)
    print(f"\nstored in {config.out}")
    if config.docs:
        write_docs(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
