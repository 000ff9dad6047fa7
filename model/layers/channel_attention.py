"""Gates that scale the channels of a residual branch: RAM, IE, SE, ECA, DIA, SRM, CBAM, static.

Each gate a (N, C) is computed from the maps x (N, C, H, W) themselves and multiplies them. With
g the mean of each map over its pixels:

    ram      y_1 = w g + b;  y_t = w bn_{t-1}(y_{t-1}) + b;  a = sigmoid(y_T)
    static   a = sigmoid(b)
    se       a = sigmoid(W2 relu(W1 g + b1) + b2)
    eca      a = sigmoid(convolution of g along the channels)
    srm      a = sigmoid(bn(v1 g + v2 s)), s the standard deviation of each map
    cbam     a = sigmoid(f(g) + f(max)), f as in se; then a gate for each pixel as well
    dia      a = h, the output of an LSTM that goes through the units of a stage, fed with g

Sources: RAM, zhongshsh/RAM (MIT; ``model/ram.py``), with one step the IE gate of Liang et al. 2020,
arXiv 1909.11235; SE, Hu et al. 2018, arXiv 1709.01507; ECA, Wang et al. 2020, arXiv 1910.03151;
DIA, Huang et al. 2020, arXiv 1905.10671; SRM, Lee et al. 2019, arXiv 1903.10829; CBAM, Woo et al.
2018, arXiv 1807.06521.
"""

from __future__ import annotations

import math
from typing import Any

import mxnet as mx
from mxnet.gluon import nn

from model.layers.basic_layer import norm

GATE = "gate"  # end of the name that each gate has in a traced graph


def dense(units: int, in_units: int) -> nn.Dense:
    """Return a dense layer whose first values are uniform in +-1/sqrt(in_units), bias included."""
    bound = 1 / math.sqrt(in_units)
    return nn.Dense(
        units,
        in_units=in_units,
        weight_initializer=mx.init.Uniform(bound),
        bias_initializer=mx.init.Uniform(bound),
    )


def ones_row(F: Any, x: Any) -> Any:
    """Return (1, H * W) ones for maps (N, C, H, W)."""
    first = F.slice_axis(
        F.slice_axis(F.BlockGrad(x), axis=0, begin=0, end=1), axis=1, begin=0, end=1
    )
    return F.ones_like(F.reshape(first, shape=(1, -1)))


def global_mean(F: Any, x: Any) -> Any:
    """Return the mean of each map, (N, C, 1).

    A product with a vector: `F.mean` over two axes is several times slower, and the backward pass
    of global pooling makes oneDNN choose a layout in which batch normalisations run ten times
    slower.
    """
    row = ones_row(F, x)
    weights = F.broadcast_div(row, F.sum(row, axis=1, keepdims=True))
    return F.dot(F.reshape(x, shape=(0, 0, -1)), weights, transpose_b=True)


def scale(F: Any, x: Any, gate: Any) -> Any:
    """Multiply maps (N, C, H, W) by a gate (N, C, 1).

    The gate is spread over the pixels by an outer product: the backward pass of `broadcast_mul`
    takes three to six times as long.
    """
    return x * F.reshape_like(F.dot(gate, ones_row(F, x)), F.BlockGrad(x))


# A gate's kind in fused operators, its parameters, its normalisations, its number of steps.
GateParts = tuple[str, list[Any], list[nn.HybridBlock], int]


class ChannelGate(nn.HybridBlock):
    """Maps times their gate; subclasses say what the gate is.

    Inputs
        - **x**: (N, C, H, W) float32.

    Outputs
        - (N, C, H, W) float32.
    """

    _batchwise: tuple[str, ...] = ()

    def batch_norms(self) -> list[nn.HybridBlock]:
        """Return the normalisations of one number per image and channel: they need 2 images."""
        return [getattr(self, name) for name in self._batchwise]

    def _gate(self, F: Any, x: Any, **params: Any) -> Any:
        """Return the gate (N, C, 1) in (0, 1)."""
        raise NotImplementedError

    def hybrid_forward(self, F: Any, x: Any, **params: Any) -> Any:
        x = F.reshape(x, shape=(0, 0, 0, 0))  # leaves oneDNN's layout once, not in every operator
        return scale(F, x, F.identity(self._gate(F, x, **params), name=GATE))


class RecurrentGate(ChannelGate):
    """``a = sigmoid(y_T)``, ``y_1 = w g + b``, ``y_t = w bn_{t-1}(y_{t-1}) + b``.

    w and b are one number per channel, the same in all steps; each batch normalisation is its own.
    Two steps are the released RAM, one is IE, more are its figure's general form.

    At w = 0, the first value, and two or more steps the gate is sigmoid(b) for every input and the
    gradients of w and of the normalisations are exactly zero: w leaves 0 through rounding alone.
    With three or more, beta of every normalisation but the last has no effect in training.

    Parameters
    ----------
    channels
        C.
    steps
        T, 1 or more.
    w_init, b_init
        First values of w and b; the authors' are 0 and -1.
    norms
        ``norm_layer`` and ``norm_kwargs`` of `model.layers.basic_layer.norm`.
    """

    def __init__(
        self,
        channels: int,
        steps: int = 2,
        w_init: float = 0.0,
        b_init: float = -1.0,
        **norms: Any,
    ) -> None:
        super().__init__()
        if steps < 1:
            raise ValueError(f"steps must be 1 or more, got {steps}")
        self.steps = steps
        shape = (1, channels, 1, 1)
        with self.name_scope():
            self.w = self.params.get("w", shape=shape, init=mx.init.Constant(w_init))
            self.b = self.params.get("b", shape=shape, init=mx.init.Constant(b_init))
            self._batchwise = tuple(f"bn{step}" for step in range(1, steps))
            for name in self._batchwise:
                setattr(self, name, norm(channels, **norms))

    def _gate(self, F: Any, x: Any, **params: Any) -> Any:
        w, b = params["w"], params["b"]
        y = F.expand_dims(global_mean(F, x), axis=3)  # (N, C, 1, 1)
        y = F.broadcast_add(F.broadcast_mul(y, w), b)
        for bn in self.batch_norms():
            y = F.broadcast_add(F.broadcast_mul(bn(y), w), b)
        return F.reshape(F.sigmoid(y), shape=(0, 0, 1))

    def trace(self) -> GateParts:
        """Return what a fused unit needs; see `model.execution.fused_graph.Trace.unit`."""
        return "recurrent", [self.w, self.b], self.batch_norms(), self.steps


class StaticGate(ChannelGate):
    """``a = sigmoid(b)``: the recurrent gate with w frozen at 0, whatever the input."""

    def __init__(self, channels: int, b_init: float = -1.0) -> None:
        super().__init__()
        with self.name_scope():
            self.b = self.params.get("b", shape=(1, channels, 1, 1), init=mx.init.Constant(b_init))

    def _gate(self, F: Any, x: Any, **params: Any) -> Any:
        corner = F.slice_axis(F.BlockGrad(x), axis=2, begin=0, end=1)
        corner = F.slice_axis(corner, axis=3, begin=0, end=1)  # (N, C, 1, 1)
        gate = F.broadcast_add(F.zeros_like(corner), F.sigmoid(params["b"]))
        return F.reshape(gate, shape=(0, 0, 1))

    def trace(self) -> GateParts:
        """Return what a fused unit needs; see `model.execution.fused_graph.Trace.unit`."""
        return "static", [self.b], [], 1


class SqueezeExcitation(ChannelGate):
    """``a = sigmoid(W2 relu(W1 g + b1) + b2)``, `hidden` numbers in between."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        with self.name_scope():
            self.fc1, self.fc2 = dense(hidden, channels), dense(channels, hidden)

    def excite(self, F: Any, squeezed: Any) -> Any:
        """Return the logits (N, C) of squeezed maps (N, C, 1)."""
        return self.fc2(F.Activation(self.fc1(squeezed), act_type="relu"))

    def _gate(self, F: Any, x: Any, **params: Any) -> Any:
        return F.expand_dims(F.sigmoid(self.excite(F, global_mean(F, x))), axis=2)


class EfficientGate(ChannelGate):
    """``a = sigmoid(conv(g))``, a convolution along the channels with as many taps as ECA gives."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = eca_taps(channels)
        with self.name_scope():
            self.conv = nn.Conv1D(
                1,
                taps,
                padding=taps // 2,
                use_bias=False,
                in_channels=1,
                weight_initializer=mx.init.Uniform(1 / math.sqrt(taps)),
            )

    def _gate(self, F: Any, x: Any, **params: Any) -> Any:
        row = F.transpose(global_mean(F, x), axes=(0, 2, 1))  # (N, 1, C)
        return F.transpose(F.sigmoid(self.conv(row)), axes=(0, 2, 1))


def eca_taps(channels: int) -> int:
    """Return the odd number of taps for C channels: ``(log2(C) + 1) / 2``, up to an odd number."""
    taps = int(abs((math.log2(channels) + 1) / 2))
    return taps if taps % 2 else taps + 1


class StyleGate(ChannelGate):
    """``a = sigmoid(bn(v1 g + v2 s))``; v1 and v2, in ``cfc`` (C, 2), begin at 0.

    s is the root of the unbiased variance plus 1e-5, as the authors have it.
    """

    _batchwise = ("bn",)

    def __init__(self, channels: int, **norms: Any) -> None:
        super().__init__()
        with self.name_scope():
            self.cfc = self.params.get("cfc", shape=(channels, 2), init=mx.init.Zero())
            self.bn = norm(channels, **norms)

    def _gate(self, F: Any, x: Any, **params: Any) -> Any:
        mean = global_mean(F, x)
        count = F.reshape(F.sum(ones_row(F, x)), shape=(1, 1, 1))
        variance = F.maximum(global_mean(F, x * x) - mean * mean, 0)
        unbiased = F.broadcast_mul(variance, F.broadcast_div(count, count - 1))
        style = F.concat(mean, F.sqrt(unbiased + 1e-5), dim=2)  # (N, C, 2)
        z = F.sum(F.broadcast_mul(style, F.expand_dims(params["cfc"], axis=0)), axis=2)
        z = self.bn(F.reshape(z, shape=(0, 0, 1, 1)))
        return F.reshape(F.sigmoid(z), shape=(0, 0, 1))


class ConvolutionalGate(SqueezeExcitation):
    """CBAM: ``a = sigmoid(f(g) + f(max))`` for channels, then a 7x7 convolution for pixels.

    Differs from the authors': the normalisation of the pixels' gate has the momentum of all others.
    """

    def __init__(self, channels: int, hidden: int, **norms: Any) -> None:
        super().__init__(channels, hidden)
        self.channels = channels
        with self.name_scope():
            self.spatial = nn.Conv2D(1, 7, padding=3, use_bias=False, in_channels=2)
            self.bn = norm(1, **norms)

    def _gate(self, F: Any, x: Any, **params: Any) -> Any:
        peak = F.Pooling(x, kernel=(1, 1), global_pool=True, pool_type="max")
        logits = self.excite(F, global_mean(F, x)) + self.excite(F, peak)
        return F.expand_dims(F.sigmoid(logits), axis=2)

    def hybrid_forward(self, F: Any, x: Any, **params: Any) -> Any:
        x = super().hybrid_forward(F, x, **params)

        # Pooling and products again where reductions and broadcasting are slow.
        flat = F.reshape(x, shape=(0, 0, -1))
        ones = F.ones_like(F.slice_axis(F.BlockGrad(flat), axis=2, begin=0, end=1))  # (N, C, 1)
        mean = F.batch_dot(ones, flat, transpose_a=True) / self.channels  # (N, 1, H * W)
        peak = F.Pooling(F.expand_dims(flat, axis=1), kernel=(self.channels, 1), pool_type="max")
        both = F.concat(F.reshape(peak, shape=(0, 0, -1)), mean, dim=1)
        both = F.reshape_like(both, F.BlockGrad(x), lhs_begin=2, lhs_end=3, rhs_begin=2, rhs_end=4)
        pixels = F.sigmoid(self.bn(self.spatial(both)))  # (N, 1, H, W)
        spread = F.batch_dot(ones, F.reshape(pixels, shape=(0, 0, -1)))
        return x * F.reshape_like(spread, F.BlockGrad(x))


class SharedLSTM(nn.HybridBlock):
    """DIA: one LSTM for all units of a stage; its output h is the gate of the unit it is at.

    ``i, f, g, o = W_x(mean) + W_h(h)``, each W two dense layers with ReLU in between and `hidden`
    numbers there; ``c = sigmoid(f) c + sigmoid(i) tanh(g)``, ``h = sigmoid(o) sigmoid(c)``.

    Inputs
        - **x**: (N, C, H, W) float32.
        - **h**, **c**: (N, C) from the unit before; none at the first.

    Outputs
        - (N, C, H, W), and h and c for the next unit.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        with self.name_scope():
            self.x1, self.x2 = dense(hidden, channels), dense(4 * channels, hidden)
            self.h1, self.h2 = dense(hidden, channels), dense(4 * channels, hidden)

    def hybrid_forward(self, F: Any, x: Any, h: Any = None, c: Any = None) -> tuple[Any, Any, Any]:
        x = F.reshape(x, shape=(0, 0, 0, 0))
        mean = F.reshape(global_mean(F, x), shape=(0, 0))
        if h is None:
            h = c = F.zeros_like(mean)
        logits = self.x2(F.Activation(self.x1(mean), act_type="relu"))
        logits = logits + self.h2(F.Activation(self.h1(h), act_type="relu"))
        i, f, g, o = F.split(logits, num_outputs=4, axis=1)
        c = F.sigmoid(f) * c + F.sigmoid(i) * F.tanh(g)
        h = F.identity(F.sigmoid(o) * F.sigmoid(c), name=GATE)
        return scale(F, x, F.expand_dims(h, axis=2)), h, c
