"""Speed of the input pipeline alone: ``OMP_NUM_THREADS=1 python
-m benchmarks.pipeline.bench_input``.

Each row adds one step to the row above it and gives the median time of one epoch. The batches are
made in the process itself, as in training without prefetch; ``--data-dir`` measures the real
CIFAR-10 instead of random pixels.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

import numpy as np

from benchmarks.harness.report import begin, headline, store
from formats.errors import UserError
from training.augmentation.augment import Augmentation, augment
from training.batches.in_memory import TrainBatches
from training.compute.thread_choice import take_threads
from training.data.catalogue import load_dataset
from training.data.dataset import Dataset, ImageData
from training.settings.config import parse, to_dict
from training.settings.exit_code import exits
from training.settings.fields import option
from training.settings.run_config import check_least


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    images: int = option(50_000, "synthetic images", group="data")
    size: int = option(32, "height and width of synthetic images, pixels")
    channels: int = option(3, "channels of synthetic images")
    dataset: str = option("cifar10", "real data set, with --data-dir")
    data_dir: Optional[str] = option(None, "folder with the real data set")
    batch_size: int = option(128, "images per batch", group="measurement")
    epochs: int = option(5, "epochs measured per row, after one to warm up")
    prefetch: int = option(0, "batches that a background thread makes ahead")
    out: str = option("runs/bench/input.json", "file that the figures are stored in")

    def check(self) -> None:
        """Refuse sizes that measure nothing."""
        check_least(self, 1, "images", "size", "channels", "batch_size", "epochs")
        if self.data_dir is None and self.batch_size > self.images:
            raise UserError(f"--batch-size {self.batch_size}; choose at most {self.images}, all")


def load(config: Config) -> Dataset:
    """The real data set, or random pixels that cost the same."""
    if config.data_dir is not None:
        return load_dataset(config.dataset, config.data_dir, download=False)
    shape = (config.images, config.size, config.size, config.channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    labels = np.arange(config.images, dtype=np.int32) % 10
    names = tuple(str(number) for number in range(10))
    data = ImageData(images, labels, None)
    half = (0.5,) * config.channels
    return Dataset("synthetic", data, data, names, half, half)


def epochs_of(config: Config, dataset: Dataset) -> dict[str, Callable[[int], object]]:
    """Row name to a function that makes all batches of one epoch."""
    data = dataset.train

    def partly(epoch: int, augmentation: Optional[Augmentation]) -> None:
        rng = np.random.default_rng([0, epoch])
        order = rng.permutation(len(data.images))
        for start in range(0, len(order) - config.batch_size + 1, config.batch_size):
            images = data.images[order[start : start + config.batch_size]]
            if augmentation is not None:
                augment(images, augmentation, dataset.mean, rng)

    def wholly(augmentation: Augmentation) -> Callable[[int], object]:
        batches = TrainBatches(
            data,
            config.batch_size,
            augmentation=augmentation,
            mean=dataset.mean,
            std=dataset.std,
            classes=dataset.classes,
            seed=0,
        )
        return lambda epoch: deque(batches.epoch(epoch, prefetch=config.prefetch), maxlen=0)

    return {
        "shuffle": lambda epoch: partly(epoch, None),
        "+ crop and flip": lambda epoch: partly(epoch, Augmentation()),
        "+ normalize": wholly(Augmentation()),
        "+ erasing": wholly(Augmentation(cutout="erasing")),
        "+ mixup": wholly(Augmentation(cutout="erasing", mixup_alpha=1.0)),
    }


def measure(config: Config) -> dict[str, dict[str, float]]:
    """Median seconds, processor seconds and images/s of an epoch, for each row.

    Where the processor seconds are fewer, other processes had the core for the difference. The rows
    take turns, so that other load on the machine does not fall on one of them alone.
    """
    dataset = load(config)
    count = len(dataset.train.images) // config.batch_size * config.batch_size
    rows = epochs_of(config, dataset)
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in rows}
    for epoch in range(config.epochs + 1):
        for name, run in rows.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            run(epoch)
            seconds[name].append(time.perf_counter() - start)
            cpu_seconds[name].append(time.process_time() - cpu_start)
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    return {
        name: {
            "seconds_per_epoch": round(median, 4),
            "cpu_seconds_per_epoch": round(statistics.median(cpu_seconds[name][1:]), 4),
            "images_per_sec": round(count / median),
        }
        for name, median in medians.items()
    }


def table(config: Config, rows: dict[str, dict[str, float]]) -> str:
    """The figures for a reader."""
    data = "random pixels" if config.data_dir is None else config.dataset
    setting = f"batch {config.batch_size}, prefetch {config.prefetch}"
    lines = [
        f"{data}, {setting}, median of {config.epochs} epochs",
        "",
        f"{'':<18}{'s/epoch':>9}{'CPU s':>8}{'images/s':>11}",
    ]
    for name, row in rows.items():
        times = f"{row['seconds_per_epoch']:>9.3f}{row['cpu_seconds_per_epoch']:>8.3f}"
        lines.append(f"{name:<18}{times}{row['images_per_sec']:>11,.0f}")
    return "\n".join(lines)


@exits()
def main(argv: list[str]) -> int:
    """Measure, print the table and store the figures; 2 for bad input."""
    config = parse(Config, argv, "bench_input.py", "Measure the input pipeline alone.")
    known = begin()
    print(headline(known), flush=True)
    rows = measure(config)
    print(table(config, rows))
    store(config.out, {"environment": known, "config": to_dict(config), "rows": rows})
    return 0


if __name__ == "__main__":
    take_threads([])  # before MXNet is loaded, which reads it once
    sys.exit(main(sys.argv[1:]))
