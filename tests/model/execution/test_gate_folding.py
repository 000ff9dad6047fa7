"""Folded networks against the networks that they come from; what the gates of a network report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from model import create_model
from model.execution.gate_folding import fold_gates
from model.execution.gate_report import gate_statistics
from model.layers.channel_attention import RecurrentGate
from model.weights.file_match import find_model
from model.weights.loading import load_parameters

THIN: dict[str, Any] = {"channels": (4, 8, 8)}


def _trained(name: str, **overrides: Any) -> Any:
    """Return a network with other gates, normalisations and statistics than at first."""
    net = create_model(name, **{**THIN, **overrides})
    net.initialize()
    random = np.random.RandomState(5)
    for key, parameter in net._collect_params_with_prefix().items():
        if key.endswith(("gate.w", "gate.b", "gamma", "beta", "running_mean", "running_var")):
            values = parameter.data() + mx.nd.array(random.uniform(0.1, 0.5, parameter.shape))
            parameter.set_data(values)
    return net


IMAGE = np.random.RandomState(0).normal(size=(3, 3, 16, 16)).astype(np.float32)


def _same(net: Any, folded: Any) -> None:
    expected, found = (n(mx.nd.array(IMAGE)).asnumpy() for n in (net, folded))
    scale = np.abs(expected).max()
    assert np.ptp(expected, axis=0).max() > 0.01 * scale  # images matter
    np.testing.assert_allclose(found, expected, atol=1e-5 * scale)


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", ["resnet20_ram", "preresnet20_ram", "resnet20_basic_ram"])
def test_chains_collapse_to_one_step(name: str, steps: int) -> None:
    net = _trained(name, steps=steps)
    before = {key: p.data().asnumpy() for key, p in net._collect_params_with_prefix().items()}
    folded = fold_gates(net)
    assert (folded.spec.attention, folded.spec.steps) == ("ram", 1)
    _same(net, folded)
    for key, parameter in net._collect_params_with_prefix().items():
        np.testing.assert_array_equal(parameter.data().asnumpy(), before[key])


@pytest.mark.parametrize(
    "name", ["resnet20_static", "preresnet20_static", "resnet20_basic_static", "resnet20_ram"]
)
def test_constant_gates_disappear(name: str) -> None:
    net = _trained(name)
    for _, _, unit in net.units():
        if isinstance(unit.gate, RecurrentGate):
            unit.gate.w.set_data(mx.nd.zeros(unit.gate.w.shape))
    folded = fold_gates(net)
    assert folded.spec.attention == "none"
    assert not any(".gate." in key for key in folded._collect_params_with_prefix())
    _same(net, folded)


def test_some_constant_gates(tmp_path: Path) -> None:
    net = _trained("resnet20_ram")
    first = net.layer1.units[0].gate
    first.w.set_data(mx.nd.zeros(first.w.shape))
    net.layer2.units[1].gate.w.set_data(1e-9 * mx.nd.ones(net.layer2.units[1].gate.w.shape))
    folded = fold_gates(net)
    assert folded.spec.ungated == ((1, 0), (2, 1))
    _same(net, folded)
    _same(net, fold_gates(folded))

    folded.save_parameters(str(tmp_path / "folded.param"))
    again = type(folded)(folded.spec)
    load_parameters(again, tmp_path / "folded.param")
    _same(net, again)


def test_files_of_the_original_go_on_loading(tmp_path: Path) -> None:
    net = _trained("resnet20_ram", channels=(16, 32, 64))
    path = tmp_path / "net.param"
    net.save_parameters(str(path))
    folded = fold_gates(net)
    load_parameters(net, path)
    _same(net, folded)
    assert find_model(path) == ("resnet20_ram", 10)
    folded.save_parameters(str(path))
    assert find_model(path) == ("resnet20_ie", 10)


def test_what_cannot_be_folded() -> None:
    for name in ("resnet20", "resnet20_se", "resnet20_dia"):
        with pytest.raises(ValueError, match=r"cannot be folded; available: ram, static"):
            fold_gates(_trained(name))
    other = create_model("resnet20_ram", norm_layer=mx.gluon.nn.InstanceNorm, **THIN)
    other.initialize()
    with pytest.raises(ValueError, match="norm_layer"):
        fold_gates(other)


@pytest.mark.parametrize("hybridize", [False, True])
def test_statistics_of_first_gates(hybridize: bool) -> None:
    net = create_model("resnet20_ram", **THIN)
    net.initialize()
    if hybridize:
        net.hybridize(static_alloc=True, static_shape=True)
    statistics = gate_statistics(net, mx.nd.array(IMAGE))
    assert len(statistics) == 12
    for key, value in statistics.items():
        assert value == pytest.approx(0.268941 if "mean" in key else 0, abs=1e-6), key


def test_statistics_by_stage() -> None:
    net = create_model("resnet20_ram", w_init=1.0, **THIN)
    net.initialize()
    image = mx.nd.array(IMAGE)
    with autograd.record():  # the gate is steep until its normalisation knows the deviation
        net(image)
    dead = net.layer3.units[1].gate.w
    dead.set_data(mx.nd.full(dead.shape, 9e-4))
    statistics = gate_statistics(net, image)
    assert [statistics[f"gate_alive{k}"] for k in (1, 2, 3, "")] == [1, 1, 0.5, 128 / 160]
    gates = net.gates(image)
    assert list(gates) == [(1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]
    stage = np.stack([gates[3, 0].asnumpy(), gates[3, 1].asnumpy()])
    assert statistics["gate_mean3"] == pytest.approx(stage.mean(), rel=1e-5)
    assert statistics["gate_std3"] == pytest.approx(stage.std(axis=1).mean(), rel=1e-5)
    assert 0 < statistics["gate_std"] < 0.5


def test_gates_are_those_of_their_units() -> None:
    net = create_model("resnet20_ram", **THIN)
    net.initialize()
    for stage, index, unit in net.units():
        unit.gate.b.set_data(mx.nd.full(unit.gate.b.shape, stage + index / 10))
    for (stage, index), gate in net.gates(mx.nd.array(IMAGE)).items():
        expected = 1 / (1 + np.exp(-(stage + index / 10)))
        np.testing.assert_allclose(gate.asnumpy(), expected, rtol=1e-6)
        assert gate.shape == (3, 4 * THIN["channels"][stage - 1])


@pytest.mark.parametrize(
    ("name", "keys"), [("resnet20", 0), ("resnet20_dia", 8), ("resnet20_static", 12)]
)
def test_statistics_of_other_gates(name: str, keys: int) -> None:
    net = _trained(name)
    assert len(gate_statistics(net, mx.nd.array(IMAGE))) == keys
