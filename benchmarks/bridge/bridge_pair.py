"""A network on both sides: MXNet here, PyTorch in a worker, and how far apart they are."""

from __future__ import annotations

import os
from typing import NamedTuple, Optional

import mxnet as mx
import numpy as np

from benchmarks.bridge.bridge_cases import Arrays, Case
from benchmarks.bridge.mxnet_symbol import Reference
from benchmarks.harness.interleave import Worker
from formats.errors import UserError

# A gradient that is zero but for rounding has no relative error of its own.
SMALLEST_SHARE = 1e-3
# Numbers that float32 has exactly: MXNet's optimizers keep their settings in it.
TRAINING = {"momentum": 0.875, "wd": 2**-13}
# How far the first step goes, as a share of the weights' norm. With a few images as a batch, larger
# steps in float64 throw deep networks so far that rounding errors grow tenfold with each.
FIRST_STEP = {"float32": 2**-10, "float64": 2**-23}


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


def rounding(symbol: str, arrays: Arrays, inputs: Arrays) -> float:
    """Return how far MXNet's outputs in float32 are from its own in float64."""
    single, double = (
        Reference(symbol, arrays, inputs, dtype).run(train=False).outputs
        for dtype in ("float32", "float64")
    )
    return max(difference(one, other) for one, other in zip(single, double))


class Trained(NamedTuple):
    """Losses and arrays of MXNet, and of PyTorch."""

    expected_losses: list[float]
    found_losses: list[float]
    arrays: Arrays
    found: Arrays

    def losses(self) -> list[tuple[float, float]]:
        """Return MXNet's and PyTorch's loss of each step."""
        return list(zip(self.expected_losses, self.found_losses))


def first_rate(reference: Reference, batch: Arrays, share: float) -> float:
    """Return a learning rate, a power of two: the first step is `share` of the weights or less."""
    reference.train(mx.optimizer.create("sgd", learning_rate=0.0), [batch])
    arrays = reference.arrays()
    gradients = [g.ravel() for n, g in reference.gradients().items() if n in arrays]
    weights = [arrays[n].ravel() for n in reference.gradients() if n in arrays]
    norm = float(np.linalg.norm(np.concatenate(weights)))
    slope = float(np.linalg.norm(np.concatenate(gradients)))
    return float(2.0 ** np.floor(np.log2(share * norm / slope)))


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
        generator = np.random.RandomState(1)
        gradients = [
            generator.standard_normal(shape).astype(np.float32) / shape[0]
            for shape in (reference.output_shapes() if train else ())
        ]
        expected = reference.run(train, gradients)
        given = {str(i): g for i, g in enumerate(gradients)}
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

    def train(
        self, case: Case, batches: Arrays, dtype: str, share: Optional[float] = None
    ) -> Trained:
        """Train on both sides, one step for each of the batches; `share`: see `FIRST_STEP`."""
        rows = [dict(zip(batches, row)) for row in zip(*batches.values())]
        inputs = {n: v[0] for n, v in batches.items() if case.is_glimpse or n != "label"}
        first = Reference(case.trained, case.arrays, inputs, dtype)
        lr = first_rate(first, rows[0], share or FIRST_STEP[dtype])
        reference = Reference(case.trained, case.arrays, inputs, dtype)
        losses = reference.train(mx.optimizer.create("nag", learning_rate=lr, **TRAINING), rows)
        paths = self.write(case.trained, param=case.arrays, input=inputs)
        np.savez(self.path("batches.npz"), **{f"input/{n}": v for n, v in batches.items()})
        settings = {"lr": lr, "decay_bias": True, **TRAINING}
        paths.update(batches=self.path("batches.npz"), out=self.path("out.npz"))
        theirs = self.worker.ask(do="train", optimizer=settings, dtype=dtype, **paths)["losses"]
        return Trained(losses, theirs, reference.arrays(), self.read("param"))
