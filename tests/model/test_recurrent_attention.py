"""The recurrent attention model, against the paper's formulas written down in NumPy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest

from model import ModelError, create_model
from model.recurrent_attention import Rollouts
from model.registry import spec_of
from tests.model.counts import parameter_count

SMALL = {
    "height": 14,
    "width": 11,
    "channels": 2,
    "patch_size": 3,
    "num_patches": 2,
    "glimpse_scale": 2,
    "pad_value": 0.3,
    "num_glimpses": 3,
    "glimpse_hidden": 7,
    "loc_hidden": 5,
    "hidden_size": 9,
    "locator_hidden": 6,
}
SEED_NAMES = [  # of kevinzakka/recurrent-visual-attention, 2018; since 2019 also the second list
    *(f"sensor.fc{i}.{kind}" for i in (1, 2, 3, 4) for kind in ("weight", "bias")),
    *(f"rnn.{name}.{kind}" for name in ("i2h", "h2h") for kind in ("weight", "bias")),
    *("locator.fc.weight", "locator.fc.bias"),
    *("classifier.fc.weight", "classifier.fc.bias", "baseliner.fc.weight", "baseliner.fc.bias"),
]
SEED_NAMES_2019 = [*SEED_NAMES, "locator.fc_lt.weight", "locator.fc_lt.bias"]


def build(name: str = "glimpse_mnist", classes: int = 4, **overrides: Any) -> Any:
    net = create_model(name, classes, **{**SMALL, **overrides})
    # Larger than the initial values, so that the locations move and saturate.
    net.initialize(mx.init.Normal(0.5))
    for parameter in net.collect_params().values():
        parameter.set_data(mx.nd.random.normal(0, 0.5, parameter.shape))
    return net


def inputs_for(net: Any, images: int = 4, rollouts: int = 3, std: float = 0.3) -> list[np.ndarray]:
    rng = np.random.default_rng(images)
    first = rng.uniform(-1, 1, (images, rollouts, 2))
    corners = [(-1, -1), (1, 1), (-1, 1), (1, -1)]
    first[:, 0] = corners[:images]
    noise = std * rng.standard_normal((images, rollouts, net.spec.num_glimpses, 2))
    arrays = rng.uniform(-0.5, 1.5, (images, *net.image_shape)), first, noise
    return [array.astype(np.float32) for array in arrays]


def run(net: Any, *arrays: np.ndarray) -> Rollouts:
    return Rollouts(*(out.asnumpy() for out in net(*map(mx.nd.array, arrays))))


def same(a: Rollouts, b: Rollouts, tolerance: float = 0) -> None:
    for name, one, other in zip(Rollouts._fields, a, b):
        assert one.shape == other.shape, name
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance, err_msg=name)


# ------------------------------------------------------------------------------ the NumPy reference


def sigmoid(x: np.ndarray) -> np.ndarray:
    y: np.ndarray = 1 / (1 + np.exp(-x))
    return y


class Reference:
    """One rollout of one image at a time, in float64."""

    def __init__(self, net: Any) -> None:
        self.spec = net.spec
        self.p = {
            name: parameter.data().asnumpy().astype(np.float64)
            for name, parameter in net._collect_params_with_prefix().items()
        }

    def linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.p[f"{name}.weight"] @ x + self.p[f"{name}.bias"]

    def patches(self, image: np.ndarray, location: np.ndarray) -> np.ndarray:
        spec, seen = self.spec, []
        half = np.float32(0.5) * (np.clip(location, -1, 1).astype(np.float32) + np.float32(1))
        column, row = int(half[0] * np.float32(spec.width)), int(half[1] * np.float32(spec.height))
        for i in range(spec.num_patches):
            window = int(spec.glimpse_scale**i)
            size = spec.patch_size * window
            border = [(0, 0), (size, size), (size, size)]
            padded = np.pad(image, border, constant_values=spec.pad_value)
            top, left = row + size - size // 2, column + size - size // 2
            patch = padded[:, top : top + size, left : left + size]
            shape = (-1, spec.patch_size, window, spec.patch_size, window)
            seen.append(patch.reshape(shape).mean(axis=(2, 4)).ravel())
        return np.concatenate(seen)

    def glimpse(self, image: np.ndarray, location: np.ndarray) -> np.ndarray:
        features = [location]
        for k in range(self.spec.location_octaves):
            features += [np.sin(np.pi * 2**k * location), np.cos(np.pi * 2**k * location)]
        what = self.linear("sensor.fc1", self.patches(image, location)).clip(0)
        where = self.linear("sensor.fc2", np.concatenate(features)).clip(0)
        what, where = self.linear("sensor.fc3", what), self.linear("sensor.fc4", where)
        return (what * where if self.spec.combine == "multiply" else what + where).clip(0)

    def core(self, glimpse: np.ndarray, h: np.ndarray, c: np.ndarray) -> tuple[Any, Any]:
        total = self.linear("rnn.i2h", glimpse) + self.linear("rnn.h2h", h)
        if self.spec.core == "rnn":
            return total.clip(0), c
        enter, forget, output, candidate = np.split(total, 4)
        c = sigmoid(forget + 1) * c + sigmoid(enter) * np.tanh(candidate)
        return sigmoid(output) * np.tanh(c), c

    def locate(self, name: str, x: np.ndarray) -> np.ndarray:
        y = self.linear(f"{name}.fc", x)
        if f"{name}.fc_lt.weight" in self.p:
            y = self.linear(f"{name}.fc_lt", y.clip(0))
        return np.tanh(y)

    def first(self, image: np.ndarray, given: np.ndarray) -> np.ndarray:
        if self.spec.first_location == "given":
            return given
        if self.spec.first_location == "learned":
            return np.tanh(self.p["first_mean"][0])
        height, width = image.shape[1:]  # a thumbnail of 12x12 means of areas that may overlap
        rows, columns = (
            [slice(i * n // 12, -(-(i + 1) * n // 12)) for i in range(12)] for n in (height, width)
        )
        small = [[image[:, r, c].mean(axis=(1, 2)) for c in columns] for r in rows]
        return self.locate("context", np.array(small).transpose(2, 0, 1).ravel())

    def rollout(self, image: np.ndarray, first: np.ndarray, noise: np.ndarray) -> list[np.ndarray]:
        spec, rows = self.spec, []
        h = c = np.zeros(spec.hidden_size)
        for step in range(spec.num_glimpses):
            mean = self.locate("locator", h) if step else self.first(image, first)
            given = step == 0 and spec.first_location == "given"
            if spec.gaze == "noise" and not given:
                mean = 0 * mean
            sample = mean if given else mean + noise[step]
            location = sample
            if not given:
                tanh = spec.squash == "tanh" and spec.gaze == "policy"
                location = np.tanh(sample) if tanh else sample.clip(-1, 1)
            h, c = self.core(self.glimpse(image, location), h, c)
            logits, baselines = self.linear("classifier.fc", h), self.linear("baseliner.fc", h)
            baseline = baselines[step if spec.baseline_per_glimpse else 0]
            rows.append((logits, baseline, mean, sample, location))
        return [np.array(column) for column in zip(*rows)]

    def __call__(self, image: np.ndarray, first: np.ndarray, noise: np.ndarray) -> Rollouts:
        outputs = [
            [self.rollout(x, *pair) for pair in zip(*many)]
            for x, *many in zip(image.astype(np.float64), first, noise)
        ]
        return Rollouts(*(np.array([[r[i] for r in row] for row in outputs]) for i in range(5)))


VARIANTS: list[dict[str, Any]] = [
    {},
    {"core": "lstm", "channels": 1},
    {"locator_hidden": 0, "squash": "tanh", "num_patches": 1},
    {"location_octaves": 2, "combine": "multiply", "channels": 3},
    {"first_location": "learned"},
    {"first_location": "learned", "squash": "tanh", "num_glimpses": 1},
    {"first_location": "context", "height": 30, "width": 25},
    {"first_location": "context", "core": "lstm"},  # smaller than its thumbnail
    {"reinforce_to_core": False, "num_glimpses": 2},
    {"num_glimpses": 1},
    {"baseline_per_glimpse": True},
    {"baseline_per_glimpse": True, "num_glimpses": 1},
    {"gaze": "noise", "squash": "tanh"},
    {"gaze": "noise", "first_location": "learned"},
    {"gaze": "noise", "first_location": "context"},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_formulas(variant: dict[str, Any]) -> None:
    net = build(**variant)
    arrays = inputs_for(net)
    eager = run(net, *arrays)
    same(eager, Reference(net)(*arrays), 2e-5)
    assert np.abs(np.diff(eager.locations, axis=2)).sum() > 0 or net.spec.num_glimpses == 1
    net.hybridize(static_alloc=True, static_shape=True)
    same(run(net, *arrays), eager, 1e-6)
    fewer = [array[1:3] for array in arrays]  # another batch size in the same graph
    same(run(net, *fewer), Rollouts(*(out[1:3] for out in eager)), 1e-6)
    same(run(net, *arrays), eager, 1e-6)


def test_rollouts_do_not_know_of_each_other() -> None:
    net = build(core="lstm")
    image, first, noise = inputs_for(net)
    together = run(net, image, first, noise)
    for index in range(3):
        one = slice(index, index + 1)
        alone = run(net, image, first[:, one], noise[:, one])
        same(alone, Rollouts(*(out[:, one] for out in together)), 1e-6)
    order = [2, 0, 3, 1]
    mixed = run(net, image[order], first[order], noise[order])
    same(mixed, Rollouts(*(out[order] for out in together)), 1e-6)


def test_a_forward_pass_is_a_function_of_its_inputs() -> None:
    net = build(first_location="learned")
    net.hybridize(static_alloc=True, static_shape=True)
    image, first, noise = inputs_for(net)
    one = run(net, image, first, noise)
    with mx.autograd.record():  # training or not, and whatever was drawn in between
        mx.nd.random.normal(shape=3)
        two = run(net, image, first, noise)
    same(one, two)
    same(one, run(net, image, 0 * first, noise))  # read for its shape alone
    other = run(net, image, first, noise[:, ::-1])
    assert not np.array_equal(one.locations, other.locations)


def test_the_noise_of_a_given_location_is_not_used() -> None:
    net = build()
    image, first, noise = inputs_for(net)
    one = run(net, image, first, noise)
    noise[:, :, 0] = 9
    same(one, run(net, image, first, noise))
    for array in (one.means, one.samples, one.locations):
        assert np.array_equal(array[:, :, 0], first)


def test_what_patches_shows_is_what_the_sensor_saw() -> None:
    net = build()
    image, first, noise = inputs_for(net)
    locations = run(net, image, first, noise).locations
    seen = net.patches(mx.nd.array(image), mx.nd.array(locations)).asnumpy()
    assert seen.shape == (4, 3, 3, 2, 2, 3, 3)
    reference = Reference(net)
    expected = [
        [[reference.patches(x, at) for at in row] for row in y] for x, y in zip(image, locations)
    ]
    np.testing.assert_allclose(seen.reshape(4, 3, 3, -1), expected, rtol=1e-6, atol=1e-6)


# --------------------------------------------------------------------------------- layers and names


@pytest.mark.parametrize(
    ("name", "overrides", "count"),
    [
        ("glimpse_mnist_209677", {}, 209_677),
        ("glimpse_mnist_242317", {}, 242_317),
        ("glimpse_mnist_209677", {"patch_size": 12, "num_patches": 3, "glimpse_scale": 2}, 256_781),
        ("glimpse_mnist_242317", {"patch_size": 12, "num_patches": 3, "glimpse_scale": 2}, 289_421),
        ("glimpse_mnist", {}, 696_589),
        ("glimpse_translated", {}, 461_837),
        ("glimpse_cluttered", {}, 792_845),
        ("glimpse_cluttered8", {}, 792_845),  # glimpses are free
        ("glimpse_cluttered8", {"baseline_per_glimpse": True}, 792_845 + 7 * 513),
        ("glimpse_cluttered100", {}, 792_845 + 144 * 256),  # one scale more
    ],
)
def test_parameter_counts(name: str, overrides: dict[str, Any], count: int) -> None:
    assert parameter_count(create_model(name, **overrides))[0] == count


def test_the_names_are_those_of_the_seed() -> None:
    for name, expected in (
        ("glimpse_mnist_209677", SEED_NAMES),
        *((name, SEED_NAMES_2019) for name in ("glimpse_mnist_242317", "glimpse_mnist")),
        ("glimpse_translated", SEED_NAMES_2019),
    ):
        assert sorted(create_model(name)._collect_params_with_prefix()) == sorted(expected)


def test_initial_values() -> None:
    """As in the seed: U(-a, a), a = 1 / sqrt(inputs); the recurrent weights are the identity."""
    net = create_model("glimpse_mnist_209677")
    net.initialize()
    values = {k: v.data().asnumpy() for k, v in net._collect_params_with_prefix().items()}
    assert np.array_equal(values.pop("rnn.h2h.weight"), np.eye(256))
    assert not values.pop("rnn.h2h.bias").any()
    for name in [name for name in values if name.endswith("weight")]:
        bound = values[name].shape[1] ** -0.5
        assert 0.9 * bound < np.abs(values[name]).max() <= bound, name
        bias = np.abs(values[name.replace("weight", "bias")]).max()
        assert 0.1 * bound < bias <= bound, name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"core": "gru"}, "unknown core 'gru'; available: rnn, lstm"),
        ({"first_location": "random"}, "available: given, learned, context"),
        ({"squash": "relu"}, "available: clamp, tanh"),
        ({"gaze": "away"}, "available: policy, noise"),
        ({"combine": "concat"}, "available: add, multiply"),
        ({"num_glimpses": 0}, "num_glimpses must be 1 or more, got 0"),
        ({"hidden_size": 0}, "hidden_size must be 1 or more"),
        ({"locator_hidden": -1}, "locator_hidden must be 0 or more, got -1"),
        ({"patch_size": 0}, "patch_size must be 1 or more, got 0"),
        ({"num_patches": 3, "glimpse_scale": 1.5}, "cannot be averaged"),
        ({"patchsize": 8}, "did you mean 'patch_size'"),
    ],
)
def test_impossible_networks_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)):
        create_model("glimpse_mnist", **overrides)


def test_the_seeds_squash_and_padding() -> None:
    old, new = spec_of("glimpse_mnist_209677"), spec_of("glimpse_mnist_242317")
    assert (old.squash, old.pad_value, old.reinforce_to_core) == ("tanh", 0.1307, False)
    assert (new.squash, new.pad_value, new.reinforce_to_core) == ("clamp", 0.1307, False)


# ------------------------------------------------------------------------------------------- export


# SymbolBlock asks for types before it knows the input's; float32 is right.
@pytest.mark.filterwarnings("ignore:Cannot decide type:UserWarning")
@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"core": "lstm", "location_octaves": 1},
        {"first_location": "context"},
        {"num_glimpses": 1},
    ],
    ids=str,
)
def test_the_exported_graph_computes_the_same(tmp_path: Path, variant: dict[str, Any]) -> None:
    """Also for another batch size and number of rollouts, and at all corners and borders."""
    net = build(**variant)
    arrays = inputs_for(net)
    net.hybridize()
    net(*map(mx.nd.array, arrays))
    net.export(str(tmp_path / "net"))
    names = ["data0", "data1", "data2"]
    files = (str(tmp_path / "net-symbol.json"), names, str(tmp_path / "net-0000.params"))
    block = mx.gluon.SymbolBlock.imports(*files)
    same(run(block, *arrays), run(net, *arrays), 1e-6)
    border = np.array([(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)], np.float32)
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 1, (2, *net.image_shape)).astype(np.float32)
    first = np.stack([border, border[::-1]])
    noise = np.repeat(
        first[:, :, None] * 3, net.spec.num_glimpses, axis=2
    )  # every sample is clamped to a border
    same(run(block, image, first, noise), run(net, image, first, noise), 1e-6)
    same(run(block, image, first, noise), Reference(net)(image, first, noise), 2e-5)
