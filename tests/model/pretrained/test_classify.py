"""``load_classifier``: the same answers as ``--predict``, for every kind of picture."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from formats.errors import UserError
from formats.weight_file import write_card
from model import load_classifier
from model.pretrained.classify import Classifier, Prediction
from model.pretrained.store import weights_path
from model.weights.file_match import LoadError
from training.data.catalogue import load_dataset

ROOT = Path(__file__).resolve().parents[3]
NAME, DATASET = "attention56_small", "shapes"
FIGURES = {"mean": (0.4, 0.4, 0.4), "deviation": (0.2, 0.2, 0.2)}


@pytest.fixture(scope="module")
def classify() -> Classifier:
    return load_classifier(NAME, pretrained=DATASET)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Test images as PNG files, one of them in the middle of a larger picture."""
    images = load_dataset(DATASET).test.images[:3]
    folder = tmp_path_factory.mktemp("pictures")
    wide = np.pad(np.repeat(np.repeat(images[2], 3, 0), 3, 1), ((0, 0), (40, 40), (0, 0)))
    paths = [folder / f"{number}.png" for number in range(3)]
    for path, image in zip(paths, [images[0], images[1], wide]):
        Image.fromarray(image).save(path)
    return paths


def test_answers_are_those_of_the_command(classify: Classifier, pictures: list[Path]) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "train_cifar.py", "--model", NAME, f"--pretrained={DATASET}"),
            *("--predict", *map(str, pictures)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    told = re.findall(r"^ +([\d.]+)%  (.*)$", done.stdout, re.MULTILINE)
    found = [each for answer in classify([str(path) for path in pictures]) for each in answer]
    assert [name for _, name in told] == [each.name for each in found]
    assert [share for share, _ in told] == [f"{100 * each.probability:.2f}" for each in found]


def test_every_kind_of_picture_is_the_same(classify: Classifier, pictures: list[Path]) -> None:
    path = pictures[2]
    image = Image.fromarray(np.asarray(Image.open(path)))
    kinds: list[Any] = [path, str(path), image, image.convert("RGBA"), np.asarray(image)]
    first, *others = classify.probabilities(kinds)
    assert all(np.allclose(first, other, atol=1e-6) for other in others)
    assert first.sum() == pytest.approx(1)


def test_one_picture_gives_one_answer(classify: Classifier, pictures: list[Path]) -> None:
    answer = classify(pictures[0], top=2)
    assert len(answer) == 2
    assert isinstance(answer[0], Prediction)
    assert answer[0].probability >= answer[1].probability
    assert answer[0].name in classify.preprocessing.class_names
    assert classify([pictures[0]], top=2)[0][0].name == answer[0].name
    assert classify([]) == []


def test_a_file_alone_is_enough(tmp_path: Path, pictures: list[Path], classify: Classifier) -> None:
    copy = tmp_path / "alone.param"
    shutil.copy(weights_path(NAME, DATASET), copy)
    assert np.array_equal(
        load_classifier(copy).probabilities(pictures), classify.probabilities(pictures)
    )


def test_what_is_named_goes_before_the_file(pictures: list[Path], classify: Classifier) -> None:
    path = weights_path(NAME, DATASET)
    named = load_classifier(path, classes=list("abcdefghij"), **FIGURES, size=24)  # type: ignore[arg-type]
    assert named.preprocessing.size == 24
    assert named.preprocessing.mean == FIGURES["mean"]
    assert {each.name for each in named(pictures[0], top=10)} == set("abcdefghij")


def test_without_a_card_the_normalization_is_asked_for(
    tmp_path: Path, pictures: list[Path]
) -> None:
    copy = tmp_path / "bare.param"
    shutil.copy(weights_path(NAME, DATASET), copy)
    write_card(copy, None)
    # A published file is known without its card, but for its normalization.
    with pytest.raises(UserError, match=r"how its images are normalized.*mean=.*--set image\.mean"):
        load_classifier(copy)
    assert load_classifier(copy, **FIGURES)(pictures[0])[0].name.startswith("class ")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        ("missing.png", ["missing.png"]),
        (3, ["int", "Pillow"]),
        (np.zeros((8, 8, 3)), ["float64", "uint8"]),
        (np.zeros((8, 8), np.uint8), ["(8, 8)"]),
        (np.zeros((0, 8, 3), np.uint8), ["(0, 8, 3)"]),
    ],
)
def test_wrong_pictures_are_refused(classify: Classifier, picture: Any, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        classify(picture)
    assert not [word for word in words if word not in str(caught.value)]


def test_a_damaged_image_is_refused(classify: Classifier, tmp_path: Path) -> None:
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:4000])
    with (
        Image.open(tmp_path / "cut.png") as image,
        pytest.raises(UserError, match="cannot read the image"),
    ):
        classify(image)


@pytest.mark.parametrize(
    ("source", "arguments", "error", "words"),
    [
        ("nothing.param", {}, UserError, ["no such file", "attention92"]),
        ("glimpse_mnist", {}, UserError, ["glimpse model", "train_mnist_glimpse.py"]),
        (NAME, {"mean": (0.5, 0.5, 0.5)}, UserError, ["belong together"]),
        (NAME, {"classes": ["a"] * 11}, UserError, ["11 classes", "10"]),
        ("resnet20", {}, UserError, ["no weights are published"]),
        (NAME, {"size": -5}, UserError, ["size is -5", "1 to 4096"]),
        (NAME, {"size": 0}, UserError, ["size is 0"]),
        (NAME, {"mean": (0.5,) * 3, "deviation": (0.5, 0.0, 0.5)}, UserError, ["above 0"]),
        (NAME, {"mean": (0.5, math.nan, 0), "deviation": (0.5,) * 3}, UserError, ["finite"]),
    ],
)
def test_wrong_sources_are_refused(
    source: str, arguments: dict[str, Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        load_classifier(source, **arguments)
    assert not [word for word in words if word not in str(caught.value)]


def test_a_file_of_no_network_is_refused(tmp_path: Path) -> None:
    import mxnet as mx

    path = tmp_path / "other.param"
    mx.nd.save(str(path), {"a.weight": mx.nd.ones((2, 3))})
    with pytest.raises(LoadError, match="no network of this project fits"):
        load_classifier(path)
