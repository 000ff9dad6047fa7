"""Augmentation: hand-worked values, and the distributions that the docstrings promise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import UserError
from formats.images.preprocessing import normalize
from training.augmentation.augment import (
    Augmentation,
    augment,
    mixup,
    pad_crop,
    random_flip,
    random_shift,
    smooth_labels,
)
from training.augmentation.cutout import cutout_square, random_erasing

UNUSED_GREY = 999  # in int16 images: no filling can equal it, so every filled pixel shows
MEAN = (0.5, 0.4, 0.3)
EVERYTHING = Augmentation(pad=3, shift=0.2, cutout="erasing")

FUNCTIONS = {
    "pad_crop": lambda images, rng: pad_crop(images, 2, rng),
    "reflect": lambda images, rng: pad_crop(
        images, min(images.shape[1:3]) - 1, rng, mode="reflect"
    ),
    "random_flip": random_flip,
    "random_shift": lambda images, rng: random_shift(images, 0.3, rng),
    "cutout_square": lambda images, rng: cutout_square(images, 4, MEAN[: images.shape[3]], rng),
    "random_erasing": random_erasing,
    "augment": lambda images, rng: augment(images, EVERYTHING, MEAN[: images.shape[3]], rng),
}


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_images(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return generator(seed).integers(0, 256, shape, dtype=np.uint8)


def numbered_images(count: int, height: int, width: int) -> np.ndarray:
    """Pixel (y, x) holds 1 + y * width + x: a crop tells its place, and 0 is left for padding."""
    image = np.arange(1, height * width + 1, dtype=np.uint8).reshape(1, height, width, 1)
    return np.repeat(image, count, axis=0)


shapes = st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(deadline=None, max_examples=15)
@given(shape=shapes, seed=st.integers(0, 2**32))
def test_keeps_shape_type_and_argument_and_repeats_with_the_seed(
    name: str, shape: tuple, seed: int
) -> None:
    images = random_images(shape, seed)
    before = images.copy()

    first = FUNCTIONS[name](images, generator(seed))
    second = FUNCTIONS[name](images, generator(seed))

    assert first.shape == shape
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(images, before)
    assert not np.shares_memory(first, images)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_two_seeds_differ(name: str) -> None:
    images = random_images((64, 9, 9, 3))
    assert not np.array_equal(
        FUNCTIONS[name](images, generator(1)), FUNCTIONS[name](images, generator(2))
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_image_does_not_touch_the_others_of_its_batch(name: str) -> None:
    images = random_images((8, 9, 9, 3))
    changed = images.copy()
    changed[3] = 255 - changed[3]

    difference = FUNCTIONS[name](images, generator(5)) != FUNCTIONS[name](changed, generator(5))

    assert difference[3].any()
    assert not np.delete(difference, 3, axis=0).any()


@pytest.mark.parametrize(("mode", "outside"), [("black", "constant"), ("reflect", "reflect")])
def test_pad_crop_takes_every_offset_equally_often(mode: str, outside: Any) -> None:
    count, pad = 25 * 400, 2
    crops = pad_crop(numbered_images(count, 5, 5), pad, generator(), mode=mode)
    padded = np.pad(numbered_images(1, 5, 5)[0, :, :, 0], pad, mode=outside)

    # The middle pixel is inside the original for all 25 offsets and its value tells the offset.
    middle = crops[:, 2, 2, 0].astype(int) - 1
    top, left = middle // 5, middle % 5
    for index in range(200):
        y, x = top[index], left[index]
        np.testing.assert_array_equal(crops[index, :, :, 0], padded[y : y + 5, x : x + 5])
    seen = np.bincount(middle, minlength=25)
    assert len(seen) == 25
    assert seen.min() > 300  # 400 expected, standard deviation 19.6
    assert seen.max() < 500


def test_what_padding_cannot_be_reflected_is_refused() -> None:
    images = random_images((2, 6, 4, 3))
    assert pad_crop(images, 3, generator(), mode="reflect").shape == images.shape
    with pytest.raises(UserError, match=r"4 pixels cannot be reflected from images of 6x4; .* 3$"):
        pad_crop(images, 4, generator(), mode="reflect")


def test_the_padding_of_a_crop_is_as_the_settings_say() -> None:
    images = random_images((50, 8, 8, 3)) | 1
    chosen = Augmentation(pad=4, flip=False)
    for mode, black in (("black", True), ("reflect", False)):
        found = augment(images, replace(chosen, pad_mode=mode), MEAN, generator())
        np.testing.assert_array_equal(found, pad_crop(images, 4, generator(), mode=mode))
        assert bool((found == 0).any()) == black


def test_random_shift_reaches_every_whole_pixel_and_repeats_the_edge() -> None:
    height, width = 6, 10
    image = numbered_images(1, height, width)[0, :, :, 0]
    shifted = random_shift(numbered_images(3000, height, width), 0.21, generator())[:, :, :, 0]

    seen = set()
    for one in shifted:
        middle = int(one[3, 5]) - 1
        down, right = 3 - middle // width, 5 - middle % width
        seen.add((down, right))
        rows = np.clip(np.arange(height) - down, 0, height - 1)
        columns = np.clip(np.arange(width) - right, 0, width - 1)
        np.testing.assert_array_equal(one, image[np.ix_(rows, columns)])
    assert seen == {(y, x) for y in (-1, 0, 1) for x in (-2, -1, 0, 1, 2)}


def test_flip_mirrors_width_in_half_of_the_images_and_twice_is_the_identity() -> None:
    images = random_images((2000, 3, 4, 3))
    once = random_flip(images, generator(1))

    mirrored = (once == images[:, :, ::-1]).all(axis=(1, 2, 3))
    assert ((once == images).all(axis=(1, 2, 3)) | mirrored).all()
    assert 900 < mirrored.sum() < 1100  # standard deviation 22
    np.testing.assert_array_equal(random_flip(once, generator(1)), images)


def test_square_is_filled_with_the_mean_and_clipped_by_the_border() -> None:
    images = np.zeros((4000, 8, 8, 3), np.uint8)
    cut = cutout_square(images, 4, MEAN, generator())

    colour = np.rint(np.array(MEAN) * 255)
    filled = (cut == colour).all(axis=3)
    np.testing.assert_array_equal(cut[~filled], 0)
    # Centres are uniform over 8x8 pixels: rows 0..7 leave 2, 3, 4, 4, 4, 4, 4, 3 of the four rows
    # of the square.
    sizes = filled.sum(axis=(1, 2))
    assert set(sizes) == {a * b for a in (2, 3, 4) for b in (2, 3, 4)}
    assert abs(sizes.mean() - 3.5**2) < 0.2
    assert filled.any(axis=0).all()


def test_cutouts_keep_to_their_probability() -> None:
    images = np.full((4000, 8, 8, 3), UNUSED_GREY, np.int16)
    for prob in (0.0, 0.25, 1.0):
        square = cutout_square(images, 4, MEAN, generator(), prob=prob) != images
        erased = random_erasing(images, generator(), prob=prob, area=(0.2, 0.4)) != images
        for changed in (square, erased):
            share = changed.any(axis=(1, 2, 3)).mean()
            assert abs(share - prob) <= (0.03 if 0 < prob < 1 else 0)  # standard deviation 0.007


@settings(deadline=None, max_examples=20)
@given(
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    low=st.floats(0.02, 0.3),
    spread=st.floats(0, 0.2),
    seed=st.integers(0, 1000),
)
def test_erased_part_is_one_rectangle_of_one_grey_inside_the_area_range(
    height: int, width: int, low: float, spread: float, seed: int
) -> None:
    images = np.full((16, height, width, 3), UNUSED_GREY, np.int16)
    for erased in random_erasing(images, generator(seed), prob=1.0, area=(low, low + spread)):
        ys, xs = np.nonzero((erased != UNUSED_GREY).any(axis=2))
        inside = erased[
            min(ys, default=0) : max(ys, default=-1) + 1,
            min(xs, default=0) : max(xs, default=-1) + 1,
        ]
        assert inside[:, :, 0].size == len(ys) <= (low + spread) * height * width
        assert len(np.unique(inside)) <= 1
        assert len(ys) == 0 or 0 <= inside[0, 0, 0] <= 255


def test_erasing_covers_the_area_and_aspect_range_of_the_original_recipe() -> None:
    images = np.full((5000, 32, 32, 3), UNUSED_GREY, np.int16)
    changed = (random_erasing(images, generator(), prob=1.0) != images).any(axis=3)
    rows, columns = changed.any(axis=2).sum(axis=1), changed.any(axis=1).sum(axis=1)

    area = rows * columns / 1024
    # Both edges are rounded down, a loss of up to two fifths for the smallest rectangles.
    assert 0.01 < area.min() < 0.02
    assert 0.38 < area.max() <= 0.4
    # Drawing again until it fits makes large rectangles rarer: the mean lies well below the middle,
    # 0.21.
    assert 0.13 < area.mean() < 0.19
    aspect = rows / columns
    assert aspect.max() > 3
    assert aspect.min() < 0.4
    assert changed.any(axis=0).all()


def test_erasing_ends_when_no_rectangle_fits() -> None:
    images = random_images((4, 1, 5000, 3))
    np.testing.assert_array_equal(
        random_erasing(images, generator(), prob=1.0, area=(0.4, 0.4)), images
    )


def test_normalize_equals_the_definition_channel_by_channel() -> None:
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    images[..., 1] = 255 - images[..., 1]
    mean, std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)

    pixels = normalize(images, mean, std)

    assert pixels.dtype == np.float32
    assert pixels.shape == (1, 3, 16, 16)
    assert pixels.flags.c_contiguous
    for channel in range(3):
        expected = (images[..., channel] / 255 - mean[channel]) / std[channel]
        # float32 rounding of products of up to 5
        np.testing.assert_allclose(pixels[:, channel], expected, atol=1e-6)


@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 12), alpha=st.floats(0.1, 5), seed=st.integers(0, 1000))
def test_mixup_is_one_convex_combination_of_the_batch_and_a_permutation(
    count: int, alpha: float, seed: int
) -> None:
    labels = np.eye(
        count, dtype=np.float32
    )  # image i has class i, so a soft label shows both partners
    images = generator(seed).normal(size=(count, 2, 3, 3)).astype(np.float32)

    mixed, soft = mixup(images, labels, alpha, generator(seed))

    assert mixed.dtype == np.float32
    assert soft.dtype == np.float32
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(soft.sum(axis=0), 1, atol=1e-6)  # each image is partner exactly once
    weights = np.unique(np.round(soft[(soft > 0) & (soft < 1)], 5))
    assert len(weights) <= 2
    np.testing.assert_allclose(
        mixed.reshape(count, -1), soft @ images.reshape(count, -1), atol=1e-5
    )


def test_mixup_draws_from_the_beta_distribution() -> None:
    labels, images = np.eye(40, dtype=np.float32), np.zeros((40, 1), np.float32)
    rng = generator()
    draws = np.array([mixup(images, labels, 1.0, rng)[1].diagonal().min() for _ in range(800)])
    # Beta(1, 1) is uniform: quartiles at a quarter, a half, three quarters (standard deviation
    # 0.018).
    np.testing.assert_allclose(np.quantile(draws, (0.25, 0.5, 0.75)), (0.25, 0.5, 0.75), atol=0.06)


def test_smooth_labels_by_hand() -> None:
    soft = smooth_labels(np.array([2, 0]), 4, 0.2)
    assert soft.dtype == np.float32
    np.testing.assert_allclose(
        soft, [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]], atol=1e-7
    )
    np.testing.assert_array_equal(smooth_labels(np.array([1]), 3), [[0, 1, 0]])


def test_augment_applies_what_it_is_told() -> None:
    images = random_images((6, 8, 8, 3))
    off = Augmentation(pad=0, flip=False)
    np.testing.assert_array_equal(augment(images, off, MEAN, generator()), images)
    for change in (
        Augmentation(pad=2, flip=False),
        Augmentation(pad=0, flip=True),
        Augmentation(pad=0, flip=False, shift=0.3),
        Augmentation(pad=0, flip=False, cutout="square"),
        Augmentation(pad=0, flip=False, cutout="erasing"),
    ):
        assert not np.array_equal(augment(images, change, MEAN, generator()), images), change


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pad", -1),
        ("pad_mode", "edge"),
        ("shift", 1.0),
        ("cutout", "round"),
        ("cutout_prob", 1.5),
        ("cutout_size", 0),
        ("erasing_area", (0.5, 0.1)),
        ("erasing_aspect", (0, 1)),
        ("mixup_alpha", -0.1),
        ("mixup_alpha", float("nan")),
        ("label_smoothing", 1.0),
    ],
)
def test_a_bad_setting_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"augmentation {field} = .*allowed"):
        Augmentation(**{field: value})
