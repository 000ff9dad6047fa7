"""The recurrent attention model: a policy moves a small retina over an image, step by step.

Source: Mnih et al. 2014, "Recurrent Models of Visual Attention", arXiv 1406.6247, section 3; layer
sizes and attribute names of kevinzakka/recurrent-visual-attention (MIT), whose weights load.

    glimpse    g_t = relu(fc3 relu(fc1 patches(x, l_t)) + fc4 relu(fc2 l_t))
    core       h_t = relu(i2h g_t + h2h h_{t-1}), or an LSTM
    location   mean of l_{t+1} = tanh(fc_lt relu(fc h_t)) or tanh(fc h_t)
    baseline   b_t = fc h_t, without gradient into the core; one for all glimpses, or for each
    action     logits_t = fc h_t

Differs from the seed: all images and rollouts at once; noise is an input, so that a forward pass is
a function of its inputs; the location after the last glimpse, at which nobody looks, is not made.

Trainable parameters, 10 classes (pinned in ``tests/model/test_recurrent_attention.py``):

    glimpse_mnist_209677    209,677    one layer from the core to the location (seed, 2018)
    glimpse_mnist_242317    242,317    two layers (seed, 2019)
    glimpse_mnist           696,589    wider
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mxnet as mx
from mxnet.gluon import nn

from machine.processor import Unavailable
from model.layers.glimpse_layers import Core, Head, Locator, LSTMCore, Sensor
from model.layers.glimpse_spec import SPECS, GlimpseSpec
from model.native.build import GLIMPSE, load

CONTEXT_SIZE = 12  # edge of the thumbnail that the context network sees


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
        self.spec, self.retina, self._native = spec, spec.retina(), False
        core = Core if spec.core == "rnn" else LSTMCore
        with self.name_scope():
            self.sensor = Sensor(self.retina.values, spec)
            self.rnn = core(spec.hidden_size, spec.glimpse_hidden + spec.loc_hidden)
            self.locator = Locator(spec.hidden_size, spec.locator_hidden)
            baselines = spec.num_glimpses if spec.baseline_per_glimpse else 1
            self.baseliner = Head(baselines, spec.hidden_size)
            self.classifier = Head(classes, spec.hidden_size)
            if spec.first_location == "learned":
                self.first_mean = self.params.get("first_mean", shape=(1, 2), init="zeros")
            elif spec.first_location == "context":
                self.context = Locator(spec.channels * CONTEXT_SIZE**2, spec.loc_hidden)

    def use_operator(self, wanted: bool = True) -> bool:
        """Compute with the operator in C++, or with the graph; return whether it is the operator.

        The results are equal up to rounding, and so are the gradients. The graph stays in use where
        the operator cannot be built (`model.native.build`) or does not know the spec, and it is
        what has to be in use for an export. The parameters must be on CPUs. A hybridized block
        around this one that has run already keeps the form that it was traced with.
        """
        spec = self.spec
        known = spec.core == "rnn" and spec.first_location == "given" and spec.gaze == "policy"
        self._native = wanted and known
        if self._native:
            try:
                load(GLIMPSE)
            except Unavailable:
                self._native = False
        self._clear_cached_op()
        return self._native

    @property
    def uses_operator(self) -> bool:
        """Whether the operator in C++ computes."""
        return self._native

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the images."""
        return self.spec.channels, self.spec.height, self.spec.width

    def patches(self, image: mx.nd.NDArray, locations: mx.nd.NDArray) -> mx.nd.NDArray:
        """Return what the network sees at locations (B, R, T, 2) of images (B, C, H, W).

        The result is (B, R, T, K, C, G, G): K scales, G pixels on each side.
        """
        spec = self.spec
        with image.context:  # where numbers are counted that no argument brings along
            index = _image_index(mx.nd, image, locations[:, :, :, 0])
            seen = self.retina.glimpses(
                mx.nd, self.retina.pyramid(mx.nd, image), index, locations.reshape((-1, 2))
            )
        size = spec.patch_size
        return seen.reshape((*locations.shape[:3], spec.num_patches, spec.channels, size, size))

    def forward(self, image: Any, *others: Any) -> Any:
        """Return the outputs; see the class.

        Raises
        ------
        ValueError
            For arrays whose shapes the network is not made for; MXNet reads past their ends.
        """
        if isinstance(image, mx.nd.NDArray):
            self._check(image, *others)
        return super().forward(image, *others)

    def _check(self, image: Any, first_location: Any, noise: Any) -> None:
        batch, rollouts = image.shape[0], (*first_location.shape, 0, 0)[1]
        wanted = {
            "image": (image.shape, (batch, *self.image_shape)),
            "first_location": (first_location.shape, (batch, rollouts, 2)),
            "noise": (noise.shape, (batch, rollouts, self.spec.num_glimpses, 2)),
        }
        for name, (shape, needed) in wanted.items():
            if shape != needed:
                raise ValueError(f"{name} has shape {shape}, this network needs {needed}")

    def hybrid_forward(
        self, F: Any, image: Any, first_location: Any, noise: Any, **params: Any
    ) -> tuple[Any, ...]:
        walk = self._operator if self._native else self._graph
        hidden, means, samples, locations = walk(F, image, first_location, noise, params)
        baseline = self.baseliner(F.BlockGrad(hidden))  # (M, T, 1), or (M, T, T)
        if self.spec.baseline_per_glimpse:
            baseline = F.concat(*_diagonal(F, baseline, self.spec.num_glimpses), dim=1)
        baseline = F.reshape(baseline, shape=(0, 0))
        if self.spec.num_glimpses == 1 and not self._native:
            # Gluon wants inputs and parameters in use, and gradients of all.
            state = F.reshape(F.BlockGrad(hidden), shape=(-3, 0))
            unused = 0 * self.locator(state) + F.reshape(F.zeros_like(noise), shape=(-1, 2))
            baseline = baseline + F.sum(unused, axis=1, keepdims=True)
        results = self.classifier(hidden), baseline, means, samples, locations
        return tuple(_by_image(F, result, first_location) for result in results)

    def _graph(
        self, F: Any, image: Any, first_location: Any, noise: Any, params: dict[str, Any]
    ) -> tuple[Any, ...]:
        """Return states (M, T, hidden), and means, samples and locations (M, T, 2), M = B * R."""
        spec, retina = self.spec, self.retina
        pyramid = retina.pyramid(F, image)
        first = F.reshape(first_location, shape=(-3, 0))  # (M, 2), M = B * R
        index = _image_index(F, image, F.slice_axis(first_location, axis=2, begin=0, end=1))  # (M,)
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
        lookup = retina.lookup(F, index)
        hiddens: list[Any] = []
        means: list[Any] = []
        samples: list[Any] = []
        locations: list[Any] = []
        for step in range(spec.num_glimpses):
            if step:
                source = hiddens[-1] if spec.reinforce_to_core else F.BlockGrad(hiddens[-1])
                mean = self.locator(source)
                if spec.gaze == "noise":
                    mean = F.zeros_like(mean)
                # Without BlockGrad the noise would cancel and the policy have no gradient at all.
                sample = F.BlockGrad(mean) + steps[step]
            tanh = spec.squash == "tanh" and spec.gaze == "policy"
            squashed = F.tanh(sample) if tanh else F.clip(sample, -1, 1)
            location = squashed if step or spec.first_location != "given" else first
            means.append(mean)
            samples.append(sample)
            locations.append(location)
            patches = retina.glimpses(F, pyramid, index, location, lookup)
            hidden, state = self.rnn(self.sensor(patches, location), state)
            hiddens.append(hidden)
        return tuple(F.stack(*parts, axis=1) for parts in (hiddens, means, samples, locations))

    def _operator(
        self, F: Any, image: Any, first_location: Any, noise: Any, _: dict[str, Any]
    ) -> tuple[Any, ...]:
        """Return the same as `_graph`, by the operator of ``native/glimpse/rollouts.cc``."""
        spec = self.spec

        def value(parameter: Any) -> Any:
            # The operator writes gradients where grad_req "add" asks to add them; a copy adds.
            return F.identity(parameter.var() if F is mx.sym else parameter.data(image.context))

        layers = [getattr(self.sensor, f"fc{number}") for number in (1, 2, 3, 4)]
        layers += [self.rnn.i2h, self.rnn.h2h, self.locator.fc, self.locator.fc_lt]
        weights = [value(p) for layer in filter(None, layers) for p in (layer.weight, layer.bias)]
        outputs = F.glimpse_rollouts(
            *map(F.BlockGrad, (image, first_location, noise)),
            *weights,
            num_glimpses=spec.num_glimpses,
            patch_size=spec.patch_size,
            windows="x".join(str(size // spec.patch_size) for size in self.retina.sizes),
            pad_value=spec.pad_value,
            octaves=spec.location_octaves,
            multiply=int(spec.combine == "multiply"),
            tanh=int(spec.squash == "tanh"),
            two_layers=int(bool(spec.locator_hidden)),
            reinforce_to_core=int(spec.reinforce_to_core),
        )
        hidden, means, samples, locations = outputs
        # The operator gives gradients for the states and the means alone.
        return hidden, means, F.BlockGrad(samples), F.BlockGrad(locations)

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
        if self.spec.gaze == "noise":
            mean = F.zeros_like(mean)
        return mean, F.BlockGrad(mean) + noise


def _diagonal(F: Any, square: Any, size: int) -> list[Any]:
    """Return the elements (M, 1, 1) of the diagonals of (M, size, size)."""
    rows = [F.slice_axis(square, axis=1, begin=t, end=t + 1) for t in range(size)]
    return [F.slice_axis(row, axis=2, begin=t, end=t + 1) for t, row in enumerate(rows)]


def _image_index(F: Any, image: Any, places: Any) -> Any:
    """Return the image of each place (B, R, n), int32 (B * R * n,): 0, 0, ..., 1, 1, ..."""
    number = F.reshape(F.contrib.arange_like(image, axis=0), shape=(-1, 1))  # (B, 1)
    number = F.broadcast_add(number, F.reshape(F.zeros_like(places), shape=(0, -1)))
    return F.cast(F.reshape(number, shape=(-1,)), dtype="int32")


def _by_image(F: Any, result: Any, first_location: Any) -> Any:
    """Return (B * R, ...) as (B, R, ...)."""
    return F.reshape_like(
        result, F.BlockGrad(first_location), lhs_begin=0, lhs_end=1, rhs_begin=0, rhs_end=2
    )


FAMILY = {name: (spec, RecurrentAttention) for name, spec in SPECS.items()}
