"""Training: one optimizer step, one epoch. It knows no particular network."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Callable, NamedTuple, Optional, Protocol

import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.gluon.utils import clip_global_norm

from formats.errors import UserError
from training.batches.in_memory import Batch, parts_of_batch
from training.compute.loss_scaling import backward, is_scaled, loss_scale
from training.distributed.group import ALONE, Group
from training.loop.nonfinite import SkipGuard
from training.loop.task import Measured, Part, Task
from training.records.epochs import START_ANEW
from training.records.run_progress import Progress


class StepSums(NamedTuple):
    """Sums over the images of a step; ``terms`` by name."""

    loss: float
    correct: float
    images: int
    terms: Mapping[str, float] = {}


class Chooser(Protocol):
    """Chooses what of each batch is trained on, as `training.loop.harder.HarderImages` does."""

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of what it trains itself."""

    def choose(self, batch: Batch, number: int) -> Batch:
        """Return the part of `batch` that update `number`, from 0, trains on."""


class Updater:
    """One optimizer step from one batch, on one or several devices, in parts that fit the memory.

    Parameters
    ----------
    task
        Network, ``gluon.Trainer`` (made with ``update_on_kvstore=False``), what is minimized, and
        the devices that each batch is split over as evenly as possible.
    micro_batch
        At most so many images at once on a device, also for the statistics of batch
        normalisation; gradients add up over the parts. 0: the whole share.
    clip_gradient
        Limit of the norm of the mean gradient over all parameters; 0: none.
    group
        The workers that train together, with as many contexts each; every one is given the whole
        batch and computes its share.
    guard
        Decides which updates are left out; None: none is.
    chooser
        Chooses the images of each batch that are trained on; None: all are.
    """

    def __init__(
        self,
        task: Task,
        micro_batch: int = 0,
        clip_gradient: float = 0.0,
        group: Group = ALONE,
        guard: Optional[SkipGuard] = None,
        chooser: Optional[Chooser] = None,
    ) -> None:
        self.net, self.trainer, self.contexts = task.net, task.trainer, list(task.contexts)
        self.objective = task.losses
        self.micro_batch, self.clip_gradient = micro_batch, clip_gradient
        self.group, self.guard, self.chooser = group, guard, chooser
        self.devices = group.size * len(self.contexts)
        self._trained = [p for p in self.trainer._params if p.grad_req != "null"]

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of the next updates, those of the chooser too."""
        self.trainer.set_learning_rate(rate)
        if self.chooser:
            self.chooser.set_learning_rate(rate)

    def step(self, batch: Batch, number: int = 0) -> list[Measured]:
        """Update the parameters; return what `measure` needs, not yet computed.

        The devices work on while Python prepares the next batch. `number` counts the updates.

        Raises
        ------
        UserError
            When the batch has fewer images than there are devices.
        """
        if self.chooser:
            batch = self.chooser.choose(batch, number)
        images, devices = len(batch.image), self.devices
        if images < devices:
            raise UserError(
                f"a batch of {images} images cannot be split over {devices} devices: use a "
                f"--batch-size of at least {devices}, or fewer --gpus or workers"
            )
        count = parts_of_batch(images, devices, self.micro_batch)
        first = self.group.rank * len(self.contexts) * count  # no two parts draw the same numbers
        rounds = self.rounds(batch, count)
        if self.guard:
            self.guard.keep()
        results: list[Measured] = []
        for parts in rounds:
            done = len(results)
            with autograd.record():
                for part in filter(None, parts):
                    results.append(self.objective(part, (number, first + len(results))))
            backward([result.losses for result in results[done:]], self.trainer)
        self.trainer.allreduce_grads()
        self.group.sum_arrays([p.list_grad() for p in self._trained], "gradient")
        # An overflow is no fault where losses are scaled: the scaler leaves the update out.
        seen = [] if is_scaled(self.trainer) else self._trained
        gradients = [parameter.list_grad()[0] for parameter in seen]
        if self.guard and not self.guard.allows([r.losses for r in results], gradients):
            return results
        if self.clip_gradient:
            self._clip(images)
        self.trainer.update(images)
        return results

    def _clip(self, images: int) -> None:
        """Scale gradients, which are sums over `images`, down to the limit."""
        limit = self.clip_gradient * images * loss_scale(self.trainer)
        for device in range(len(self.contexts)):
            gradients = [parameter.list_grad()[device] for parameter in self._trained]
            clip_global_norm(gradients, limit, check_isfinite=False)

    def rounds(self, batch: Batch, count: int) -> list[tuple[Optional[Part], ...]]:
        """Return parts of `batch` for each device, in `count` rounds whose gradients add up."""
        # A device whose share is smaller can have one part less than the others.
        own = (self.parts(batch, i, count) for i in range(len(self.contexts)))
        rounds = list(itertools.zip_longest(*own))
        self._accumulate(len(rounds) > 1)
        return rounds

    def parts(self, batch: Batch, device: int, count: int) -> list[Part]:
        """Return this device's (image, target, target in host memory) in at most `count` parts."""
        context = self.contexts[device]
        place = self.group.rank * len(self.contexts) + device
        label = batch.label if batch.soft_label is None else batch.soft_label
        image, label = (np.array_split(a, self.devices)[place] for a in (batch.image, label))
        return [
            (mx.nd.array(a, ctx=context), mx.nd.array(b, ctx=context, dtype="float32"), b)
            for a, b in zip(np.array_split(image, count), np.array_split(label, count))
            if len(a)
        ]

    def _accumulate(self, several: bool) -> None:
        wanted = "add" if several else "write"
        for parameter in self._trained:
            if parameter.grad_req != wanted:
                parameter.grad_req = wanted
        if several:
            for parameter in self._trained:
                parameter.zero_grad()


def measure(results: Iterable[Measured]) -> StepSums:
    """Wait for the forward pass of a step and return its sums.

    The backward pass and the update may go on behind it, while Python starts the next step.
    """
    loss_sum, images = 0.0, 0
    sums = {"correct": 0.0}
    for result in results:
        for name, total in result.sums().items():
            sums[name] = sums.get(name, 0.0) + total
        loss_sum += float(result.losses.asnumpy().astype(np.float64).sum())
        images += result.images
    return StepSums(loss_sum, sums.pop("correct"), images, sums)


def train_one_epoch(
    updater: Updater,
    batches: Iterator[Batch],
    schedule: Callable[[int], float],
    progress: Progress,
    after_update: Callable[[int], None] = lambda step: None,
    total: Callable[[StepSums], StepSums] = lambda sums: sums,
) -> Iterator[int]:
    """Train from ``progress.batch`` to the end of an epoch, keeping `progress` up to date.

    Yields the number of images of the batch, of which not all may be trained on, after each step;
    the time until the next one is asked for is not counted. ``schedule(n)`` is the learning rate of
    update ``n``, which counts from 1. ``total`` makes the sums of a step those of all workers,
    before they are looked at.

    Raises
    ------
    UserError
        When the loss is not finite (the message gives epoch, step and learning rate), or a device
        runs out of memory.
    """
    begin = time.monotonic()
    for batch in batches:
        lr = schedule(progress.step + 1)
        updater.set_learning_rate(lr)
        try:
            sums = total(measure(updater.step(batch, progress.step)))
        except mx.MXNetError as error:
            if "out of memory" not in str(error).lower():
                raise
            raise UserError(
                "a device ran out of memory: lower --micro-batch (images per device at a time; 0 "
                "is the whole share), which leaves the batch size as it is"
            ) from error
        if updater.guard and updater.guard.skipped:
            updater.guard.count(progress, sums.loss, lr)
        elif not math.isfinite(sums.loss):
            skip = ", or go on with --resume RUN --on-nonfinite skip, which leaves out such updates"
            raise UserError(
                f"the loss became {sums.loss} in epoch {progress.epoch + 1} at step "
                f"{progress.step + 1}, learning rate {lr:.4g}; {START_ANEW}"
                f"{'' if updater.chooser else skip}"
            )
        else:
            progress.skipped_in_row = 0
            progress.add(sums)
        progress.step += 1
        progress.batch += 1
        after_update(progress.step)
        progress.epoch_sec += time.monotonic() - begin
        yield len(batch.image)
        begin = time.monotonic()  # what is done between, such as a checkpoint, is not training
    mx.nd.waitall()  # the last update
    progress.epoch_sec += time.monotonic() - begin
