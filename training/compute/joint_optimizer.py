"""MXNet's optimizers with momentum, updating all parameters of a device by one call.

The call comes from elsewhere (``net.fused.update``); what it cannot do is done as MXNet does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Callable, Optional

import mxnet as mx
import numpy as np

ALL = 1 << 30  # parameters at once
Update = Callable[..., None]  # as model.execution.fused_update.update


class _Joint:
    """What both optimizers share; the other base class is MXNet's."""

    nesterov = False

    def __init__(self, update: Update, **settings: Any) -> None:
        super().__init__(**settings)
        self.aggregate_num, self._update_all = ALL, update

    def update_multi_precision(
        self, index: Sequence[int], weight: Sequence[Any], grad: Sequence[Any], state: Sequence[Any]
    ) -> None:
        """Update the parameters with these numbers."""
        one: Any = self
        if not self._knows(weight, state):
            for each in zip(index, weight, grad, state):
                super().update_multi_precision(*each)  # type: ignore[misc]
            return
        one._update_count(list(index))
        rates = (one._get_lrs(index), one._get_wds(index))
        how = {"momentum": one.momentum, "scale": one.rescale_grad, "nesterov": self.nesterov}
        self._update_all(weight, grad, state, rates, **how)

    def _knows(self, weight: Sequence[Any], state: Sequence[Any]) -> bool:
        return not getattr(self, "clip_gradient", None) and all(
            isinstance(s, mx.nd.NDArray)
            and w.stype == "default"
            and w.dtype == np.float32
            and w.context.device_type == "cpu"
            for w, s in zip(weight, state)
        )


# Named as MXNet's are: the name is on record in a run, and a run may go on by either.
class NAG(_Joint, mx.optimizer.NAG):
    """Stochastic gradient descent with Nesterov's momentum."""

    nesterov = True


class SGD(_Joint, mx.optimizer.SGD):
    """Stochastic gradient descent with momentum."""


def joint_optimizer(name: str, settings: Mapping[str, Any], update: Update) -> Optional[Any]:
    """Return the optimizer of a name that updates by `update`; None for one that has no such form.

    `settings` are MXNet's: ``learning_rate``, ``wd``, ``momentum``.
    """
    made = {"nag": NAG, "sgd": SGD}.get(name)
    return made(update, **settings) if made else None
