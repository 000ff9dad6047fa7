"""Networks whose residual units own operators compute, against the networks that they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest

from model import create_model
from model.execution import inference_graphs
from model.execution.inference import PreparedNetwork, prepare_inference
from model.native.build import block_channels
from tests.model.execution.prepared_checks import (
    QUIET,
    as_trained,
    difference,
    images,
    prepared_without_warning,
)

SMALL: dict[str, Any] = {
    "modules": (1, 1),
    "channels": (64, 64),
    "mask_depths": (2, 1),
    "stem_channels": 16,
    "tail_channels": 64,
    "tail_units": 1,
}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "no gate": ("resnet20", {}),
    "two steps": ("resnet20_ram", {"depth": 11, "w_init": 0.5}),
    "three steps": ("resnet20_ram", {"depth": 11, "w_init": 0.5, "steps": 3}),
    "constant gate": ("resnet20_ram", {"depth": 11, "w_init": 0.0}),
    "static gate": ("resnet20_static", {"depth": 11}),
    "basic": ("resnet20_basic_ie", {"depth": 8, "w_init": 0.5}),
    "version 2": ("preresnet20", {}),
    "version 2, gate": ("preresnet20_ram", {"depth": 11, "w_init": 0.5}),
    "version 2, static": ("preresnet20_basic_static", {"depth": 8}),
    "legacy": ("attention56", SMALL),
    "paper": ("attention56", {**SMALL, "wiring": "paper"}),
    "spatial": ("attention56", {**SMALL, "attention": "spatial"}),
    "channel": ("attention56", {**SMALL, "attention": "channel", "learning": "nal"}),
    "tanh": ("attention56", {**SMALL, "attention": "tanh"}),
    "no pooling": ("attention56", {**SMALL, "mask_depths": (0, 1)}),
}
pytestmark = QUIET
by_operators = pytest.mark.usefixtures("unit_operators")


def network(case: str) -> Any:
    model, overrides = NETWORKS[case]
    return as_trained(create_model(model, 10, **overrides), "gate.b")


def prepared_by_operators(net: Any, image: Any, precision: str = "float32") -> PreparedNetwork:
    return prepared_without_warning(net, image, precision=precision, operators=True)


@by_operators
@pytest.mark.parametrize("case", NETWORKS)
@pytest.mark.parametrize("size", [(16, 16), (21, 13)])
def test_logits_are_the_same(case: str, size: tuple[int, int]) -> None:
    net = network(case)
    prepared = prepared_by_operators(net, images(2, *size))
    assert prepared.steps[0].startswith("residual units by operators in C++ (units, oneDNN ")
    for count in (1, 3, 8, 3):
        assert difference(net, prepared, images(count, *size, seed=count)) < 1e-5


@by_operators
@pytest.mark.parametrize("case", NETWORKS)
def test_bfloat16_is_near(case: str) -> None:
    net = network(case)
    if block_channels() == 8:
        with pytest.raises(ValueError, match=r"network: bfloat16 takes a processor with AVX-512$"):
            prepared_by_operators(net, images(4, 16), "bfloat16")
        return
    prepared = prepared_by_operators(net, images(4, 16), "bfloat16")
    assert prepared(images(4, 16)).dtype == np.float32
    assert 1e-5 < difference(net, prepared, images(4, 16)) < 0.05  # not float32 by another name
    assert difference(net, prepared, images(5, 16, seed=1)) < 0.05


@by_operators
def test_a_gate_that_does_not_look_is_a_constant_and_another_is_none() -> None:
    """The gates of both networks get other numbers of the same means; only one may care."""
    for case, cares in (("constant gate", False), ("two steps", True)):
        net = network(case)
        gate = net.layer1._children["0"].gate
        before = prepared_by_operators(net, images(2, 16))(images(2, 16)).asnumpy()
        (bn,) = gate.batch_norms()
        bn.running_mean.set_data(bn.running_mean.data() + 1)
        after = prepared_by_operators(net, images(2, 16))(images(2, 16)).asnumpy()
        assert (np.abs(after - before).max() > 1e-4) == cares


@by_operators
def test_resnets_take_other_sizes_and_attention_networks_do_not() -> None:
    net = network("two steps")
    prepared = prepared_by_operators(net, images(2, 16))
    assert difference(net, prepared, images(2, 20, 12)) < 1e-5
    assert difference(net, prepared, images(2, 16)) < 1e-5
    prepared = prepared_by_operators(network("legacy"), images(2, 16))
    with pytest.raises(ValueError, match=r"^prepared for images of 16x16 pixels, got 24x24; call"):
        prepared(images(1, 24))


@by_operators
def test_what_is_exported_has_mxnets_operators_and_the_values_of_then(tmp_path: Path) -> None:
    net = network("legacy")
    prepared = prepared_by_operators(net, images(3, 16))
    expected = net(images(3, 16)).asnumpy()
    for parameter in net.collect_params().values():
        parameter.data()[:] = 0.5  # as training would, in place
    for name in ("first", "second"):
        prepared.export(str(tmp_path / name))
        assert "attn_infer" not in (tmp_path / f"{name}-symbol.json").read_text()
        again = mx.gluon.SymbolBlock.imports(
            str(tmp_path / f"{name}-symbol.json"), ["data"], str(tmp_path / f"{name}-0000.params")
        )
        for block in (again, prepared):
            found = block(images(3, 16)).asnumpy()
            np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_they_can_be_left_out() -> None:
    net = network("no gate")
    prepared = prepare_inference(net, images(2, 16), operators=False)
    assert prepared.steps[-1] == "fused by oneDNN"
    assert difference(net, prepared, images(3, 16)) < 1e-5


@by_operators
def test_a_frozen_network_is_prepared_as_another_is() -> None:
    net = network("two steps")
    net.collect_params().setattr("grad_req", "null")
    prepared = prepare_inference(net, images(4, 16), operators=True)
    assert difference(net, prepared, images(4, 16)) < 1e-5


@by_operators
def test_what_they_do_not_know_is_computed_by_mxnet_and_told() -> None:
    net = create_model("resnet20_se", 10, depth=11)
    net.initialize()
    prepared = prepare_inference(net, images(2, 16))
    assert "not by own operators: a SqueezeExcitation" in prepared.steps
    assert difference(net, prepared, images(3, 16)) < 1e-5
    with pytest.raises(ValueError, match="do not compute this network: a SqueezeExcitation"):
        prepare_inference(net, images(2, 16), operators=True)


def test_without_a_compiler_mxnet_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTENTION_NATIVE", "0")
    net = network("no gate")
    prepared = prepare_inference(net, images(2, 16))
    assert "not by own operators: ATTENTION_NATIVE=0" in prepared.steps
    assert difference(net, prepared, images(3, 16)) < 1e-5
    with pytest.raises(ValueError, match=r"do not compute this network: ATTENTION_NATIVE=0$"):
        prepare_inference(net, images(2, 16), operators=True)


@by_operators
def test_what_they_compute_wrongly_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = inference_graphs.inference_graph

    def wrong(*arguments: Any) -> Any:
        graph = right(*arguments)
        name = next(name for name in graph.parameters() if name.endswith("beta"))
        graph.values[name] = graph.values[name] + 1
        return graph

    monkeypatch.setattr(inference_graphs, "inference_graph", wrong)
    net = network("no gate")
    with pytest.warns(UserWarning, match=r"own operators are left out: it changes the outputs by"):
        prepared = prepare_inference(net, images(2, 16))
    assert prepared.steps[-1] == "fused by oneDNN"
    assert difference(net, prepared, images(3, 16)) < 1e-5


def test_parameters_are_not_loaded_into_what_was_rewritten(tmp_path: Path) -> None:
    net = create_model("resnet20", depth=11)
    net.initialize()
    net(mx.nd.zeros((1, 3, 16, 16)))
    path = str(tmp_path / "net.param")
    net.save_parameters(path)
    prepared = prepare_inference(net, mx.nd.ones((1, 3, 16, 16)))
    with pytest.raises(ValueError, match=r"net.param: a prepared network takes no parameters"):
        prepared.load_parameters(path, ctx=mx.cpu())
