"""The graph for the bridge is that of the network which a file belongs to, and says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mxnet as mx
import pytest

from formats.param_file import write_params
from model.export.export_symbol import main, symbol_json
from model.registry import create_model
from model.weights.network_card import network_section

MODEL = "attention56_small"
SMALL = {"stem_channels": 8, "channels": (8, 8, 8), "tail_channels": 16, "mask_depths": (1, 1, 0)}


def network(**settings: Any) -> Any:
    with mx.name.NameManager():  # names that do not depend on what was built before
        return create_model(MODEL, 3, **SMALL, **settings)


def saved(path: Path, with_card: bool = True, **settings: Any) -> Any:
    """Write a file of a network, and return the network."""
    net = network(**settings)
    net.initialize()
    arrays = {name: p.data().asnumpy() for name, p in net._collect_params_with_prefix().items()}
    card = {"card": 1, "network": network_section(MODEL, net, 3)}
    write_params(path, arrays, card=card if with_card else None)
    return net


def operators(text: str) -> list[tuple[str, Any]]:
    nodes = json.loads(text)["nodes"]
    return [(node["op"], node.get("attrs")) for node in nodes if node["op"] != "null"]


@pytest.mark.parametrize(
    "settings", [{}, {"learning": "nal"}, {"attention": "tanh"}, {"wiring": "paper"}]
)
def test_a_files_network_is_the_one_on_record(tmp_path: Path, settings: dict[str, Any]) -> None:
    source, target = tmp_path / "net.param", tmp_path / "net.json"
    net = saved(source, **settings)
    assert main([str(source), str(target)]) == 0
    written = target.read_text()
    assert operators(written) == operators(symbol_json(net))
    if settings:
        assert operators(written) != operators(symbol_json(network()))
    noted = json.loads(json.loads(written)["nodes"][0]["attrs"]["__card__"])
    assert noted == network_section(MODEL, net, 3)


def test_settings_of_a_named_network_are_noted(tmp_path: Path) -> None:
    target = tmp_path / "net.json"
    assert main(["attention56", str(target), "--classes", "5", "--set", "wiring=paper"]) == 0
    attributes = json.loads(target.read_text())["nodes"][0]["attrs"]
    wanted = {"model": "attention56", "classes": 5, "settings": {"wiring": "paper"}}
    assert json.loads(attributes["__card__"]) == wanted
    assert attributes["__network__"] == "attention56"


def test_what_contradicts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = str(tmp_path / "net.param"), str(tmp_path / "net.json")
    saved(Path(source), learning="nal")
    for words, told in (
        ([source, target, "--set", "learning=arl"], "learning arl was asked for"),
        ([source, target, "--classes", "4"], "classes 4 was asked for"),
        ([source, target, "--set", "classes=3"], "give the network's name, and --classes N"),
        (["attention56", target, "--set", "name=x"], "give the network's name"),
    ):
        assert main(words) == 2
        assert told in capsys.readouterr().err
    assert not Path(target).exists()
    saved(Path(source), with_card=False)
    assert main([source, target]) == 2  # these widths are no network's of the registry
    assert "its tensors belong to no network" in capsys.readouterr().err


def test_settings_that_a_file_does_not_have_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = str(tmp_path / "net.param"), str(tmp_path / "net.json")
    net = create_model("resnet20_ram", 3)
    net.initialize()
    net.save_parameters(source)
    for words in (["--classes", "4"], ["--set", "channels=(8, 16, 32)"]):
        assert main([source, target, *words]) == 2
        assert "its tensors are those of resnet20_ram with 3 classes" in capsys.readouterr().err
        assert not Path(target).exists()
    assert main([source, target, "--classes", "3", "--set", "w_init=0.1"]) == 0
    noted = json.loads(json.loads(Path(target).read_text())["nodes"][0]["attrs"]["__card__"])
    assert noted["settings"] == {"w_init": 0.1}


def test_a_setting_that_is_named_twice_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["attention56", str(tmp_path / "x"), "--set", "wiring=paper", "--set", "wiring=legacy"]
    assert main(words) == 2
    assert "wiring occurs twice" in capsys.readouterr().err


def test_a_network_of_gluoncv_takes_an_image(tmp_path: Path) -> None:
    target = tmp_path / "net.json"
    assert main(["gluoncv:cifar_resnet20_v1", str(target), "--classes", "5"]) == 0
    nodes = json.loads(target.read_text())["nodes"]
    inputs = [node["name"] for node in nodes if node["op"] == "null"]
    assert inputs[0] == "image"
    assert {"output.weight", "output.bias"} <= set(inputs)
    assert nodes[0]["attrs"]["__network__"] == "gluoncv:cifar_resnet20_v1"
