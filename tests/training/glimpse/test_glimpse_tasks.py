"""Tasks of the glimpse model: batches, fixed canvases, splits that never mix, pinned test sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Optional

import numpy as np
import pytest
from PIL import Image

from formats.errors import UserError
from training.augmentation.deform import Deformation
from training.batches.in_memory import Batch, EvalBatches
from training.data.dataset import Dataset, ImageData
from training.data.digits import load_digits
from training.glimpse import data as glimpse_tasks
from training.glimpse import sheet as glimpse_sheet
from training.glimpse.batches import GlimpseTrainBatches, draw_split
from training.glimpse.canvas import CANVASES, Canvas
from training.glimpse.data import TASKS, GlimpseTask, draw_test, load_task

SOME = Deformation(rotate=10, scale=0.1, shift=1, elastic=0.5)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_digits()


def batches(
    data: ImageData,
    canvas: Optional[Canvas] = CANVASES["cluttered"],
    deformation: Deformation = SOME,
    seed: int = 0,
) -> GlimpseTrainBatches:
    return GlimpseTrainBatches(data, 100, canvas=canvas, deformation=deformation, seed=seed)


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.label, b.label)


def test_form_of_a_batch(digits: Dataset) -> None:
    train = batches(digits.train)
    epoch = list(train.epoch(0))
    assert len(train) == len(epoch) == 12
    assert (train.mean, train.std) == ((0.0,), (1.0,))
    for batch in epoch:
        assert batch.image.shape == (100, 1, 60, 60)
        assert batch.image.dtype == np.float32
        assert batch.image.flags.c_contiguous
        assert batch.image.min() == 0
        assert 0.9 < batch.image.max() <= 1
        assert batch.label.dtype == np.int32
        assert batch.soft_label is None


def test_plain_batches_are_the_images(digits: Dataset) -> None:
    train = batches(digits.train, canvas=None, deformation=Deformation())
    known = {
        image.tobytes(): label for image, label in zip(digits.train.images, digits.train.labels)
    }
    seen = []
    for batch in train.epoch(3):
        pixels = np.rint(batch.image * 255).astype(np.uint8)
        np.testing.assert_allclose(batch.image, pixels / 255.0, rtol=1e-6)
        seen += [pixel.tobytes() for pixel in pixels]
        assert [known[pixel.tobytes()] for pixel in pixels] == batch.label.tolist()
    assert len(set(seen)) == 1200  # no image twice


def test_batch_is_a_function_of_seed_epoch_and_number(digits: Dataset) -> None:
    train = batches(digits.train)
    epoch = list(train.epoch(1))
    assert_equal(epoch, list(batches(digits.train).epoch(1)))
    assert_equal(epoch[7:], list(train.epoch(1, start=7)))
    assert_equal(epoch, list(train.epoch(1, prefetch=2)))
    for other in (train.epoch(2), batches(digits.train, seed=1).epoch(1)):
        assert (next(iter(other)).image != epoch[0].image).any()


def test_places_and_clutter_are_fresh_in_every_epoch() -> None:
    # One bright image, so that it is known again; the clutter is cut from the dim ones.
    images = np.ones((2, 28, 28, 1), np.uint8)
    images[0] = 200
    data = ImageData(images, np.array([0, 1], np.int32))
    train = GlimpseTrainBatches(
        data, 2, canvas=CANVASES["cluttered"], deformation=Deformation(), seed=0
    )
    places, clutter = set(), set()
    for epoch in range(30):
        batch = next(iter(train.epoch(epoch)))
        pixels = np.rint(batch.image[batch.label == 0][0, 0] * 255).astype(int)
        rows, columns = np.nonzero(pixels >= 200)
        assert pixels.max() <= 204  # four pieces of ones at most: never from the image itself
        places.add((rows.min(), columns.min()))
        clutter.add((pixels % 200).tobytes())
    assert len(places) > 25
    assert len(clutter) == 30


def test_clutter_never_comes_from_another_split() -> None:
    levels = {"train": 3, "held out": 5, "test": 7}
    canvas = Canvas(60, pieces=6)
    for level in levels.values():
        images = np.full((40, 28, 28, 1), level, np.uint8)
        data = ImageData(images, np.zeros(40, np.int32))
        drawn = draw_split(data, canvas, seed=0).images
        assert set(np.unique(drawn)) <= {level * layers for layers in range(8)}
        train = GlimpseTrainBatches(data, 40, canvas=canvas, deformation=Deformation(), seed=0)
        pixels = np.rint(next(iter(train.epoch(0))).image * 255)
        assert set(np.unique(pixels)) <= {level * layers for layers in range(8)}


def test_fixed_canvases(digits: Dataset) -> None:
    canvas = CANVASES["cluttered"]
    data = ImageData(np.tile(digits.test.images, (3, 1, 1, 1)), np.tile(digits.test.labels, 3))
    first = draw_split(data, canvas, seed=3)
    assert first.images.shape == (1500, 60, 60, 1)  # more than one chunk
    np.testing.assert_array_equal(first.labels, data.labels)
    np.testing.assert_array_equal(first.images, draw_split(data, canvas, seed=3).images)
    assert (first.images != draw_split(data, canvas, seed=4).images).any()
    assert (first.images[:500] != first.images[1000:]).any()
    assert draw_split(data, None, seed=3) is data
    evaluated = EvalBatches(first, 128, mean=(0.0,), std=(1.0,))
    together = np.concatenate([batch.image for batch in evaluated])
    np.testing.assert_allclose(together[:, 0], first.images[..., 0] / 255.0, rtol=1e-6)


def test_data_that_does_not_fit_is_refused_at_once(digits: Dataset) -> None:
    with pytest.raises(UserError, match="do not fit on a canvas"):
        batches(digits.train, Canvas(20))
    with pytest.raises(UserError, match="does not fit into 50 training"):
        batches(digits.train.take(np.arange(50)))
    with pytest.raises(UserError, match="no images"):
        batches(digits.train.take(np.arange(0)))


def test_embedded_tasks() -> None:
    for name, size in (("digits", 28), ("digits-translated", 60)):
        task = load_task(name)
        assert task.image_size == (size, size)
        assert task.channels == 1
        test = draw_test(task)
        assert test.images.shape == (500, size, size, 1)
        np.testing.assert_array_equal(test.labels, task.dataset.test.labels)
    with pytest.raises(UserError, match=r"unknown task 'mnits'; known: mnist, .*folder:PATH"):
        load_task("mnits")


def write_folder(folder: Path, colour: bool) -> None:
    for number, name in enumerate("ab"):
        (folder / name).mkdir(parents=True)
        for index in range(5):
            pixels = np.full((9, 7, 3), 40 * index + number, np.uint8)
            if colour and index == 4:
                pixels[0, 0, 2] = 255
            Image.fromarray(pixels).save(folder / name / f"{index}.png")


def test_folders(tmp_path: Path) -> None:
    write_folder(tmp_path / "grey", colour=False)
    write_folder(tmp_path / "colour", colour=True)
    grey = load_task(f"folder:{tmp_path}/grey", size=12)
    assert (grey.image_size, grey.channels, grey.canvas) == ((12, 12), 1, None)
    assert len(grey.dataset.mean) == len(grey.dataset.std) == 1
    colour = load_task(f"folder:{tmp_path}/colour")
    assert (colour.image_size, colour.channels) == ((60, 60), 3)
    train = GlimpseTrainBatches(
        colour.dataset.train, 4, canvas=None, deformation=Deformation(), seed=0
    )
    assert next(iter(train.epoch(0))).image.shape == (4, 3, 60, 60)


def test_contact_sheet(digits: Dataset) -> None:
    sheet = glimpse_sheet.contact_sheet({"mnist": digits, "digits": digits})
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] == 10 * (100 + glimpse_sheet.GAP)


@pytest.mark.data
def test_test_sets_are_pinned(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mnist = load_task("mnist", str(data_dir), download=False)
    for name in ("translated", "cluttered", "cluttered100"):
        task = GlimpseTask(name, mnist.dataset, TASKS[name][1])
        size = task.image_size[0]
        assert draw_test(task).images.shape == (10_000, size, size, 1)
    monkeypatch.setattr(glimpse_tasks, "TEST_SEED", 1)
    task = GlimpseTask("translated", mnist.dataset, TASKS["translated"][1])
    with pytest.raises(UserError, match=r"translated came out with sha256 .*numpy==1\.23\.5"):
        draw_test(task)
    # Other images are drawn without a word.
    some = replace(mnist.dataset, test=mnist.dataset.test.take(np.arange(100)))
    assert len(draw_test(replace(task, dataset=some))) == 100
