"""The scores of a glimpse model: single rollouts, averages, after each glimpse, controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Optional

import numpy as np

from formats.images.outputs import require_finite
from training.glimpse.config import GlimpseConfig
from training.glimpse.loaders import Opened, test_batches
from training.glimpse.rollouts import Draw, RolloutScores, score_rollouts


class MeanStd(NamedTuple):
    """Mean and sample standard deviation over evaluation seeds; 0 for a single one."""

    mean: float
    std: float

    def error(self) -> str:
        """Return the error in percent, as ``1.23 ± 0.04``."""
        return f"{100 * (1 - self.mean):.2f} ± {100 * self.std:.2f}"


@dataclass(frozen=True)
class GlimpseReport:
    """Accuracies over all images, mean and standard deviation over the evaluation seeds.

    ``single_mean`` and ``single_sampled`` are those of one rollout with mean and with sampled
    locations; ``log_mean`` and ``prob_mean`` of the averages of ``rollouts`` rollouts, mean
    locations, ``sampled_log_mean`` the same with sampled ones. ``steps`` (T,) is the accuracy of
    single rollouts after each glimpse, ``random_gaze`` that of one that looks anywhere.
    """

    single_mean: MeanStd
    single_sampled: MeanStd
    log_mean: MeanStd
    prob_mean: MeanStd
    sampled_log_mean: MeanStd
    random_gaze: Optional[MeanStd]
    steps: np.ndarray
    loss: float
    rollouts: int
    seeds: int
    images: int

    def lines(self) -> list[str]:
        """Return the report for the terminal."""
        rows = [
            ("1 rollout, mean locations", self.single_mean),
            ("1 rollout, sampled locations", self.single_sampled),
            (f"{self.rollouts} rollouts, mean of log-probabilities", self.log_mean),
            (f"{self.rollouts} rollouts, mean of probabilities", self.prob_mean),
            (f"{self.rollouts} sampled rollouts, mean of log-probabilities", self.sampled_log_mean),
        ]
        if self.random_gaze:
            rows.append(("1 rollout, random gaze (control)", self.random_gaze))
        steps = " ".join(f"{value:.2%}" for value in self.steps)
        deviation = f"mean ± standard deviation of {self.seeds} evaluation seeds"
        return [
            f"{self.images} images, error in % ({deviation})",
            *(f"  {name:<50} {score.error()}" for name, score in rows),
            f"  accuracy after each glimpse: {steps}",
        ]


def report_rollouts(
    net: Any,
    control: Optional[Any],
    batches: Any,
    contexts: Sequence[Any],
    draw: Draw,
    rollouts: int = 10,
    seeds: int = 5,
) -> GlimpseReport:
    """Score a network in every way that the field reports.

    Parameters
    ----------
    net
        See `training.glimpse.rollouts.score_rollouts`.
    control
        The same weights in a network whose noise is the location; None leaves the control out.
    batches, contexts
        As there.
    draw
        With the policy's standard deviation; its seed is the first of the evaluation seeds.
    rollouts
        That are averaged, M.
    seeds
        Evaluations; first locations and noise differ.
    """
    single: list[RolloutScores] = []
    several: list[RolloutScores] = []
    sampled: list[RolloutScores] = []
    sampled_single: list[RolloutScores] = []
    random: list[RolloutScores] = []
    for seed in range(draw.seed, draw.seed + seeds):
        noisy = replace(draw, seed=seed)
        still = replace(noisy, std=0.0)
        single.append(score_rollouts(net, batches, contexts, still))
        several.append(score_rollouts(net, batches, contexts, still, rollouts))
        sampled.append(score_rollouts(net, batches, contexts, noisy, rollouts))
        sampled_single.append(score_rollouts(net, batches, contexts, noisy))
        if control is not None:
            anywhere = replace(noisy, std=1.0, uniform=True)
            random.append(score_rollouts(control, batches, contexts, anywhere))
    return GlimpseReport(
        _over_seeds([scores.single for scores in single]),
        _over_seeds([scores.single for scores in sampled_single]),
        _over_seeds([scores.log_mean for scores in several]),
        _over_seeds([scores.prob_mean for scores in several]),
        _over_seeds([scores.log_mean for scores in sampled]),
        _over_seeds([scores.single for scores in random]) if random else None,
        np.mean([scores.steps for scores in single], axis=0),
        float(np.mean([scores.loss for scores in single])),
        rollouts,
        seeds,
        single[0].images,
    )


def print_report(opened: Opened, config: GlimpseConfig) -> None:
    """Score a saved file on its test images and print how."""
    report = report_rollouts(
        opened.net,
        opened.control,
        test_batches(opened.task),
        opened.contexts,
        opened.draw(),
        config.rollouts_eval,
        config.eval_seeds,
    )
    require_finite(np.array(report.loss), "the test images")
    print("\n".join(report.lines()))


def _over_seeds(values: Sequence[float]) -> MeanStd:
    return MeanStd(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0)
