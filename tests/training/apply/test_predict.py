"""Predictions for pictures, and what a parameter file expects of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn
from PIL import Image

from formats.errors import UserError
from formats.images.preprocessing import IMAGENET_MEAN, PREPROCESSING_FILE, Preprocessing
from formats.param_file import write_params
from formats.param_reader import ParamFileError
from formats.weight_file import write_card
from model.weights.known import known_of
from training.apply.predict import Picture, prediction_lines, probabilities, read_pictures
from training.classifier.config import TrainConfig
from training.classifier.opening import Expected, Source, expected_of
from training.data.cifar import CIFAR10_CLASSES, MEAN

ROOT = Path(__file__).resolve().parents[3]
PLAIN = Preprocessing(8, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), ("red", "green", "blue"))


def no_test() -> np.ndarray:
    raise AssertionError("the data set was opened")


class Brightest(nn.HybridBlock):
    """Logits: the mean of each channel."""

    def hybrid_forward(self, F, image):  # type: ignore[no-untyped-def]
        return F.mean(image, axis=(2, 3))


def test_pictures_of_every_kind(tmp_path: Path) -> None:
    red = Image.new("RGB", (40, 20), (200, 10, 10))
    kinds = {
        "rgb.png": red,
        "grey.png": Image.new("L", (9, 30), 90),
        "alpha.png": red.convert("RGBA"),
        "cmyk.jpg": red.convert("CMYK"),
        "tiny.bmp": Image.new("RGB", (1, 1), (10, 200, 10)),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
    names = [str(tmp_path / name) for name in kinds]
    pictures = read_pictures(names, PLAIN, no_test)
    assert [picture.image.shape for picture in pictures] == [(8, 8, 3)] * len(kinds)
    shares = probabilities(Brightest(), mx.cpu(), pictures, PLAIN)
    assert shares.argmax(axis=1).tolist() == [0, 0, 0, 0, 1]
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_allclose(shares[1], 1 / 3)
    # Logits are the channels in units of the standard deviation.
    logits = np.array([200, 10, 10]) / 255 / 0.25
    np.testing.assert_allclose(shares[0], np.exp(logits) / np.exp(logits).sum(), rtol=1e-4)


def test_names_that_no_terminal_can_show(tmp_path: Path) -> None:
    """Bytes in Latin-1, control characters, and a terminal that takes ASCII alone."""
    latin = os.fsdecode("caf\u00e9".encode("latin-1"))
    wanted = replace(PLAIN, class_names=(latin, "a\nb\x1b[2J", "caf\u00e9"))
    picture = Picture(f"{latin}.png", np.zeros((8, 8, 3), np.uint8))
    lines = prediction_lines([picture], np.array([[0.5, 0.3, 0.2]]), wanted)
    assert lines[0] == r"caf\udce9.png"
    names = [line.split(None, 1)[1] for line in lines[1:]]
    assert names == [r"caf\udce9", r"a\nb\x1b[2J", "caf\u00e9"]
    code = (
        "from training.settings.exit_code import exit_code\n"
        "exit_code(lambda: print('caf\\u00e9 \\udce9'))"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True
    )
    assert done.stdout == b"caf\\xe9 \\udce9\n"


def test_a_test_image_by_its_number() -> None:
    images = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    assert read_pictures(["test:2"], PLAIN, lambda: images)[0].image.max() == 2
    for word in ("test:3", "test:-1", "test:", "test:x"):
        with pytest.raises(UserError, match="give a number of 0 to 2"):
            read_pictures([word], PLAIN, lambda: images)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    for path in (tmp_path / "a.png", tmp_path / "missing.png"):
        with pytest.raises(UserError, match=f"cannot read the image {path}"):
            read_pictures([str(path)], PLAIN, no_test)
    with pytest.raises(UserError, match="name the pictures"):
        read_pictures([], PLAIN, no_test)


def test_the_five_most_probable_classes() -> None:
    known = Preprocessing(8, PLAIN.mean, PLAIN.std, ("a", "b"))
    shares = np.array([[0.1, 0.5, 0.04, 0.2, 0.11, 0.05]])
    lines = prediction_lines([Picture("x.png", np.zeros((8, 8, 3), np.uint8))], shares, known)
    assert [line.split() for line in lines] == [
        ["x.png"],
        ["50.00%", "b"],
        ["20.00%", "class", "3"],
        ["11.00%", "class", "4"],
        ["10.00%", "a"],
        ["5.00%", "class", "5"],
    ]


def test_what_a_file_expects(tmp_path: Path) -> None:
    path = tmp_path / "x.param"
    write_params(path, {"a": np.ones(1, "f4")})

    def found(**given: Any) -> Expected:
        config = TrainConfig(**given, classes=10)
        return expected_of(Source(str(path), known_of(path), None, "", None, config, given))

    nothing = found()
    assert nothing.assumed
    assert nothing.preprocessing.class_names == ()
    assert nothing.preprocessing.mean == MEAN["cifar10"]
    named = found(dataset="cifar10", normalization="imagenet")
    assert not named.assumed
    assert named.preprocessing.mean == IMAGENET_MEAN
    assert named.preprocessing.class_names == CIFAR10_CLASSES
    # The run folder goes before what is assumed, a card before that, a flag before both.
    (tmp_path / PREPROCESSING_FILE).write_bytes(PLAIN.to_json())
    assert found().preprocessing == PLAIN
    assert found(normalization="imagenet").preprocessing.mean == IMAGENET_MEAN
    for change in ({"std": [0, 1, 1]}, {"size": 0}, {"mean": [0.5]}, {"crop": 2}):
        text = {**json.loads(PLAIN.to_json()), **change}
        (tmp_path / PREPROCESSING_FILE).write_text(json.dumps(text))
        with pytest.raises(ParamFileError, match="cannot be read"):
            found()
    write_card(path, {"card": 1, "network": {}, **PLAIN.card_sections()})
    assert found().preprocessing == PLAIN
