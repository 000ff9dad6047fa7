"""The recurrent attention model: a policy moves a small retina over an image, step by step.

Source: Mnih et al. 2014, "Recurrent Models of Visual Attention", arXiv 1406.6247, section 3; layer
sizes and attribute names of kevinzakka/recurrent-visual-attention (MIT), whose weights load.

    glimpse    g_t = relu(fc3 relu(fc1 patches(x, l_t)) + fc4 relu(fc2 l_t))
    core       h_t = relu(i2h g_t + h2h h_{t-1}), or an LSTM
    location   mean of l_{t+1} = tanh(fc_lt relu(fc h_t)) or tanh(fc h_t)
    baseline   b_t = fc h_t, without gradient into the core
    action     logits_t = fc h_t

Differs from the seed: all images and rollouts at once; noise is an input, so that a forward pass is
a function of its inputs; the location after the last glimpse, at which nobody looks, is not made.

Trainable parameters, 10 classes (pinned in ``tests/test_recurrent_attention.py``):

    glimpse_mnist_209677    209,677    one layer from the core to the location (seed, 2018)
    glimpse_mnist           242,317    two layers
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import mxnet as mx
from mxnet.gluon import nn

from model.glimpse import Retina

CORES = ("rnn", "lstm")
FIRST_LOCATIONS = ("given", "learned", "context")
SQUASHES = ("clamp", "tanh")
CONTEXT_SIZE = 12  # edge of the thumbnail that the context network sees


@dataclass(frozen=True)
class GlimpseSpec:
    """What makes a recurrent attention model.

    Parameters
    ----------
    height, width, channels, patch_size, num_patches, glimpse_scale, pad_value
        See `Retina`.
    num_glimpses
        Looks per image, T.
    glimpse_hidden, loc_hidden
        Widths of relu(fc1 ...) and relu(fc2 ...); their sum is the width of g_t.
    hidden_size
        Width of the core.
    core
        ``rnn`` (ReLU) or ``lstm``.
    locator_hidden
        Width of the hidden layer of the location network; 0: none.
    squash
        What keeps a noisy location inside of the image: ``clamp`` or ``tanh``.
    first_location
        ``given`` (an input), ``learned`` (a parameter) or ``context`` (from a thumbnail of the
        image, as in DRAM, Ba et al. 2015, arXiv 1412.7755, section 2.4).
    reinforce_to_core
        Let the policy's gradient into the core.
    """

    height: int = 28
    width: int = 28
    channels: int = 1
    patch_size: int = 8
    num_patches: int = 1
    glimpse_scale: float = 1.0
    pad_value: float = 0.0
    num_glimpses: int = 6
    glimpse_hidden: int = 128
    loc_hidden: int = 128
    hidden_size: int = 256
    core: str = "rnn"
    locator_hidden: int = 128
    squash: str = "clamp"
    first_location: str = "given"
    reinforce_to_core: bool = True
    classes: int = 10

    def __post_init__(self) -> None:
        for what, given, known in (
            ("core", self.core, CORES),
            ("squash", self.squash, SQUASHES),
            ("first_location", self.first_location, FIRST_LOCATIONS),
        ):
            if given not in known:
                raise ValueError(f"unknown {what} {given!r}; available: {', '.join(known)}")
        for name in ("num_glimpses", "glimpse_hidden", "loc_hidden", "hidden_size", "classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.locator_hidden < 0:
            raise ValueError(f"locator_hidden must be 0 or more, got {self.locator_hidden}")
        self.retina()

    def retina(self) -> Retina:
        """Return the retina; ValueError when it is impossible."""
        return Retina(
            self.height,
            self.width,
            self.channels,
            self.patch_size,
            self.num_patches,
            self.glimpse_scale,
            self.pad_value,
        )

    @property
    def policy_steps(self) -> slice:
        """Glimpses whose location the network chooses."""
        return slice(1 if self.first_location == "given" else 0, None)


class Rollouts(NamedTuple):
    """What B images with R rollouts of T glimpses each give.

    ``logits`` (B, R, T, classes) and ``baselines`` (B, R, T) after each glimpse. ``means`` and
    ``samples`` (B, R, T, 2) are what the policy gave for each glimpse's location, before and after
    the noise; ``locations`` (B, R, T, 2) are the samples inside of [-1, 1]: where it looked.
    A given first location is all three.
    """

    logits: Any
    baselines: Any
    means: Any
    samples: Any
    locations: Any


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
        width = spec.glimpse_hidden + spec.loc_hidden
        with self.name_scope():
            self.fc1 = dense(spec.glimpse_hidden, values)
            self.fc2 = dense(spec.loc_hidden, 2)
            self.fc3 = dense(width, spec.glimpse_hidden)
            self.fc4 = dense(width, spec.loc_hidden)

    def hybrid_forward(self, F: Any, patches: Any, location: Any) -> Any:
        what = self.fc3(F.Activation(self.fc1(patches), act_type="relu"))
        where = self.fc4(F.Activation(self.fc2(location), act_type="relu"))
        return F.Activation(what + where, act_type="relu")


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


class RecurrentAttention(nn.HybridBlock):
    """T glimpses of each image as one graph; see the module's first lines.

    Inputs
        - **image**: (B, C, H, W) float32, as in training (background `pad_value`).
        - **first_location**: (B, R, 2), (x, y) in [-1, 1], for R rollouts of each image. Read for
          its shape alone when the spec's first location is learned or from the context.
        - **noise**: (B, R, T, 2), added to the mean of each location: standard deviation times
          normal noise to sample, zeros for mean locations. That of a given location is not used.

    Outputs
        - the five fields of `Rollouts`, as a tuple.
    """

    def __init__(self, spec: GlimpseSpec, classes: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec, self.retina = spec, spec.retina()
        core = Core if spec.core == "rnn" else LSTMCore
        with self.name_scope():
            self.sensor = Sensor(self.retina.values, spec)
            self.rnn = core(spec.hidden_size, spec.glimpse_hidden + spec.loc_hidden)
            self.locator = Locator(spec.hidden_size, spec.locator_hidden)
            self.baseliner = Head(1, spec.hidden_size)
            self.classifier = Head(classes, spec.hidden_size)
            if spec.first_location == "learned":
                self.first_mean = self.params.get("first_mean", shape=(1, 2), init="zeros")
            elif spec.first_location == "context":
                self.context = Locator(spec.channels * CONTEXT_SIZE**2, spec.loc_hidden)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the images."""
        return self.spec.channels, self.spec.height, self.spec.width

    def hybrid_forward(
        self, F: Any, image: Any, first_location: Any, noise: Any, **params: Any
    ) -> tuple[Any, ...]:
        spec, retina = self.spec, self.retina
        pyramid = retina.pyramid(F, image)
        first = F.reshape(first_location, shape=(-3, 0))  # (M, 2), M = B * R
        index = _image_index(F, image, first_location)  # (M,)
        steps = F.split(
            F.reshape(noise, shape=(-3, 0, 0)),
            num_outputs=spec.num_glimpses,
            axis=1,
            squeeze_axis=True,
        )
        steps = [steps] if spec.num_glimpses == 1 else steps  # each (M, 2)
        state_size = spec.hidden_size * (2 if spec.core == "lstm" else 1)
        state = F.dot(F.zeros_like(first), F.zeros((2, state_size)))  # (M, state)
        mean, sample = self._first(F, image, first, index, steps[0], params)
        hiddens, means, samples, locations = [], [], [], []
        for step in range(spec.num_glimpses):
            if step:
                source = hiddens[-1] if spec.reinforce_to_core else F.BlockGrad(hiddens[-1])
                mean = self.locator(source)
                # Without BlockGrad the noise would cancel and the policy have no gradient at all.
                sample = F.BlockGrad(mean + steps[step])
            squashed = F.tanh(sample) if spec.squash == "tanh" else F.clip(sample, -1, 1)
            location = squashed if step or spec.first_location != "given" else first
            means.append(mean)
            samples.append(sample)
            locations.append(location)
            patches = retina.glimpses(F, pyramid, index, location)
            hidden, state = self.rnn(self.sensor(patches, location), state)
            hiddens.append(hidden)
        hidden = F.stack(*hiddens, axis=1)  # (M, T, hidden)
        baseline = F.reshape(self.baseliner(F.BlockGrad(hidden)), shape=(0, 0))
        results = [self.classifier(hidden), baseline]
        results += [F.stack(*parts, axis=1) for parts in (means, samples, locations)]
        return tuple(_by_image(F, result, first_location) for result in results)

    def _first(
        self, F: Any, image: Any, first: Any, index: Any, noise: Any, params: dict[str, Any]
    ) -> tuple[Any, Any]:
        """Return mean and sample (M, 2) of the first location."""
        if self.spec.first_location == "given":
            return first, first
        if self.spec.first_location == "learned":
            mean = F.broadcast_add(F.tanh(params["first_mean"]), F.zeros_like(first))
        else:
            small = F.contrib.AdaptiveAvgPooling2D(image, output_size=CONTEXT_SIZE)
            mean = F.take(self.context(F.Flatten(small)), index)
        return mean, F.BlockGrad(mean + noise)


@mx.init.register
class Identity(mx.init.Initializer):
    """Ones on the diagonal, zeros elsewhere."""

    def _init_weight(self, _: str, array: Any) -> None:
        array[:] = mx.nd.eye(*array.shape)


def _image_index(F: Any, image: Any, first_location: Any) -> Any:
    """Return the image of each rollout, int32 (B * R,): 0 R times, 1 R times, ..."""
    number = F.reshape(F.contrib.arange_like(image, axis=0), shape=(-1, 1))  # (B, 1)
    rollout = F.slice_axis(F.zeros_like(first_location), axis=2, begin=0, end=1)  # (B, R, 1)
    number = F.broadcast_add(number, F.reshape(rollout, shape=(0, -1)))
    return F.cast(F.reshape(number, shape=(-1,)), dtype="int32")


def _by_image(F: Any, result: Any, first_location: Any) -> Any:
    """Return (B * R, ...) as (B, R, ...)."""
    return F.reshape_like(
        result, F.BlockGrad(first_location), lhs_begin=0, lhs_end=1, rhs_begin=0, rhs_end=2
    )


CLUTTERED = {"height": 60, "width": 60, "patch_size": 12, "num_patches": 3, "glimpse_scale": 2.0}

SPECS: dict[str, GlimpseSpec] = {
    "glimpse_mnist": GlimpseSpec(),
    "glimpse_mnist_209677": GlimpseSpec(locator_hidden=0, squash="tanh", reinforce_to_core=False),
    "glimpse_translated": GlimpseSpec(**CLUTTERED),  # type: ignore[arg-type]
    "glimpse_cluttered": GlimpseSpec(**CLUTTERED, core="lstm"),  # type: ignore[arg-type]
}

FAMILY = {name: (spec, RecurrentAttention) for name, spec in SPECS.items()}
