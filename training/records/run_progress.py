"""Where a training stands: the counters and sums that it goes on from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Optional

MAX_COUNT = 2**53  # of epochs, steps and images
MAX_DEVICES = 2**16  # of all workers


@dataclass
class Progress:
    """Where a training stands.

    ``epoch`` counts finished epochs and ``batch`` the updates made in the unfinished one; ``step``
    counts all updates. The sums, also those of further ``terms`` of the loss, are over the images
    of the unfinished epoch. ``drops`` counts how often a plateau has lowered the learning rate,
    ``waited`` the evaluations since then, or since a better accuracy. ``skipped`` counts the
    updates of the unfinished epoch that were left out, ``skipped_in_row`` those since the last that
    was not. ``devices`` are those of all ``workers``. ``data`` is what the data is told by:
    `training.data.identity.DataIdentity.to_dict`.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    images: int = 0
    loss_sum: float = 0.0
    correct_sum: float = 0.0
    epoch_sec: float = 0.0
    wall_sec: float = 0.0
    best_acc: float = -1.0
    best_epoch: int = 0
    threads: Optional[int] = None
    terms: dict[str, float] = field(default_factory=dict)
    drops: int = 0
    waited: int = 0
    skipped: int = 0
    skipped_in_row: int = 0
    workers: int = 1
    devices: Optional[int] = None
    data: Optional[dict[str, Any]] = None

    def take_other_data(self, steps: int, epochs: int) -> None:
        """Stand at the same place of a training with other images, `steps` updates an epoch.

        The epochs so far count as such of the new length, for the schedule; what was best was
        judged by other images, so that the next evaluation is the first again. After the last of
        `epochs` nothing changes.
        """
        if self.epoch >= epochs:
            return
        self.batch = min(self.batch, steps)
        self.step = self.epoch * steps + self.batch
        self.best_acc, self.best_epoch, self.waited = -1.0, self.epoch, 0

    def add(self, sums: Any) -> None:
        """Count the images of a step and its `training.loop.engine.StepSums`."""
        self.loss_sum += sums.loss
        self.correct_sum += sums.correct
        self.images += sums.images
        for name, total in sums.terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + total

    def mean(self, total: float) -> float:
        """Return a sum of the unfinished epoch per image; NaN when it has no image yet."""
        return total / self.images if self.images else float("nan")

    def check(self) -> None:
        """Raise ValueError for what no training can have counted."""
        counters: list[Any] = [self.epoch, self.batch, self.step, self.images, self.best_epoch]
        counters += [self.drops, self.waited, self.skipped, self.skipped_in_row, self.workers]
        counters.append(0 if self.devices is None else self.devices)
        if counters[-1] > MAX_DEVICES:
            raise ValueError(f"{self.devices} devices")
        counters.append(self.threads or 0)
        check_counters(counters)
        if not isinstance(self.data, (dict, type(None))):
            raise ValueError(f"the data is {self.data!r:.80}")
        sums: list[Any] = [self.loss_sum, self.correct_sum, self.epoch_sec, self.wall_sec]
        for value in [*sums, self.best_acc, *self.terms.values()]:
            if type(value) not in (int, float):
                raise ValueError(f"a sum is {value!r}")

    def judge(self, acc: float, config: Any) -> None:
        """Take the accuracy of a finished epoch in: a new best one, or one more that is waited for.

        `config` has ``schedule`` and ``lr_patience``, in evaluations.
        """
        if acc > self.best_acc:
            self.best_acc, self.best_epoch = acc, self.epoch
            self.waited = 0
            return
        # Small images are judged at a size that the network has not seen yet.
        self.waited += self.epoch > getattr(config, "small_epochs", 0)
        if config.schedule == "plateau" and self.waited > config.lr_patience:
            self.drops, self.waited = self.drops + 1, 0

    def stops_early(self, config: Any) -> bool:
        """Return whether ``config.early_stopping`` evaluations in a row were not better."""
        every, patience = config.eval_every, config.early_stopping
        since = max(self.best_epoch, getattr(config, "small_epochs", 0))
        return bool(patience) and self.epoch // every - since // every >= patience

    def best_line(self, held_out: bool) -> str:
        """Return the sentence on the best evaluation, of held-out or of test images."""
        judged = "held-out accuracy" if held_out else "test accuracy (chosen on test)"
        if not self.best_epoch:
            return f"no evaluation yet, so no best {judged}"
        return f"best {judged} {self.best_acc:.5f} at epoch {self.best_epoch}"

    def finish_epoch(self) -> None:
        """Count an epoch and forget its sums."""
        self.epoch += 1
        self.batch = self.images = self.skipped = 0
        self.loss_sum = self.correct_sum = self.epoch_sec = 0.0
        self.terms = {}


def check_counters(values: Iterable[Any]) -> None:
    """Raise ValueError for one that is no whole number of 0 or more."""
    for value in values:
        if type(value) is not int or not 0 <= value < MAX_COUNT:
            raise ValueError(f"a counter is {value!r}")
