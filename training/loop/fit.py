"""A whole training run: epochs, evaluation, records, checkpoints, interruption, resume."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Optional

import numpy as np

from formats.digest import digest_path
from formats.errors import UserError, quoted
from training.batches.in_memory import EvalBatches
from training.batches.scores import Scores
from training.distributed.group import ALONE, Group
from training.distributed.shared_steps import (
    Agreement,
    evaluate_together,
    means_everywhere,
    statistics_everywhere,
)
from training.loop.averaging import average_of
from training.loop.checkpoint import collect_state, keep_last, save_parameters
from training.loop.engine import Updater, train_one_epoch
from training.loop.fresh_statistics import measure_statistics, statistics_batches
from training.loop.harder import HarderImages
from training.loop.nonfinite import SkipGuard
from training.loop.parameters import average_statistics, plain_layout
from training.loop.task import Task, has_histograms, sample_images, trained_weights
from training.records.cards import Cards
from training.records.epochs import Epochs
from training.records.interruption import (
    DataLost,
    Interrupted,
    Interruption,
    only_new_objects,
    readable,
)
from training.records.progress import DurationNote, ProgressBar
from training.records.run import Run
from training.records.run_folder import BEST_FILE, LAST_FILE, STATE_FILE
from training.records.run_progress import Progress
from training.records.state_file import load_state, write_state
from training.settings.run_config import RunConfig


@dataclass(frozen=True)
class Result:
    """How a run ended. ``signal`` interrupted it, or is None when it is complete."""

    progress: Progress
    scores: Optional[Scores]
    signal: Optional[int] = None


class Fit(Epochs):
    """One training run, from where `progress` stands to the last epoch.

    Parameters
    ----------
    task
        What is trained, on what and how.
    config
        Number of epochs, schedule and so on.
    run
        Open record; ``last.param``, ``best.param`` and ``resume.state`` go to its folder.
    progress
        A fresh `Progress`, or the restored one.
    group
        The workers that train together; the first one keeps the record.
    """

    def __init__(
        self, task: Task, config: RunConfig, run: Run, progress: Progress, group: Group = ALONE
    ) -> None:
        super().__init__(config, run, progress, len(task.loaders.train))
        self.task, self.net, self.loaders = task, task.net, task.loaders
        self._cards = Cards(task.card, config, run.folder)
        self.group, self._writes = group, not group.rank
        skips = config.on_nonfinite == "skip"
        guard = SkipGuard(task.net, config.nonfinite_limit, group.any) if skips else None
        chooser = HarderImages(task.proxy, config) if task.proxy else None
        limits = (config.micro_batch, config.clip_gradient)
        self.updater = Updater(task, *limits, group, guard, chooser)
        self.average = average_of(task.net, config)
        if progress.step and self.average.is_kept:
            self.average.load(load_state(run.folder)[1], progress.epoch, progress.step)
        self._duration = DurationNote()
        self._stop: Callable[[], bool] = lambda: False
        self._agreement = Agreement(group, lambda: self._stop(), self._due)

    def run_epochs(self) -> Result:
        """Train to the end, or until a signal; the folder can be resumed from in either case.

        Raises
        ------
        UserError
            When the training diverges; the last checkpoint before is kept. When the data cannot be
            read any more; what was computed until then is saved.
        """
        scores: Optional[Scores] = None
        progress = self.progress
        if not (self.run.folder / STATE_FILE).exists():
            # From here on the run can be resumed, whenever it is killed.
            self.run.images("augmented", 0, sample_images(self.loaders.train, self.mixes()))
            self._write(self._state())
        elif not os.path.exists(digest_path(self.run.folder / STATE_FILE)):
            # A process was killed between the file and its digest; a finished run saves no more.
            self._write(self._state())
        with Interruption() as interruption, only_new_objects():
            self._stop = interruption.stop
            while self.goes_on():
                try:
                    if not self._train_epoch():
                        raise Interrupted
                    scores = self._finish_epoch() or scores
                except Interrupted:
                    self._save()
                    return Result(progress, scores, interruption.signal or signal.SIGTERM)
                except DataLost as lost:
                    if self.group.size > 1:  # the others wait elsewhere and cannot save with us
                        raise UserError(f"{lost}. The last checkpoint is kept") from lost
                    self._save()
                    raise UserError(
                        f"{lost}. What was trained until then, {progress.step} steps, is saved: "
                        f"mend the data, then go on with --resume {quoted(self.run.folder)}"
                    ) from lost
                if self.group.any(interruption.stop()) and progress.epoch < self.config.epochs:
                    # None when another worker was asked to stop.
                    return Result(progress, scores, interruption.signal or signal.SIGTERM)
        self.tell_early_end()
        return Result(progress, scores)

    def _train_epoch(self) -> bool:
        """Train to the end of the epoch; False: it was stopped, maybe after the last batch."""
        progress, train = self.progress, self.loaders.train
        batches = train.epoch(progress.epoch, mixup=self.mixes(), start=progress.batch, prefetch=2)
        agreement = self._agreement
        follow = (self.average.update, agreement.total)
        steps = train_one_epoch(self.updater, readable(batches), self.rate, progress, *follow)
        with ProgressBar(
            len(train) * train.batch_size,
            f"epoch {progress.epoch + 1}/{self.config.epochs}",
            done=progress.batch * train.batch_size,
            quiet=not self._writes,
        ) as bar:
            try:
                for images in steps:
                    loss, acc = map(progress.mean, (progress.loss_sum, progress.correct_sum))
                    bar.advance(images, loss=loss, acc=acc)
                    self._duration.tell(bar, images, self.config.epochs, self._steps_left)
                    if agreement.due():
                        self._save()
                    if agreement.stop():
                        return False
                return True
            finally:
                batches.close()

    def _steps_left(self) -> float:
        """Return how many of the present epoch's steps take as long as the rest of the training.

        That of a step goes by the pixels of its images: later ones can be larger.
        """
        train, progress = self.loaders.train, self.progress
        later = range(progress.epoch + 1, self.config.epochs)
        epochs = sum(map(train.pixels, later)) / train.pixels(progress.epoch)
        left: float = len(train) * (1 + epochs) - progress.batch
        return left

    def _due(self) -> bool:
        return 0 < self.config.checkpoint_minutes <= self.minutes_unsaved()

    def _finish_epoch(self) -> Optional[Scores]:
        """Score, record and save; return the scores of the test, if there was one."""
        progress = self.progress
        row = self.begin_row()
        # Of the data, so that it tells how long an epoch takes; losses are of what was trained on.
        row["images_per_sec"] *= self.config.drawn_images() / self.config.batch_size
        if self.updater.guard:
            row["skipped"] = progress.skipped
        for name, total in progress.terms.items():
            row[f"train_{name}"] = progress.mean(total)
        judged, test = self._score(row)
        self.finish_row(row)
        self.average.finish_epoch()
        self._record(row)
        if judged:
            progress.judge(judged.acc, self.config)
        self._save(count_time=False, row=row)
        return test

    def _score(self, row: dict[str, Any]) -> tuple[Optional[Scores], Optional[Scores]]:
        """Return what judges the epoch and the scores of its test, which `row` gets too."""
        average_statistics(self.net, self._statistics())
        judged = test = None
        epoch, tests = self.progress.epoch + 1, self.is_tested()
        self.average.end_epoch(epoch, self._measure_statistics if tests else None)
        self._share_average()
        with self.average.applied():
            if tests:
                data = (self.loaders.valid, self.loaders.test)
                judged, test = self.score(row, self._evaluate, *data)
                row.update(self.task.statistics())
            if self.is_best(judged) and self._writes:
                save_parameters(self.net, self.run.folder / BEST_FILE, self._card(epoch, row))
            if self._writes:
                self.task.after_epoch(self.run, epoch)
        plain_layout(self.net)
        return judged, test

    def _measure_statistics(self) -> None:
        """Give the network batch-norm statistics of its present weights."""
        batches = statistics_batches(self.loaders.train, self.config.batch_size, self.mixes())
        with ProgressBar(len(batches.rows), "  statistics", quiet=not self._writes) as bar:
            measure_statistics(self.updater, batches, partial(self._advance, bar))
        average_statistics(self.net, self._statistics())

    def _advance(self, bar: ProgressBar, images: int) -> None:
        bar.advance(images)
        if self.group.size == 1 and self._stop():  # several workers end it together
            raise Interrupted

    def _evaluate(self, name: str, batches: EvalBatches) -> Scores:
        share = math.ceil(len(batches.data) / self.group.size)
        with ProgressBar(share, f"  {name}", quiet=not self._writes) as bar:
            advance = partial(self._advance, bar)
            try:
                return evaluate_together(self.group, self.task.evaluate, batches, advance)
            except (UserError, OSError) as error:
                raise DataLost(str(error)) from error

    def _record(self, row: dict[str, Any]) -> None:
        epoch = self.progress.epoch
        if has_histograms(self.config, epoch):
            self.run.histograms(epoch, trained_weights(self.net, self.task.contexts[0]))
        if epoch == 1:
            self.run.graph(self.task.graph)
        self.run.scalars(epoch, row)

    def _save(self, count_time: bool = True, row: Optional[Mapping[str, Any]] = None) -> None:
        """Save all that a resume and a user need; `row` is that of an epoch that has just ended."""
        if count_time:
            self.count_time()
        self._share_average()
        # Collected first: it refuses a network that is not finite before a file is replaced.
        # Written last: a finished run has nothing left to do that would renew the other file.
        state, epoch = self._state(), self.progress.epoch
        if self._writes:
            card = self._card(epoch, row)
            with self.average.applied():
                save_parameters(self.net, self.run.folder / LAST_FILE, card)
                if not count_time:
                    keep_last(self.run.folder, self.net, epoch, self.config.keep, card)
        self._write(state)
        self._saved = time.monotonic()

    def _card(self, epoch: int, row: Optional[Mapping[str, Any]] = None) -> dict[str, Any]:
        return {**self._cards.at(epoch, row), **self.task.sections(self.progress.step)}

    def _state(self) -> dict[str, np.ndarray]:
        average, everywhere = self.average.arrays(), self._statistics()
        task, extra = self.task, (average, everywhere, self.task.proxy)
        return collect_state(self.net, task.trainer, self.progress, *extra)

    def _write(self, state: Mapping[str, np.ndarray]) -> None:
        if self._writes:
            write_state(self.run.folder, state, self._card(self.progress.epoch))

    def _share_average(self) -> None:
        if self.group.size > 1:
            self.average.share(partial(means_everywhere, self.group))

    def _statistics(self) -> Optional[dict[str, np.ndarray]]:
        """Return the running statistics of all workers, where there are several."""
        return statistics_everywhere(self.group, self.net) if self.group.size > 1 else None
