"""Wrong labels on purpose: their statistics, and where they are."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from formats.errors import UserError
from training.augmentation.label_noise import (
    NOISE_FILE,
    NoisyImageData,
    add_label_noise,
    noise_files,
)
from training.classifier.config import TrainConfig
from training.classifier.loaders import build_loaders
from training.data.dataset import Dataset, ImageData

CLASSES = 5


def data(count: int) -> ImageData:
    labels = (np.arange(count) % CLASSES).astype(np.int32)
    return ImageData(np.zeros((count, 4, 4, 3), np.uint8), labels)


@pytest.mark.parametrize("clean_ratio", [0.9, 0.7, 0.5, 0.3])
def test_the_confusion_matrix(clean_ratio: float) -> None:
    clean = data(20_000)
    noisy = add_label_noise(clean, CLASSES, clean_ratio, seed=1)
    counts = np.zeros((CLASSES, CLASSES))
    np.add.at(counts, (clean.labels, noisy.labels), 1)
    shares = counts / 4000
    # Five standard deviations of a binomial share over 4000 images are at most 0.04.
    off = (1 - clean_ratio) / (CLASSES - 1)
    expected = np.full((CLASSES, CLASSES), off) + (clean_ratio - off) * np.eye(CLASSES)
    np.testing.assert_allclose(shares, expected, atol=0.04)
    assert abs((clean.labels == noisy.labels).mean() - clean_ratio) < 0.018
    # Neighbours are independent: two wrong ones in a row are as frequent as chance says.
    wrong = clean.labels != noisy.labels
    assert abs((wrong[1:] & wrong[:-1]).mean() - (1 - clean_ratio) ** 2) < 0.02


def test_it_depends_on_the_seed_alone_and_changes_no_image() -> None:
    clean = data(1000)
    one, same, other = (add_label_noise(clean, CLASSES, 0.5, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.labels, same.labels)
    assert (one.labels != other.labels).any()
    assert one.images is clean.images
    assert one.clean_labels is clean.labels
    np.testing.assert_array_equal(add_label_noise(clean, CLASSES, 1.0, 1).labels, clean.labels)


def test_only_training_labels_are_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    # The true label is in the pixels, so that it can be read after the split.
    split = data(400)
    images = np.broadcast_to(split.labels[:, None, None, None], split.images.shape)
    split = ImageData(images.astype(np.uint8), split.labels)
    dataset = Dataset("x", split, split, ("a", "b", "c", "d", "e"), (0.5,) * 3, (0.2,) * 3)
    config = TrainConfig(batch_size=10, pad=1, valid_count=100, label_noise=0.3, seed=3)
    loaders = build_loaders(config, dataset, CLASSES)
    assert loaders.valid is not None
    for part in (loaders.valid.data, loaders.test.data):
        np.testing.assert_array_equal(part.labels, part.images[:, 0, 0, 0])
    train = loaders.train.data
    assert isinstance(train, NoisyImageData)
    assert train.clean_labels is not None
    np.testing.assert_array_equal(train.clean_labels, train.images[:, 0, 0, 0])
    wrong = int((train.labels != train.clean_labels).sum())
    assert abs(wrong / 300 - 0.7) < 0.13

    record = json.loads(noise_files(train, 0.3, 3)[NOISE_FILE])
    assert (record["images"], record["wrong_labels"], record["seed"]) == (300, wrong, 3)
    assert np.trace(record["counts"]) == 300 - wrong
    assert f"{wrong} training labels are wrong" in capsys.readouterr().out
    clean = build_loaders(replace(config, label_noise=1.0), dataset, CLASSES).train.data
    assert noise_files(clean, 1.0, 3) == {}


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1])
def test_impossible_ratios(value: float) -> None:
    with pytest.raises(UserError, match=f"--label-noise {value}: give the share"):
        TrainConfig(label_noise=value).check()
