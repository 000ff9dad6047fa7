"""The parts of the recurrent attention model: sensor, cores, location network, heads.

Source: Mnih et al. 2014, arXiv 1406.6247, section 3.1; attribute names of
kevinzakka/recurrent-visual-attention (MIT), whose weights load.
"""

from __future__ import annotations

import math
from typing import Any

import mxnet as mx
from mxnet.gluon import nn

from model.layers.glimpse_spec import GlimpseSpec


@mx.init.register
class Identity(mx.init.Initializer):
    """Ones on the diagonal, zeros elsewhere."""

    def _init_weight(self, _: str, array: Any) -> None:
        array[:] = mx.nd.eye(*array.shape)


def dense(units: int, in_units: int) -> nn.Dense:
    """Return a linear layer with biases U(-a, a), a = 1 / sqrt(in_units), as its weights are."""
    bound = in_units**-0.5
    return nn.Dense(
        units,
        flatten=False,
        in_units=in_units,
        weight_initializer=mx.init.Uniform(bound),
        bias_initializer=mx.init.Uniform(bound),
    )


class Sensor(nn.HybridBlock):
    """Glimpse network: patches (M, V) and location (M, 2) to g (M, h_g + h_l)."""

    def __init__(self, values: int, spec: GlimpseSpec, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._octaves, self._combine = spec.location_octaves, spec.combine
        width = spec.glimpse_hidden + spec.loc_hidden
        with self.name_scope():
            self.fc1 = dense(spec.glimpse_hidden, values)
            self.fc2 = dense(spec.loc_hidden, 2 + 4 * spec.location_octaves)
            self.fc3 = dense(width, spec.glimpse_hidden)
            self.fc4 = dense(width, spec.loc_hidden)

    def hybrid_forward(self, F: Any, patches: Any, location: Any) -> Any:
        features = [location]
        for octave in range(self._octaves):
            angle = location * (math.pi * 2**octave)
            features += [F.sin(angle), F.cos(angle)]
        location = features[0] if len(features) == 1 else F.concat(*features, dim=1)
        what = self.fc3(F.Activation(self.fc1(patches), act_type="relu"))
        where = self.fc4(F.Activation(self.fc2(location), act_type="relu"))
        both = what + where if self._combine == "add" else what * where
        return F.Activation(both, act_type="relu")


class Core(nn.HybridBlock):
    """ReLU recurrent network: h_t = relu(i2h g_t + h2h h_{t-1}).

    The recurrent weights start as the identity (Le et al. 2015, arXiv 1504.00941).
    """

    def __init__(self, hidden: int, in_units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.i2h = dense(hidden, in_units)
            self.h2h = nn.Dense(
                hidden, flatten=False, in_units=hidden, weight_initializer=Identity()
            )

    def hybrid_forward(self, F: Any, glimpse: Any, state: Any) -> Any:
        hidden = F.Activation(self.i2h(glimpse) + self.h2h(state), act_type="relu")
        return hidden, hidden


class LSTMCore(nn.HybridBlock):
    """LSTM without peepholes; the state is hidden and cell side by side, (M, 2 * hidden)."""

    def __init__(self, hidden: int, in_units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.i2h = dense(4 * hidden, in_units)
            self.h2h = dense(4 * hidden, hidden)

    def hybrid_forward(self, F: Any, glimpse: Any, state: Any) -> Any:
        hidden, cell = F.split(state, num_outputs=2, axis=1)
        gates = self.i2h(glimpse) + self.h2h(hidden)
        enter, forget, output, candidate = F.split(gates, num_outputs=4, axis=1)
        # A forget gate that starts open (+ 1) keeps the first glimpse (Gers et al. 2000).
        cell = F.sigmoid(forget + 1) * cell + F.sigmoid(enter) * F.tanh(candidate)
        hidden = F.sigmoid(output) * F.tanh(cell)
        return hidden, F.concat(hidden, cell, dim=1)


class Locator(nn.HybridBlock):
    """Location network: h (M, hidden) to the mean of the next location (M, 2) in (-1, 1)."""

    def __init__(self, in_units: int, hidden: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.fc = dense(hidden or 2, in_units)
            self.fc_lt = dense(2, hidden) if hidden else None

    def hybrid_forward(self, F: Any, hidden: Any) -> Any:
        y = self.fc(hidden)
        if self.fc_lt is not None:
            y = self.fc_lt(F.Activation(y, act_type="relu"))
        return F.tanh(y)


class Head(nn.HybridBlock):
    """One linear layer called ``fc``: the classifier and the baseline."""

    def __init__(self, units: int, in_units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.fc = dense(units, in_units)

    def hybrid_forward(self, F: Any, hidden: Any) -> Any:
        return self.fc(hidden)
