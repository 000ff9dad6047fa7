"""MXNet's optimizers on tensors: the same arithmetic in the same order, float32.

Source: ``src/operator/optimizer_op-inl.h`` of MXNet 1.9.1. They differ from `torch.optim`: the
learning rate is inside the momentum, so a falling rate does not act on what is in it already; and
NAG's kernel reads the weight again after it has written it, so the momentum's weight decay is that
of the new weight. ``tests/bridge/torch_checks.py`` compares both with MXNet, bit for bit.

The learning rate is a tensor on the device, so that a captured CUDA graph takes another one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch  # type: ignore[import-not-found]

from training.settings.run_config import UNDECAYED

Tensor = Any


class Optimizer:
    """Base: parameters in two groups, with and without weight decay.

    Parameters
    ----------
    parameters
        Float32 tensors by structural name, updated in place.
    config
        ``wd``, ``decay_bias``, ``momentum``.
    """

    NAME = ""  # of MXNet's class, in the saved state
    STATES = 1  # tensors per parameter

    def __init__(self, parameters: dict[str, Tensor], config: Any) -> None:
        self.names, self.weights = list(parameters), list(parameters.values())
        self.wd, self.momentum = config.wd, config.momentum
        decays = [config.decay_bias or not name.endswith(UNDECAYED) for name in self.names]
        self.decayed = [index for index, decay in enumerate(decays) if decay and config.wd]
        self.states = [
            [torch.zeros_like(weight) for weight in self.weights] for _ in range(self.STATES)
        ]

    def rate(self, lr: float, step: int) -> float:
        """Return what `update` needs as ``lr`` for the update number `step`, from 1."""
        return lr

    def update(self, gradients: Sequence[Tensor], lr: Tensor) -> None:
        """Take one step; `gradients` are the means over the batch."""
        raise NotImplementedError

    def _with_decay(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        result = list(torch._foreach_mul(gradients, 1.0))  # a copy
        if self.decayed:
            chosen = [self.weights[index] for index in self.decayed]
            terms = torch._foreach_mul(chosen, self.wd)
            torch._foreach_add_([result[index] for index in self.decayed], terms)
        return result


class Nag(Optimizer):
    """Nesterov's accelerated gradient."""

    NAME = "NAG"

    def update(self, gradients: Sequence[Tensor], lr: Tensor) -> None:
        """Take one step."""
        momenta, weights = self.states[0], self.weights
        torch._foreach_mul_(momenta, self.momentum)
        step = self._with_decay(gradients)
        torch._foreach_mul_(step, lr)
        ahead = torch._foreach_sub(momenta, step)
        torch._foreach_mul_(ahead, self.momentum + 1)
        torch._foreach_sub_(weights, momenta)
        torch._foreach_add_(weights, ahead)
        step = self._with_decay(gradients)  # of the new weights
        torch._foreach_mul_(step, lr)
        torch._foreach_sub_(momenta, step)


class Sgd(Optimizer):
    """Stochastic gradient descent with momentum."""

    NAME = "SGD"

    def update(self, gradients: Sequence[Tensor], lr: Tensor) -> None:
        """Take one step."""
        momenta = self.states[0]
        step = self._with_decay(gradients)
        torch._foreach_mul_(step, lr)
        torch._foreach_mul_(momenta, self.momentum)
        torch._foreach_sub_(momenta, step)
        torch._foreach_add_(self.weights, momenta)


class Adam(Optimizer):
    """Adam; as in MXNet, weight decay is part of the gradient and epsilon is not corrected."""

    NAME = "Adam"
    STATES = 2
    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

    def rate(self, lr: float, step: int) -> float:
        """Return the rate with the correction of both means' bias."""
        return lr * math.sqrt(1 - self.BETA2**step) / (1 - self.BETA1**step)

    def update(self, gradients: Sequence[Tensor], lr: Tensor) -> None:
        """Take one step."""
        means, squares = self.states
        gradient = self._with_decay(gradients)
        torch._foreach_mul_(means, self.BETA1)
        torch._foreach_add_(means, torch._foreach_mul(gradient, 1 - self.BETA1))
        torch._foreach_mul_(squares, self.BETA2)
        step = torch._foreach_mul(gradient, 1 - self.BETA2)
        torch._foreach_mul_(step, gradient)
        torch._foreach_add_(squares, step)
        below = torch._foreach_sqrt(squares)
        torch._foreach_add_(below, self.EPSILON)
        step = torch._foreach_div(means, below)
        torch._foreach_mul_(step, lr)
        torch._foreach_sub_(self.weights, step)


OPTIMIZERS: dict[str, type[Optimizer]] = {"nag": Nag, "sgd": Sgd, "adam": Adam}


def clip_norm(gradients: Sequence[Tensor], limit: float) -> None:
    """Scale the gradients down, in place, to a norm over all of them of at most `limit`."""
    norm = torch.stack(torch._foreach_norm(gradients)).norm()
    torch._foreach_mul_(gradients, (limit / (norm + 1e-8)).clamp(max=1.0))
