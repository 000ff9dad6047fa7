"""Exported networks against the original: ``python -m benchmarks.export.bench_export``.

For each network the largest difference of its outputs, of ``gluon.SymbolBlock`` and of onnxruntime
from MXNet (relative to the largest output, or to 1 where that is smaller), over batches of 1 and 3
images of its own and, where it takes any size, of two odd sizes; then images/s of inference, MXNet
(hybridized, static) and onnxruntime in turn, at batch 1 and a large one. Published parameters where
there are some, else random ones. Then the accuracy of the classifiers in ``cifar_param/`` with 8
bit convolutions; ``--data-dir`` or ``$ATTENTION_DATA`` names the folder with their data, without
which only embedded data sets are measured. ``--clock cpu`` counts processor time, for a machine
that is not quiet.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from benchmarks.harness.report import begin, headline, store
from formats.errors import UserError
from training.settings.config import parse
from training.settings.exit_code import exits
from training.settings.fields import option
from training.settings.run_config import check_least

MODELS = (
    "attention56_small", "attention92", "attention92_paper", "attention56_imagenet",
    "resnet164_ram", "resnet20_ram", "resnet20_se", "resnet20_eca", "resnet20_dia", "resnet20_srm",
    "resnet20_cbam", "preresnet20_basic_ram", "glimpse_mnist", "glimpse_translated",
    "glimpse_cluttered",
)  # fmt: skip
GATE_WEIGHTS = ("_w", "_cfc")  # zero at first: every gate would be the same for all images
ROLLOUTS = 2  # of each image in glimpse models, see `model.export.tracing.Traced.example`
TITLES = (
    "network", "parameters", "SymbolBlock differs by", "onnxruntime differs by", "batch",
    "MXNet images/s", "onnxruntime images/s", "onnxruntime x MXNet (min to max)",
)  # fmt: skip
INT8_TITLES = (
    "file", "test images", "float32 accuracy", "8 bit accuracy", "8 bits x float32 bytes",
    "batch", "8 bits x float32 images/s (min to max)",
)  # fmt: skip
CALIBRATION_IMAGES = 256


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    models: tuple[str, ...] = option(MODELS, "networks, by name")
    threads: int = option(1, "threads of one operator")
    rounds: int = option(3, "timed rounds of each network, MXNet and onnxruntime in turn")
    round_sec: float = option(0.3, "about how long a round lasts, seconds")
    batch: int = option(128, "images of a large batch")
    pixels: int = option(131072, "pixels that a large batch has at most")
    test: int = option(1000, "test images that 8 bits are tried on; 0: all, -1: no 8 bits")
    data_dir: Optional[str] = option(None, "folder with the data; default: $ATTENTION_DATA")
    clock: str = option("wall", "time that counts", choices=("wall", "cpu"))
    out: str = option("runs/bench/export.json", "file that the figures are stored in")

    def check(self) -> None:
        """Refuse what measures nothing."""
        check_least(self, 1, "threads", "rounds", "batch", "pixels")
        if self.clock == "cpu" and self.threads > 1:
            raise UserError("--clock cpu adds up the time of all threads; use --threads 1")


def open_model(name: str) -> tuple[Any, str]:
    """Return an initialized network, and where its parameters are from."""
    import mxnet as mx

    from model import create_model
    from model.export.export_files import open_network
    from model.weights.published import GLIMPSE_INDEX, INDEX, read_index

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


def original(net: Any, inputs: dict[str, np.ndarray]) -> Callable[[], Any]:
    """Return what computes a batch with MXNet."""
    import mxnet as mx

    arrays = [mx.nd.array(value) for value in inputs.values()]
    net.hybridize(static_alloc=True, static_shape=True)

    def run() -> None:
        found = net(*arrays)
        for value in found if isinstance(found, (list, tuple)) else [found]:
            value.asnumpy()

    return run


def exported(model: bytes, inputs: dict[str, np.ndarray], threads: int) -> Callable[[], Any]:
    """Return what computes a batch with onnxruntime."""
    from model.export.onnx_graph import onnx_session

    session = onnx_session(model, threads)
    return lambda: session.run(None, inputs)


def batches(traced: Any, config: Config) -> list[int]:
    """Return the batch sizes that are timed: one image, and many."""
    height, width = traced.sizes[0]
    return sorted({1, max(1, min(config.batch, config.pixels // (height * width)))})


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
        seconds(job, 1)
        repeats.append(max(1, round(config.round_sec / max(seconds(job, 1), 1e-6))))
    found: list[list[float]] = [[] for _ in jobs]
    for _ in range(config.rounds):
        for series, job, repeat in zip(found, jobs, repeats):
            series.append(batch / seconds(job, repeat))
    return found


def measure(name: str, config: Config) -> dict[str, Any]:
    """Return all figures of one network."""
    from model.export.export_files import check_onnx, check_symbol
    from model.export.onnx_graph import to_onnx
    from model.export.tracing import trace

    net, source = open_model(name)
    traced = trace(net)
    model = to_onnx(traced, {}).SerializeToString()
    speeds = {}
    for batch in batches(traced, config):
        inputs = traced.example(batch, traced.sizes[0])
        jobs = [original(net, inputs), exported(model, inputs, config.threads)]
        speeds[batch] = dict(zip(("mxnet", "onnx"), rates(batch, jobs, config)))
    return {
        "parameters": source,
        "symbol_difference": check_symbol(traced),
        "onnx_difference": check_onnx(traced, model),
        "images_per_sec": speeds,
    }


def measure_file(row: dict[str, str], config: Config) -> dict[str, Any]:
    """Return accuracy and speed of a published classifier in float32 and in 8 bits."""
    from model.export.export_files import open_network
    from model.export.onnx_graph import to_onnx
    from model.export.tracing import trace
    from model.weights.published import INDEX
    from training.apply.int8 import measure_int8

    path = INDEX.parent / row["file"]
    traced = trace(open_network(path).net)
    model = to_onnx(traced, {}).SerializeToString()
    data_dir = config.data_dir or os.environ.get("ATTENTION_DATA")
    found = measure_int8(path, model, data_dir, CALIBRATION_IMAGES, config.test)
    batch = batches(traced, config)[-1]
    inputs = traced.example(batch, traced.sizes[0])
    jobs = [exported(each, inputs, config.threads) for each in (model, found.model)]
    return {
        **found._replace(model=b"")._asdict(),
        "model": row["model"],
        "bytes": [len(model), len(found.model)],
        "batch": batch,
        "images_per_sec": dict(zip(("onnx", "int8"), rates(batch, jobs, config))),
    }


def table_rows(name: str, record: dict[str, Any]) -> list[str]:
    """Return the lines of the Markdown table, one for each batch size."""
    lines = []
    for batch, speeds in record["images_per_sec"].items():
        cells = [name, record["parameters"]]
        cells += [f"{record[key]:.1e}" for key in ("symbol_difference", "onnx_difference")]
        cells += [str(batch) + (f", {ROLLOUTS} rollouts" if "glimpse" in name else "")]
        cells += [f"{statistics.median(speeds[key]):.3g}" for key in ("mxnet", "onnx")]
        cells += [_factor(speeds["onnx"], speeds["mxnet"])]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def int8_row(name: str, record: dict[str, Any]) -> str:
    """Return the line of the second Markdown table."""
    before, after = record["bytes"]
    speeds = record["images_per_sec"]
    cells = [name, f"{record['images']} of {record['dataset']}"]
    cells += [f"{record[key]:.2%}" for key in ("before", "after")]
    cells += [f"{after / before:.2f}", str(record["batch"])]
    cells += [_factor(speeds["int8"], speeds["onnx"])]
    return "| " + " | ".join(cells) + " |"


def _factor(fast: Sequence[float], slow: Sequence[float]) -> str:
    factors = [a / b for a, b in zip(fast, slow)]
    middle = statistics.median(fast) / statistics.median(slow)
    return f"{middle:.2f} ({min(factors):.2f} to {max(factors):.2f})"


def _header(titles: Sequence[str]) -> None:
    print("| " + " | ".join(titles) + " |")
    print("|" + "---|" * len(titles), flush=True)


def int8_table(config: Config) -> dict[str, Any]:
    """Print the second table; return its figures. Files whose data is not here are named."""
    from model.weights.published import INDEX, read_index

    records = {}
    print()
    _header(INT8_TITLES)
    for row in read_index(INDEX):
        try:
            records[row["file"]] = measure_file(row, config)
        except UserError as error:
            print(f"not measured: {row['file']}: {error}", file=sys.stderr)
        else:
            print(int8_row(row["file"], records[row["file"]]), flush=True)
    return records


@exits()
def main(argv: Sequence[str]) -> int:
    """Measure all networks and print the tables; 2 for bad input or a network that differs."""
    config = parse(Config, argv, "bench_export.py", __doc__)
    os.environ["OMP_NUM_THREADS"] = str(config.threads)  # read when MXNet is imported
    known = begin()
    from model.export.onnx_graph import ExportError
    from model.registry import ModelError

    print(f"{headline(known)}; {config.threads} thread(s), {config.clock} time\n")
    _header(TITLES)
    records = {}
    for name in config.models:
        try:
            records[name] = measure(name, config)
        except (ExportError, ModelError, UserError) as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            return 2
        print(*table_rows(name, records[name]), sep="\n", flush=True)
    files = {} if config.test < 0 else int8_table(config)
    store(config.out, {"environment": known, "networks": records, "int8": files})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
