"""All parameters updated by one call: the same numbers as MXNet's optimizers give one by one."""

from __future__ import annotations

from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon
from mxnet.gluon import nn

from model import create_model
from model.execution.fused_training import fuse
from model.execution.fused_update import update
from training.compute.joint_optimizer import NAG, SGD
from training.compute.optimizer import build_trainer
from training.settings.run_config import RunConfig

SHAPES = [(64, 64, 3, 3), (64,), (1,), (7, 3), (128, 64, 1, 1)]
RATES, DECAYS = [0.1, 0.2, 0.1, 0.3, 0.1], [0.0, 0.05, 0.01, 0.0, 0.2]
HOW: dict[str, Any] = {"momentum": 0.9, "scale": 1 / 64}


pytestmark = pytest.mark.usefixtures("unit_operators")


def arrays() -> list[list[Any]]:
    """Return weights, gradients and momenta."""
    random = np.random.RandomState(0)
    return [[mx.nd.array(random.randn(*shape)) for shape in SHAPES] for _ in range(3)]


def one_by_one(nesterov: bool) -> list[list[Any]]:
    """Return what MXNet's operators make of `arrays`."""
    found = arrays()
    single = mx.nd.nag_mom_update if nesterov else mx.nd.sgd_mom_update
    for w, g, m, rate, decay in zip(*found, RATES, DECAYS):
        settings = {"lr": rate, "wd": decay, "momentum": HOW["momentum"]}
        single(w, g, m, out=w, rescale_grad=HOW["scale"], **settings)
    return found


@pytest.mark.parametrize("nesterov", [True, False])
def test_numbers_are_those_of_mxnet(nesterov: bool) -> None:
    found, expected = arrays(), one_by_one(nesterov)
    update(found[0], found[1], found[2], (RATES, DECAYS), **HOW, nesterov=nesterov)
    for group, wanted in zip(found, expected):
        for a, b in zip(group, wanted):
            np.testing.assert_allclose(a.asnumpy(), b.asnumpy(), rtol=1e-6, atol=1e-6)
    # Nesterov's momentum decays by the new weight: the other form differs by more than rounding.
    other = one_by_one(not nesterov)
    assert max(float(mx.nd.abs(a - b).max().asscalar()) for a, b in zip(found[2], other[2])) > 1e-3


def test_weights_in_the_layout_of_an_evaluation_are_updated() -> None:
    net = nn.HybridSequential()
    net.add(nn.Conv2D(64, 3, in_channels=64, use_bias=False))
    net.initialize()
    net.hybridize(static_alloc=True, static_shape=True)
    image = mx.nd.random.normal(shape=(2, 64, 16, 16))
    found = [group[:1] for group in arrays()]
    net[0].weight.set_data(found[0][0])
    for _ in range(3):  # these leave the weights as oneDNN reads them fastest
        net(image)
    mx.nd.waitall()
    found[0][0] = net[0].weight.data()
    update(found[0], found[1], found[2], (RATES[:1], DECAYS[:1]), **HOW, nesterov=True)
    expected = one_by_one(True)[0][0]
    np.testing.assert_allclose(found[0][0].asnumpy(), expected.asnumpy(), rtol=1e-6, atol=1e-6)
    plain = mx.nd.Convolution(image, expected, kernel=(3, 3), num_filter=64, no_bias=True)
    np.testing.assert_allclose(net(image).asnumpy(), plain.asnumpy(), rtol=1e-4, atol=1e-3)


def test_arrays_that_do_not_fit_are_refused() -> None:
    found = arrays()
    found[1][0] = mx.nd.zeros((64, 64, 3, 2))
    with pytest.raises(mx.MXNetError):
        update(found[0], found[1], found[2], (RATES, DECAYS), **HOW, nesterov=True)


def network(fused: bool) -> Any:
    mx.random.seed(3)
    net = create_model("resnet20_ram", 10, depth=11, w_init=0.5)
    net.initialize(mx.init.Xavier())
    if fused:
        fuse(net)
    net.hybridize()
    return net


def train(net: Any, trainer: Any, steps: int = 3) -> dict[str, np.ndarray]:
    """Return the parameters and the optimizer's states after some steps and an evaluation each."""
    random = np.random.RandomState(0)
    loss = gluon.loss.SoftmaxCrossEntropyLoss()
    for _ in range(steps):
        image = mx.nd.array(random.randn(8, 3, 8, 8))
        with autograd.record():
            loss(net(image), mx.nd.arange(8)).backward()
        trainer.step(8)
        for _ in range(3):
            net(image)  # nobody waits for it
    found = {name: p.data().asnumpy() for name, p in net._collect_params_with_prefix().items()}
    states = trainer._updaters[0].states
    return {**found, **{f"state {i}": state.asnumpy() for i, state in states.items()}}


def test_an_evaluation_that_is_under_way_does_no_harm() -> None:
    net = network(True)
    weights = [p.data() for p in net.collect_params(".*weight").values()]
    image = mx.nd.random.normal(shape=(8, 3, 32, 32))
    ones, zeros = ([make(w.shape) for w in weights] for make in (mx.nd.ones, mx.nd.zeros))
    for _ in range(5):
        before = [w.asnumpy() for w in weights]
        for _ in range(3):
            net(image)  # nobody waits for it
        rates = ([0.5] * len(weights), [0.0] * len(weights))
        how = {"momentum": 0.9, "scale": 1.0, "nesterov": False}
        net.fused.update(weights, ones, zeros, rates, **how)
        for weight, old in zip(weights, before):
            np.testing.assert_allclose(weight.asnumpy(), old - 0.5, rtol=1e-6)
        zeros = [mx.nd.zeros(w.shape) for w in weights]


@pytest.mark.parametrize(("name", "kind"), [("nag", NAG), ("sgd", SGD)])
def test_a_training_is_the_same(name: str, kind: type) -> None:
    config = RunConfig(optimizer=name, lr=0.001, wd=0.1, batch_size=8)
    found = []
    for joint in (True, False):
        net = network(True)
        made, net.fused = net.fused, net.fused if joint else None
        trainer = build_trainer(net, config)
        net.fused = made
        assert isinstance(trainer._optimizer, kind) == joint
        assert type(trainer._optimizer).__name__ == kind.__name__  # what a run has on record
        trainer.set_learning_rate(0.002)
        found.append(train(net, trainer))
        assert trainer._optimizer.num_update == 3
    assert found[0].keys() == found[1].keys()
    for key, expected in found[1].items():
        # Where rounding moves a ReLU's input past 0, momenta differ by more, parameters hardly do.
        limit = 0.02 if key.startswith("state") else 1e-5
        error = np.abs(found[0][key] - expected).max()
        assert error <= limit * max(np.abs(expected).max(), 1e-3), key


@pytest.mark.parametrize(
    "settings", [{"momentum": 0.0}, {"momentum": 0.9, "clip_gradient": 0.01}], ids=str
)
@pytest.mark.parametrize("kind", [NAG, SGD])
def test_what_the_call_cannot_do_is_done_by_mxnet(kind: type, settings: dict[str, Any]) -> None:
    calls: list[Any] = []
    found = []
    for optimizer in (
        kind(lambda *args, **how: calls.append(how), learning_rate=0.1, **settings),
        getattr(mx.optimizer, kind.__name__)(learning_rate=0.1, **settings),
    ):
        net = network(False)
        trainer = gluon.Trainer(
            net.collect_params(), optimizer, kvstore=None, update_on_kvstore=False
        )
        random = np.random.RandomState(0)
        with autograd.record():
            net(mx.nd.array(random.randn(8, 3, 8, 8))).sum().backward()
        trainer.step(8)
        found.append({n: p.data().asnumpy() for n, p in net._collect_params_with_prefix().items()})
    assert not calls
    for key, expected in found[1].items():
        np.testing.assert_allclose(found[0][key], expected, rtol=1e-5, atol=1e-6, err_msg=key)


def test_other_optimizers_and_other_networks_are_left_to_mxnet() -> None:
    net = network(True)
    adam = build_trainer(net, RunConfig(optimizer="adam", lr=0.05, batch_size=8))
    assert type(adam._optimizer) is mx.optimizer.Adam
    net.fused = None
    nag = build_trainer(net, RunConfig(optimizer="nag", lr=0.05, batch_size=8))
    assert type(nag._optimizer) is mx.optimizer.NAG
