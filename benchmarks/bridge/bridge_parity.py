"""The PyTorch bridge against MXNet: ``python -m benchmarks.bridge.bridge_parity``.

For every network: the graph runs in both with the same weights and inputs, forwards in inference
mode, backwards in training mode, and through some training steps. PyTorch runs in .venv-torch,
which is set up when it is missing. The table is stored as JSON and, with --docs, in docs/bridge.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np

from benchmarks.bridge.bridge_cases import Arrays, Case, Size, make_case
from benchmarks.bridge.bridge_pair import SMALLEST_SHARE, Pair, difference, rounding, worst
from benchmarks.glimpse.bench_glimpse import TORCH_FOLDER, find_torch
from benchmarks.harness.interleave import Worker
from benchmarks.harness.report import begin, store, write_between
from formats.errors import UserError
from model import list_models
from training.settings.config import parse
from training.settings.exit_code import exits
from training.settings.fields import option

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- parity: made by benchmarks/bridge/bridge_parity.py -->", "<!-- end of parity -->"
CURVE_BATCH, CURVE_BATCHES = 8, 10
CURVE_STEP = 2**-14  # as `FIRST_STEP`; the loss has to fall
# Above this, the output is also compared with what rounding does to MXNet's own.
ROUNDING_FROM = 5e-6
RUNNING = ("running_mean", "running_var")
TIMEOUT_SEC = 3600.0


@dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    models: tuple[str, ...] = option((), "networks; default: all", metavar="NAME")
    steps: int = option(10, "training steps before running statistics are compared")
    curve: int = option(0, "instead: training steps of a loss curve")
    dtype: str = option("float64", "arithmetic of a loss curve", choices=("float32", "float64"))
    torch_python: Optional[str] = option(
        None, f"interpreter that has PyTorch; default: that of {TORCH_FOLDER}"
    )
    out: str = option("runs/bench/bridge_parity.json", "file that the figures are stored in")
    docs: bool = option(False, "also write the table into docs/bridge.md")

    def check(self) -> None:
        """Refuse networks that there are not."""
        unknown = [name for name in self.models if name not in list_models()]
        if unknown:
            scripts = "train_cifar.py and train_mnist_glimpse.py"
            raise UserError(f"--models {' '.join(unknown)}; --list-models of {scripts} has all")
        if self.steps < 1 or self.curve < 0:
            raise UserError("--steps must be 1 or more, --curve 0 or more")


def _moved(arrays: Arrays, first: Arrays) -> Arrays:
    return {n: v - first[n] for n, v in arrays.items() if not n.endswith(RUNNING)}


def compare_case(pair: Pair, case: Case, steps: int) -> dict[str, Any]:
    """Return all differences of one network; see `COLUMNS`."""
    dtype = "float32" if case.is_glimpse else "float64"
    trained = pair.train(case, case.batches(np.random.RandomState(0), steps), dtype)
    expected, found = trained.arrays, trained.found
    moving = {n: v for n, v in expected.items() if n.endswith(RUNNING)}
    record: dict[str, Any] = {
        "model": case.name,
        "batch": case.size.batch,
        "edge": case.size.edge,
        "loss": max(difference(np.array([b]), np.array([a])) for a, b in trained.losses()),
        "steps": worst(_moved(found, case.arrays), _moved(expected, case.arrays), SMALLEST_SHARE),
    }
    if moving:
        record["statistics"] = worst({n: found[n] for n in moving}, moving)
    values = {name: value.astype(np.float32) for name, value in expected.items()}
    inputs = case.inputs(np.random.RandomState(2))
    record["forward"] = pair.compare(case.symbol, values, inputs, False)["forward"]
    record["gradients32"] = pair.compare(case.symbol, values, inputs, True)["gradients"]
    if case.is_glimpse:
        record["gradients"] = record["gradients32"]
    else:
        if record["forward"] > ROUNDING_FROM:
            record["rounding"] = rounding(case.symbol, values, inputs)
        exact = pair.compare(case.symbol, values, inputs, True, "float64")
        record["gradients"] = exact["gradients"]
    return record


def compare_curve(pair: Pair, case: Case, steps: int, dtype: str) -> dict[str, Any]:
    """Return both loss curves of one network; batches repeat after ten.

    The glimpse models' graphs have constants in float32 and run in no other type.
    """
    some = case.batches(np.random.RandomState(0), CURVE_BATCHES)
    places = np.arange(steps) % CURVE_BATCHES
    batches = {n: v[places] for n, v in some.items()}
    dtype = "float32" if case.is_glimpse else dtype
    trained = pair.train(case, batches, dtype, CURVE_STEP)
    return {
        "model": case.name,
        "batch": case.size.batch,
        "edge": case.size.edge,
        "dtype": dtype,
        "mxnet": trained.expected_losses,
        "torch": trained.found_losses,
    }


def curve_line(record: dict[str, Any]) -> str:
    """Return the Markdown row of a loss curve."""
    ours, theirs = record["mxnet"], record["torch"]
    gap = max(abs(a - b) / a for a, b in zip(ours, theirs))
    images = f"{record['batch']} x {record['edge']}x{record['edge']}"
    losses = f"{ours[0]:.4f} to {ours[-1]:.4f}"
    return f"| {record['model']} | {images} | {record['dtype']} | {losses} | {gap:.1e} |"


# Key of a record, heading of its column and, where the issue sets one, its limit.
COLUMNS = (
    ("forward", "forward, float32", 1e-5),
    ("rounding", "MXNet's own rounding", None),
    ("gradients", "gradients, float64", 1e-4),
    ("gradients32", "gradients, float32", None),
    ("statistics", "running statistics", 1e-4),
    ("steps", "steps of the weights", 1e-3),
    ("loss", "losses", 1e-5),
)


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return the Markdown table of the differences."""
    lines = ["| network | images | " + " | ".join(heading for _, heading, _ in COLUMNS) + " |"]
    lines.append("|---|---|" + "--:|" * len(COLUMNS))
    for record in records:
        values = [f"{record[key]:.1e}" if key in record else "none" for key, _, _ in COLUMNS]
        images = f"{record['batch']} x {record['edge']}x{record['edge']}"
        lines.append(f"| {record['model']} | {images} | {' | '.join(values)} |")
    return "\n".join(lines)


def too_large(record: dict[str, Any]) -> list[str]:
    """Return what is above its limit, in words.

    In float32 the outputs may also differ by twice what MXNet's differ from float64.
    """
    wrong = []
    for key, heading, limit in COLUMNS:
        if limit is not None and key == "forward":
            limit = max(limit, 2 * record.get("rounding", 0.0))
        if limit is not None and not record.get(key, 0.0) < limit:
            wrong.append(f"{record['model']}: {heading} {record[key]:.1e}, limit {limit:.0e}")
    return wrong


def write_docs(text: str, path: Path = ROOT / "docs" / "bridge.md") -> None:
    """Put the table between its two marks."""
    write_between(path, BEGIN, END, text)


def measure(config: Config) -> list[dict[str, Any]]:
    """Compare network after network, printing each as it is done."""
    command = [find_torch(config.torch_python), "-m", "benchmarks.bridge.torch_symbol"]
    records = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        worker = Worker("PyTorch", command, {"OMP_NUM_THREADS": "1"}, TIMEOUT_SEC)
        pair = Pair(stack.enter_context(worker), folder)
        for name in config.models or list_models():
            case = make_case(name)
            if config.curve:
                case = replace(case, size=Size(CURVE_BATCH, case.size.edge))
                records.append(compare_curve(pair, case, config.curve, config.dtype))
                print(curve_line(records[-1]), flush=True)
            else:
                records.append(compare_case(pair, case, config.steps))
                print(table(records).splitlines()[-1], flush=True)
    return records


@exits()
def main(argv: Sequence[str]) -> int:
    """Compare, print and store; 1 when a difference is above its limit, 2 for bad input."""
    config = parse(Config, argv, "bridge_parity.py", __doc__)
    known = begin()
    records = measure(config)
    if config.docs and not config.curve:
        write_docs(table(records))
    store(config.out, {"environment": known, "records": records})
    wrong = [] if config.curve else [line for record in records for line in too_large(record)]
    print("\n".join([*wrong, f"stored in {config.out}"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
