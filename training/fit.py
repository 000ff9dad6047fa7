"""A whole training run: epochs, evaluation, records, checkpoints, interruption, resume."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np

from training.averaging import WeightAverage
from training.batches import EvalBatches
from training.checkpoint import (
    BEST_FILE,
    LAST_FILE,
    STATE_FILE,
    Progress,
    load_state,
    save_parameters,
    save_state,
)
from training.engine import (
    EpochHooks,
    Scores,
    Updater,
    average_statistics,
    evaluate,
    plain_layout,
    train_one_epoch,
)
from training.errors import UserError
from training.interruption import Interrupted, Interruption
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
            When the training diverges; the last checkpoint before is kept.
        """
        scores: Optional[Scores] = None
        progress = self.progress
        if not (self.run.folder / STATE_FILE).exists():
            # From here on the run can be resumed, whenever it is killed.
            self._record_sample(self._mixes())
            self._save_state()
        with Interruption() as interruption:
            self._stop = interruption.stop
            while progress.epoch < self.config.epochs and not self._early():
                try:
                    if not self._train_epoch():
                        raise Interrupted
                    scores = self._finish_epoch() or scores
                except Interrupted:
                    self._save()
                    return Result(progress, scores, interruption.signal)
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
                    loss=state.loss_sum / state.images,
                    acc=state.correct_sum / state.images,
                )
                self._duration.tell(bar, images, state.step, self.config.epochs, len(train))
                minutes = (time.monotonic() - self._saved) / 60
                if self.config.checkpoint_minutes and minutes >= self.config.checkpoint_minutes:
                    self._save()

            update = self.average.update if self.average else lambda step: None
            hooks = EpochHooks(after_step, self._stop, update)
            try:
                return train_one_epoch(self.updater, batches, self.rate, progress, hooks)
            finally:
                batches.close()  # type: ignore[attr-defined]

    def _finish_epoch(self) -> Optional[Scores]:
        progress, config = self.progress, self.config
        last = progress.epoch + 1 == config.epochs
        row: dict[str, Any] = {
            "step": progress.step,
            # Not the trainer's, which does not know it after a resume at the end of an epoch.
            "lr": self.rate(progress.step),
            "train_loss": progress.loss_sum / max(progress.images, 1),
            "train_acc": progress.correct_sum / max(progress.images, 1),
            "images_per_sec": progress.images / max(progress.epoch_sec, 1e-9),
        }
        for name, total in progress.terms.items():
            row[f"train_{name}"] = total / max(progress.images, 1)
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
            scores = score(self.net, batches, self.contexts, advance)
        if not math.isfinite(scores.loss):
            raise UserError(
                f"the training diverged: the {name} loss after epoch {self.progress.epoch + 1} is "
                f"{scores.loss}; the last checkpoint is kept. Start anew with a lower --lr or more "
                "--warmup-epochs"
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
        # Last the state: a finished run has nothing left to do that would renew the other file.
        with self.average.applied() if self.average else nullcontext():
            save_parameters(self.net, self.run.folder / LAST_FILE)
        self._save_state()
        self._saved = time.monotonic()

    def _save_state(self) -> None:
        average = self.average.arrays() if self.average else None
        save_state(self.run.folder, self.net, self.trainer, self.progress, average)
