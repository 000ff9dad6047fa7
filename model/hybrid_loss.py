"""The hybrid loss of the recurrent attention model: supervised classification and REINFORCE.

Source: Mnih et al. 2014, arXiv 1406.6247, section 3.2 and equation 2. Which gradient goes where:

    cross-entropy  -> classifier, core, glimpse network
    baseline       -> baseline layer alone
    REINFORCE      -> location network; core and glimpse network too with ``reinforce_to_core``
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mxnet.gluon import nn

from model.recurrent_attention import RecurrentAttention, Rollouts

REWARDS = ("last", "every", "likelihood")
POLICY_BASELINES = ("state", "rollouts")
LOG_TWO_PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms.

    Parameters
    ----------
    baseline
        Of the baselines' squared error.
    reinforce
        Of the policy term.
    intermediate
        Of the mean cross-entropy after the glimpses before the last; 0: only the last counts.
    reward
        ``last``: 1 when the last decision is right, for every step (the paper). ``every``: the
        share of right decisions from a step on. ``likelihood``: the probability of the true class
        after the last glimpse.
    policy_baseline
        What the policy's reward is compared with. ``state``: the baseline network's estimate.
        ``rollouts``: the mean reward of the image's other rollouts (leave-one-out; Kool et al.
        2019, "Buy 4 REINFORCE samples, get a baseline for free!"), 0 where there is no other. The
        baseline network is trained all the same.
    """

    baseline: float = 1.0
    reinforce: float = 0.01
    intermediate: float = 0.0
    reward: str = "last"
    policy_baseline: str = "state"

    def __post_init__(self) -> None:
        for what, given, known in (
            ("reward", self.reward, REWARDS),
            ("policy_baseline", self.policy_baseline, POLICY_BASELINES),
        ):
            if given not in known:
                raise ValueError(f"unknown {what} {given!r}; available: {', '.join(known)}")
        for name in ("baseline", "reinforce", "intermediate"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


class HybridLoss(nn.HybridBlock):
    """Rollouts of a network and their loss, as one graph.

    Inputs
        - **image**, **first_location**, **noise**: see `RecurrentAttention`.
        - **std**: (1,) standard deviation of the policy.
        - **label**: (B,).

    Outputs
        - **loss** (B,), the mean over the rollouts of an image;
        - **terms** (B, 6): in the order of `TERMS`.
    """

    # Of one image, means over its rollouts: loss terms in nats or as they enter the loss but
    # without their weights, share of right decisions, and |sample - mean| of all T locations, a
    # given first one included, which has 0.
    TERMS = ("cross_entropy", "baseline", "reinforce", "reward", "correct", "location_spread")

    def __init__(self, net: RecurrentAttention, weights: LossWeights, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.weights = weights
        self.net = net

    def hybrid_forward(
        self, F: Any, image: Any, first_location: Any, noise: Any, std: Any, label: Any
    ) -> tuple[Any, Any]:
        weights = self.weights
        rollouts = Rollouts(*self.net(image, first_location, noise))
        log_probs = F.log_softmax(rollouts.logits, axis=-1)  # (B, R, T, classes)
        target = F.broadcast_like(F.reshape(label, shape=(-1, 1, 1)), rollouts.baselines)
        entropy = -F.pick(log_probs, target, axis=-1)  # (B, R, T)
        correct = F.BlockGrad(F.broadcast_equal(F.argmax(log_probs, axis=-1), target))
        reward = self._reward(F, entropy, correct)  # (B, R, T)

        error = F.square(rollouts.baselines - reward)
        policy = self._policy(F, rollouts, reward, std)  # (B, R)
        last = _last(F, entropy)
        loss = last + weights.baseline * F.mean(error, axis=2) + weights.reinforce * policy
        steps = self.net.spec.num_glimpses
        if weights.intermediate and steps > 1:
            before = F.slice_axis(entropy, axis=2, begin=0, end=steps - 1)
            loss = loss + weights.intermediate * F.mean(before, axis=2)
        moved = F.abs(rollouts.samples - rollouts.means)
        terms = (
            last,
            F.mean(error, axis=2),
            policy,
            F.mean(reward, axis=2),
            _last(F, correct),
            F.mean(moved, axis=(2, 3)),
        )
        terms = F.stack(*[F.mean(term, axis=1) for term in terms], axis=1)
        return F.mean(loss, axis=1), F.BlockGrad(terms)

    def _reward(self, F: Any, entropy: Any, correct: Any) -> Any:
        """Return what each step is credited with, (B, R, T), without gradient."""
        kind = self.weights.reward
        if kind == "every":
            steps = self.net.spec.num_glimpses
            rest = [
                F.mean(F.slice_axis(correct, axis=2, begin=t, end=steps), axis=2)
                for t in range(steps)
            ]
            return F.BlockGrad(F.stack(*rest, axis=2))
        last = F.exp(-_last(F, entropy)) if kind == "likelihood" else _last(F, correct)
        return F.BlockGrad(F.broadcast_like(F.expand_dims(last, axis=2), entropy))

    def _policy(self, F: Any, rollouts: Rollouts, reward: Any, std: Any) -> Any:
        """Return sum_t -log pi(sample_t) (reward_t - b_t) over the steps that were chosen, (B, R).

        The baseline b of a location is that of the glimpse before it, whose state chose it. A first
        location of the network's own has no such state; it takes the first baseline.
        """
        spec = self.net.spec
        first = spec.policy_steps.start
        if first >= spec.num_glimpses:  # Gluon wants every input in use
            return F.broadcast_mul(_last(F, reward), F.reshape(F.zeros_like(std), shape=(1, 1)))

        def chosen(x: Any) -> Any:
            return F.slice_axis(x, axis=2, begin=first, end=spec.num_glimpses)

        deviation = chosen(rollouts.samples) - chosen(rollouts.means)  # (B, R, S, 2)
        std = F.reshape(std, shape=(1, 1, 1, 1))
        squares = F.broadcast_div(F.square(deviation), 2 * F.square(std))
        log_pi = -F.sum(F.broadcast_add(squares, F.log(std) + 0.5 * LOG_TWO_PI), axis=3)
        if self.weights.policy_baseline == "rollouts":
            expected = chosen(_mean_of_others(F, reward))
        else:
            expected = self._before(F, F.BlockGrad(rollouts.baselines), first)
        return F.sum(-log_pi * (chosen(reward) - expected), axis=2)

    def _before(self, F: Any, baselines: Any, first: int) -> Any:
        """Return the baseline (B, R, S) of the glimpse before each of those from `first` on."""
        steps = self.net.spec.num_glimpses
        before = F.slice_axis(baselines, axis=2, begin=0, end=max(steps - 1, 1))
        if first == 0 and steps > 1:
            before = F.concat(F.slice_axis(baselines, axis=2, begin=0, end=1), before, dim=2)
        return before


def _mean_of_others(F: Any, reward: Any) -> Any:
    """Return the mean over the other rollouts of an image, (B, R, T); 0 without others."""
    others = F.sum(F.ones_like(reward), axis=1, keepdims=True) - 1
    total = F.sum(reward, axis=1, keepdims=True)
    return F.broadcast_div(F.broadcast_sub(total, reward), F.maximum(others, 1))


def _last(F: Any, x: Any) -> Any:
    """Return the last step of (B, R, T) as (B, R)."""
    return F.reshape(F.slice_axis(x, axis=2, begin=-1, end=None), shape=(0, 0))
