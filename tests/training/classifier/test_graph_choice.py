"""Training steps are computed by what is fastest, and the record of the run says by what."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mxnet as mx
import numpy as np
import pytest

from formats.errors import UserError
from machine.processor import Unavailable
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
    config = SimpleNamespace(fused=fused, precision=precision, freeze=freeze, distributed="none")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_choice, "build_classifier", lambda config, classes: "net")
        patch.setattr(graph_choice, "fuse", fuse_or(reason))
        patch.setattr(graph_choice, "difference_of", lambda net: 0.0)
        return choose_graph(config, [mx.cpu()], 10)


def seconds(monkeypatch: pytest.MonkeyPatch, **of: float) -> None:
    monkeypatch.setattr(graph_choice, "_step_seconds", lambda *given: of[given[-1]])


@pytest.mark.parametrize(("taken", "precision"), [(0.5, "bfloat16"), (0.95, "float32")])
def test_the_probe_decides(monkeypatch: pytest.MonkeyPatch, taken: float, precision: str) -> None:
    seconds(monkeypatch, float32=2.0, bfloat16=2.0 * taken)
    choice = choose()
    assert (choice.fused, choice.precision, choice.amp) == ("operators", precision, "float32")
    assert f"takes {taken:.2f} of the time" in choice.why


def test_no_bfloat16_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> float:
        if given[-1] == "bfloat16":
            raise mx.MXNetError("trace\ncould not create a primitive descriptor")
        return 1.0

    monkeypatch.setattr(graph_choice, "_step_seconds", fail)
    choice = choose()
    assert choice.precision == "float32"
    assert choice.why.endswith("could not create a primitive descriptor")


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
    line = "bfloat16 (a step in bfloat16 takes 0.50 of the time in float32)"
    assert capsys.readouterr().out == f"training steps by operators, {line}\n"
    assert describe()["training_steps"] == "operators"
    assert describe()["precision"].startswith("bfloat16: a step")
