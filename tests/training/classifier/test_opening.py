"""A file tells what it is: network, normalization and classes, wherever it lies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

import train_cifar
from formats.errors import UserError
from formats.weight_file import read_card, write_card
from model import load_classifier
from model.export.export_files import open_network
from model.registry import create_model
from model.weights import card as card_command
from model.weights.file_match import LoadError
from model.weights.network_card import network_section
from training.classifier.matching import labels_by_name, warn_of_other_rows
from training.classifier.opening import open_classifier
from training.loop.checkpoint import save_parameters

MODEL, SETTINGS = "resnet20_basic_ram", {"depth": 8, "steps": 3, "channels": (8, 8, 8)}
NAMES = ("circle", "square", "triangle")
IMAGE = {
    "height": 32,
    "width": 32,
    "mean": [0.5, 0.25, 0.125],
    "deviation": [0.2, 0.3, 0.4],
    "crop": 1.0,
}


def network() -> Any:
    mx.random.seed(1)
    np.random.seed(1)
    net = create_model(MODEL, 3, **SETTINGS)
    net.initialize(mx.init.Xavier())
    net(mx.nd.zeros((2, 3, 32, 32)))
    return net


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a card, alone in its folder."""
    path = tmp_path_factory.mktemp("alone") / "net.param"
    net = network()
    section = network_section(MODEL, net, 3)
    save_parameters(
        net, path, {"card": 1, "network": section, "classes": list(NAMES), "image": IMAGE}
    )
    return path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    shutil.copy(whole, tmp_path / "net.param")
    shutil.copy(f"{whole}.sha256", tmp_path / "net.param.sha256")
    return tmp_path / "net.param"


def folder(place: Path, names: Mapping[str, int], shade: int = 0) -> str:
    """Write pictures of one colour per class, the same in every data set; `shade` is trained on."""
    for name, colour in names.items():
        for split, offset in (("train", shade), ("test", 0)):
            (place / split / name).mkdir(parents=True)
            for number in range(2):
                pixels = np.full((32, 32, 3), 40 * colour + 5 * number + offset, np.uint8)
                pixels[:16] //= 2
                Image.fromarray(pixels).save(place / split / name / f"{number}.png")
    return f"folder:{place}"


def score(path: Path, dataset: str, capsys: pytest.CaptureFixture, *flags: str) -> tuple[int, str]:
    code = train_cifar.main(["--test", str(path), "--dataset", dataset, "--gpus", "cpu", *flags])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


PLAIN = {"circle": 1, "square": 2, "triangle": 3}


def test_spec_settings_come_from_the_card(path: Path) -> None:
    card = read_card(path) or {}
    assert card["network"] == {
        "model": MODEL,
        "classes": 3,
        "settings": {"depth": 8, "steps": 3, "channels": [8, 8, 8]},
    }
    opened = open_classifier(str(path), train_cifar.CifarConfig(gpus="cpu"), {})
    assert opened.net.spec == network().spec
    assert opened.preprocessing().mean == (0.5, 0.25, 0.125)
    assert opened.preprocessing().class_names == NAMES
    assert opened.origin() == "network, normalization, classes: its card"


def test_other_training_images_do_not_change_the_score(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code, here = score(path, folder(tmp_path / "a", PLAIN), capsys)
    assert code == 0
    code, there = score(path, folder(tmp_path / "b", PLAIN, shade=90), capsys)
    assert code == 0
    assert here.splitlines()[-1] == there.splitlines()[-1]
    code, other = score(path, f"folder:{tmp_path}/b", capsys, "--normalization", "dataset")
    assert code == 0
    assert other.splitlines()[-1] != here.splitlines()[-1]
    assert "not that of its card" in other


def test_classes_are_matched_by_name(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    here = score(path, folder(tmp_path / "a", PLAIN), capsys)[1]
    # The file's classes in another order than that of sorted folders.
    write_card(path, {**(read_card(path) or {}), "classes": ["triangle", "circle", "square"]})
    turned = {"circle": 2, "square": 3, "triangle": 1}
    code, there = score(path, folder(tmp_path / "b", turned), capsys)
    assert code == 0
    assert here.splitlines()[-1] == there.splitlines()[-1]
    code, text = score(
        path, folder(tmp_path / "c", {"disc": 1, "square": 2, "triangle": 3}), capsys
    )
    assert code == 2
    assert "unknown to the network: disc; without images: circle" in text
    code, text = score(path, folder(tmp_path / "d", {"circle": 1, "square": 2}), capsys)
    assert code == 2
    assert "without images: triangle" in text


def test_labels_by_name() -> None:
    np.testing.assert_array_equal(labels_by_name("abc", "cab", "x", "y"), [2, 0, 1])
    with pytest.raises(UserError, match="unknown to the network: d; without images: c"):
        labels_by_name("abc", "abd", "x", "y")


def test_rows_of_other_classes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """Of the bridge, whose networks are symbols with a number of classes."""
    data = SimpleNamespace(name="pictures", class_names=("bird", "cat"))
    warn_of_other_rows(("cat", "dog"), data, "net.param")
    shown = capsys.readouterr().err
    assert "net.param has the classes cat, dog, pictures has bird, cat" in shown
    for own in ((), ("bird", "cat")):
        warn_of_other_rows(own, data, "net.param")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "flags",
    [
        ["--model", "resnet20_basic"],
        ["--steps", "2"],
        ["--depth", "14"],
        ["--classes", "4"],
        ["--model", MODEL, "--depth", "14"],
    ],
)
def test_flags_that_contradict_the_card_are_refused(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture, flags: list[str]
) -> None:
    code, text = score(path, folder(tmp_path / "a", PLAIN), capsys, *flags)
    assert code == 2
    assert "its card says" in text
    assert "Traceback" not in text


def test_flags_that_say_the_same_are_taken(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    flags = ("--model", MODEL, "--steps", "3", "--depth", "8", "--classes", "3")
    assert score(path, folder(tmp_path / "a", PLAIN), capsys, *flags[2:])[0] == 0


def test_without_card_numbers_are_shown_and_said(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    net = create_model("resnet20_basic", 3, depth=8)
    net.initialize()
    net(mx.nd.zeros((2, 3, 32, 32)))
    net.save_parameters(str(tmp_path / "theirs.params"))
    folder(tmp_path / "a", PLAIN)
    picture = str(tmp_path / "a" / "test" / "circle" / "0.png")
    command = ["--predict", str(tmp_path / "theirs.params"), picture, "--gpus", "cpu"]
    assert train_cifar.main([*command, "--model", "resnet20_basic", "--depth", "8"]) == 0
    captured = capsys.readouterr()
    assert "class 0" in captured.out
    assert "airplane" not in captured.out
    assert "assumed that of cifar10" in captured.err
    assert "numbers, for nothing names them" in captured.err
    assert train_cifar.main(["--predict", str(path), picture, "--gpus", "cpu"]) == 0
    assert set(NAMES) <= set(capsys.readouterr().out.split())


def test_a_card_of_a_later_version_is_told(path: Path, capsys: pytest.CaptureFixture) -> None:
    write_card(path, {"card": 2})
    with pytest.raises(LoadError, match="no network of this project fits"):
        open_classifier(str(path), train_cifar.CifarConfig(gpus="cpu"), {})
    assert "card of version 2" in capsys.readouterr().err


def test_the_run_folder_answers_where_there_is_no_card(path: Path) -> None:
    write_card(path, None)
    run = {"model": MODEL, "depth": 8, "steps": 3, "dataset": "cifar10", "epochs": 1}
    beside = {"size": 32, "mean": [0.1] * 3, "std": [0.2] * 3, "class_names": NAMES, "crop": 1}
    path.with_name("config.json").write_text(json.dumps({**run, "channels": [8, 8, 8]}))
    path.with_name("preprocessing.json").write_text(json.dumps(beside))
    opened = open_classifier(str(path), train_cifar.CifarConfig(gpus="cpu"), {})
    assert opened.preprocessing().mean == (0.1,) * 3
    assert opened.origin() == "network, normalization, classes: its run folder"


def test_the_command_prints_corrects_and_strips(path: Path, capsys: pytest.CaptureFixture) -> None:
    before = read_card(path)
    command = card_command.main
    assert command([str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == before
    changes = ["--set", "classes=a,b,c", "--set", "image.mean=0,0,1", "--unset", "image.crop"]
    assert command([str(path), *changes]) == 0
    card = read_card(path) or {}
    assert (card["classes"], card["image"]["mean"]) == (["a", "b", "c"], [0, 0, 1])
    assert "crop" not in card["image"]
    for wrong in (
        *("network.model=resnet20_basic", "classes=a,a", "foo=1", "network.classes=2", "card=2"),
        *("network.settings.classes=5", "image.width=48", "network.model=gluoncv:none"),
        *("image.mean=0.5 image.deviation=0.2", "classes.0=cat"),
    ):
        words = [part for word in wrong.split() for part in ("--set", word)]
        assert command([str(path), *words]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert read_card(path) == card
    assert command([str(path), "--strip"]) == 0
    assert read_card(path) is None


def test_the_card_of_a_network_of_gluoncv_can_be_changed(tmp_path: Path) -> None:
    name, path = "gluoncv:cifar_resnet20_v1", tmp_path / "zoo.param"
    net = create_model(name, 10)
    net.initialize()
    net(mx.nd.zeros((1, 3, 32, 32)))
    save_parameters(net, path, {"card": 1, "network": network_section(name, net, 10)})
    assert card_command.main([str(path), "--set", "licence=MIT"]) == 0
    assert (read_card(path) or {})["licence"] == "MIT"
    assert card_command.main([str(path), "--set", "network.classes=9"]) == 2


def test_a_normalization_of_other_channels_is_refused(path: Path) -> None:
    card = read_card(path) or {}
    write_card(path, {**card, "image": {"mean": [0.5], "deviation": [0.25]}})
    opened = open_classifier(str(path), train_cifar.CifarConfig(gpus="cpu"), {})
    with pytest.raises(UserError, match=r"its card has a normalization of 1 channel"):
        opened.preprocessing()
    with pytest.raises(UserError, match="takes 3 channels and needs a number for each"):
        load_classifier(path)


def test_the_arrays_are_read_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PyTorch file has to be unpacked for its names too."""

    def again(*_: Any) -> None:
        raise AssertionError("read again")

    for module in ("model.weights.loading", "model.weights.file_match"):
        for name in ("read_weights", "read_weight_shapes", "read_for_unit_range"):
            monkeypatch.setattr(f"{module}.{name}", again, raising=False)
    config = train_cifar.CifarConfig(gpus="cpu")
    assert open_classifier(str(path), config, {}).status == "verified"
    assert open_network(path).status == "verified"
