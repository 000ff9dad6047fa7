"""Large photographs: augmentation against MXNet's formulas, batches, crops, damaged images."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

from formats.errors import UserError
from formats.images.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from training.augmentation.photo_augment import (
    GREY,
    PhotoAugmentation,
    augment_photo,
    colour_jitter,
    pca_shift,
    random_resized_crop,
)
from training.batches.photos import (
    FolderSource,
    PhotoEvalBatches,
    PhotoTrainBatches,
    Shape,
    held_out,
)
from training.classifier.imagenet import ImageNetConfig, open_imagenet
from training.data.image_folder import Files

NOTHING = PhotoAugmentation(flip=False, jitter=0.0, pca_noise=0.0, crop_area=1.0)
RNG = np.random.default_rng(3)
PHOTO = Image.fromarray(RNG.integers(0, 256, (60, 90, 3)).astype(np.uint8))


class Memory:
    """Encoded images in memory; the label is the level of grey."""

    def __init__(self, count: int = 10) -> None:
        self.contents = []
        for level in range(count):
            stream = io.BytesIO()
            Image.new("RGB", (40, 30), (level,) * 3).save(stream, "PNG")
            self.contents.append(stream.getvalue())

    def __len__(self) -> int:
        return len(self.contents)

    def read(self, index: int) -> tuple[int, str, bytes]:
        return index, f"image {index}", self.contents[index]


def levels(image: np.ndarray) -> np.ndarray:
    """Return the level of grey of plain images that were normalised."""
    pixels = image[:, 0, 0, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]
    return np.rint(pixels * 255).astype(int)


def train(**changes: object) -> PhotoTrainBatches:
    settings: dict = {"augmentation": replace(NOTHING, crop_area=0.3), "seed": 1, **changes}
    return PhotoTrainBatches(Memory(), 4, Shape(16, 10), **settings)


def test_an_epoch_has_each_image_at_most_once_and_its_label() -> None:
    batches = list(train().epoch(0))
    assert [batch.image.shape for batch in batches] == [(4, 3, 16, 16)] * 2
    labels = np.concatenate([batch.label for batch in batches])
    assert len(set(labels.tolist())) == 8
    np.testing.assert_array_equal(np.concatenate([levels(b.image) for b in batches]), labels)
    assert batches[0].image.dtype == np.float32
    assert batches[0].image.flags.c_contiguous


def test_a_resumed_epoch_has_the_same_batches() -> None:
    chosen = {"augmentation": PhotoAugmentation(), "mixup_alpha": 1.0}
    whole = list(train(**chosen).epoch(3, prefetch=2))
    for again in (list(train(**chosen).epoch(3, start=1)), whole[1:]):
        for one, other in zip(again, whole[1:]):
            np.testing.assert_array_equal(one.image, other.image)
            np.testing.assert_array_equal(np.asarray(one.soft_label), np.asarray(other.soft_label))
    other = next(iter(train(**chosen).epoch(4)))
    assert not np.array_equal(other.image, whole[0].image)
    assert next(iter(train(**chosen).epoch(3, mixup=False))).soft_label is None
    smooth = next(iter(train(label_smoothing=0.1).epoch(0)))
    assert smooth.soft_label is not None
    np.testing.assert_allclose(smooth.soft_label.max(axis=1), 0.91)


def test_evaluation_sees_every_image_once_and_its_centre() -> None:
    batches = PhotoEvalBatches(Memory(), 4, Shape(16, 10))
    assert (len(batches), batches.crop) == (3, 0.875)
    for _ in range(2):
        found = list(batches)
        assert [len(batch.label) for batch in found] == [4, 4, 2]
        np.testing.assert_array_equal(np.concatenate([levels(b.image) for b in found]), range(10))
    # Of 64 by 96 pixels the central 56 by 56; around them is a white frame.
    framed = np.full((64, 96, 3), 255, np.uint8)
    framed[4:60, 20:76] = 0
    stream = io.BytesIO()
    Image.fromarray(framed).save(stream, "PNG")
    source = Memory(1)
    source.contents = [stream.getvalue()]
    seen = next(iter(PhotoEvalBatches(source, 1, Shape(28, 1)))).image
    black, white = ((level - IMAGENET_MEAN[0]) / IMAGENET_STD[0] for level in (0, 1))
    np.testing.assert_allclose(seen[0, 0, 2:-2, 2:-2], black, rtol=1e-5)
    # The filter reaches a little over the edge, as it does when a whole picture is resized.
    assert seen.max() < (black + white) / 2


def test_crops_have_the_stated_areas() -> None:
    # Each pixel of a ramp says where it is: the spread of a crop is its extent.
    ramp = np.zeros((80, 100, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(100), np.arange(80)[:, None]
    image, rng = Image.fromarray(ramp), np.random.default_rng(0)
    areas, ratios = [], []
    for _ in range(300):
        crop = np.asarray(random_resized_crop(image, 32, 0.08, rng)).astype(float)
        columns, rows = (np.ptp(crop[..., channel]) * 32 / 31 for channel in (0, 1))
        areas.append(columns * rows / 8000)
        ratios.append(columns / rows)
    assert 0.05 < min(areas) < 0.15
    assert 0.85 < max(areas) <= 1.05
    assert (
        abs(np.mean(areas) - 0.52) < 0.06
    )  # a little below the mean of 0.08 and 1: large ones fail
    assert 0.65 < min(ratios) < 0.85
    assert 1.2 < max(ratios) < 1.5


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_colours_change_as_in_mxnet(kind: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.asarray(PHOTO, np.float32)
    factors = np.ones(3)
    factors[kind] = 1.3

    class Fixed:
        def uniform(self, low: float, high: float, size: int) -> np.ndarray:
            return factors

        def permutation(self, count: int) -> np.ndarray:
            return np.arange(count)

    ours = colour_jitter(pixels, 0.4, Fixed())  # type: ignore[arg-type]
    classes = (
        mx.image.BrightnessJitterAug,
        mx.image.ContrastJitterAug,
        mx.image.SaturationJitterAug,
    )
    monkeypatch.setattr("random.uniform", lambda low, high: 0.3)
    theirs = classes[kind](0.4)(mx.nd.array(pixels)).asnumpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-2)


def test_pca_noise_is_mxnets() -> None:
    strengths = np.array([0.1, -0.2, 0.05])
    eigenvectors = [
        [-0.5675, 0.7192, 0.4009],
        [-0.5808, -0.0045, -0.8140],
        [-0.5836, -0.6948, 0.4203],
    ]
    expected = np.dot(np.array(eigenvectors) * strengths, [55.46, 4.794, 1.148])
    np.testing.assert_allclose(pca_shift(strengths), expected, rtol=1e-5)
    assert GREY.sum() == pytest.approx(1)


def test_flips_and_no_augmentation() -> None:
    plain = augment_photo(PHOTO, 60, NOTHING, np.random.default_rng(0))
    np.testing.assert_array_equal(plain, np.asarray(PHOTO)[:, 15:75])
    flipped = [
        np.array_equal(
            augment_photo(PHOTO, 60, replace(NOTHING, flip=True), np.random.default_rng(seed)),
            plain[:, ::-1],
        )
        for seed in range(40)
    ]
    assert 10 < sum(flipped) < 30


def test_wrong_data(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a batch of 11 images does not fit into 10"):
        PhotoTrainBatches(Memory(), 11, Shape(16, 10), augmentation=NOTHING, seed=0)
    with pytest.raises(UserError, match="has the label 3, the network has 3 classes"):
        list(PhotoEvalBatches(Memory(), 4, Shape(16, 3)))
    source = Memory()
    source.contents[2] = source.contents[2][:50]
    with pytest.raises(UserError, match="cannot read image 2"):
        list(PhotoEvalBatches(source, 4, Shape(16, 10)))
    gone = FolderSource(Files([str(tmp_path / "x.png")], np.zeros(1, np.int32)))
    with pytest.raises(UserError, match=r"cannot read the image .*x\.png: No such file"):
        list(PhotoEvalBatches(gone, 1, Shape(16, 1)))


def test_held_out_images_are_not_trained_on() -> None:
    rest, valid = held_out(Memory(), 3, 0)
    assert valid is not None
    labels = [[part.read(i)[0] for i in range(len(part))] for part in (rest, valid)]
    assert sorted(labels[0] + labels[1]) == list(range(10))
    assert len(labels[1]) == 3
    with pytest.raises(UserError, match="--valid-count 10"):
        held_out(Memory(), 10, 0)


def test_a_folder_without_test_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for index in range(10):
            Image.new("RGB", (20, 20)).save(tmp_path / name / f"{index}.png")
    data = open_imagenet(ImageNetConfig(data_dir=str(tmp_path)))
    assert (len(data.train) + len(data.test), data.classes) == (20, 2)
    for part in (data.train, data.test):
        assert {part.read(i)[0] for i in range(len(part))} == {0, 1}
    assert len(data.test) < len(data.train) / 2
    with pytest.raises(UserError, match="give the data: --data-dir"):
        open_imagenet(ImageNetConfig())
