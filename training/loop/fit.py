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
from training.batches.in_memory import EvalBatches
from training.batches.scores import Scores
from training.distributed.group import ALONE, Group
from training.distributed.shared_steps import Agreement, evaluate_together, statistics_everywhere
from training.loop.averaging import average_of
from training.loop.checkpoint import collect_state, keep_last, save_parameters
from training.loop.engine import EpochHooks, Updater, train_one_epoch
from training.loop.evaluation import evaluate
from training.loop.fresh_statistics import measure_statistics, statistics_batches
from training.loop.nonfinite import SkipGuard
from training.loop.parameters import average_statistics, plain_layout
from training.loop.task import Task, diverged, sample_images, trained_weights
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
from training.settings.errors import UserError, quoted
from training.settings.run_config import RunConfig
from training.settings.schedules import schedule_of

__all__ = ["Fit", "Result"]


@dataclass(frozen=True)
class Result:
    """How a run ended. ``signal`` interrupted it, or is None when it is complete."""

    progress: Progress
    scores: Optional[Scores]
    signal: Optional[int] = None


class Fit:
    """One training run of `net`, from where `progress` stands to the last epoch.

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
        self.net, self.trainer, self.contexts = net, trainer, contexts = task[:3]
        self.loaders, self.method = task.loaders, task.method
        self.config, self.run, self.progress = config, run, progress
        self.group, self._writes = group, not group.rank
        settings = (config.micro_batch, self.method.objective, config.clip_gradient)
        self.updater = Updater(net, trainer, contexts, *settings, group)
        if config.on_nonfinite == "skip":
            self.updater.guard = SkipGuard(net, config.nonfinite_limit, group.any)
        self.average = average_of(net, config)
        if progress.step and self.average.is_kept:
            self.average.load(load_state(run.folder)[1], progress.epoch)
        self._base_rate = schedule_of(config, len(self.loaders.train))
        self._saved = self._begun = time.monotonic()
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
            self.run.images("augmented", 0, sample_images(self.loaders.train, self._mixes()))
            self._write(self._state())
        elif not os.path.exists(digest_path(self.run.folder / STATE_FILE)):
            # A process was killed between the file and its digest; a finished run saves no more.
            self._write(self._state())
        with Interruption() as interruption, only_new_objects():
            self._stop = interruption.stop
            while progress.epoch < self.config.epochs and not progress.stops_early(self.config):
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
        if progress.epoch < self.config.epochs:
            print(f"stopped early: no better held-out accuracy since epoch {progress.best_epoch}")
        return Result(progress, scores)

    def rate(self, step: int) -> float:
        """Return the learning rate of an update, counted from 1."""
        rate = self._base_rate(step)
        return rate * self.config.lr_factor**self.progress.drops

    def _mixes(self) -> bool:
        without = getattr(self.config, "mixup_off_epochs", 0)
        return bool(self.progress.epoch < self.config.epochs - without)

    def _train_epoch(self) -> bool:
        progress, train = self.progress, self.loaders.train
        batches = train.epoch(progress.epoch, mixup=self._mixes(), start=progress.batch, prefetch=2)
        with ProgressBar(
            len(train) * train.batch_size,
            f"epoch {progress.epoch + 1}/{self.config.epochs}",
            done=progress.batch * train.batch_size,
            quiet=not self._writes,
        ) as bar:

            def after_step(state: Progress, images: int) -> None:
                loss, acc = state.mean(state.loss_sum), state.mean(state.correct_sum)
                bar.advance(images, loss=loss, acc=acc)
                self._duration.tell(bar, images, state.step, self.config.epochs, len(train))
                if self._agreement.due():
                    self._save()

            agreement, update = self._agreement, self.average.update
            hooks = EpochHooks(after_step, agreement.stop, update, agreement.total)
            try:
                return train_one_epoch(self.updater, readable(batches), self.rate, progress, hooks)
            finally:
                batches.close()  # type: ignore[attr-defined]

    def _due(self) -> bool:
        minutes = (time.monotonic() - self._saved) / 60
        return 0 < self.config.checkpoint_minutes <= minutes

    def _finish_epoch(self) -> Optional[Scores]:
        progress, config = self.progress, self.config
        last = progress.epoch + 1 == config.epochs
        row: dict[str, Any] = {
            "step": progress.step,
            # Not the trainer's, which does not know it after a resume at the end of an epoch.
            "lr": self.rate(progress.step),
            "train_loss": progress.mean(progress.loss_sum),
            "train_acc": progress.mean(progress.correct_sum),
            "images_per_sec": progress.images / max(progress.epoch_sec, 1e-9),
        }
        if self.updater.guard:
            row["skipped"] = progress.skipped
        for name, total in progress.terms.items():
            row[f"train_{name}"] = progress.mean(total)
        average_statistics(self.net, self._statistics())
        valid = test = None
        tests = last or (progress.epoch + 1) % config.eval_every == 0
        self.average.end_epoch(progress.epoch + 1, self._measure_statistics if tests else None)
        with self.average.applied():
            if tests:
                if self.loaders.valid:
                    valid = self._evaluate("held-out", self.loaders.valid)
                test = self._evaluate("test", self.loaders.test)
                for name, scores in (("valid", valid), ("test", test)):
                    if scores:
                        row[f"{name}_loss"], row[f"{name}_acc"] = scores.loss, scores.acc
                row.update(self.method.statistics())
            judged = valid or test
            best = judged is not None and judged.acc > progress.best_acc
            if best and self._writes:
                save_parameters(self.net, self.run.folder / BEST_FILE)
            if self._writes:
                self.method.after_epoch(self.run, progress.epoch + 1)
        plain_layout(self.net)
        now = time.monotonic()
        progress.wall_sec += now - self._begun
        self._begun = now
        progress.finish_epoch()
        self.average.finish_epoch()
        row["wall_sec"] = progress.wall_sec
        self._record(row, last)
        if judged:
            progress.judge(judged.acc, self.config)
        self._save(count_time=False)
        return test

    def _measure_statistics(self) -> None:
        """Give the network batch-norm statistics of its present weights."""
        batches = statistics_batches(self.loaders.train)
        with ProgressBar(len(batches.data), "  statistics", quiet=not self._writes) as bar:
            measure_statistics(self.updater, batches, partial(self._advance, bar))
        average_statistics(self.net, self._statistics())

    def _advance(self, bar: ProgressBar, images: int) -> None:
        bar.advance(images)
        if self.group.size == 1 and self._stop():  # several workers end it together
            raise Interrupted

    def _evaluate(self, name: str, batches: EvalBatches) -> Scores:
        share = math.ceil(len(batches.data) / self.group.size)
        with ProgressBar(share, f"  {name}", quiet=not self._writes) as bar:
            score, advance = self.method.evaluate or evaluate, partial(self._advance, bar)
            given = (self.group, score, self.net, batches, self.contexts, advance)
            try:
                scores = evaluate_together(*given)
            except (UserError, OSError) as error:
                raise DataLost(str(error)) from error
        if not math.isfinite(scores.loss):
            step = self.progress.step
            what = f"{name} loss after epoch {self.progress.epoch + 1}"
            raise diverged(what, scores.loss, step, self.rate(step))
        return scores

    def _record(self, row: dict[str, Any], last: bool) -> None:
        epoch, every = self.progress.epoch, self.config.histogram_every
        if every and (last or epoch % every == 1 % every):
            self.run.histograms(epoch, trained_weights(self.net, self.contexts[0]))
        if epoch == 1:
            self.run.graph(self.method.graph or self.net)
        self.run.scalars(epoch, row)

    def _save(self, count_time: bool = True) -> None:
        now = time.monotonic()
        if count_time:
            self.progress.wall_sec += now - self._begun
            self._begun = now
        # Collected first: it refuses a network that is not finite before a file is replaced.
        # Written last: a finished run has nothing left to do that would renew the other file.
        state = self._state()
        if self._writes:
            with self.average.applied():
                save_parameters(self.net, self.run.folder / LAST_FILE)
                if not count_time:
                    keep_last(self.run.folder, self.net, self.progress.epoch, self.config.keep)
        self._write(state)
        self._saved = time.monotonic()

    def _state(self) -> dict[str, np.ndarray]:
        average, everywhere = self.average.arrays(), self._statistics()
        return collect_state(self.net, self.trainer, self.progress, average, everywhere)

    def _write(self, state: Mapping[str, np.ndarray]) -> None:
        if self._writes:
            write_state(self.run.folder, state)

    def _statistics(self) -> Optional[dict[str, np.ndarray]]:
        """Return the running statistics of all workers, where there are several."""
        return statistics_everywhere(self.group, self.net) if self.group.size > 1 else None
