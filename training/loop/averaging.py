"""Averages of a network's parameters, which often score better than the last of them.

Sources: Polyak and Juditsky 1992, "Acceleration of stochastic approximation by averaging"; the
exponential form with a rising decay is TensorFlow's ``ExponentialMovingAverage``. Equal weights at
the ends of epochs, with batch-norm statistics measured anew: Izmailov et al. 2018, "Averaging
weights leads to wider optima and better generalization", https://arxiv.org/abs/1803.05407.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Callable, Optional

import mxnet as mx
import numpy as np

from model.layers.basic_layer import is_statistic
from training.records.state_file import saved_average
from training.settings.run_config import EVERY


def average_of(net: Any, config: Any) -> Average:
    """Return the average that the settings ask for; without one the network itself is tested."""
    if config.ema:
        return WeightAverage(net, config.ema)
    count = getattr(config, "average_last", 0)
    return EpochAverage(net, config.epochs - count + 1) if count else Average()


class Average:
    """No average: what is tested and saved are the network's own parameters.

    ``is_kept`` says whether a saved state has something to go on from.
    """

    is_kept = False

    def __init__(self, net: Any = None) -> None:
        self.net = net
        self._kept: dict[str, Any] = {}  # the average, by structural name
        self._new: dict[str, Any] = {}  # the same with the epoch that is being tested

    def update(self, step: int) -> None:
        """Look at the parameters after `step` updates."""

    def end_epoch(self, epoch: int, measure: Optional[Callable[[], None]]) -> None:
        """Look at the parameters after `epoch` epochs, which are about to be tested.

        `measure` gives the network batch-norm statistics of its present weights; None where it is
        not tested. What was called may be called again for the same epoch: a run that was stopped
        while it was tested is tested from the start.
        """

    def finish_epoch(self) -> None:
        """Keep what the last `end_epoch` has computed; the epoch is over."""

    def share(self, means: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]) -> None:
        """Give the average the same values on all workers, before it is tested or saved.

        `means` returns the means over all workers of arrays by name.
        """

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the average by structural name; nothing where there is none."""
        return {name: value.asnumpy() for name, value in self._kept.items()}

    def load(self, arrays: Mapping[str, np.ndarray], epoch: int, step: int) -> None:
        """Go on from the arrays of a saved state, whose averages are called ``average:NAME``.

        Raises
        ------
        UserError
            When the state, `epoch` epochs and `step` updates after the start, has no average of
            this network.
        """

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the network the average, if there is one yet, and its own again at the end."""
        values = self._present()
        with _lent(self.net, values) if values else nullcontext():
            yield

    def _present(self) -> Mapping[str, Any]:
        return self._new or self._kept


class WeightAverage(Average):
    """Exponential moving average of all parameters, running statistics included.

    Parameters
    ----------
    net
        Initialized network with known shapes. The average is taken on its first device.
    decay
        What the average keeps of itself per update, in (0, 1). In the beginning it keeps less,
        ``(1 + n) / (10 + n)`` after ``n`` steps, so that it soon forgets the initial values.
    """

    is_kept = True

    def __init__(self, net: Any, decay: float) -> None:
        super().__init__(net)
        self.decay, self._begun = decay, False
        self._kept = {
            name: parameter.list_data()[0].copy()
            for name, parameter in net._collect_params_with_prefix().items()
        }

    def update(self, step: int) -> None:
        """Take the parameters after `step` updates into the average; most updates are skipped."""
        if step % EVERY:
            return
        _settle()
        self._begun, steps = True, step // EVERY
        keep = min(self.decay**EVERY, (1 + steps) / (10 + steps))
        for name, parameter in self.net._collect_params_with_prefix().items():
            value = self._kept[name]
            value *= keep
            value += parameter.list_data()[0] * (1 - keep)

    def share(self, means: Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]) -> None:
        """Average the running statistics, which are of a worker's own images; see `Average.share`.

        Updates keep their means what they would be: statistics are averaged linearly.
        """
        _settle()
        own = {name: value.asnumpy() for name, value in self._kept.items() if is_statistic(name)}
        for name, value in means(own).items():
            self._kept[name][:] = value

    def load(self, arrays: Mapping[str, np.ndarray], epoch: int, step: int) -> None:
        """Go on from the arrays of a saved state; see `Average.load`."""
        self._begun = step >= EVERY
        for name, value in self._kept.items():
            value[:] = saved_average(arrays, name, value.shape)

    def _present(self) -> Mapping[str, Any]:
        """Return the average; nothing before its first step, when it is still the start."""
        return self._kept if self._begun else {}


class EpochAverage(Average):
    """Mean, with equal weights, of the parameters at the ends of epochs from `first` on.

    Parameters
    ----------
    net
        Initialized network with known shapes. The mean is taken on its first device.
    first
        The first epoch that is taken in, counted from 1. Before its end there is no average.
    """

    is_kept = True

    def __init__(self, net: Any, first: int) -> None:
        super().__init__(net)
        self.first = first

    def end_epoch(self, epoch: int, measure: Optional[Callable[[], None]]) -> None:
        """Take the parameters after `epoch` epochs in; see `Average.end_epoch`.

        Running statistics are no weights. They are those that `measure` gives the averaged network
        or, where it is not tested, the network's own.
        """
        count = epoch - self.first + 1
        if count < 1:
            return
        _settle()
        new: dict[str, Any] = {}
        for name, parameter in self.net._collect_params_with_prefix().items():
            own = parameter.list_data()[0]
            if count == 1 or is_statistic(name):
                new[name] = own.copy()
            else:
                kept = self._kept[name]
                new[name] = kept + (own - kept) / count
        if measure:
            with _lent(self.net, new):
                measure()
                for name, parameter in self.net._collect_params_with_prefix().items():
                    if is_statistic(name):
                        new[name] = parameter.list_data()[0].copy()
        self._new = new  # whole: a run that is stopped before keeps the average that it had

    def finish_epoch(self) -> None:
        """Keep the mean; see `Average.finish_epoch`."""
        self._kept, self._new = self._new or self._kept, {}

    def load(self, arrays: Mapping[str, np.ndarray], epoch: int, step: int) -> None:
        """Go on from the arrays of a saved state; see `Average.load`."""
        if epoch < self.first:
            return
        for name, parameter in self.net._collect_params_with_prefix().items():
            own = parameter.list_data()[0]
            self._kept[name] = own.copy()
            self._kept[name][:] = saved_average(arrays, name, own.shape)


@contextmanager
def _lent(net: Any, values: Mapping[str, Any]) -> Iterator[None]:
    """Give the network other parameters, and its own again at the end."""
    parameters = net._collect_params_with_prefix()
    _settle()
    own = {
        name: [data.copy() for data in parameter.list_data()]
        for name, parameter in parameters.items()
    }
    try:
        for name, parameter in parameters.items():
            parameter.set_data(values[name])
        yield
    finally:
        _settle()
        for name, parameter in parameters.items():
            for data, value in zip(parameter.list_data(), own[name]):
                data[:] = value


def _settle() -> None:
    """Wait for the backward pass, which changes running statistics behind MXNet's back.

    Its BatchNorm writes them in an operator that is said to read them only. A copy that is asked
    for meanwhile has the values from before or after, as chance will have it.
    """
    mx.nd.waitall()
