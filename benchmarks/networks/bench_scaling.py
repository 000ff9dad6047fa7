"""How cost grows with the work: ``python -m benchmarks.networks.bench_scaling``.

Training and prepared inference of our networks over batch size, depth and image size, with each
number of threads: milliseconds of a step, and GFLOP/s, which should not fall as the work grows.
Takes about five minutes on a quiet machine.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.harness.interleave import Worker, measure_point
from benchmarks.harness.report import begin, check_threads, headline, store
from formats.errors import UserError
from machine.cores import physical_cores
from training.settings.config import parse
from training.settings.exit_code import exits
from training.settings.fields import option

TRAIN_PASSES, INFER_PASSES = 3, 1  # a backward pass costs twice a forward pass


@dataclass(frozen=True)
class Point:
    """One row of the tables."""

    sweep: str
    model: str
    size: int
    batch: int


def points() -> Iterator[Point]:
    """Yield the points of all sweeps; those of one network and size in a row."""
    for batch in (1, 4, 16, 64, 256):
        yield Point("batch size", "attention56_small", 32, batch)
    for depth in (20, 29, 83, 164):
        yield Point("depth", f"resnet{depth}", 32, 32)
    for size in (32, 64, 96, 160, 224):
        yield Point("image size", "attention56_small", size, 4)


SWEEPS = tuple(dict.fromkeys(point.sweep for point in points()))


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    sweeps: tuple[str, ...] = option(SWEEPS, "what grows", choices=SWEEPS)
    threads: tuple[int, ...] = option(
        (), "threads of one operator, measured one by one; default: 1 and all physical cores"
    )
    kinds: tuple[str, ...] = option(("train", "infer"), "what is timed", choices=("train", "infer"))
    point_sec: float = option(1.5, "about how long a point is measured, seconds")
    out: str = option("runs/bench/scaling.json", "file that the figures are stored in")

    def check(self) -> None:
        """Refuse what measures nothing, or more threads than there are cores."""
        check_threads(self.threads)
        if not self.sweeps or not self.kinds:
            raise UserError("--sweeps and --kinds need one or more each")


def macs(model: str, size: int, overrides: Iterable[tuple[str, Any]] = ()) -> int:
    """Return the multiply-adds of one image."""
    from model import create_model
    from model.summary import summary_rows

    net = create_model(model, **dict(overrides))
    return sum(row.macs for row in summary_rows(net, (3, size, size)))


def measure(config: Config) -> list[dict[str, Any]]:
    """Return one record a point, kind and number of threads."""
    records = []
    for threads in config.threads or sorted({1, physical_cores().number}):
        for point in points():
            if point.sweep not in config.sweeps:
                continue
            work = macs(point.model, point.size) * point.batch
            command = [sys.executable, "-m", "benchmarks.networks.mxnet_classifier"]
            command += ["--model", point.model, "--size", str(point.size)]
            with Worker("ours", command, {"OMP_NUM_THREADS": str(threads)}) as worker:
                for kind in config.kinds:
                    case = f"{kind}_float32_{point.batch}"
                    seconds = measure_point(worker, case, config.point_sec)
                    passes = TRAIN_PASSES if kind == "train" else INFER_PASSES
                    flops = 2.0 * work * passes / seconds
                    found = {"seconds": seconds, "gflops": flops / 1e9, "gmac": work / 1e9}
                    records.append({**asdict(point), "threads": threads, "kind": kind, **found})
                    print(json.dumps(records[-1]), flush=True)
    return records


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown tables: a row a point, a column a kind and number of threads."""
    columns = list(dict.fromkeys((r["kind"], r["threads"]) for r in records))
    names = [f"{kind}, {n} thread{'s' if n > 1 else ''}: ms, GFLOP/s" for kind, n in columns]
    lines = ["| grows | network | image | batch | GMAC | " + " | ".join(names) + " |"]
    lines.append("|" + "---|" * (5 + len(names)))
    for point in points():
        mine = {(r["kind"], r["threads"]): r for r in records if asdict(point).items() <= r.items()}
        if not mine:
            continue
        work = next(iter(mine.values()))["gmac"]
        cells = [point.sweep, point.model, f"{point.size}x{point.size}", str(point.batch)]
        cells.append(f"{work:.3g}")
        for column in columns:
            one = mine.get(column)
            cells.append(f"{1e3 * one['seconds']:.3g}, {one['gflops']:.3g}" if one else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@exits()
def main(argv: Sequence[str]) -> int:
    """Measure, print the tables and store the figures; 2 for bad input or a worker that failed."""
    config = parse(Config, argv, "bench_scaling.py", __doc__)
    known = begin()
    print(headline(known), flush=True)
    records = measure(config)
    print("\n" + table(records))
    store(config.out, {"environment": known, "records": records})
    print(f"\nstored in {config.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
