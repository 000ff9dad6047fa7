"""Training and scoring of a network that looks at an image several times, by chance.

Such a network takes (image, first location, noise) and gives rollouts; it is not known here, only
these inputs are made: first locations and noise are drawn from (seed, update), so that a resumed
run draws the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple, Optional

import mxnet as mx
import numpy as np

from formats.errors import UserError
from training.augmentation.draws import generator
from training.batches.scores import Scores, check_labels, image_and_label
from training.loop.task import Measured, Part, Task

MAX_ROWS = 4096  # rollouts that are evaluated at once
POLICY = "glimpse"  # section of a card


@dataclass(frozen=True)
class Draw:
    """How first locations and noise are drawn.

    Parameters
    ----------
    steps
        Glimpses per image.
    std
        Standard deviation of the policy.
    radius
        First locations are uniform in [-radius, radius]; 0 is the centre.
    seed
        Of all draws.
    uniform
        Noise is uniform in [-1, 1] instead of normal: random gaze, where noise is the location.
    """

    steps: int
    std: float
    radius: float = 1.0
    seed: int = 0
    uniform: bool = False

    def __call__(
        self, images: int, rollouts: int, key: Sequence[int], std: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return first locations (images, rollouts, 2) and noise (images, rollouts, steps, 2)."""
        rng = generator(self.seed, *key)
        first = _uniform(rng, (images, rollouts, 2)) * np.float32(self.radius)
        shape = (images, rollouts, self.steps, 2)
        if not std:
            return first, np.zeros(shape, np.float32)
        if self.uniform:
            return first, _uniform(rng, shape)
        return first, rng.standard_normal(shape, dtype=np.float32) * np.float32(std)


@dataclass
class RolloutTask(Task):
    """The training of such a network.

    Parameters
    ----------
    loss
        ``loss(image, first_location, noise, std, label)`` returns loss (B,) and terms (B, k); the
        names of the terms are ``loss.TERMS``, of which ``correct`` is one.
    draw
        First locations and noise.
    rollouts
        Per image and update; a test takes one, with mean locations.
    std_of
        Standard deviation of the policy at an update, which counts from 0.
    keep
        What `after_epoch` calls.
    """

    loss: Any = None
    draw: Draw = field(default_factory=lambda: Draw(0, 0.0))
    rollouts: int = 1
    std_of: Callable[[int], float] = lambda step: 0.0
    keep: Callable[[Any, int], None] = lambda run, epoch: None

    KEY = 1  # keeps these draws apart from those of evaluations

    def sections(self, step: int) -> Mapping[str, Any]:
        """Return the section of the policy, whose deviation falls; see `Task.sections`."""
        if POLICY not in self.card:
            return {}
        return {POLICY: {**self.card[POLICY], "deviation": round(self.std_of(step), 6)}}

    def losses(self, part: Part, key: tuple[int, ...]) -> Measured:
        """Return the losses of a part of a batch; see `training.loop.task.Task.losses`."""
        image, target, label = part
        std = self.std_of(key[0])
        first, noise = self.draw(len(label), self.rollouts, (self.KEY, *key), std)
        first, noise, width = (
            mx.nd.array(value, ctx=image.context) for value in (first, noise, np.array([std]))
        )
        losses, terms = self.loss(image, first, noise, width, target)

        def sums() -> dict[str, float]:
            totals = terms.asnumpy().sum(axis=0, dtype=np.float64)
            return dict(zip(self.loss.TERMS, totals.tolist()))

        return Measured(losses, len(label), sums)

    def evaluate(self, batches: Any, advance: Optional[Callable[[int], None]] = None) -> Scores:
        """Return the scores of one rollout with mean locations; see `Task.evaluate`."""
        still = Draw(self.draw.steps, 0.0, self.draw.radius)
        found = score_rollouts(self.net, batches, self.contexts, still, 1, advance)
        return Scores(found.loss, found.single, found.images)

    def after_epoch(self, run: Any, epoch: int) -> None:
        """Draw where the network looks; see `Task.after_epoch`."""
        self.keep(run, epoch)

    @property
    def graph(self) -> Any:
        """The loss, whose graph has that of the network."""
        return self.loss


class RolloutScores(NamedTuple):
    """Accuracies in 0 to 1 over all images.

    ``single`` is the mean accuracy of single rollouts, ``steps`` (T,) that after each glimpse.
    ``log_mean`` and ``prob_mean`` are those of the mean over R rollouts of an image, of
    log-probabilities and of probabilities. ``loss`` is the cross-entropy of single rollouts.
    """

    loss: float
    single: float
    log_mean: float
    prob_mean: float
    steps: np.ndarray
    images: int


def score_rollouts(
    net: Any,
    batches: Iterable[Any],
    contexts: Sequence[Any],
    draw: Draw,
    rollouts: int = 1,
    advance: Optional[Callable[[int], None]] = None,
) -> RolloutScores:
    """Score a network over exactly all images, `rollouts` of each.

    Parameters
    ----------
    net
        Network that gives logits (B, R, T, classes) first.
    batches
        `training.batches.in_memory.Batch` objects, or (image, label) pairs as a gluon
        ``DataLoader`` yields them. The last may be short.
    contexts
        The first one computes.
    draw
        ``draw.std`` 0 for mean locations.
    rollouts
        Per image, R.
    advance
        Called with the number of images of each batch when it is done.

    Raises
    ------
    UserError
        When there are no images, or images, labels and network do not belong together.
    """
    loss, images, finite = 0.0, 0, True
    right: np.ndarray = np.zeros(0)
    for number, (image, label) in enumerate(map(image_and_label, batches)):
        count = len(label)
        if not count:
            continue
        log_probs = _log_probabilities(net, image, contexts[0], draw, rollouts, number)
        finite = finite and bool(np.isfinite(log_probs).all())
        check_labels(label, log_probs.shape[3])
        hits = log_probs.argmax(axis=3) == label[:, None, None]  # (B, R, T)
        last = log_probs[:, :, -1]  # (B, R, classes)
        loss -= float(np.take_along_axis(last, label[:, None, None], 2).mean(axis=1).sum())
        averages = [
            (mean.argmax(axis=1) == label).sum()
            for mean in (last.mean(axis=1), np.exp(last).mean(axis=1))
        ]
        row = np.array([*averages, *hits.mean(axis=1).sum(axis=0)], np.float64)
        right = row if not len(right) else right + row
        images += count
        if advance:
            advance(count)
    if not images:
        raise UserError("there is nothing to evaluate: the loader gave no images")
    log_mean, prob_mean, *steps = right / (images if finite else np.nan)
    loss = loss / images if finite else np.nan
    return RolloutScores(loss, steps[-1], log_mean, prob_mean, np.array(steps), images)


def _uniform(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return float32 numbers in [-1, 1)."""
    return 2 * rng.random(shape, dtype=np.float32) - 1


def _log_probabilities(
    net: Any, image: np.ndarray, context: Any, draw: Draw, rollouts: int, number: int
) -> np.ndarray:
    """Return log-probabilities (B, R, T, classes) in float64."""
    first, noise = draw(len(image), rollouts, (0, number), draw.std)
    parts = []
    size = max(1, MAX_ROWS // rollouts)
    for begin in range(0, len(image), size):
        inputs = (value[begin : begin + size] for value in (image, first, noise))
        logits = net(*(mx.nd.array(value, ctx=context) for value in inputs))[0]
        parts.append(logits.asnumpy().astype(np.float64))
    logits = np.concatenate(parts)
    with np.errstate(invalid="ignore"):  # not finite in, not finite out
        logits -= logits.max(axis=3, keepdims=True)
    result: np.ndarray = logits - np.log(np.exp(logits).sum(axis=3, keepdims=True))
    return result
