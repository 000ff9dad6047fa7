"""A training that starts from a file: network, settings and rows of classes come from it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

import train_cifar
import train_imagenet
from formats.errors import UserError
from formats.param_file import read_params
from formats.weight_file import read_card, write_card
from model.registry import ModelError, create_model, read_settings, settings_words
from model.weights.network_card import network_section
from training.classifier.finetuning import (
    batch_for,
    gentle_settings,
    rows_by_name,
    start_from,
    training_images,
    with_start,
)
from training.classifier.loaders import open_dataset
from training.classifier.matching import warn_of_other_images
from training.classifier.networks import further_settings
from training.data.identity import identity_of
from training.data.image_folder import list_image_folder
from training.loop.checkpoint import save_parameters
from training.records.cards import data_section
from training.records.run_folder import read_config

MODEL = "attention56_small"
SMALL = {"stem_channels": 8, "channels": (8, 8, 8), "tail_channels": 16, "mask_depths": (1, 1, 0)}
IMAGE = {
    "height": 32,
    "width": 32,
    "mean": [0.5, 0.25, 0.125],
    "deviation": [0.2, 0.3, 0.4],
    "crop": 1.0,
}
GRAPH = ("--fused", "off", "--gpus", "cpu")


def saved(path: Path, names: tuple[str, ...], **settings: Any) -> Path:
    """Write a file with a card; the rows of its classifier tell the classes apart."""
    mx.random.seed(1)
    np.random.seed(1)
    net = create_model(MODEL, len(names), **SMALL, **settings)
    net.initialize(mx.init.Xavier())
    net(mx.nd.zeros((2, 3, 32, 32)))
    section = network_section(MODEL, net, len(names))
    card = {"card": 1, "network": section, "classes": list(names), "image": IMAGE}
    save_parameters(net, path, card)
    return path


def pictures(place: Path, names: tuple[str, ...], count: int = 5) -> str:
    for number, name in enumerate(names):
        (place / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.full((32, 32, 3), 60 * number + 9 * index, np.uint8)
            Image.fromarray(pixels).save(place / name / f"{index}.png")
    return str(place)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return saved(tmp_path / "net.param", ("cat", "dog"))


def config_of(*words: str) -> tuple[Any, dict[str, Any]]:
    given = dict(train_cifar._given(words))
    return train_cifar.CifarConfig(**given), given


def test_network_and_normalization_are_those_of_the_file(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    started = with_start(*config_of("--finetune", str(path)))
    assert started.model == MODEL
    assert read_settings(started.set) == SMALL
    assert started.normalization == "0.5,0.25,0.125/0.2,0.3,0.4"
    shown = capsys.readouterr().out
    assert "channels=(8, 8, 8)" in shown
    assert "the normalization of" in shown
    named = with_start(*config_of("--finetune", str(path), "--normalization", "dataset"))
    assert named.normalization == "dataset"
    other = with_start(*config_of("--finetune", str(path), "--set", "channels=16,16,16"))
    assert read_settings(other.set) == {**SMALL, "channels": (16, 16, 16)}
    assert with_start(train_cifar.CifarConfig(), {}) == train_cifar.CifarConfig()


def test_settings_are_checked_again_with_what_is_taken(path: Path, tmp_path: Path) -> None:
    """A batch that is cut for few images leaves none of them out."""
    folder = pictures(tmp_path / "pictures", ("cat", "dog"))
    words = ["--finetune", str(path), "--dataset", f"folder:{folder}", "--harder-share", "0.95"]
    config, given = config_of(*words)
    with pytest.raises(UserError, match=r"--harder-share 0.95: .*would leave no image out"):
        with_start(config, given, gentle=True)


def test_what_a_flag_gives_is_a_flag_and_the_rest_is_not(tmp_path: Path) -> None:
    nal = saved(tmp_path / "nal.param", ("a", "b"), learning="nal", attention="tanh")
    started = with_start(*config_of("--finetune", str(nal)))
    assert (started.learning, started.attention) == ("nal", None)  # --attention has no tanh
    assert read_settings(started.set) == {**SMALL, "attention": "tanh"}


@pytest.mark.parametrize("script", [train_cifar, train_imagenet])
def test_file_and_folder_are_enough(
    script: Any, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's command: five pictures of each of three classes, one of which is new."""
    folder = pictures(tmp_path / "pictures", ("bird", "cat", "dog"))
    data = ["--dataset", f"folder:{folder}"] if script is train_cifar else ["--data-dir", folder]
    words = ["--finetune", str(path), *data, "--run-dir", str(tmp_path / "run"), *GRAPH]
    assert script.main([*words, "--lr", "1e-9", "--epochs", "2"]) == 0
    shown = capsys.readouterr().out
    assert "classes that it knows: cat, dog; fresh: bird" in shown
    assert "short finetuning: 2 epochs, batches of 8, learning rate 1e-09" in shown
    settings = read_config(tmp_path / "run")
    assert (settings["batch_size"], settings["schedule"]) == (8, "cosine")
    before, after = (read_params(file) for file in (path, tmp_path / "run" / "last.param"))
    for name in ("fc.weight", "fc.bias"):  # cat and dog are where bird has moved them
        np.testing.assert_allclose(after[name][1:], before[name], atol=1e-6)
    card = read_card(tmp_path / "run" / "last.param") or {}
    assert card["classes"] == ["bird", "cat", "dog"]
    assert card["network"]["settings"]["channels"] == [8, 8, 8]


def test_the_order_of_the_names_counts_when_the_number_is_the_same(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "pictures", ("ant", "cat"))
    words = ["--finetune", str(path), "--dataset", f"folder:{folder}", "--lr", "1e-9", *GRAPH]
    assert train_cifar.main([*words, "--epochs", "1", "--run-dir", str(tmp_path / "run")]) == 0
    assert "classes that it knows: cat; fresh: ant" in capsys.readouterr().out
    before, after = (read_params(file) for file in (path, tmp_path / "run" / "last.param"))
    np.testing.assert_allclose(after["fc.weight"][1], before["fc.weight"][0], atol=1e-6)
    assert np.abs(after["fc.weight"][0] - before["fc.weight"][1]).max() > 1e-3
    # Without names the rows stay where they are.
    card = {**(read_card(path) or {})}
    card.pop("classes")
    write_card(path, card)
    assert train_cifar.main([*words, "--epochs", "1", "--run-dir", str(tmp_path / "second")]) == 0
    after = read_params(tmp_path / "second" / "last.param")
    np.testing.assert_allclose(after["fc.weight"], before["fc.weight"], atol=1e-6)


def test_more_outputs_than_names_and_layers_of_unknown_inputs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network of gluoncv's zoo, whose classifier has no shape yet when it is built."""
    name, names = "gluoncv:cifar_resnet20_v1", ("cat", "dog")
    np.random.seed(1)
    theirs = create_model(name, 2)
    theirs.initialize(mx.init.Xavier())
    theirs(mx.nd.zeros((1, 3, 32, 32)))
    card = {"card": 1, "network": network_section(name, theirs, 2), "classes": list(names)}
    path = tmp_path / "zoo.param"
    save_parameters(theirs, path, card)
    before = read_params(path)["output.weight"]
    for classes, data in ((2, ("dog", "cat")), (4, names)):
        ours = create_model(name, classes)
        ours.initialize(mx.init.Xavier())
        start_from(ours, str(path), [mx.cpu()], data)
        assert "classes that it knows:" in capsys.readouterr().out
        after = ours.output.weight.data().asnumpy()
        rows = [0, 1] if data == names else [1, 0]
        np.testing.assert_array_equal(after[:2], before[rows])
        assert len(after) == classes
        assert np.isfinite(after).all()


def test_rows_by_name() -> None:
    assert rows_by_name(("a", "b"), ("b", "c", "a")) == {0: 1, 2: 0}
    assert rows_by_name(("a", "b"), ("c", "d")) == {}
    assert rows_by_name(("a", "b"), ("a", "b")) == {0: 0, 1: 1}
    assert rows_by_name((), ("a", "b")) is None
    assert rows_by_name(("a",), ()) is None


@pytest.mark.parametrize(
    ("images", "batch"), [(None, 64), (5, 5), (38, 8), (130, 16), (300, 32), (512, 64), (9000, 64)]
)
def test_a_batch_is_a_part_of_the_images(images: Any, batch: int) -> None:
    assert batch_for(images, 64) == batch


def test_images_of_a_folder_are_counted(tmp_path: Path) -> None:
    folder = pictures(tmp_path / "pictures", ("a", "b"), 10)
    config = train_cifar.CifarConfig(dataset=f"folder:{folder}")
    listing = list_image_folder(str(folder))
    assert training_images(config) == len(listing.train.paths) < 20  # the others are of the test
    more = train_cifar.CifarConfig(dataset=f"folder:{folder}", valid_count=4, train_count=8)
    assert training_images(more) == 8
    assert training_images(train_cifar.CifarConfig(dataset="cifar10")) is None


def test_a_test_on_images_that_may_have_been_trained_on_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "pictures", ("a", "b"), 10)
    monkeypatch.chdir(tmp_path)
    for name in (f"folder:{folder}", "folder:pictures"):
        data = open_dataset(train_cifar.CifarConfig(dataset=name))
        card = {"data": data_section(identity_of(data))}
        warn_of_other_images(card, data, "x.param")
        assert capsys.readouterr().err == ""
        for path in sorted(Path(folder, "a").iterdir())[:3]:
            path.rename(path.with_name(f"other-{path.name}"))
        data = open_dataset(train_cifar.CifarConfig(dataset=name))
        warn_of_other_images(card, data, "x.param")
        assert "x.param was trained on a folder pictures with other" in capsys.readouterr().err
        warn_of_other_images({"data": {"name": "cifar10", "digest": "0"}}, data, "x.param")
        assert capsys.readouterr().err == ""
    shutil.copytree(folder, tmp_path / "all" / "pictures" / "train")
    shutil.copytree(folder, tmp_path / "all" / "pictures" / "test")
    data = open_dataset(train_cifar.CifarConfig(dataset="folder:all/pictures"))
    warn_of_other_images(card, data, "x.param")  # its test is one, whatever is trained on
    assert capsys.readouterr().err == ""


def test_settings_that_a_flag_contradicts_make_room() -> None:
    assert gentle_settings({})["warmup_epochs"] == 1
    assert gentle_settings({"epochs": 1})["warmup_epochs"] == 0
    assert gentle_settings({"lr_steps": (3,)})["schedule"] == "step"


def test_words_of_settings() -> None:
    settings = {"channels": (16, 16, 32), "wiring": "paper", "post_units": None}
    assert read_settings(settings_words(settings)) == settings
    assert read_settings(["channels=16,16,32"]) == {"channels": (16, 16, 32)}
    for words in (["channels"], ["=3"], ["a b=3"], ["ptr=1", "ptr=2"]):
        with pytest.raises(ModelError, match="--set"):
            read_settings(words)


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        (MODEL, ["chanels=16,16,32"], "has no such field to set. It has modules,"),
        (MODEL, ["classes=3"], "the number of classes is --classes"),
        (MODEL, ["channels=16"], r"has channels=\(64, 64, 128\); give the same kind"),
        (MODEL, ["channels=16,a,3"], "give the same kind"),
        ("gluoncv:cifar_resnet20_v1", ["channels=3"], "is as its name says"),
        ("glimpse_mnist", ["height=3"], "train_mnist_glimpse.py"),
    ],
)
def test_fields_that_cannot_be_set(model: str, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        further_settings(model, words)


def test_widths_come_from_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for item in settings_words(SMALL) for word in ("--set", item)]
    assert train_cifar.main(["--summary", MODEL, *words]) == 0
    assert " 8 x 32 x 32 " in capsys.readouterr().out
    assert train_cifar.main(["--summary", MODEL, "--set", "wiring=paper", "--wiring", "paper"]) == 2
    assert "--wiring and --set wiring=paper" in capsys.readouterr().err

    folder = f"folder:{pictures(tmp_path / 'pictures', ('a', 'b'))}"
    run = tmp_path / "run"
    quick = ["--recipe", "quick", "--epochs", "1", "-b", "4", "--run-dir", str(run), *GRAPH]
    assert train_cifar.main(["--model", MODEL, *words, "--dataset", folder, *quick]) == 0
    assert read_params(run / "last.param")["conv1.0.weight"].shape == (8, 3, 3, 3)
    assert train_cifar.main(["--resume", str(run)]) == 0
    write_card(run / "last.param", None)  # the run folder tells too
    (tmp_path / "alone").mkdir()
    capsys.readouterr()
    assert train_cifar.main(["--test", str(run / "last.param"), "--dataset", folder]) == 0
    assert "its run folder" in capsys.readouterr().out
    # Alone, the flags do.
    alone = (run / "last.param").rename(tmp_path / "alone" / "net.param")
    assert train_cifar.main(["--test", str(alone), "--dataset", folder]) == 2
    assert "no network of this project fits" in capsys.readouterr().err
    named = ["--model", MODEL, *words, "--classes", "2"]
    assert train_cifar.main(["--test", str(alone), "--dataset", folder, *named]) == 0
