"""The PyTorch bridge against MXNet: ``python benchmarks/bridge_parity.py``.

For every network: the graph runs in both with the same weights and inputs, forwards in inference
mode, backwards in training mode, and through some training steps. PyTorch runs in .venv-torch,
which is set up when it is missing. The table is stored as JSON and, with --docs, in docs/bridge.md.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional

import mxnet as mx
import numpy as np

# Also as `python benchmarks/bridge_parity.py`, which has only this folder on its path.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks.bench_glimpse import TORCH_FOLDER, find_torch
from benchmarks.bridge_cases import Arrays, Case, make_case
from benchmarks.interleave import Worker
from benchmarks.mxnet_symbol import Reference
from benchmarks.report import environment, store
from bridge.atomic import write_atomically
from model import list_models
from training.config import option, parse
from training.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- parity: made by benchmarks/bridge_parity.py -->", "<!-- end of parity -->"
# A gradient that is zero but for rounding has no relative error of its own.
SMALLEST_SHARE = 1e-3
# Numbers that float32 has exactly: MXNet's optimizers keep their settings in it.
TRAINING = {"learning_rate": 2**-13, "momentum": 0.875, "wd": 2**-13}
CURVE_BATCHES = 10
TIMEOUT_SEC = 3600.0


@dataclass(frozen=True)
class Config:
    """Settings of the comparison."""

    models: tuple[str, ...] = option((), "networks; default: all", metavar="NAME")
    steps: int = option(10, "training steps before running statistics are compared")
    curve: int = option(0, "instead: training steps of a loss curve")
    torch_python: Optional[str] = option(
        None, f"interpreter that has PyTorch; default: that of {TORCH_FOLDER}"
    )
    out: str = option("runs/bench/bridge_parity.json", "file that the figures are stored in")
    docs: bool = option(False, "also write the table into docs/bridge.md")

    def check(self) -> None:
        """Refuse networks that there are not."""
        unknown = [name for name in self.models if name not in list_models()]
        if unknown:
            raise UserError(f"--models {' '.join(unknown)}; train_cifar.py --list-models has all")
        if self.steps < 1 or self.curve < 0:
            raise UserError("--steps must be 1 or more, --curve 0 or more")


def difference(found: np.ndarray, expected: np.ndarray, least: float = 0.0) -> float:
    """Return the largest difference over the largest expected value, or over `least`."""
    if found.shape != expected.shape:
        raise UserError(f"shape {found.shape} in PyTorch, {expected.shape} in MXNet")
    largest = max(float(np.abs(expected).max()), least)
    gap = float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max())
    return gap / largest if largest else gap


def worst(found: Arrays, expected: Arrays, share: float = 0.0) -> float:
    """Return the largest `difference` of arrays by name.

    An array whose largest value is below `share` of all arrays' counts with that value.
    """
    if found.keys() != expected.keys():
        raise UserError(f"{sorted(found.keys() ^ expected.keys())[:3]} are only on one side")
    least = share * max(float(np.abs(value).max()) for value in expected.values())
    return max(difference(found[name], expected[name], least) for name in expected)


class Trained(NamedTuple):
    """Losses and arrays of MXNet, and of PyTorch."""

    expected_losses: list[float]
    found_losses: list[float]
    arrays: Arrays
    found: Arrays

    def losses(self) -> list[tuple[float, float]]:
        """Return MXNet's and PyTorch's loss of each step."""
        return list(zip(self.expected_losses, self.found_losses))


class Pair:
    """MXNet here and PyTorch in a worker, with a folder between them."""

    def __init__(self, worker: Worker, folder: str) -> None:
        self.worker, self.folder = worker, folder

    def path(self, name: str) -> str:
        """Return the path of a file between the two."""
        return os.path.join(self.folder, name)

    def write(self, symbol: str, **parts: Arrays) -> dict[str, str]:
        """Write a symbol and arrays; returns the paths as the worker wants them."""
        with open(self.path("symbol.json"), "w", encoding="utf-8") as stream:
            stream.write(symbol)
        flat = {f"{part}/{n}": v for part, arrays in parts.items() for n, v in arrays.items()}
        np.savez(self.path("arrays.npz"), **flat)
        return {"symbol": self.path("symbol.json"), "arrays": self.path("arrays.npz")}

    def read(self, part: str) -> Arrays:
        """Return what came back under ``part/``."""
        with np.load(self.path("out.npz")) as file:
            return {n.split("/", 1)[1]: file[n] for n in file.files if n.startswith(part + "/")}

    def compare(
        self, symbol: str, arrays: Arrays, inputs: Arrays, train: bool, dtype: str = "float32"
    ) -> dict[str, float]:
        """Run once on both sides; returns the differences of outputs, gradients, statistics."""
        reference = Reference(symbol, arrays, inputs, dtype)
        shapes = [output.shape for output in reference.run(train).outputs]
        generator = np.random.RandomState(1)
        gradients = [generator.standard_normal(s).astype(np.float32) / s[0] for s in shapes]
        # Again from the beginning: the first run may have moved the statistics.
        expected = Reference(symbol, arrays, inputs, dtype).run(train, gradients if train else ())
        given = {str(i): g for i, g in enumerate(gradients)} if train else {}
        paths = self.write(symbol, param=arrays, input=inputs, grad=given)
        self.worker.ask(do="run", train=train, dtype=dtype, out=self.path("out.npz"), **paths)
        outputs = {str(i): output for i, output in enumerate(expected.outputs)}
        found = {"forward": worst(self.read("output"), outputs)}
        if train:
            # MXNet has zeros where PyTorch has no gradient.
            theirs = {n: np.zeros_like(g) for n, g in expected.gradients.items()}
            theirs.update(self.read("grad"))
            found["gradients"] = worst(theirs, expected.gradients, SMALLEST_SHARE)
        if expected.statistics:
            found["statistics"] = worst(self.read("param"), expected.statistics)
        return found

    def train(self, case: Case, batches: Arrays, dtype: str) -> Trained:
        """Train on both sides, one step for each of the batches."""
        rows = [dict(zip(batches, row)) for row in zip(*batches.values())]
        inputs = {n: v[0] for n, v in batches.items() if case.is_glimpse or n != "label"}
        reference = Reference(case.trained, case.arrays, inputs, dtype)
        losses = reference.train(mx.optimizer.create("nag", **TRAINING), rows)
        paths = self.write(case.trained, param=case.arrays, input=inputs)
        np.savez(self.path("batches.npz"), **{f"input/{n}": v for n, v in batches.items()})
        settings = {
            "lr": TRAINING["learning_rate"],
            "momentum": TRAINING["momentum"],
            "weight_decay": TRAINING["wd"],
            "nesterov": True,
        }
        paths.update(batches=self.path("batches.npz"), out=self.path("out.npz"))
        theirs = self.worker.ask(do="train", optimizer=settings, dtype=dtype, **paths)["losses"]
        return Trained(losses, theirs, reference.arrays(), self.read("param"))


def compare_case(pair: Pair, case: Case, steps: int) -> dict[str, Any]:
    """Return all differences of one network; see `COLUMNS`."""
    dtype = "float32" if case.is_glimpse else "float64"
    trained = pair.train(case, case.batches(np.random.RandomState(0), steps), dtype)
    expected, found = trained.arrays, trained.found
    moving = {n: v for n, v in expected.items() if n.endswith(("running_mean", "running_var"))}
    record: dict[str, Any] = {
        "model": case.name,
        "batch": case.size.batch,
        "edge": case.size.edge,
        "loss": max(difference(np.array([b]), np.array([a])) for a, b in trained.losses()),
        "weights": worst(found, expected, SMALLEST_SHARE),
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
        exact = pair.compare(case.symbol, values, inputs, True, "float64")
        record["gradients"] = exact["gradients"]
    return record


def compare_curve(pair: Pair, case: Case, steps: int) -> dict[str, Any]:
    """Return both loss curves of one network, in float32; batches repeat after ten."""
    some = case.batches(np.random.RandomState(0), CURVE_BATCHES)
    places = np.arange(steps) % CURVE_BATCHES
    trained = pair.train(case, {n: v[places] for n, v in some.items()}, "float32")
    return {
        "model": case.name,
        "batch": case.size.batch,
        "edge": case.size.edge,
        "mxnet": trained.expected_losses,
        "torch": trained.found_losses,
    }


# Key of a record, heading of its column and, where the issue sets one, its limit.
COLUMNS = (
    ("forward", "forward, float32", 1e-5),
    ("gradients", "gradients, float64", 1e-4),
    ("gradients32", "gradients, float32", None),
    ("statistics", "running statistics", 1e-4),
    ("loss", "losses", None),
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
    """Return what is above its limit, in words."""
    return [
        f"{record['model']}: {heading} {record[key]:.1e}, limit {limit:.0e}"
        for key, heading, limit in COLUMNS
        if limit is not None and not record.get(key, 0.0) < limit
    ]


def write_docs(text: str, path: Path = ROOT / "docs" / "bridge.md") -> None:
    """Put the table between its two marks."""
    page = path.read_text(encoding="utf-8")
    head, mark, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not mark or not end:
        raise UserError(f"{path}: lacks the lines {BEGIN} and {END} that the table goes between")
    write_atomically(path, f"{head}{BEGIN}\n\n{text}\n\n{END}{tail}".encode())


def measure(config: Config) -> list[dict[str, Any]]:
    """Compare network after network, printing each as it is done."""
    command = [find_torch(config), "benchmarks/torch_symbol.py"]
    records = []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        worker = Worker("PyTorch", command, {"OMP_NUM_THREADS": "1"}, TIMEOUT_SEC)
        pair = Pair(stack.enter_context(worker), folder)
        for name in config.models or list_models():
            case = make_case(name)
            if config.curve:
                records.append(compare_curve(pair, case, config.curve))
                curves = zip(records[-1]["mxnet"], records[-1]["torch"])
                print(name, f"{max(abs(a - b) for a, b in curves):.1e}", flush=True)
            else:
                records.append(compare_case(pair, case, config.steps))
                print(table(records).splitlines()[-1], flush=True)
    return records


def main(argv: Sequence[str]) -> int:
    """Compare, print and store; 1 when a difference is above its limit, 2 for bad input."""
    config = parse(Config, argv, "bridge_parity.py", __doc__)
    known = environment()
    try:
        records = measure(config)
        if config.docs and not config.curve:
            write_docs(table(records))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    store(config.out, {"environment": known, "records": records})
    wrong = [] if config.curve else [line for record in records for line in too_large(record)]
    print("\n".join([*wrong, f"stored in {config.out}"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
