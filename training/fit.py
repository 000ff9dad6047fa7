"""A whole training run: epochs, evaluation, records, checkpoints, interruption, resume."""

from __future__ import annotations

import signal
import sys
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import numpy as np

from training.batches import EvalBatches, TrainBatches
from training.checkpoint import BEST_FILE, LAST_FILE, Progress, save_parameters, save_state
from training.engine import EpochHooks, Scores, Updater, evaluate, train_one_epoch
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


class Interrupted(Exception):
    """Raised out of an evaluation when a signal asks the run to save and end."""


class Interruption:
    """Turns SIGINT and SIGTERM into a flag that the loop reads after every step.

    A second SIGINT ends the process at once.
    """

    def __init__(self) -> None:
        self.signal: Optional[int] = None
        self._old: Dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: Optional[FrameType]) -> None:
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def stop(self) -> bool:
        """Return True when the run should save and end."""
        return self.signal is not None


@dataclass(frozen=True)
class Result:
    """How a run ended. ``signal`` is the number that interrupted it, or None when it is complete."""

    progress: Progress
    scores: Optional[Scores]
    signal: Optional[int] = None


class Fit:
    """One training run of `net`, from where `progress` stands to the last epoch.

    Parameters
    ----------
    net, trainer, contexts
        Initialized network, its ``gluon.Trainer`` and the devices of both.
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
        contexts: List[Any],
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
        self._told = False
        self._stop: Callable[[], bool] = lambda: False

    def run_epochs(self) -> Result:
        """Train to the end, or until a signal; the folder can be resumed from in either case."""
        scores: Optional[Scores] = None
        with Interruption() as interruption:
            self._stop = interruption.stop
            while self.progress.epoch < self.config.epochs:
                try:
                    if not self._train_epoch():
                        raise Interrupted
                    scores = self._finish_epoch() or scores
                except Interrupted:
                    self._save()
                    return Result(self.progress, scores, interruption.signal)
                if self._early():
                    print(
                        f"stopped early: no better held-out accuracy since epoch "
                        f"{self.progress.best_epoch}"
                    )
                    break
                if interruption.stop() and self.progress.epoch < self.config.epochs:
                    return Result(self.progress, scores, interruption.signal)
        return Result(self.progress, scores)

    def _train_epoch(self) -> bool:
        progress, train = self.progress, self.loaders.train
        mixup = progress.epoch < self.config.epochs - self.config.mixup_off_epochs
        batches = train.epoch(progress.epoch, mixup=mixup, start=progress.batch, prefetch=2)
        if progress.step == 0:
            self._record_sample(mixup)
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
                self._tell_duration()
                minutes = (time.monotonic() - self._saved) / 60
                if self.config.checkpoint_minutes and minutes >= self.config.checkpoint_minutes:
                    self._save()

            try:
                return train_one_epoch(
                    self.updater, batches, self.schedule, progress, EpochHooks(after_step, self._stop)
                )
            finally:
                batches.close()  # type: ignore[attr-defined]

    def _finish_epoch(self) -> Optional[Scores]:
        progress, config = self.progress, self.config
        last = progress.epoch + 1 == config.epochs
        row: Dict[str, Any] = {
            "step": progress.step,
            "lr": self.trainer.learning_rate,
            "train_loss": progress.loss_sum / max(progress.images, 1),
            "train_acc": progress.correct_sum / max(progress.images, 1),
            "images_per_sec": progress.images / max(progress.epoch_sec, 1e-9),
        }
        valid = test = None
        if last or (progress.epoch + 1) % config.eval_every == 0:
            valid = self._evaluate("held-out", self.loaders.valid) if self.loaders.valid else None
            test = self._evaluate("test", self.loaders.test)
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

            return evaluate(self.net, batches, self.contexts, advance)

    def _record(self, row: Dict[str, Any], last: bool) -> None:
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
        save_state(self.run.folder, self.net, self.trainer, self.progress)
        save_parameters(self.net, self.run.folder / LAST_FILE)
        self._saved = time.monotonic()

    def _tell_duration(self) -> None:
        """Say once, after the first measured steps, how long the whole run will take."""
        progress = self.progress
        if self._told or progress.batch < 3 or time.monotonic() - self._begun < 5:
            return
        self._told = True
        images = len(self.loaders.train) * self.loaders.train.batch_size
        done = progress.epoch * images + progress.images
        rate = progress.images / progress.epoch_sec
        left = (self.config.epochs * images - done) / rate
        print(
            f"\n{rate:.0f} images/s: about {duration(left)} for the training that is left "
            f"({self.config.epochs} epochs in all), evaluations not counted",
            file=sys.stderr,
        )


def schedule_of(config: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the number of updates made so far."""
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
