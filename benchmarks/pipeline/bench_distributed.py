"""Strong scaling on the cores of one machine: ``python -m benchmarks.pipeline.bench_distributed``.

The same training step, batch and network: one process with 1 and with 2 threads, and 2 processes
with a thread each, by Horovod (where .venv-horovod is) and by MXNet's parameter server. Random
images; each worker computes its share of the batch. Rounds in turn, median over rounds. Run it on a
quiet machine: beside another busy process these figures say nothing.

Efficiency: images/s over those of one process with 1 thread, per core.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

# training.launch and horovodrun start this file, which then has only this folder on its path.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from benchmarks.harness.report import begin, headline, store
from formats.errors import UserError
from training.settings.config import parse
from training.settings.exit_code import exits
from training.settings.fields import option
from training.settings.run_config import DIST_SYNC, ENGINES, HOROVOD, NONE

ROOT = Path(__file__).resolve().parents[2]
CASES = {
    "1 process, 1 thread": (NONE, 1, 1),
    "1 process, 2 threads": (NONE, 1, 2),
    "dist_sync, 2 processes, 1 thread each": (DIST_SYNC, 2, 1),
    "Horovod with Gloo, 2 processes, 1 thread each": (HOROVOD, 2, 1),
}
WARM_UP = 2


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    model: str = option("attention56_small", "network", flags=("-m",))
    batch_size: int = option(64, "images per update, over all workers", flags=("-b",))
    steps: int = option(8, "steps measured in a round")
    rounds: int = option(3, "rounds of each case, in turn")
    horovod: str = option(".venv-horovod", "environment with Horovod; without it that case is left")
    out: str = option("runs/bench/distributed.json", "file that the figures are stored in")
    distributed: str = option(NONE, "used for the workers, which it starts", choices=ENGINES)
    worker: Optional[str] = option(None, "used for the workers: file for the figures")


def work(config: Config) -> None:
    """Be one of the workers: train on random images, the first one writes images/s."""
    import mxnet as mx
    from mxnet import gluon

    from model import create_model
    from training.batches.in_memory import Batch
    from training.compute.devices import choose_contexts, hybridize_options
    from training.distributed.shared_run import joined, share_weights
    from training.loop.engine import Updater, measure
    from training.loop.task import ClassificationTask

    with joined(config) as group:
        mx.random.seed(0)
        net = create_model(config.model)
        net.initialize(mx.init.MSRAPrelu())
        net.hybridize(**hybridize_options("float32"))
        share_weights(group, net)
        trained = {k: p for k, p in net.collect_params().items() if p.grad_req != "null"}
        settings = {"learning_rate": 0.01, "momentum": 0.9}
        trainer = gluon.Trainer(trained, "nag", settings, update_on_kvstore=False)
        updater = Updater(ClassificationTask(net, trainer, choose_contexts("cpu")), group=group)
        rng = np.random.default_rng(0)
        image = rng.normal(size=(config.batch_size, 3, 32, 32)).astype(np.float32)
        batch = Batch(image, (np.arange(config.batch_size) % 10).astype(np.int32))
        for number in range(WARM_UP + config.steps):
            if number == WARM_UP:
                mx.nd.waitall()
                group.any(False)
                begin = time.perf_counter()
            sums = measure(updater.step(batch, number))
            group.sum([sums.loss, sums.images])
        mx.nd.waitall()
        rate = config.steps * config.batch_size / (time.perf_counter() - begin)
        if not group.rank:
            Path(str(config.worker)).write_text(json.dumps(rate))


def command(case: str, config: Config, file: str) -> Optional[list[str]]:
    """Return the command that runs a case; None when its environment is not there."""
    engine, workers, _ = CASES[case]
    words = [f"--model={config.model}", f"--batch-size={config.batch_size}"]
    words += [f"--steps={config.steps}", f"--distributed={engine}", f"--worker={file}"]
    script = str(Path(__file__).resolve())
    if engine == DIST_SYNC:
        start = ["-m", "training.launch", "-n", str(workers), "--script", script, "--"]
        return [sys.executable, *start, *words]
    if engine == NONE:
        return [sys.executable, script, *words]
    python = (ROOT / config.horovod / "bin" / "python").absolute()
    if not python.exists():
        return None
    start = ["-np", str(workers), "-H", f"localhost:{workers}", str(python), script]
    return [str(python), str(python.with_name("horovodrun")), *start, *words]


def measure_case(case: str, config: Config) -> Optional[float]:
    """Return images/s of one round of a case."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rate")
        words = command(case, config, str(file))
        if words is None:
            return None
        run(words, CASES[case][2], case)
        return float(json.loads(file.read_text()))


def run(words: Sequence[str], threads: int, what: str) -> None:
    """Run a command with a number of threads; UserError when it fails."""
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        words, cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"{what} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def table(rates: Mapping[str, Sequence[float]]) -> str:
    """Return the Markdown table: images/s and efficiency of each case."""
    base = statistics.median(next(iter(rates.values())))
    lines = ["| workers | images/s: median (min to max) | speed-up | efficiency |"]
    lines.append("|---|--:|--:|--:|")
    for case, found in rates.items():
        middle = statistics.median(found)
        cores = CASES[case][1] * CASES[case][2]
        spread = f"{middle:.1f} ({min(found):.1f} to {max(found):.1f})"
        ratio = middle / base
        lines.append(f"| {case} | {spread} | {ratio:.2f} | {ratio / cores:.0%} |")
    return "\n".join(lines)


@exits()
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Measure all cases and print the table; 2 when a case failed."""
    words = sys.argv[1:] if argv is None else argv
    config = parse(Config, words, "bench_distributed.py", __doc__)
    if config.worker:
        work(config)
        return 0
    known: dict[str, Any] = begin()
    rates: dict[str, list[float]] = {}
    for _ in range(config.rounds):
        for case in CASES:
            rate = measure_case(case, config)
            if rate is not None:
                print(f"{case}: {rate:.1f} images/s", file=sys.stderr, flush=True)
                rates.setdefault(case, []).append(rate)
    print(f"{headline(known)}; {config.model}, batch {config.batch_size}, {config.rounds} rounds\n")
    print(table(rates))
    if not any(CASES[case][0] == HOROVOD for case in rates):
        print(f"\nwithout Horovod: {config.horovod} is not there; make horovod builds it")
    store(config.out, {"environment": known, "config": vars(config), "images_per_sec": rates})
    return 0


if __name__ == "__main__":
    sys.exit(main())
