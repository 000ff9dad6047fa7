"""A moving average of a network's parameters, which often scores better than the last of them.

Source: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; the
exponential form with a rising decay is TensorFlow's ``ExponentialMovingAverage``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from training.errors import UserError

EVERY = 8  # updates between two steps of the average: a step costs as much as a plain SGD update


class WeightAverage:
    """Exponential moving average of all parameters, running statistics included.

    Parameters
    ----------
    net
        Initialized network with known shapes. The average is taken on its first device.
    decay
        What the average keeps of itself per update, in (0, 1). In the beginning it keeps less,
        ``(1 + n) / (10 + n)`` after ``n`` steps, so that it soon forgets the initial values.
    """

    def __init__(self, net: Any, decay: float) -> None:
        self.net, self.decay = net, decay
        self._values = {
            name: parameter.list_data()[0].copy()
            for name, parameter in net._collect_params_with_prefix().items()
        }

    def update(self, step: int) -> None:
        """Take the parameters after `step` updates into the average; most updates are skipped."""
        if step % EVERY:
            return
        _settle()
        steps = step // EVERY
        keep = min(self.decay**EVERY, (1 + steps) / (10 + steps))
        for name, parameter in self.net._collect_params_with_prefix().items():
            value = self._values[name]
            value *= keep
            value += parameter.list_data()[0] * (1 - keep)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the average by structural name."""
        return {name: value.asnumpy() for name, value in self._values.items()}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from the arrays of a saved state, whose names begin with ``average:``.

        Raises
        ------
        UserError
            When the state has no average of this network.
        """
        for name, value in self._values.items():
            saved = arrays.get(f"average:{name}")
            if saved is None or saved.shape != value.shape:
                raise UserError(
                    f"the state of this run has no average of {name}. Restore the config.json that "
                    "the run was started with"
                )
            value[:] = saved

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the averaged parameters, and its own again at the end."""
        parameters = self.net._collect_params_with_prefix()
        _settle()
        own = {
            name: [data.copy() for data in parameter.list_data()]
            for name, parameter in parameters.items()
        }
        try:
            for name, parameter in parameters.items():
                parameter.set_data(self._values[name])
            yield
        finally:
            for name, parameter in parameters.items():
                for data, value in zip(parameter.list_data(), own[name]):
                    data[:] = value


def _settle() -> None:
    """Wait for the backward pass, which changes running statistics behind MXNet's back.

    Its BatchNorm writes them in an operator that is said to read them only. A copy that is asked
    for meanwhile has the values from before or after, as chance will have it.
    """
    import mxnet as mx

    mx.nd.waitall()
