"""Does the network wait for its data? ``python -m benchmarks.pipeline.bench_epoch --data-dir DIR``.

The same steps of training are made with batches from the input pipeline, as the scripts build it,
and with one batch that lies ready, in turn, by the project's operators where they can be built. The
ratio of their times is the share of an epoch that is the network's; 1 means that the pipeline costs
nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from benchmarks.harness.interleave import ROOT
from benchmarks.harness.report import begin, headline, store
from formats.errors import UserError
from training.compute.thread_choice import take_threads
from training.settings.config import parse
from training.settings.exit_code import exits
from training.settings.fields import option
from training.settings.run_config import check_least

WARM_UP = 3  # steps


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    models: tuple[str, ...] = option(("attention56_small", "resnet20"), "networks, by name")
    dataset: str = option("cifar10", "data set, with --data-dir; without it shapes")
    data_dir: Optional[str] = option(None, "folder with the data set")
    batch_size: int = option(128, "images per step", flags=("-b",))
    prefetch: int = option(2, "batches that a background thread makes ahead")
    steps: int = option(6, "steps of a round")
    rounds: int = option(5, "rounds of each of the two")
    precision: str = option("float32", "arithmetic", choices=("float32", "bfloat16"))
    out: str = option("runs/bench/epoch.json", "file that the figures are stored in")

    def check(self) -> None:
        """Refuse what measures nothing."""
        check_least(self, 1, "batch_size", "steps", "rounds")


def measure(config: Config, model: str) -> dict[str, float]:
    """Return seconds of a step with the pipeline and without, and the share of the network."""
    import mxnet as mx

    from training.augmentation.augment import Augmentation
    from training.batches.in_memory import TrainBatches
    from training.data.catalogue import load_dataset
    from training.loop.engine import measure as finish

    name = config.dataset if config.data_dir else "shapes"
    data = load_dataset(name, config.data_dir, download=False)
    batches = TrainBatches(
        data.train,
        config.batch_size,
        augmentation=Augmentation(cutout="erasing", mixup_alpha=1.0),
        mean=data.mean,
        std=data.std,
        classes=data.classes,
        seed=0,
    )
    updater = _updater(config, model, data.classes)
    stream = endless(batches, config.prefetch)
    ready = next(stream)

    def run(source: Optional[Iterator[Any]], steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            finish(updater.step(next(source) if source else ready))
        mx.nd.waitall()
        return time.perf_counter() - start

    run(stream, WARM_UP)
    fed, alone = 0.0, 0.0
    for _ in range(config.rounds):
        fed += run(stream, config.steps)
        alone += run(None, config.steps)
    count = config.rounds * config.steps
    return {"seconds": fed / count, "seconds_alone": alone / count, "share": alone / fed}


def _updater(config: Config, model: str, classes: int) -> Any:
    """Return what makes the steps of a new network, computed as a training computes it."""
    import mxnet as mx

    from machine.processor import Unavailable
    from model import create_model
    from model.execution.fused_training import fuse
    from training.classifier.config import ClassifierConfig
    from training.compute.devices import hybridize_options, use_precision
    from training.compute.optimizer import build_trainer
    from training.loop.engine import Updater
    from training.loop.task import ClassificationTask

    net = create_model(model, classes)
    net.initialize(mx.init.MSRAPrelu())
    try:
        fuse(net, config.precision)
        amp = "float32"
    except Unavailable:
        amp = config.precision
    use_precision(amp, [mx.cpu()])
    net.hybridize(**hybridize_options(amp))
    settings = ClassifierConfig(optimizer="nag", batch_size=config.batch_size, lr=0.01)
    return Updater(ClassificationTask(net, build_trainer(net, settings), [mx.cpu()]))


def endless(batches: Any, prefetch: int) -> Iterator[Any]:
    """Yield batches of one epoch after the other."""
    epoch = 0
    while True:
        yield from batches.epoch(epoch, prefetch=prefetch)
        epoch += 1


def measure_all(config: Config) -> dict[str, dict[str, float]]:
    """Return `measure` of each network, by name."""
    from model.execution.threads import copy_on_one_thread

    copy_on_one_thread()  # as every training does
    return {model: measure(config, model) for model in config.models}


def measure_apart(data_dir: Optional[str], threads: int) -> dict[str, dict[str, float]]:
    """Return `measure_all` of a process of its own, which takes so many threads.

    Raises
    ------
    UserError
        When it fails; its own message is on the terminal.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "epoch.json")
        command = [sys.executable, "-m", "benchmarks.pipeline.bench_epoch", "--out", out]
        command += ["--data-dir", os.path.abspath(data_dir)] if data_dir else []
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        if done.returncode:
            raise UserError(f"bench_epoch.py ended with exit code {done.returncode}")
        with open(out, encoding="utf-8") as file:
            found: dict[str, dict[str, float]] = json.load(file)["networks"]
    return found


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Return the Markdown table."""
    lines = ["| network | ms of a step | with a batch that lies ready | share of the network |"]
    lines.append("|---|---|---|---|")
    for model, one in found.items():
        times = [f"{1e3 * one[key]:.1f}" for key in ("seconds", "seconds_alone")]
        lines.append(f"| {model} | {times[0]} | {times[1]} | {one['share']:.3f} |")
    return "\n".join(lines)


@exits()
def main(argv: Sequence[str]) -> int:
    """Measure, print the table and store the figures; 2 for bad input."""
    config = parse(Config, argv, "bench_epoch.py", __doc__)
    known = begin()
    print(headline(known), flush=True)
    found = measure_all(config)
    print(table(found))
    store(config.out, {"environment": known, "networks": found})
    return 0


if __name__ == "__main__":
    take_threads([])  # before MXNet is loaded, which reads it once
    sys.exit(main(sys.argv[1:]))
