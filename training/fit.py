"""A whole training run: epochs, evaluation, records, checkpoints, interruption, resume."""

from __future__ import annotations

import math
import os
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np

from bridge.digest import digest_path
from training.averaging import WeightAverage
from training.batches import EvalBatches
from training.checkpoint import (
    BEST_FILE,
    LAST_FILE,
    STATE_FILE,
    Progress,
    collect_state,
    load_state,
    save_parameters,
    write_state,
)
from training.collector import only_new_objects
from training.engine import (
    EpochHooks,
    Scores,
    Updater,
    average_statistics,
    evaluate,
    plain_layout,
    train_one_epoch,
)
from training.epoch_files import keep_last
from training.errors import UserError
from training.interruption import DataLost, Interrupted, Interruption, readable
from training.nonfinite import SkipGuard
from training.progress import DurationNote, ProgressBar
from training.record import Run
from training.run_config import RunConfig
from training.schedules import schedule_of
from training.task import Loaders, Method, Task

__all__ = ["Fit", "Loaders", "Method", "Result", "Task"]

SAMPLE_IMAGES = 32


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
    """

    def __init__(self, task: Task, config: RunConfig, run: Run, progress: Progress) -> None:
        self.net, self.trainer, self.contexts = net, trainer, contexts = task[:3]
        self.loaders, self.method = task.loaders, task.method
        self.config, self.run, self.progress = config, run, progress
        self.updater = Updater(
            net,
            trainer,
            contexts,
            config.micro_batch,
            self.method.objective,
            config.clip_gradient,
        )
        if config.on_nonfinite == "skip":
            self.updater.guard = SkipGuard(net, config.nonfinite_limit)
        self.average = WeightAverage(net, config.ema) if config.ema else None
        if self.average and progress.step:
            self.average.load(load_state(run.folder)[1])
        self._base_rate = schedule_of(config, len(self.loaders.train))
        self._saved = self._begun = time.monotonic()
        self._duration = DurationNote()
        self._stop: Callable[[], bool] = lambda: False

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
            self._record_sample(self._mixes())
            write_state(self.run.folder, self._state())
        elif not os.path.exists(digest_path(self.run.folder / STATE_FILE)):
            # A process was killed between the file and its digest; a finished run saves no more.
            write_state(self.run.folder, self._state())
        with Interruption() as interruption, only_new_objects():
            self._stop = interruption.stop
            while progress.epoch < self.config.epochs and not self._early():
                try:
                    if not self._train_epoch():
                        raise Interrupted
                    scores = self._finish_epoch() or scores
                except Interrupted:
                    self._save()
                    return Result(progress, scores, interruption.signal)
                except DataLost as lost:
                    self._save()
                    raise UserError(
                        f"{lost}. What was trained until then, {progress.step} steps, is saved: "
                        f"mend the data, then go on with --resume {self.run.folder}"
                    ) from lost
                if interruption.stop() and progress.epoch < self.config.epochs:
                    return Result(progress, scores, interruption.signal)
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
        ) as bar:

            def after_step(state: Progress, images: int) -> None:
                bar.advance(
                    images,
                    loss=state.mean(state.loss_sum),
                    acc=state.mean(state.correct_sum),
                )
                self._duration.tell(bar, images, state.step, self.config.epochs, len(train))
                minutes = (time.monotonic() - self._saved) / 60
                if self.config.checkpoint_minutes and minutes >= self.config.checkpoint_minutes:
                    self._save()

            update = self.average.update if self.average else lambda step: None
            hooks = EpochHooks(after_step, self._stop, update)
            try:
                return train_one_epoch(self.updater, readable(batches), self.rate, progress, hooks)
            finally:
                batches.close()  # type: ignore[attr-defined]

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
        average_statistics(self.net)
        valid = test = None
        with self.average.applied() if self.average else nullcontext():
            if last or (progress.epoch + 1) % config.eval_every == 0:
                if self.loaders.valid:
                    valid = self._evaluate("held-out", self.loaders.valid)
                test = self._evaluate("test", self.loaders.test)
                for name, scores in (("valid", valid), ("test", test)):
                    if scores:
                        row[f"{name}_loss"], row[f"{name}_acc"] = scores.loss, scores.acc
                row.update(self.method.statistics())
            judged = valid or test
            best = judged is not None and judged.acc > progress.best_acc
            if best:
                save_parameters(self.net, self.run.folder / BEST_FILE)
            self.method.after_epoch(self.run, progress.epoch + 1)
        plain_layout(self.net)
        now = time.monotonic()
        progress.wall_sec += now - self._begun
        self._begun = now
        progress.finish_epoch()
        row["wall_sec"] = progress.wall_sec
        self._record(row, last)
        if judged:
            self._judge(judged.acc, best)
        self._save(count_time=False)
        return test

    def _judge(self, acc: float, best: bool) -> None:
        progress, config = self.progress, self.config
        if best:
            progress.best_acc, progress.best_epoch = acc, progress.epoch
            progress.waited = 0
            return
        progress.waited += config.eval_every
        if config.schedule == "plateau" and progress.waited > config.lr_patience:
            progress.drops, progress.waited = progress.drops + 1, 0

    def _evaluate(self, name: str, batches: EvalBatches) -> Scores:
        with ProgressBar(len(batches.data), f"  {name}") as bar:

            def advance(images: int) -> None:
                bar.advance(images)
                if self._stop():
                    raise Interrupted

            score = self.method.evaluate or evaluate
            try:
                scores = score(self.net, batches, self.contexts, advance)
            except (UserError, OSError) as error:
                raise DataLost(str(error)) from error
        if not math.isfinite(scores.loss):
            raise UserError(
                f"the training diverged: the {name} loss after epoch {self.progress.epoch + 1} is "
                f"{scores.loss}, step {self.progress.step}, learning rate "
                f"{self.rate(self.progress.step):.4g}; the last checkpoint is kept. Start anew "
                "with a lower --lr or more --warmup-epochs"
            )
        return scores

    def _record(self, row: dict[str, Any], last: bool) -> None:
        epoch, every = self.progress.epoch, self.config.histogram_every
        if every and (last or epoch % every == 1 % every):
            weights = {
                name: parameter.data(self.contexts[0]).asnumpy()
                for name, parameter in self.net._collect_params_with_prefix().items()
                if parameter.grad_req != "null"
            }
            self.run.histograms(epoch, weights)
        if epoch == 1:
            self.run.graph(self.method.graph or self.net)
        self.run.scalars(epoch, row)

    def _record_sample(self, mixup: bool) -> None:
        train = self.loaders.train
        batch = next(iter(train.epoch(0, mixup=mixup)))
        mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (train.mean, train.std))
        pixels = (batch.image[:SAMPLE_IMAGES] * std + mean) * 255
        images = np.clip(np.rint(pixels), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        self.run.images("augmented", 0, images)

    def _early(self) -> bool:
        patience = self.config.early_stopping
        return bool(patience) and self.progress.epoch - self.progress.best_epoch >= patience

    def _save(self, count_time: bool = True) -> None:
        now = time.monotonic()
        if count_time:
            self.progress.wall_sec += now - self._begun
            self._begun = now
        # Collected first: it refuses a network that is not finite before a file is replaced.
        # Written last: a finished run has nothing left to do that would renew the other file.
        state = self._state()
        with self.average.applied() if self.average else nullcontext():
            save_parameters(self.net, self.run.folder / LAST_FILE)
            if not count_time:
                keep_last(self.run.folder, self.net, self.progress.epoch, self.config.keep)
        write_state(self.run.folder, state)
        self._saved = time.monotonic()

    def _state(self) -> dict[str, np.ndarray]:
        average = self.average.arrays() if self.average else None
        return collect_state(self.net, self.trainer, self.progress, average)
