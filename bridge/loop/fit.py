"""A whole training run in PyTorch: epochs, evaluation, records, checkpoints, interruption.

The counterpart of `training.loop.fit` for MXNet, with the same rules and records
(`training.records.epochs`).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Optional

import numpy as np
import torch  # type: ignore[import-not-found]

from bridge.loop.average import TensorAverage
from bridge.loop.device_batches import DeviceBatches, DeviceImages
from bridge.loop.engine import Pace, Step
from bridge.loop.scoring import score
from bridge.loop.settings import BridgeConfig
from bridge.loop.state import collect_state
from bridge.loop.status_line import SECONDS, StatusLine
from bridge.loop.updater import Updater
from formats.digest import digest_path
from formats.errors import UserError
from formats.param_file import write_params
from training.augmentation.draws import dropout_seed
from training.batches.scores import Scores
from training.records.cards import Cards
from training.records.epochs import START_ANEW, Epochs
from training.records.interruption import Interrupted, Interruption
from training.records.run import Run
from training.records.run_folder import BEST_FILE, LAST_FILE, STATE_FILE
from training.records.run_progress import Progress
from training.records.state_file import write_state


class Job(NamedTuple):
    """What is trained on what: everything is on one device. ``engine`` is the name of ``step``'s
    way of running; ``valid`` is None when no images are held out. ``card`` is the start of
    `training.records.cards.Cards`; ``drops_out`` says that the network has dropout."""

    updater: Updater
    step: Step
    engine: str
    train: DeviceBatches
    valid: Optional[DeviceImages]
    test: DeviceImages
    average: Optional[TensorAverage]
    card: Mapping[str, Any] = {}
    drops_out: bool = False


class Result(NamedTuple):
    """How a process ended: test scores of the last epoch if it made one, and the signal or the time
    limit that stopped it."""

    scores: Optional[Scores]
    signal: Optional[int] = None
    out_of_time: bool = False


class TorchFit(Epochs):
    """One training run, from where `progress` stands to the last epoch.

    Parameters
    ----------
    job
        See `Job`.
    config
        Number of epochs, schedule and so on.
    run
        Open record; weights and state go to its folder.
    progress
        A fresh `Progress`, or the restored one.
    deadline
        Time of `time.monotonic` at which to save and end.
    """

    def __init__(
        self, job: Job, config: BridgeConfig, run: Run, progress: Progress, deadline: float
    ) -> None:
        super().__init__(config, run, progress, len(job.train))
        self.job, self.updater, self.module = job, job.updater, job.updater.module
        self.deadline, self._looked = deadline, self._begun
        self._cards = Cards(job.card, config, run.folder)
        self._signalled: Callable[[], bool] = lambda: False
        self._best: Optional[dict[str, np.ndarray]] = None  # not written yet
        self._best_card: Optional[dict[str, Any]] = None
        epoch_images = len(job.train) * config.batch_size
        done = progress.epoch * epoch_images + progress.images
        self._line = StatusLine(config.epochs * epoch_images, done)

    def run_epochs(self) -> Result:
        """Train to the end, or until a signal or the deadline; the folder can be resumed from.

        Raises
        ------
        UserError
            When the training diverges; the last checkpoint before is kept.
        """
        progress, scores = self.progress, None
        state = self.run.folder / STATE_FILE
        # Also where a process was killed between the file and its digest: a finished run saves no
        # more.
        if not (progress.step and os.path.exists(digest_path(state))):
            self._write(self._state())  # from here on it can be resumed, whenever it is killed
        with Interruption() as interruption:
            self._signalled = interruption.stop
            while self.goes_on():
                try:
                    self._train_epoch()
                    scores = self._finish_epoch() or scores
                except Interrupted:
                    self._line.clear()
                    self._save()
                    return Result(scores, interruption.signal, interruption.signal is None)
        self._line.clear()
        self.tell_early_end()
        return Result(scores)

    def _stop(self) -> bool:
        return self._signalled() or time.monotonic() >= self.deadline

    def _train_epoch(self) -> None:
        progress, train = self.progress, self.job.train
        self.updater.totals.copy_(
            torch.tensor([progress.loss_sum, progress.correct_sum], dtype=torch.float64)
        )
        plans = train.plans(progress.epoch, self.mixes(), progress.batch)
        pace, self._looked = Pace(self.updater.device), time.monotonic()
        try:
            for plan in plans:
                if self._stop():
                    self._look()
                    raise Interrupted
                image, label = train.make(plan)
                self.updater.set_rate(self.rate(progress.step + 1), progress.step + 1)
                if self.job.drops_out:  # a run that goes on draws the same masks
                    torch.manual_seed(dropout_seed(self.config.seed, progress.step))
                self.job.step(image, label)
                pace.step()
                progress.step += 1
                progress.batch += 1
                progress.images += len(label)
                if self.job.average:
                    self.job.average.update(progress.step)
                if time.monotonic() - self._looked >= SECONDS:
                    self._look()
                    self._checkpoint()
        finally:
            plans.close()
        self._look()

    def _look(self) -> None:
        """Wait for the device, read the sums and show them."""
        progress, config = self.progress, self.config
        progress.loss_sum, progress.correct_sum = self.updater.totals.tolist()
        now = time.monotonic()
        progress.epoch_sec += now - self._looked
        self._looked = now
        if not math.isfinite(progress.loss_sum):
            raise UserError(
                f"the loss became {progress.loss_sum} in epoch {progress.epoch + 1} before step "
                f"{progress.step + 1}, learning rate {self.rate(progress.step):.4g}; {START_ANEW}"
            )
        if progress.images:
            batches = len(self.job.train)
            text = (
                f"epoch {progress.epoch + 1}/{config.epochs} {progress.batch / batches:4.0%}  "
                f"loss {progress.loss_sum / progress.images:.4f}  "
                f"acc {progress.correct_sum / progress.images:.4f}"
            )
            done = progress.epoch * batches * config.batch_size + progress.images
            self._line.show(text, done, now)

    def _checkpoint(self) -> None:
        if 0 < self.config.checkpoint_minutes <= self.minutes_unsaved():
            self._save()
            self._looked = time.monotonic()  # what saving takes is not training

    def _finish_epoch(self) -> Optional[Scores]:
        """Score, record and save; return the scores of the test, if there was one."""
        job, minutes = self.job, self.config.checkpoint_minutes
        last, row = self.is_last(), self.begin_row()
        judged = test = None
        with self._averaged():
            if self.is_tested():
                judged, test = self.score(row, self._evaluate, job.valid, job.test)
            if self.is_best(judged):
                self._best = self.module.param_arrays()
                self._best_card = self._cards.at(self.progress.epoch + 1, row)
        self.finish_row(row)
        self._line.clear()
        self.run.scalars(self.progress.epoch, row)
        if judged:
            self.progress.judge(judged.acc, self.config)
        # On a fast GPU writing would take about as long as an epoch.
        last = last or self.progress.stops_early(self.config)
        if last or not minutes or self.minutes_unsaved() >= minutes:
            self._save(count_time=False, row=row)
        return test

    def _averaged(self) -> AbstractContextManager[None]:
        return self.job.average.applied() if self.job.average else nullcontext()

    def _evaluate(self, name: str, data: DeviceImages) -> Scores:
        def advance(images: int) -> None:
            if self._signalled():
                raise Interrupted

        return score(self.module, data, advance)

    def _save(self, count_time: bool = True, row: Optional[Mapping[str, Any]] = None) -> None:
        if count_time:
            self.count_time()
        if self._best:
            write_params(self.run.folder / BEST_FILE, self._best, card=self._best_card)
            self._best = None
        state = self._state()  # refuses a network that is not finite before a file is replaced
        card = self._cards.at(self.progress.epoch, row)
        with self._averaged():
            write_params(self.run.folder / LAST_FILE, self.module.param_arrays(), card=card)
        self._write(state)
        self._saved = time.monotonic()

    def _state(self) -> dict[str, np.ndarray]:
        job = self.job
        return collect_state(self.updater, self.progress, job.average, job.engine)

    def _write(self, state: Mapping[str, np.ndarray]) -> None:
        write_state(self.run.folder, state, self._cards.at(self.progress.epoch))
