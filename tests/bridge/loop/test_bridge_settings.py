"""Settings of the training in PyTorch, and what the MXNet side hands over; needs no PyTorch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

import train_cifar
from bridge.loop.settings import LEFT_OUT, BridgeConfig, check_resume
from bridge.loop.status_line import StatusLine, clock
from bridge.train import chosen_settings
from formats.errors import UserError
from formats.param_file import read_params
from training.classifier.networks import create_classifier
from training.classifier.recipes import RECIPES, with_recipe
from training.settings.config import parse_overrides
from training.settings.run_config import UNDECAYED

OWN = {
    "symbol", "start", "device", "tf32", "channels_last", "compile", "stop_after",
    "tensorboard",
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_and_defaults_are_those_of_train_cifar(recipe: str) -> None:
    settings = with_recipe(recipe, {"recipe": recipe})
    ours, theirs = BridgeConfig(**settings), train_cifar.CifarConfig(**settings)
    names = {field.name for field in dataclasses.fields(BridgeConfig)}
    assert names >= OWN
    differing = {name for name in names - OWN if getattr(ours, name) != getattr(theirs, name)}
    # A network is the symbol's; the precision depends on the device.
    assert differing <= {"model", "precision"}


def test_a_recipe_with_small_images_is_on_whole_ones(capsys: pytest.CaptureFixture[str]) -> None:
    given = {"recipe": "short", "symbol": "s"}
    config = chosen_settings(given)
    config.check()
    assert (config.small_size, config.small_epochs, config.lr) == (0, 0, RECIPES["short"]["lr"])
    assert "--recipe short: all epochs are on whole images" in capsys.readouterr().out
    with pytest.raises(UserError, match="--small-epochs: not done here"):
        chosen_settings({**given, "small_epochs": 5}).check()
    chosen_settings({**given, "small_epochs": 0}).check()
    assert not capsys.readouterr().out


def test_what_a_recipe_says_of_a_network_is_left_to_the_symbol() -> None:
    recipe = "tf-cifar10-56-arl-mixed"
    assert RECIPES[recipe]["attention"]
    config = chosen_settings({"recipe": recipe, "symbol": "s"})
    assert (config.learning, config.attention) == (None, None)
    assert config.optimizer == RECIPES[recipe]["optimizer"]
    given = {"recipe": recipe, "symbol": "s", "attention": "channel"}
    assert chosen_settings(given).attention == "channel"


def test_what_is_no_training_has_no_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert {field.name for field in dataclasses.fields(BridgeConfig)} >= set(LEFT_OUT)
    others = ("--classes", "--keep", "--on-nonfinite", "--nonfinite-limit")
    for flag in ("--masks", "--gpus", "--finetune", "picture.png", *others):
        with pytest.raises(SystemExit) as stop:
            parse_overrides(BridgeConfig, [flag, "x"], without=LEFT_OUT)
        assert stop.value.code == 2
        text = capsys.readouterr().err
        assert "unknown option" in text or "unexpected word" in text
    assert parse_overrides(BridgeConfig, ["--epochs", "3"], without=LEFT_OUT) == {"epochs": 3}


def test_a_resume_keeps_what_is_computed() -> None:
    check_resume({"resume": "runs/x", "stop_after": 5.0, "data_dir": "d"})
    check_resume({"lr": 0.1})
    with pytest.raises(UserError, match="--lr, --symbol cannot be changed"):
        check_resume({"resume": "runs/x", "lr": 0.1, "symbol": "s"})


def test_a_symbol_is_needed() -> None:
    with pytest.raises(UserError, match="--symbol is missing"):
        BridgeConfig().check()
    BridgeConfig(symbol="s").check()


def test_what_decays_has_the_same_ending_in_both_kinds_of_names() -> None:
    """MXNet's rule looks at Gluon's names, the bridge's at those of the parameter file."""
    from model import create_model

    for name in (
        "attention92",
        "attention56_paper",
        "resnet20_ram",
        "resnet20_basic_dia",
        "resnet20_cbam",
    ):
        for key, parameter in create_model(name, 10)._collect_params_with_prefix().items():
            assert key.endswith(UNDECAYED) == parameter.name.endswith(UNDECAYED), (name, key)


# MXNet says so of every symbol whose input has no type.
@pytest.mark.filterwarnings("ignore:Cannot decide type")
def test_a_network_is_exported_as_its_training_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import mxnet as mx

    def export(name: str, *more: str) -> Path:
        words = ["--recipe", "quick", "--model", "resnet20_ram", "--dataset", "cifar100", *more]
        assert train_cifar.main([*words, "--export-start", str(tmp_path / name)]) == 0
        return tmp_path / f"{name}.param"

    first = read_params(export("a"))
    assert "resnet20_ram, 100 classes, seed 0" in capsys.readouterr().out
    again, other = (
        read_params(export("b")),
        read_params(export("c", "--seed", "1", "--w-init", "0.1")),
    )
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert any(not np.array_equal(first[key], other[key]) for key in first)
    nodes = json.loads((tmp_path / "c-symbol.json").read_text())["nodes"]
    attributes = nodes[0]["attrs"]
    assert (attributes["__network__"], attributes["__w_init__"]) == ("resnet20_ram", "0.1")
    net = create_classifier("resnet20_ram", 100)
    net.load_parameters(str(tmp_path / "a.param"))
    exported = mx.gluon.SymbolBlock.imports(
        str(tmp_path / "a-symbol.json"), ["image"], str(tmp_path / "a.param")
    )
    image = mx.nd.random.uniform(shape=(2, 3, 32, 32))
    assert np.array_equal(net(image).asnumpy(), exported(image).asnumpy())


class Stream:
    """A log file or a terminal that keeps what is written."""

    def __init__(self, terminal: bool) -> None:
        self.terminal, self.text = terminal, ""

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


def test_the_status_line_tells_speed_and_time_left() -> None:
    log, terminal = Stream(False), Stream(True)
    for stream, shown in ((log, False), (terminal, True)):
        line = StatusLine(10_000, 4_000, stream)  # type: ignore[arg-type]
        begun = line._begun
        line.show("epoch 1", 4_500, begun + 10)
        assert ("50 images/s  0:01:50 left" in stream.text) == shown
        line.show("epoch 2", 5_000, begun + 40)
        assert "epoch 2  25 images/s  0:03:20 left" in stream.text
    assert log.text.count("\n") == 1
    assert "\n" not in terminal.text
    assert clock(3_725) == "1:02:05"
