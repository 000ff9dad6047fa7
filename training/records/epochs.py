"""What trainings by MXNet and by PyTorch do alike, from epoch to epoch."""

from __future__ import annotations

import math
import time
from typing import Any, Callable

from formats.errors import UserError
from training.records.run import Run
from training.records.run_progress import Progress
from training.settings.run_config import RunConfig
from training.settings.schedules import schedule_of

# What the error of a training that has diverged ends with, whoever finds it.
START_ANEW = "the last checkpoint is kept. Start anew with a lower --lr or more --warmup-epochs"


class Epochs:
    """The epochs of one training, from where `progress` stands to the last.

    Parameters
    ----------
    config
        Number of epochs, schedule and so on.
    run
        Open record.
    progress
        A fresh `Progress`, or the restored one.
    steps
        Updates of an epoch.
    """

    def __init__(self, config: RunConfig, run: Run, progress: Progress, steps: int) -> None:
        self.config, self.run, self.progress = config, run, progress
        self._base_rate = schedule_of(config, steps)
        self._saved = self._begun = time.monotonic()

    def rate(self, step: int) -> float:
        """Return the learning rate of an update, counted from 1."""
        return self._base_rate(step) * self.config.lr_factor**self.progress.drops

    def mixes(self) -> bool:
        """Return whether images are mixed in the epoch that is trained."""
        without = getattr(self.config, "mixup_off_epochs", 0)
        return bool(self.progress.epoch < self.config.epochs - without)

    def goes_on(self) -> bool:
        """Return whether there is a further epoch; early stopping leaves out the last ones."""
        progress = self.progress
        return progress.epoch < self.config.epochs and not progress.stops_early(self.config)

    def tell_early_end(self) -> None:
        """Say so where early stopping has left out epochs."""
        if self.progress.epoch < self.config.epochs:
            best = self.progress.best_epoch
            print(f"stopped early: no better held-out accuracy since epoch {best}")

    def is_last(self) -> bool:
        """Return whether the epoch that is trained is the last of the schedule."""
        return self.progress.epoch + 1 == self.config.epochs

    def is_tested(self) -> bool:
        """Return whether the epoch that is trained ends with a test."""
        return self.is_last() or (self.progress.epoch + 1) % self.config.eval_every == 0

    def minutes_unsaved(self) -> float:
        """Return the time since the last checkpoint."""
        return (time.monotonic() - self._saved) / 60

    def begin_row(self) -> dict[str, Any]:
        """Return the numbers of the epoch's training; `finish_row` adds the last one."""
        progress = self.progress
        return {
            "step": progress.step,
            # Not the trainer's, which does not know it after a resume at the end of an epoch.
            "lr": self.rate(progress.step),
            "train_loss": progress.mean(progress.loss_sum),
            "train_acc": progress.mean(progress.correct_sum),
            "images_per_sec": progress.images / max(progress.epoch_sec, 1e-9),
        }

    def score(
        self, row: dict[str, Any], evaluate: Callable[[str, Any], Any], valid: Any, test: Any
    ) -> tuple[Any, Any]:
        """Score held-out images, if there are any, and test images; add both to the row.

        `evaluate` gives `training.batches.scores.Scores` for a name and images. Returns those that
        the epoch is judged by, and those of the test.

        Raises
        ------
        UserError
            When a loss is not finite.
        """
        found = {}
        for key, name, data in (("valid", "held-out", valid), ("test", "test", test)):
            if data:
                scores = found[key] = evaluate(name, data)
                if not math.isfinite(scores.loss):
                    step = self.progress.step
                    what = f"{name} loss after epoch {self.progress.epoch + 1}"
                    raise diverged(what, scores.loss, step, self.rate(step))
        for key, scores in found.items():
            row[f"{key}_loss"], row[f"{key}_acc"] = scores.loss, scores.acc
        return found.get("valid", found["test"]), found["test"]

    def is_best(self, judged: Any) -> bool:
        """Return whether scores, None without any, are better than those of all epochs before."""
        return judged is not None and judged.acc > self.progress.best_acc

    def finish_row(self, row: dict[str, Any]) -> None:
        """Count the epoch, and its time into the row."""
        self.count_time()
        self.progress.finish_epoch()
        row["wall_sec"] = self.progress.wall_sec

    def count_time(self) -> None:
        """Add the time since the last call to that of the training."""
        now = time.monotonic()
        self.progress.wall_sec += now - self._begun
        self._begun = now


def diverged(what: str, loss: float, step: int, rate: float) -> UserError:
    """Return the error of a loss that is not finite any more."""
    return UserError(
        f"the training diverged: the {what} is {loss}, step {step}, learning rate {rate:.4g}; "
        f"{START_ANEW}"
    )
