"""Colour jitter of a batch against the formulas image by image, and crops of another size."""

from __future__ import annotations

import numpy as np
import pytest

from formats.errors import UserError
from training.augmentation.augment import Augmentation, augment, pad_crop
from training.augmentation.colour import colour_jitter


class Told:
    """A generator that draws what it is told: these factors, in this order of the three steps."""

    def __init__(self, factors: list[list[float]], order: list[int]) -> None:
        self.factors, self.order = np.array(factors), np.array(order)

    def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
        assert shape == self.factors.shape
        return self.factors

    def permutation(self, count: int) -> np.ndarray:
        assert count == 3
        return self.order


def images_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 160, (count, 5, 7, 3)).astype(np.uint8)


def expected(image: np.ndarray, factors: np.ndarray, order: list[int]) -> np.ndarray:
    pixels = image.astype(np.float64)
    for kind in order:
        grey = 0.299 * pixels[..., 0] + 0.587 * pixels[..., 1] + 0.114 * pixels[..., 2]
        towards = (0.0, grey.mean(), grey[..., None])[kind]
        pixels = factors[kind] * pixels + (1 - factors[kind]) * towards
    return pixels


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_the_three_steps_are_those_of_mxnet(order: list[int]) -> None:
    factors = [[0.7, 1.2, 1.0], [1.3, 0.8, 1.0], [0.9, 0.6, 1.0]]
    images = images_of(3)
    changed = colour_jitter(images, 0.4, Told(factors, order))  # type: ignore[arg-type]
    for index in range(3):
        wanted = expected(images[index], np.array(factors)[:, index], order)
        np.testing.assert_allclose(changed[index], np.clip(wanted, 0, 255), atol=0.51)
    np.testing.assert_array_equal(changed[2], images[2])  # all factors 1


def test_each_image_has_its_own_factors_and_none_touches_another() -> None:
    images = np.repeat(images_of(1), 8, axis=0)
    before = images.copy()
    changed = colour_jitter(images, 0.4, np.random.default_rng(1))
    assert len({image.tobytes() for image in changed}) == 8
    np.testing.assert_array_equal(images, before)
    images[3] = 255 - images[3]
    again = colour_jitter(images, 0.4, np.random.default_rng(1))
    assert (np.delete(again, 3, axis=0) == np.delete(changed, 3, axis=0)).all()


def test_values_are_clipped_and_grey_images_work() -> None:
    bright = np.full((64, 2, 2, 1), 250, np.uint8)
    changed = colour_jitter(bright, 0.4, np.random.default_rng(2))
    assert changed.max() == 255
    assert 140 < changed.min() < 250


def test_jitter_is_part_of_the_augmentation_and_its_range_is_checked() -> None:
    images = images_of(4)
    settings = Augmentation(pad=0, flip=False, jitter=0.4)
    changed = augment(images, settings, (0.5,) * 3, np.random.default_rng(0))
    assert (changed != images).any(axis=(1, 2, 3)).all()
    for wrong in (-0.1, 1.0):
        with pytest.raises(UserError, match="jitter = "):
            Augmentation(jitter=wrong)


def test_small_crops_take_every_place_of_the_padded_image() -> None:
    image = (np.arange(36).reshape(1, 6, 6, 1) + 1).astype(np.uint8)
    padded = np.pad(image[0, :, :, 0], 1)
    crops = pad_crop(np.repeat(image, 4000, axis=0), 1, np.random.default_rng(0), size=3)
    assert crops.shape == (4000, 3, 3, 1)
    windows = {padded[y : y + 3, x : x + 3].tobytes() for y in range(6) for x in range(6)}
    assert {np.ascontiguousarray(crop[:, :, 0]).tobytes() for crop in crops} == windows
    with pytest.raises(UserError, match=r"9x9 does not fit into images of 6x6 with 1 .* at most 8"):
        pad_crop(image, 1, np.random.default_rng(0), size=9)
