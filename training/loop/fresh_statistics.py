"""Batch-norm statistics measured anew, for averaged weights, which no training step has seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

import mxnet as mx
import numpy as np

from model.layers.basic_layer import is_statistic
from training.augmentation.draws import STATISTICS, generator
from training.batches.in_memory import Batch, TrainBatches, parts_of_batch

# Running statistics of a training, with MXNet's momentum of 0.9, are over about 20 batches.
IMAGES = 5120
_FAR = 2.0**20  # so far from any statistic that the share of it that is left is exact
_FROZEN = 0.9999


@dataclass(frozen=True)
class StatisticsBatches:
    """Batches of `size` of the training images that `rows` numbers, always the same.

    They are augmented as in training, mixed too where `mixup` says so, but never shrunk. Networks
    are fitted to the statistics of such images: a black border of a crop, for one, adds so much to
    the variance behind the stem that a network whose statistics were measured without it lost 5
    points of accuracy.
    """

    train: TrainBatches
    rows: np.ndarray
    size: int
    mixup: bool

    def __len__(self) -> int:
        return len(self.rows) // self.size

    def __iter__(self) -> Iterator[Batch]:
        whole = self.train.augmentation.small_epochs  # an epoch that does not shrink
        for k in range(len(self)):
            rows = self.rows[k * self.size : (k + 1) * self.size]
            rng = generator(self.train.seed, 0, STATISTICS, child=(k,))
            yield self.train.make(rows, self.mixup, rng, whole)


def statistics_batches(train: TrainBatches, size: int, mixup: bool) -> StatisticsBatches:
    """Return batches of `size` images, `IMAGES` or all training images, the same in every epoch."""
    count = min(IMAGES, len(train.data.images)) // size or 1
    # A folder is sorted by class.
    order = generator(train.seed, 0, STATISTICS).permutation(len(train.data.images))
    return StatisticsBatches(train, order[: count * size], size, mixup)


def measure_statistics(
    updater: Any, batches: Iterable[Any], advance: Callable[[int], None] = lambda images: None
) -> None:
    """Give each device the mean of its batch-norm statistics over `batches`; no weight changes.

    Parameters
    ----------
    updater
        The `training.loop.engine.Updater` of the network: statistics are computed as in training,
        of its parts of batches, in its precision and by its operators, backwards too, because MXNet
        keeps them then.
    batches
        `training.batches.in_memory.Batch` objects.
    advance
        Called with the number of images of each batch when it is done.
    """
    statistics = [
        (device, data)
        for name, parameter in updater.net._collect_params_with_prefix().items()
        if is_statistic(name)
        for device, data in enumerate(parameter.list_data())
    ]
    before = [data.asnumpy() for _, data in statistics]
    left: list[float] = []  # what a pass leaves of each: the momentum, or 1 where it is frozen
    sums = [np.zeros(data.shape, np.float64) for _, data in statistics]
    passes = [0] * len(updater.contexts)
    for batch in batches:
        count = parts_of_batch(len(batch.image), updater.devices, updater.micro_batch)
        for parts in updater.rounds(batch, count):
            if not left:
                near, far = (_pass(updater, parts, statistics, start) for start in (0.0, _FAR))
                left = [float(np.mean((b - a) / _FAR)) for a, b in zip(near, far)]
            found = _pass(updater, parts, statistics, 0.0)
            for (device, _), total, value in zip(statistics, sums, found):
                total += value if parts[device] else 0
            passes = [done + bool(part) for done, part in zip(passes, parts)]
        advance(len(batch.image))
    for (device, data), total, share, value in zip(statistics, sums, left, before):
        data[:] = value if share > _FROZEN else total / (passes[device] * (1 - share))


def _pass(
    updater: Any, parts: Sequence[Optional[Any]], statistics: Sequence[Any], start: float
) -> list[np.ndarray]:
    """Train on a part for each device, without an update; return the running statistics.

    They are `start` before it.
    """
    mx.nd.waitall()  # what has gone before may still write them
    for _, data in statistics:
        data[:] = start
    with mx.autograd.record():
        losses = [updater.objective(part, (0, 0)).losses for part in parts if part]
    mx.autograd.backward(losses)
    mx.nd.waitall()
    return [data.asnumpy().astype(np.float64) for _, data in statistics]
