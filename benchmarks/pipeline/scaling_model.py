"""How far more machines would carry: ``python -m benchmarks.pipeline.scaling_model``.

A model on paper of trainings by many workers, from what one machine can measure: the step of one
worker at several batches, the bytes of its gradients, and a bandwidth. Gradients are exchanged
after the backward pass, not during it, so that the times add up (n workers, G bytes, a link of B
bytes/s each way, latency L, local batch b):

    step    t(b) = start + image * b, a straight line through the measured steps
    ring    2 (n - 1) (G / (n B) + L), Horovod's allreduce (Patarasuk and Yuan 2009, section 3)
    server  2 (n G / (s B) + L), dist_sync with s servers, each on a link of its own

Strong scaling shares a batch among the workers; weak scaling gives each the whole one. Stragglers
and the reading of images are left out: the figures are an upper bound. ``--two`` compares the
model with a training by two processes over the loopback, whose bandwidth it measures by exchanging
the same gradients alone.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

# It starts itself as a script, as the workers of a launcher.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from benchmarks.harness.interleave import Worker, measure_point
from benchmarks.harness.report import begin, headline, store
from benchmarks.pipeline import bench_distributed
from formats.errors import UserError
from training.settings.config import parse
from training.settings.exit_code import exits
from training.settings.fields import option
from training.settings.run_config import DIST_SYNC, ENGINES, NONE, check_least

WORKERS = (1, 2, 4, 8, 16, 32, 64)
LATENCY_SEC = 50e-6  # of a message between two machines over TCP
GBIT = 1e9 / 8  # bytes/s
NETWORKS = {"attention92": (32, 64), "attention56_imagenet": (224, 64)}  # image size, whole batch
CHECKED = "1 process, 1 thread", "dist_sync, 2 processes, 1 thread each"


@dataclass(frozen=True)
class Config:
    """Settings of the model."""

    models: tuple[str, ...] = option(tuple(NETWORKS), "networks", choices=tuple(NETWORKS))
    batches: tuple[int, ...] = option((1, 4, 16, 32), "batches at which a step is measured")
    gbits: tuple[int, ...] = option((1, 10, 100), "bandwidths of a link, Gbit/s")
    servers: int = option(1, "parameter servers")
    point_sec: float = option(5.0, "about how long a step is measured, seconds")
    two: bool = option(False, "compare with two processes here, in place of the tables")
    checked_model: str = option("attention56_small", "network of --two", flags=("-m",))
    batch_size: int = option(64, "images per update in --two, over both", flags=("-b",))
    rounds: int = option(3, "rounds of --two")
    figure: Optional[str] = option(None, "file that the curves are drawn in, as PNG")
    out: str = option("runs/bench/scaling_model.json", "file that the figures are stored in")
    distributed: str = option(NONE, "used for the workers, which it starts", choices=ENGINES)
    worker: Optional[str] = option(None, "used for the workers: file for the figures")

    def check(self) -> None:
        """Refuse what measures nothing."""
        check_least(self, 1, "servers", "rounds")
        check_least(self, 2, "batch_size")
        wrong = [value for value in (*self.batches, *self.gbits) if value < 1]
        if wrong or len(set(self.batches)) < 2 or not self.gbits or not self.models:
            raise UserError(
                "--batches needs two different numbers or more, --gbits and --models one, each "
                f"1 or more; given --batches {_words(self.batches)} --gbits {_words(self.gbits)}"
            )


def _words(values: Sequence[Any]) -> str:
    return " ".join(map(str, values))


@dataclass(frozen=True)
class Step:
    """A training step of one worker: a straight line over its batch."""

    start: float  # seconds
    image: float  # seconds
    gradient: int  # bytes

    def seconds(self, batch: float) -> float:
        """Return the time of a step of `batch` images."""
        return self.start + self.image * batch


def fit_step(seconds: Mapping[int, float], gradient: int) -> Step:
    """Return the line with the least relative errors through steps measured at several batches."""
    batch, measured = (np.array(list(values), float) for values in zip(*seconds.items()))
    rows = np.stack([np.ones_like(batch), batch], 1) / measured[:, None]
    start, image = np.linalg.lstsq(rows, np.ones_like(batch), rcond=None)[0]
    return Step(max(0.0, float(start)), float(image), gradient)


def ring_seconds(workers: int, gradient: float, bandwidth: float, latency: float) -> float:
    """Return the time of an allreduce by a ring: every worker sends and receives twice."""
    return 2 * (workers - 1) * (gradient / (workers * bandwidth) + latency)


def server_seconds(
    workers: int, gradient: float, bandwidth: float, latency: float, servers: int = 1
) -> float:
    """Return the time to push to and pull from servers, whose links carry all workers."""
    if workers == 1:
        return 0.0
    return 2 * (max(1.0, workers / servers) * gradient / bandwidth + latency)


def speed_ups(
    step: Step, batch: int, exchange: Any, bandwidth: float, weak: bool
) -> dict[int, float]:
    """Return how many times as many images/s as one worker gives, by the number of workers."""
    alone = batch / step.seconds(batch)
    found = {}
    for workers in WORKERS:
        if batch < workers and not weak:
            break  # a worker without an image
        share = batch if weak else batch / workers
        seconds = step.seconds(share)
        if workers > 1:
            seconds += exchange(workers, step.gradient, bandwidth, LATENCY_SEC)
        found[workers] = share * workers / seconds / alone
    return found


def gradient_bytes(model: str, size: int) -> int:
    """Return the bytes of a network's gradients in float32."""
    import mxnet as mx

    from model import create_model

    net = create_model(model)
    net.initialize()
    net(mx.nd.zeros((1, 3, size, size)))
    trained = (p for p in net.collect_params().values() if p.grad_req != "null")
    return 4 * sum(int(np.prod(p.shape)) for p in trained)


def measure(model: str, config: Config) -> tuple[Step, dict[int, float]]:
    """Return the step of one worker with all cores, and what it was fitted to."""
    size, _ = NETWORKS[model]
    command = [sys.executable, "-m", "benchmarks.networks.mxnet_classifier"]
    with Worker("ours", [*command, "--model", model, "--size", str(size)], {}) as worker:
        found = {
            batch: measure_point(worker, f"train_float32_{batch}", config.point_sec)
            for batch in config.batches
        }
    return fit_step(found, gradient_bytes(model, size)), found


def curves(steps: Mapping[str, Step], config: Config) -> list[dict[str, Any]]:
    """Return one record a network, kind of scaling, exchange and bandwidth."""
    exchanges = {
        "ring": ring_seconds,
        "server": functools.partial(server_seconds, servers=config.servers),
    }
    return [
        {
            "model": model,
            "kind": "weak" if weak else "strong",
            "exchange": name,
            "gbit": gbit,
            "speed_up": speed_ups(step, NETWORKS[model][1], exchange, gbit * GBIT, weak),
        }
        for model, step in steps.items()
        for weak in (False, True)
        for name, exchange in exchanges.items()
        for gbit in config.gbits
    ]


def table(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the Markdown table: the speed-up over one worker."""
    lines = [f"| network | scaling | exchange | Gbit/s | {' | '.join(map(str, WORKERS[1:]))} |"]
    lines.append("|---|---|---|--:|" + "--:|" * len(WORKERS[1:]))
    for record in records:
        found = record["speed_up"]
        cells = [f"{found[n]:.1f}" if n in found else "-" for n in WORKERS[1:]]
        words = [str(record[key]) for key in ("model", "kind", "exchange", "gbit")]
        lines.append("| " + " | ".join([*words, *cells]) + " |")
    return "\n".join(lines)


def draw(records: Sequence[Mapping[str, Any]], file: str) -> None:
    """Draw speed-up over workers, a panel a network and kind of scaling."""
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((r["model"], r["kind"]) for r in records))
    figure = Figure(figsize=(4 * len(panels), 4), layout="constrained")
    for axes, (model, kind) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        gbits = list(dict.fromkeys(r["gbit"] for r in records))
        for record in (r for r in records if (r["model"], r["kind"]) == (model, kind)):
            axes.plot(
                list(record["speed_up"]),
                list(record["speed_up"].values()),
                color=f"C{gbits.index(record['gbit'])}",
                linestyle="-" if record["exchange"] == "ring" else ":",
                label=f"{record['exchange']}, {record['gbit']} Gbit/s",
            )
        axes.plot(WORKERS, WORKERS, color="lightgrey", zorder=0)
        axes.set(xscale="log", yscale="log", xlabel="workers", title=f"{model}, {kind} scaling")
        axes.set_xticks(WORKERS, [str(n) for n in WORKERS])
        axes.set_yticks(WORKERS, [str(n) for n in WORKERS])
        axes.minorticks_off()
        axes.set_ylim(0.2, 64)
    figure.axes[0].set_ylabel("images/s over those of one worker")
    figure.axes[0].legend(fontsize="small")
    figure.savefig(file, dpi=100)


# ----------------------------------------------------------------------------- two processes here


def exchange(config: Config) -> None:
    """Be one of the workers: exchange gradients alone; the first one writes the seconds."""
    import mxnet as mx

    from model import create_model
    from training.distributed.shared_run import joined

    with joined(config) as group:
        net = create_model(config.checked_model)
        net.initialize()
        net(mx.nd.zeros((1, 3, 32, 32)))
        trained = [p for p in net.collect_params().values() if p.grad_req != "null"]
        arrays = [[mx.nd.ones(p.shape)] for p in trained]
        found = []
        for _ in range(12):
            group.any(False)
            start = time.perf_counter()
            group.sum_arrays(arrays, "gradient")
            mx.nd.waitall()
            found.append(time.perf_counter() - start)
        if not group.rank:
            Path(str(config.worker)).write_text(json.dumps(float(np.median(found[2:]))))


def compare_two(config: Config) -> str:
    """Return the Markdown table of two processes here, by the model and measured."""
    known = bench_distributed.Config(model=config.checked_model, batch_size=config.batch_size)
    half = bench_distributed.Config(model=config.checked_model, batch_size=config.batch_size // 2)
    rows: dict[str, list[float]] = {"half": [], "both": [], "exchange": []}
    alone, both = CHECKED
    script = str(Path(__file__).resolve())
    for _ in range(config.rounds):
        rows["half"].append(config.batch_size // 2 / _rate(alone, half))
        rows["both"].append(config.batch_size / _rate(both, known))
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "seconds")
            words = [sys.executable, "-m", "training.launch", "-n", "2", "--script", script, "--"]
            words += [f"--checked-model={config.checked_model}", f"--worker={file}"]
            bench_distributed.run([*words, f"--distributed={DIST_SYNC}"], 1, "the exchange")
            rows["exchange"].append(float(json.loads(file.read_text())))
    half_sec, both_sec, exchange_sec = (float(np.median(values)) for values in rows.values())
    model = half_sec + exchange_sec
    lines = ["| | ms a step |", "|---|--:|"]
    lines += [f"| one process, half of the batch | {1e3 * half_sec:.1f} |"]
    lines += [f"| exchange of the gradients alone | {1e3 * exchange_sec:.1f} |"]
    lines += [f"| two processes by the model: the sum | {1e3 * model:.1f} |"]
    lines += [f"| two processes, measured | {1e3 * both_sec:.1f} ({both_sec / model - 1:+.0%}) |"]
    return "\n".join(lines)


def _rate(case: str, config: bench_distributed.Config) -> float:
    rate = bench_distributed.measure_case(case, config)
    assert rate is not None  # only cases with Horovod can be left out
    return rate


@exits()
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure, print the table and store the figures; 2 for bad input or a worker that failed."""
    words = sys.argv[1:] if argv is None else argv
    config = parse(Config, words, "scaling_model.py", __doc__)
    if config.worker:
        exchange(config)
        return 0
    known = begin()
    print(headline(known), flush=True)
    if config.two:
        print(f"{config.checked_model}, batch {config.batch_size}, {config.rounds} rounds\n")
        print(compare_two(config))
        return 0
    steps, measured = {}, {}
    for model in config.models:
        steps[model], measured[model] = measure(model, config)
        step = steps[model]
        print(
            f"{model}: {1e3 * step.start:.0f} ms + {1e3 * step.image:.1f} ms an image, "
            f"{step.gradient / 1e6:.0f} MB of gradients, batch {NETWORKS[model][1]}",
            flush=True,
        )
    records = curves(steps, config)
    print(f"\n{table(records)}")
    if config.figure:
        draw(records, config.figure)
    store(config.out, {"environment": known, "seconds": measured, "speed_up": records})
    return 0


if __name__ == "__main__":
    sys.exit(main())
