"""Exported networks against the original: ``python benchmarks/bench_export.py``.

For each network the largest difference of its outputs, of ``gluon.SymbolBlock`` and of onnxruntime
from MXNet (relative to the largest output, or to 1 where that is smaller), over batches of 1 and 3
images of its own and, where it takes any size, of two odd sizes; then images/s of inference, MXNet
(hybridized, static) and onnxruntime in turn. Published parameters where there are some, else random
ones. ``--clock cpu`` counts processor time, for a machine that is not quiet.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Also as `python benchmarks/bench_export.py`, which has only this folder on its path.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks.report import environment, headline, store
from bridge.published import GLIMPSE_INDEX, INDEX, read_index
from training.config import option, parse
from training.errors import UserError

MODELS = (
    "attention56_small", "attention92", "attention92_paper", "attention56_imagenet",
    "resnet20_ram", "resnet164_ram", "resnet164_se", "resnet164_eca", "resnet164_dia",
    "resnet164_srm", "resnet164_cbam", "glimpse_mnist", "glimpse_translated",
)  # fmt: skip
GATE_WEIGHTS = ("_w", "_cfc")  # zero at first: every gate would be the same for all images
ROLLOUTS = 2  # of each image in glimpse models, see `model.tracing.Traced.example`
TITLES = (
    "network", "parameters", "SymbolBlock differs by", "onnxruntime differs by", "batch",
    "MXNet images/s", "onnxruntime images/s", "onnxruntime x MXNet (min to max)",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    models: tuple[str, ...] = option(MODELS, "networks, by name")
    threads: int = option(1, "threads of one operator")
    rounds: int = option(7, "timed rounds of each network, MXNet and onnxruntime in turn")
    round_sec: float = option(0.5, "about how long a round lasts, seconds")
    pixels: int = option(65536, "pixels of a batch; it has at most 64 images and at least one")
    int8: bool = option(False, "also images/s with 8 bit convolutions (classifiers)")
    clock: str = option("wall", "time that counts", choices=("wall", "cpu"))
    out: str = option("runs/bench/export.json", "file that the figures are stored in")

    def check(self) -> None:
        """Refuse what measures nothing."""
        for name in ("threads", "rounds", "pixels"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}; choose 1 or more")
        if self.clock == "cpu" and self.threads > 1:
            raise UserError("--clock cpu adds up the time of all threads; use --threads 1")


def open_model(name: str) -> tuple[Any, str]:
    """Return an initialized network, and where its parameters are from."""
    import mxnet as mx

    from model import create_model
    from model.export_files import open_network

    for index in (INDEX, GLIMPSE_INDEX):
        for row in read_index(index):
            if row["model"] == name:
                return open_network(index.parent / row["file"]).net, "published"
    with mx.name.NameManager():
        net = create_model(name)
    mx.random.seed(0)
    np.random.seed(0)
    net.initialize(mx.init.MSRAPrelu())
    rng = np.random.default_rng(0)
    for key, parameter in net.collect_params().items():
        if key.endswith(GATE_WEIGHTS):
            parameter.set_data(mx.nd.array(rng.normal(0, 0.5, parameter.shape)))
    return net, "random"


def symbol_difference(traced: Any) -> float:
    """Return how much ``SymbolBlock`` differs; ExportError when it is too much."""
    import mxnet as mx

    from model.export_files import compare, export_symbol

    with tempfile.TemporaryDirectory() as folder:
        symbol, params, _ = export_symbol(traced, str(Path(folder) / "x"), {})
        block = mx.gluon.SymbolBlock.imports(symbol, list(traced.inputs), params)

        def run(inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            found = block(*(mx.nd.array(value) for value in inputs.values()))
            several = found if isinstance(found, (list, tuple)) else [found]
            return [value.asnumpy() for value in several]

        return compare(traced, run)


def runners(net: Any, traced: Any, models: Sequence[bytes], config: Config) -> Any:
    """Return batch size and what computes one batch: MXNet, then onnxruntime for each model."""
    import mxnet as mx

    from model.onnx_graph import onnx_session

    height, width = traced.sizes[0]
    batch = max(1, min(64, config.pixels // (height * width)))
    inputs = traced.example(batch, traced.sizes[0])
    arrays = [mx.nd.array(value) for value in inputs.values()]
    net.hybridize(static_alloc=True, static_shape=True)

    def ours() -> None:
        found = net(*arrays)
        for value in found if isinstance(found, (list, tuple)) else [found]:
            value.asnumpy()

    def session_of(model: bytes) -> Callable[[], Any]:
        session = onnx_session(model, config.threads)
        return lambda: session.run(None, inputs)

    return batch, [ours, *map(session_of, models)]


def rates(batch: int, jobs: Sequence[Callable[[], Any]], config: Config) -> list[list[float]]:
    """Return images/s of each job in each round, the jobs in turn."""
    clock = time.perf_counter if config.clock == "wall" else time.process_time

    def seconds(job: Callable[[], Any], repeat: int) -> float:
        start = clock()
        for _ in range(repeat):
            job()
        return (clock() - start) / repeat

    repeats = []
    for job in jobs:
        seconds(job, 2)
        repeats.append(max(1, round(config.round_sec / max(seconds(job, 1), 1e-6))))
    found: list[list[float]] = [[] for _ in jobs]
    for _ in range(config.rounds):
        for series, job, repeat in zip(found, jobs, repeats):
            series.append(batch / seconds(job, repeat))
    return found


def measure(name: str, config: Config) -> dict[str, Any]:
    """Return all figures of one network."""
    from model.export_files import check_onnx
    from model.onnx_graph import to_onnx
    from model.tracing import trace

    net, source = open_model(name)
    traced = trace(net)
    models = [to_onnx(traced, {}).SerializeToString()]
    record: dict[str, Any] = {
        "parameters": source,
        "symbol_difference": symbol_difference(traced),
        "onnx_difference": check_onnx(traced, models[0]),
    }
    if config.int8 and list(traced.inputs) == ["image"]:
        from training.int8 import quantize

        models.append(quantize(models[0], traced.example(32, traced.sizes[0])["image"]))
    batch, jobs = runners(net, traced, models, config)
    found = rates(batch, jobs, config)
    names = ("mxnet", "onnx", "int8")
    return {**record, "batch": batch, "images_per_sec": dict(zip(names, found))}


def table_row(name: str, record: dict[str, Any], titles: Sequence[str]) -> str:
    """Return the line of the Markdown table."""
    speeds = record["images_per_sec"]
    cells = [name, record["parameters"]]
    cells += [f"{record[key]:.1e}" for key in ("symbol_difference", "onnx_difference")]
    cells += [str(record["batch"]) + (f", {ROLLOUTS} rollouts" if "glimpse" in name else "")]
    cells += [f"{statistics.median(speeds[key]):.3g}" for key in ("mxnet", "onnx")]
    cells += [_factor(speeds["onnx"], speeds["mxnet"])]
    if len(titles) > len(TITLES):
        cells += [_factor(speeds["int8"], speeds["onnx"]) if "int8" in speeds else ""]
    return "| " + " | ".join(cells) + " |"


def _factor(fast: Sequence[float], slow: Sequence[float]) -> str:
    factors = [a / b for a, b in zip(fast, slow)]
    middle = statistics.median(fast) / statistics.median(slow)
    return f"{middle:.2f} ({min(factors):.2f} to {max(factors):.2f})"


def main(argv: Sequence[str]) -> int:
    """Measure all networks and print the table; 2 for bad input or a network that differs."""
    config = parse(Config, argv, "bench_export.py", __doc__)
    os.environ["OMP_NUM_THREADS"] = str(config.threads)  # read when MXNet is imported
    known = environment()
    titles = [*TITLES, *(["8 bits x float32"] if config.int8 else [])]
    from model.onnx_graph import ExportError
    from model.registry import ModelError

    print(f"{headline(known)}; {config.threads} thread(s), {config.clock} time\n")
    print("| " + " | ".join(titles) + " |")
    print("|" + "---|" * len(titles), flush=True)
    records = {}
    for name in config.models:
        try:
            records[name] = measure(name, config)
        except (ExportError, ModelError, UserError) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return 2
        print(table_row(name, records[name], titles), flush=True)
    store(config.out, {"environment": known, "networks": records})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
