"""The hybrid loss: its value in NumPy, where its gradients go, and an exactly solvable policy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import mxnet as mx
import numpy as np
import pytest

from model import create_model
from model.hybrid_loss import POLICY_BASELINES, REWARDS, HybridLoss, LossWeights
from model.recurrent_attention import Rollouts
from training.glimpse import config

SMALL = {
    "height": 12,
    "width": 12,
    "patch_size": 4,
    "num_glimpses": 4,
    "glimpse_hidden": 6,
    "loc_hidden": 5,
    "hidden_size": 8,
    "locator_hidden": 5,
}
IMAGES, ROLLOUTS, CLASSES, STD = 5, 3, 4, 0.4
CE_ALONE = LossWeights(baseline=0, reinforce=0)


def build(**overrides: Any) -> Any:
    net = create_model("glimpse_mnist", overrides.pop("classes", CLASSES), **{**SMALL, **overrides})
    net.initialize()
    for parameter in net.collect_params().values():
        parameter.set_data(mx.nd.random.normal(0, 0.5, parameter.shape))
    return net


def inputs_for(net: Any, std: float = STD) -> list[mx.nd.NDArray]:
    rng = np.random.default_rng(7)
    arrays = (
        rng.uniform(0, 1, (IMAGES, *net.image_shape)),
        rng.uniform(-1, 1, (IMAGES, ROLLOUTS, 2)),
        std * rng.standard_normal((IMAGES, ROLLOUTS, net.spec.num_glimpses, 2)),
        np.array([std or 1]),
        np.arange(IMAGES) % CLASSES,
    )
    return [mx.nd.array(array) for array in arrays]


def gradients(net: Any, weights: LossWeights, inputs: list[mx.nd.NDArray]) -> dict[str, np.ndarray]:
    """Gradients of the summed losses by structural name."""
    loss = HybridLoss(net, weights)
    loss.hybridize(static_alloc=True, static_shape=True)
    with mx.autograd.record():
        value, _ = loss(*inputs)
    value.backward()
    parameters = net._collect_params_with_prefix()
    return {name: p.grad().asnumpy().astype(np.float64) for name, p in parameters.items()}


def parts(found: dict[str, np.ndarray]) -> set[str]:
    """Names of the network's parts with any gradient."""
    return {name.split(".")[0] for name, value in found.items() if np.abs(value).max() > 1e-7}


# ------------------------------------------------------------------------------------ loss in NumPy


def reward_of(logits: np.ndarray, label: int, kind: str) -> np.ndarray:
    """What each step of one rollout is credited with (T,)."""
    steps = len(logits)
    right = (logits.argmax(axis=1) == label).astype(float)
    likelihood = np.exp(logits[-1, label]) / np.exp(logits[-1]).sum()
    return {
        "last": np.full(steps, right[-1]),
        "every": np.array([right[t:].mean() for t in range(steps)]),
        "likelihood": np.full(steps, likelihood),
    }[kind]


def expected(
    rollouts: Rollouts, label: np.ndarray, std: float, weights: LossWeights, first: int
) -> tuple[np.ndarray, np.ndarray]:
    """Loss (B,) and terms (B, 6) in float64, image by image."""
    losses, rows = [], []
    for logits, baselines, means, samples, y in zip(*rollouts[:4], label):
        found = []
        credits = [reward_of(z, y, weights.reward) for z in logits]
        for rollout, (z, b, mean, sample) in enumerate(zip(logits, baselines, means, samples)):
            steps, reward = len(z), credits[rollout]
            entropy = np.log(np.exp(z).sum(axis=1)) - z[:, y]
            right = (z.argmax(axis=1) == y).astype(float)
            compared: Any = [b[max(t - 1, 0)] for t in range(steps)]
            if weights.policy_baseline == "rollouts":
                others = credits[:rollout] + credits[rollout + 1 :]
                compared = np.mean(others, axis=0) if others else np.zeros(steps)
            policy = 0.0
            for t in range(first, steps):  # each chosen location, with the state that chose it
                density = np.exp(-((sample[t] - mean[t]) ** 2) / (2 * std**2))
                log_pi = np.log(density / (std * np.sqrt(2 * np.pi))).sum()
                policy -= log_pi * (reward[t] - compared[t])
            error = ((b - reward) ** 2).mean()
            loss = entropy[-1] + weights.baseline * error + weights.reinforce * policy
            if steps > 1:
                loss += weights.intermediate * entropy[:-1].mean()
            spread = np.abs(sample - mean).mean()
            found.append([loss, entropy[-1], error, policy, reward.mean(), right[-1], spread])
        mean_row = np.mean(found, axis=0)
        losses.append(mean_row[0])
        rows.append(mean_row[1:])
    return np.array(losses), np.array(rows)


@pytest.mark.parametrize("hybridize", [False, True])
@pytest.mark.parametrize("reward", REWARDS)
@pytest.mark.parametrize("compared", POLICY_BASELINES)
@pytest.mark.parametrize(
    "overrides",
    [{}, {"first_location": "learned"}, {"num_glimpses": 1}, {"baseline_per_glimpse": True}],
    ids=str,
)
def test_loss_and_terms(
    overrides: dict[str, Any], compared: str, reward: str, hybridize: bool
) -> None:
    net = build(**overrides)
    weights = LossWeights(0.7, reinforce=0.3, intermediate=0.2, reward=reward)
    weights = replace(weights, policy_baseline=compared)
    loss = HybridLoss(net, weights)
    if hybridize:
        loss.hybridize(static_alloc=True, static_shape=True)
    inputs = inputs_for(net)
    value, terms = loss(*inputs)
    rollouts = Rollouts(*(out.asnumpy().astype(np.float64) for out in net(*inputs[:3])))
    first = 0 if net.spec.first_location == "learned" else 1
    wanted = expected(rollouts, inputs[4].asnumpy().astype(int), STD, weights, first)
    np.testing.assert_allclose(value.asnumpy(), wanted[0], rtol=1e-5, atol=1e-5)
    names = "cross_entropy baseline reinforce reward correct location_spread"
    assert tuple(names.split()) == loss.TERMS
    np.testing.assert_allclose(terms.asnumpy(), wanted[1], rtol=1e-5, atol=1e-5)


def test_without_other_rollouts_the_reward_is_compared_with_nothing() -> None:
    net = build()
    loss = HybridLoss(net, LossWeights(policy_baseline="rollouts"))
    image, first, noise, std, label = inputs_for(net)
    one = [image, first[:, :1], noise[:, :1]]
    _, terms = loss(*one, std, label)
    rollouts = Rollouts(*(out.asnumpy().astype(np.float64) for out in net(*one)))
    wanted = expected(rollouts, label.asnumpy().astype(int), STD, loss.weights, 1)[1]
    np.testing.assert_allclose(terms.asnumpy(), wanted, rtol=1e-5, atol=1e-5)


def test_the_deviation_is_an_input() -> None:
    """One graph for every deviation: a schedule changes it from update to update."""
    net = build()
    loss = HybridLoss(net, LossWeights(reinforce=1))
    loss.hybridize(static_alloc=True, static_shape=True)
    image, first, noise, _, label = inputs_for(net)
    rollouts = Rollouts(*(out.asnumpy().astype(np.float64) for out in net(image, first, noise)))
    for std in (0.4, 0.1, 1.0):
        value, _ = loss(image, first, noise, mx.nd.array([std]), label)
        wanted, _ = expected(rollouts, label.asnumpy().astype(int), std, loss.weights, 1)
        np.testing.assert_allclose(value.asnumpy(), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"reward": "first"}, "unknown reward 'first'; available: last, every, likelihood"),
        (
            {"policy_baseline": "mean"},
            "unknown policy_baseline 'mean'; available: state, rollouts",
        ),
        ({"baseline": -1.0}, "baseline must be 0 or more, got -1.0"),
        ({"reinforce": float("nan")}, "reinforce must be 0 or more, got nan"),
        ({"intermediate": float("inf")}, "intermediate must be 0 or more, got inf"),
    ],
)
def test_impossible_weights_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossWeights(**values)


def test_the_command_line_knows_the_same_words() -> None:
    assert config.REWARDS == REWARDS
    assert config.POLICY_BASELINES == POLICY_BASELINES


# ---------------------------------------------------------------------------- where a gradient goes


@pytest.mark.parametrize("to_core", [False, True])
def test_each_term_reaches_its_own_parts(to_core: bool) -> None:
    net = build(reinforce_to_core=to_core)
    inputs = inputs_for(net)
    entropy = gradients(net, CE_ALONE, inputs)
    assert parts(entropy) == {"sensor", "rnn", "classifier"}

    def added(weights: LossWeights) -> set[str]:
        both = gradients(net, weights, inputs)
        return parts({name: both[name] - entropy[name] for name in both})

    assert added(replace(CE_ALONE, baseline=1)) == {"baseliner"}
    core = {"sensor", "rnn"} if to_core else set()
    assert added(replace(CE_ALONE, reinforce=1)) == {"locator", *core}
    assert added(replace(CE_ALONE, intermediate=1)) == {"sensor", "rnn", "classifier"}


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"core": "lstm"},
        {"locator_hidden": 0, "squash": "tanh"},
        {"first_location": "learned"},
        {"first_location": "context"},
        {"location_octaves": 2, "combine": "multiply"},
    ],
    ids=str,
)
def test_every_parameter_learns(overrides: dict[str, Any]) -> None:
    net = build(**overrides)
    found = gradients(net, LossWeights(reinforce=1), inputs_for(net))
    assert not [name for name, value in found.items() if not np.abs(value).max() > 0]


@pytest.mark.parametrize("hybridize", [False, True])
def test_one_glimpse_can_be_trained(hybridize: bool) -> None:
    """Nobody asks for a second location then; Gluon's trainer wants its gradient all the same."""
    net = build(num_glimpses=1)
    loss = HybridLoss(net, LossWeights())
    if hybridize:
        loss.hybridize(static_alloc=True, static_shape=True)
    trainer = mx.gluon.Trainer(net.collect_params(), "sgd", {"learning_rate": 0.1})
    before = net.classifier.fc.bias.data().asnumpy()
    for _ in range(2):
        with mx.autograd.record():
            value, _ = loss(*inputs_for(net))
        value.backward()
        trainer.step(IMAGES)
    assert not np.array_equal(before, net.classifier.fc.bias.data().asnumpy())
    assert not net.locator.fc.weight.grad().asnumpy().any()


def test_eager_and_hybridized_gradients_agree() -> None:
    net = build(first_location="context", core="lstm")
    weights = LossWeights(reinforce=1, intermediate=0.5)
    inputs = inputs_for(net)
    with mx.autograd.record():
        HybridLoss(net, weights)(*inputs)[0].backward()
    eager = {k: p.grad().asnumpy() for k, p in net._collect_params_with_prefix().items()}
    for name, value in gradients(net, weights, inputs).items():
        np.testing.assert_allclose(value, eager[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("weights", "names"),
    [
        (replace(CE_ALONE, intermediate=0.5), ("sensor", "rnn", "classifier")),
        (LossWeights(baseline=1, reinforce=0), ("baseliner",)),
    ],
)
def test_gradients_against_finite_differences(weights: LossWeights, names: tuple[str, ...]) -> None:
    # Where the locations are given as noise, nothing in the loss jumps when a parameter moves.
    net = build(gaze="noise")
    inputs = inputs_for(net)
    found = gradients(net, weights, inputs)
    loss = HybridLoss(net, weights)
    parameters = net._collect_params_with_prefix()
    for part in names:
        chosen = {n: parameters[n] for n in parameters if n.startswith(part)}
        start = {n: p.data().copy() for n, p in chosen.items()}
        slope = math.sqrt(sum((found[n] ** 2).sum() for n in chosen))
        values = []
        for step in (1e-3, -1e-3):  # along the gradient
            for n, p in chosen.items():
                p.set_data(start[n] + mx.nd.array(found[n] * step / slope))
            values.append(float(loss(*inputs)[0].asnumpy().astype(np.float64).sum()))
        for n, p in chosen.items():
            p.set_data(start[n])
        assert (values[0] - values[1]) / 2e-3 == pytest.approx(slope, rel=0.01)


# ------------------------------------------------------------------------- a policy solved exactly

MU, WIDTH = 0.1, 40  # where the policy looks on average; a picture whose left half is white
DRAWS = 20_000


def bandit(first_location: str) -> Any:
    """A network that says 1 where it sees white, and whose policy has one free number per axis."""
    chooses = first_location == "learned"
    net = build(
        classes=2,
        height=1,
        width=WIDTH,
        patch_size=1,
        num_glimpses=1 if chooses else 2,
        glimpse_hidden=1,
        loc_hidden=1,
        hidden_size=1,
        locator_hidden=0,
        first_location=first_location,
    )
    for parameter in net.collect_params().values():
        parameter.set_data(mx.nd.zeros(parameter.shape))
    net.sensor.fc1.weight.set_data(mx.nd.ones((1, 1)))
    net.sensor.fc3.weight.set_data(mx.nd.array([[1], [0]]))
    net.rnn.i2h.weight.set_data(mx.nd.array([[1, 0]]))  # h is the pixel
    net.classifier.fc.weight.set_data(mx.nd.array([[-1], [1]]))
    net.classifier.fc.bias.set_data(mx.nd.array([0.5, -0.5]))
    net.baseliner.fc.bias.set_data(mx.nd.array([0.3]))
    raw = math.atanh(MU)
    if chooses:
        net.first_mean.set_data(mx.nd.array([[raw, 0]]))
    else:
        net.locator.fc.bias.set_data(mx.nd.array([raw, 0]))
    return net


@pytest.mark.parametrize("first_location", ["learned", "given"])
def test_reinforce_is_the_gradient_of_the_expected_reward(first_location: str) -> None:
    """Reward 1 when x < 0, x ~ N(mu, std^2): E[R] = Phi(-mu / std), known with its derivative."""
    net, std = bandit(first_location), 0.25
    rng = np.random.default_rng(3)
    steps = net.spec.num_glimpses
    noise = (std * rng.standard_normal((1, DRAWS, steps, 2))).astype(np.float32)
    image = np.zeros((1, 1, 1, WIDTH), np.float32)
    image[..., : WIDTH // 2] = 1
    # The baseline says 0.3 always, and must not matter.
    first = np.full((1, DRAWS, 2), 0.5, np.float32)
    arrays = image, first, noise, np.array([std]), np.array([1])
    found = gradients(net, replace(CE_ALONE, reinforce=1), [mx.nd.array(a) for a in arrays])
    name = "first_mean" if first_location == "learned" else "locator.fc.bias"
    gradient = found[name].ravel()

    shift = noise[0, :, -1].astype(np.float64)  # sample - mean
    reward = (MU + shift[:, 0] < 0).astype(float)
    inner = 1 - np.array([MU, 0]) ** 2  # of tanh
    single = -shift / std**2 * (reward - 0.3)[:, None] * inner
    # The estimate is the mean over these draws: no noise cancels, no factor is missing ...
    np.testing.assert_allclose(gradient, single.mean(axis=0), rtol=1e-3, atol=1e-4)
    # ... and is what it estimates.
    density = math.exp(-((MU / std) ** 2) / 2) / math.sqrt(2 * math.pi)
    exact = np.array([density / std * inner[0], 0])  # of -E[R]
    error = single.std(axis=0, ddof=1) / math.sqrt(DRAWS)
    assert np.all(np.abs(gradient - exact) < 4 * error)
    assert exact[0] > 20 * error[0]


def test_the_baseline_of_a_step_is_the_one_before_it() -> None:
    """That of the glimpse whose state chose the location: a later one would know the outcome."""
    net = bandit("given")
    net.baseliner.fc.weight.set_data(mx.nd.array([[5]]))  # 5.3 after white, 0.3 after black
    image = np.zeros((1, 1, 1, WIDTH), np.float32)
    image[..., : WIDTH // 2] = 1
    noise = np.zeros((1, 1, 2, 2), np.float32)
    noise[..., 1, 0] = -0.25 - MU  # one deviation: looks at white
    for start, baseline in ((0.5, 0.3), (-0.5, 5.3)):
        first = np.array([[[start, 0]]], np.float32)
        arrays = image, first, noise, np.array([0.25]), np.array([1])
        found = gradients(net, replace(CE_ALONE, reinforce=1), [mx.nd.array(a) for a in arrays])
        shift = -0.25 - MU
        wanted = -shift / 0.25**2 * (1 - baseline) * (1 - MU**2)
        assert found["locator.fc.bias"][0] == pytest.approx(wanted, rel=1e-4)


def test_mean_locations_teach_the_policy_nothing() -> None:
    net = build()
    found = gradients(net, replace(CE_ALONE, reinforce=1), inputs_for(net, std=0))
    assert "locator" not in parts(found)
