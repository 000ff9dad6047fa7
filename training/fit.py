"""A whole training run: epochs, evaluation, records, checkpoints, interruption, resume."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Optional

import numpy as np

from training.batches import EvalBatches, TrainBatches
from training.checkpoint import (
    BEST_FILE,
    LAST_FILE,
    STATE_FILE,
    Progress,
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
from training.progress import ProgressBar, duration
from training.record import Run
from training.schedules import build_schedule
from training.train_config import TrainConfig

SAMPLE_IMAGES = 32


class Loaders(NamedTuple):
    """Batches of one run; ``valid`` is None when no training images are held out."""

    train: TrainBatches
    valid: Optional[EvalBatches]
    test: EvalBatches


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
    net, trainer, contexts
        Initialized network with known shapes, its ``gluon.Trainer`` and the devices of both.
    loaders
        Training, held-out and test batches.
    config
        Number of epochs, schedule and so on.
    run
        Open record; ``last.param``, ``best.param`` and ``resume.state`` go to its folder.
    progress
        A fresh `Progress`, or the restored one.
    """

    def __init__(
        self,
        net: Any,
        trainer: Any,
        contexts: list[Any],
        loaders: Loaders,
        config: TrainConfig,
        run: Run,
        progress: Progress,
    ) -> None:
        self.net, self.trainer, self.contexts = net, trainer, contexts
        self.loaders, self.config, self.run, self.progress = loaders, config, run, progress
        self.updater = Updater(net, trainer, contexts, config.micro_batch)
        self.schedule = schedule_of(config, len(loaders.train))
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
            save_state(self.run.folder, self.net, self.trainer, progress)
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

    def _mixes(self) -> bool:
        return self.progress.epoch < self.config.epochs - self.config.mixup_off_epochs

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
                self._duration.tell(bar, images, state, self.config.epochs, len(train))
                minutes = (time.monotonic() - self._saved) / 60
                if self.config.checkpoint_minutes and minutes >= self.config.checkpoint_minutes:
                    self._save()

            hooks = EpochHooks(after_step, self._stop)
            try:
                return train_one_epoch(self.updater, batches, self.schedule, progress, hooks)
            finally:
                batches.close()  # type: ignore[attr-defined]

    def _finish_epoch(self) -> Optional[Scores]:
        progress, config = self.progress, self.config
        last = progress.epoch + 1 == config.epochs
        row: dict[str, Any] = {
            "step": progress.step,
            # Not the trainer's, which does not know it after a resume at the end of an epoch.
            "lr": self.schedule(progress.step),
            "train_loss": progress.loss_sum / max(progress.images, 1),
            "train_acc": progress.correct_sum / max(progress.images, 1),
            "images_per_sec": progress.images / max(progress.epoch_sec, 1e-9),
        }
        average_statistics(self.net)
        valid = test = None
        if last or (progress.epoch + 1) % config.eval_every == 0:
            valid = self._evaluate("held-out", self.loaders.valid) if self.loaders.valid else None
            test = self._evaluate("test", self.loaders.test)
            plain_layout(self.net)
            for name, scores in (("valid", valid), ("test", test)):
                if scores:
                    row[f"{name}_loss"], row[f"{name}_acc"] = scores.loss, scores.acc
        now = time.monotonic()
        progress.wall_sec += now - self._begun
        self._begun = now
        progress.epoch += 1
        progress.batch = progress.images = 0
        progress.loss_sum = progress.correct_sum = progress.epoch_sec = 0.0
        row["wall_sec"] = progress.wall_sec
        self._record(row, last)
        judged = valid or test
        if judged and judged.acc > progress.best_acc:
            progress.best_acc, progress.best_epoch = judged.acc, progress.epoch
            save_parameters(self.net, self.run.folder / BEST_FILE)
        self._save(count_time=False)
        return test

    def _evaluate(self, name: str, batches: EvalBatches) -> Scores:
        with ProgressBar(len(batches.data.images), f"  {name}") as bar:

            def advance(images: int) -> None:
                bar.advance(images)
                if self._stop():
                    raise Interrupted

            scores = evaluate(self.net, batches, self.contexts, advance)
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
            self.run.graph(self.net)
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
        save_parameters(self.net, self.run.folder / LAST_FILE)
        save_state(self.run.folder, self.net, self.trainer, self.progress)
        self._saved = time.monotonic()


class DurationNote:
    """Says once, from the first steps of this process, how long the rest will take."""

    STEPS, SECONDS = 3, 5.0

    def __init__(self) -> None:
        self._steps = self._images = 0
        self._begun = math.nan

    def tell(
        self, bar: ProgressBar, images: int, progress: Progress, epochs: int, batches: int
    ) -> None:
        """Count a step of `images`; at the first that is enough, print the estimate."""
        if self._steps < 0:
            return
        now = time.monotonic()
        if not self._steps:  # the first step also builds the graph: it starts the clock
            self._begun = now
        else:
            self._images += images
        self._steps += 1
        seconds = now - self._begun
        if self._steps <= self.STEPS or seconds < self.SECONDS:
            return
        self._steps = -1
        left = (epochs * batches - progress.step) * images
        rate = self._images / seconds
        bar.note(
            f"{rate:.0f} images/s: about {duration(left / rate)} for the training that is left "
            f"({epochs} epochs in all), evaluations not counted"
        )


def schedule_of(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the learning rate of update ``n`` as a function of ``n``, which counts from 1."""
    schedule: Callable[[int], float] = build_schedule(
        config.schedule,
        base_lr=config.lr,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=config.warmup_epochs,
        lr_steps=config.lr_steps,
        lr_factor=config.lr_factor,
        final_lr=config.final_lr,
    )
    return schedule
