"""Learning rate schedules: a linear warm-up, then one main part.

The arithmetic is that of gluoncv's ``LRSequential``, bit for bit
(``tests/training/settings/test_schedules.py`` compares), in plain Python: the bridge trains on
machines that have neither gluoncv nor MXNet.

MXNet asks its scheduler for the rate of update ``num_update``, which counts from 1: epoch ``e``
(from 0) consists of the updates ``e * steps_per_epoch + 1`` to ``(e + 1) * steps_per_epoch``. All
rates here are functions of that number alone, so that a resumed run gets the rates of an
uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from formats.errors import UserError

KINDS = ("cosine", "step", "linear", "exponential", "constant", "plateau")


@dataclass(frozen=True)
class Part:
    """``length`` updates of one schedule, from ``first`` to ``last`` where it is not a step one.

    ``falls`` are the updates, from 0, at which a step schedule multiplies by ``factor``.
    """

    kind: str
    first: float
    last: float
    length: int
    falls: tuple[int, ...] = ()
    factor: float = 1.0

    def rate(self, update: int) -> float:
        """Return the rate of an update of this part, counted from 0."""
        end = self.length - 1
        update = min(max(0, update), end)
        if self.kind == "step":
            return self.first * pow(self.factor, sum(fall <= update for fall in self.falls))
        if self.kind == "constant":
            return self.first
        if self.kind == "exponential":
            return float(self.first * pow(self.last / self.first, update / end))
        linear = self.kind == "linear"
        share = 1 - update / end if linear else (1 + math.cos(math.pi * update / end)) / 2
        return self.last + (self.first - self.last) * share


@dataclass(frozen=True)
class Schedule:
    """Parts one after the other; ``schedule(num_update)`` is the rate of that update."""

    parts: tuple[Part, ...]

    def __call__(self, num_update: int) -> float:
        """Return the rate of an update; after the end it stays what it is at the end."""
        update = min(num_update, sum(part.length for part in self.parts) - 1)
        for part in self.parts[:-1]:
            if update < part.length:
                return part.rate(update)
            update -= part.length
        return self.parts[-1].rate(update)


def schedule_of(config: Any, steps_per_epoch: int) -> Schedule:
    """The whole schedule of a training: ``schedule(num_update)`` is the rate of that update.

    The warm-up of ``W = warmup_epochs * steps_per_epoch`` updates gives update ``n`` the rate
    ``lr * n / (W - 1)`` and so reaches ``lr`` one update before its end. In the same way
    ``cosine``, ``linear`` and ``exponential`` reach ``final_lr`` at the last update but one, and
    the last one repeats it: gluoncv counts from 0, MXNet from 1. The logs of the published CIFAR
    runs show these rates. What is too short to fall or rise runs at ``lr``: a warm-up of one update
    (gluoncv divides by zero) and a main part of one or two (which would run at ``final_lr``, often
    0, throughout).

    Hand the result to the optimizer as ``lr_scheduler`` without a ``learning_rate``: MXNet would
    print a warning.

    Parameters
    ----------
    config
        A `training.settings.run_config.RunConfig`, of which these are looked at:

        ``schedule`` is ``cosine``, ``linear`` or ``exponential`` (from ``lr`` to ``final_lr``, the
        last by one factor an update), ``step``, ``constant``, or ``plateau``, which is constant
        here: what lowers it is not a function of the update. ``lr`` is the rate after the warm-up,
        positive; ``final_lr`` 0 to ``lr``, for ``exponential`` more than 0. ``epochs`` is the
        length of the whole training, the ``warmup_epochs`` from 0 included, which are fewer and
        may be a fraction. ``lr_steps`` for ``step``: the epochs (from 0, counted from the start of
        training) whose first update is the first with the rate multiplied by ``lr_factor``, which
        is positive; after the warm-up, rising, below ``epochs``.
    steps_per_epoch
        Updates of an epoch.

    Raises
    ------
    UserError
        When a value is outside its range; the message gives the value and the range.
    """
    epochs = config.epochs
    if epochs < 1 or steps_per_epoch < 1:
        raise UserError(f"{epochs} epochs of {steps_per_epoch} steps; both must be 1 or more")
    check_schedule(config)
    lr, final_lr = float(config.lr), float(config.final_lr)
    warmup = round(config.warmup_epochs * steps_per_epoch)
    parts = []
    if warmup:
        mode = "linear" if warmup > 1 else "constant"
        start = 0.0 if warmup > 1 else lr
        parts.append(Part(mode, start, lr, warmup))
    main = epochs * steps_per_epoch - warmup
    if config.schedule == "step":
        # Counted from the end of the warm-up; + 1 because MXNet counts from 1.
        places = tuple(epoch * steps_per_epoch + 1 - warmup for epoch in config.lr_steps)
        parts.append(Part("step", lr, final_lr, main, places, config.lr_factor))
    else:
        mode = "constant" if config.schedule == "plateau" or main <= 2 else config.schedule
        parts.append(Part(mode, lr, final_lr, main))
    return Schedule(tuple(parts))


def check_schedule(config: Any) -> None:
    """Raise UserError for what `schedule_of` would refuse."""
    epochs, warmup_epochs = config.epochs, config.warmup_epochs
    if config.schedule not in KINDS:
        raise UserError(
            f"unknown learning rate schedule {config.schedule!r}; choose from {', '.join(KINDS)}"
        )
    if not config.lr > 0:
        raise UserError(f"learning rate {config.lr}; choose a positive number")
    if not 0 <= warmup_epochs < epochs:
        raise UserError(
            f"a warm-up of {warmup_epochs} epochs does not fit into {epochs} epochs; "
            f"choose 0 or more and less than {epochs}"
        )
    if not 0 <= config.final_lr <= config.lr:
        raise UserError(
            f"final learning rate {config.final_lr}; choose 0 to {config.lr}, the base rate"
        )
    if config.schedule == "exponential" and not config.final_lr:
        raise UserError(
            "an exponential schedule needs a --final-lr above 0, such as a hundredth of --lr: it "
            "falls by a factor and never reaches 0"
        )
    if config.schedule == "step":
        _check_steps(config.lr_steps, config.lr_factor, epochs, warmup_epochs)


def _check_steps(
    lr_steps: Sequence[int], lr_factor: float, epochs: int, warmup_epochs: float
) -> None:
    if not lr_factor > 0:
        raise UserError(f"learning rate factor {lr_factor}; choose a positive number")
    if not lr_steps:
        raise UserError("a step schedule needs the epochs at which the rate falls; none were given")
    rising = all(low < high for low, high in zip(lr_steps, lr_steps[1:]))
    if not rising or lr_steps[0] < max(1, warmup_epochs) or lr_steps[-1] >= epochs:
        raise UserError(
            f"learning rate steps at epochs {', '.join(map(str, lr_steps))}; they must rise, lie "
            f"after the warm-up of {warmup_epochs} epochs and below {epochs}, the number of epochs"
        )
