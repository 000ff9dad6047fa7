"""The moving average of `training.loop.averaging`, of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]

from training.records.state_file import saved_average
from training.settings.run_config import EVERY

Tensor = Any


class TensorAverage:
    """Exponential moving average of `tensors` by name, running statistics included.

    `decay` and the steps are those of `training.loop.averaging.WeightAverage`.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.tensors, self.decay, self._begun = dict(tensors), decay, False
        self.values = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the parameters after `step` updates into the average; most updates are skipped."""
        if step % EVERY:
            return
        self._begun, steps = True, step // EVERY
        keep = min(self.decay**EVERY, (1 + steps) / (10 + steps))
        values = list(self.values.values())
        torch._foreach_mul_(values, keep)
        torch._foreach_add_(values, torch._foreach_mul(list(self.tensors.values()), 1 - keep))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the average by name."""
        return {name: value.cpu().numpy() for name, value in self.values.items()}

    def load(self, arrays: Mapping[str, np.ndarray], step: int) -> None:
        """Go on from the arrays of a state, saved after `step` updates: those of ``average:``."""
        self._begun = step >= EVERY
        for name, value in self.values.items():
            value.copy_(torch.from_numpy(saved_average(arrays, name, tuple(value.shape))))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the average, if it has begun, and its own parameters at the end."""
        if not self._begun:
            yield
            return
        own = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        try:
            self._assign(self.values)
            yield
        finally:
            self._assign(own)

    @torch.no_grad()
    def _assign(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(values[name])
