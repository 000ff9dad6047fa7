"""Training steps are computed by what is fastest, and the record of the run says by what."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Optional

import mxnet as mx
import numpy as np
import pytest

from formats.errors import UserError
from machine.processor import Unavailable
from model.execution.fused_training import FusedTraining
from model.layers import attention_module
from model.layers.resnet_unit import Unit
from tests.model.native.processor import BFLOAT16
from training.classifier import graph_choice
from training.classifier.config import TrainConfig
from training.classifier.graph_choice import choose_graph
from training.classifier.task import start_network
from training.records.environment import describe


def fuse_or(reason: str) -> Any:
    def fuse(net: Any, precision: str = "float32") -> str:
        if reason:
            raise Unavailable(reason)
        return "operators"

    return fuse


def choose(
    reason: str = "", fused: str = "auto", precision: str = "auto", freeze: str = "none"
) -> Any:
    config = SimpleNamespace(
        fused=fused, precision=precision, freeze=freeze, distributed="none", resume=None
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_choice, "build_classifier", lambda config, classes: SimpleNamespace())
        patch.setattr(graph_choice, "fuse", fuse_or(reason))
        patch.setattr(graph_choice, "difference_of", lambda net: 0.0)
        return choose_graph(config, [mx.cpu()], 10)


def seconds(monkeypatch: pytest.MonkeyPatch, graph: float = 9.0, **of: float) -> None:
    of[graph_choice.OWN_GRAPH] = graph
    monkeypatch.setattr(graph_choice, "_step_seconds", lambda net, way, enough=0.0: of[way])


@pytest.mark.parametrize(("taken", "precision"), [(0.5, "bfloat16"), (0.95, "float32")])
def test_the_probe_decides(monkeypatch: pytest.MonkeyPatch, taken: float, precision: str) -> None:
    seconds(monkeypatch, float32=2.0, bfloat16=2.0 * taken)
    choice = choose()
    assert (choice.fused, choice.precision, choice.amp) == ("operators", precision, "float32")
    assert f"takes {taken:.2f} of the time" in choice.why
    assert choice.settings == {"precision": precision}


@pytest.mark.parametrize(
    ("graph", "bfloat16", "chosen"),
    [(0.8, 0.95, None), (0.8, 0.7, "operators"), (0.95, 0.95, "operators")],
)
def test_mxnets_own_operators_are_taken_where_they_are_faster(
    monkeypatch: pytest.MonkeyPatch, graph: float, bfloat16: float, chosen: Optional[str]
) -> None:
    seconds(monkeypatch, graph=graph, float32=1.0, bfloat16=bfloat16)
    choice = choose()
    assert choice.fused == chosen
    if chosen is None:
        assert choice.net.fused is None
        assert choice.precision == choice.amp == "float32"
        assert choice.settings == {"precision": "float32", "fused": "off"}
        assert "takes 0.80 of the time" in choice.reason
    assert choose(fused="on").fused == "operators"


def test_without_bfloat16_mxnets_own_operators_are_measured_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def step(net: Any, way: str, enough: float = 0.0) -> float:
        if way == "bfloat16":
            raise Unavailable("no such convolution")
        return {"float32": 1.0, graph_choice.OWN_GRAPH: 0.5}[way]

    monkeypatch.setattr(graph_choice, "_step_seconds", step)
    assert choose().fused is None


@pytest.mark.usefixtures("unit_operators")
def test_each_way_is_timed_by_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainConfig(model="attention56_small", precision="float32")
    net = choose_graph(settings, [mx.cpu()], 10).net
    calls: list[bool] = []
    takes = FusedTraining.takes

    def seen(self: FusedTraining, x: Any) -> bool:
        calls.append(takes(self, x))
        return calls[-1]

    monkeypatch.setattr(FusedTraining, "takes", seen)
    graph_choice._step_seconds(net, "float32")
    assert calls == [True] * (1 + graph_choice.PROBE_STEPS)
    calls.clear()
    graph_choice._step_seconds(net, graph_choice.OWN_GRAPH)
    assert not calls
    times = iter([0.0, 1.0, 2.0, 9.0])  # a first step, then one that takes too long
    monkeypatch.setattr(graph_choice.time, "perf_counter", lambda: next(times))
    assert graph_choice._step_seconds(net, graph_choice.OWN_GRAPH, enough=2.0) == 7.0


def test_no_bfloat16_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(net: Any, way: str, enough: float = 0.0) -> float:
        if way == "bfloat16":
            raise mx.MXNetError("trace\ncould not create a primitive descriptor")
        return {"float32": 1.0, graph_choice.OWN_GRAPH: 1.5}[way]

    monkeypatch.setattr(graph_choice, "_step_seconds", fail)
    choice = choose()
    assert choice.precision == "float32"
    assert "could not create a primitive descriptor" in choice.why
    assert choice.why.endswith("by MXNet's own operators it takes 1.50 times as long")


def test_a_named_precision_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds(monkeypatch)  # a measurement would be a KeyError
    monkeypatch.setattr(graph_choice, "check_bfloat16", lambda: None)  # on every processor
    assert choose(precision="bfloat16").precision == "bfloat16"
    assert choose(precision="float32").precision == "float32"


def test_a_named_precision_must_be_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds(monkeypatch)
    if BFLOAT16:
        assert choose(precision="bfloat16").precision == "bfloat16"
    else:
        with pytest.raises(UserError, match="no bfloat16 convolution for this processor"):
            choose(precision="bfloat16")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"reason": "no compiler"}, "no compiler"),
        ({"fused": "off"}, "--fused off"),
        ({"freeze": "trunk"}, "frozen layers"),
    ],
)
def test_without_operators_mxnet_computes(given: dict[str, Any], reason: str) -> None:
    choice = choose(**given)
    assert choice.fused is None
    assert reason in choice.reason
    assert choice.precision == "float32"
    assert choose(**given, precision="bfloat16").amp == "bfloat16"  # MXNet's own mixed precision


def test_float16_is_left_to_mxnet() -> None:
    choice = choose(precision="float16")
    assert (choice.fused, choice.amp) == (None, "float16")


@pytest.mark.usefixtures("unit_operators")
@pytest.mark.parametrize(
    ("model", "place", "name", "changed"),
    [
        ("attention56_small", attention_module, "soft_mask", lambda F, y, _: F.softsign(y)),
        ("resnet20_basic_ram", Unit, "merge", lambda self, F, y, x: y + x),
    ],
)
def test_operators_that_compute_something_else_are_not_taken(
    model: str,
    place: Any,
    name: str,
    changed: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As after a change of a layer in Python alone."""
    settings: dict[str, Any] = {"model": model, "precision": "float32", "fused": "auto"}
    assert choose_graph(TrainConfig(**settings), [mx.cpu()], 10).fused
    monkeypatch.setattr(place, name, changed)
    choice = choose_graph(TrainConfig(**settings), [mx.cpu()], 10)
    assert choice.fused is None
    assert "give other logits than the network" in choice.reason
    assert "other logits" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--fused on: the operators in C.. give other logits"):
        choose_graph(TrainConfig(**{**settings, "fused": "on"}), [mx.cpu()], 10)


@pytest.mark.usefixtures("unit_operators")
@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_the_network_that_was_measured_begins_as_a_new_one(precision: str) -> None:
    settings = TrainConfig(model="attention56_small", precision=precision, seed=3)
    chosen = choose_graph(settings, [mx.cpu()], 10)
    assert chosen.net is not None
    measured = start_network(settings, 10, [mx.cpu()], chosen.net)
    assert measured is chosen.net
    new = start_network(settings, 10, [mx.cpu()])
    pairs = zip(measured.collect_params().values(), new.collect_params().values())
    for ours, theirs in pairs:
        assert np.array_equal(ours.data().asnumpy(), theirs.data().asnumpy())
        assert ours.grad_req == theirs.grad_req
    names = (list(net._collect_params_with_prefix()) for net in (measured, new))
    assert len(set(map(tuple, names))) == 1


def test_demanded_operators_end_the_training() -> None:
    with pytest.raises(UserError, match="--fused on: no compiler"):
        choose("no compiler", fused="on")


def test_it_is_told_and_recorded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds(monkeypatch, float32=1.0, bfloat16=0.5)
    choose().tell()
    line = (
        "bfloat16 (a step in bfloat16 takes 0.50 of the time in float32; "
        "by MXNet's own operators it takes 18.00 times as long)"
    )
    assert capsys.readouterr().out == f"training steps by operators, {line}\n"
    assert describe()["training_steps"] == "operators"
    assert describe()["precision"].startswith("bfloat16: a step")
