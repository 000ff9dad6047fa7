"""Deformation of digits: known maps exactly, ranges, statistics of the elastic part."""

from __future__ import annotations

from typing import Optional

import numpy as np
import pytest

from formats.errors import UserError
from training.augmentation.deform import Deformation, deform, random_field, random_maps, warp

ALL = Deformation(rotate=20, scale=0.2, shear=0.3, shift=2, elastic=1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def textured(count: int = 5, height: int = 28, width: int = 28) -> np.ndarray:
    return rng(1).integers(0, 256, (count, height, width, 1), dtype=np.uint8)


def warped(
    images: np.ndarray,
    matrix: Optional[list[list[float]]] = None,
    origin: tuple[float, float] = (0, 0),
    field: Optional[np.ndarray] = None,
) -> np.ndarray:
    count = len(images)
    one = np.eye(2) if matrix is None else np.array(matrix)
    return warp(
        images,
        np.tile(one.astype(np.float32), (count, 1, 1)),
        np.tile(np.array(origin, np.float32), (count, 1)),
        field,
    )


def naive(image: np.ndarray, y: float, x: float) -> float:
    """Bilinear value of one place, black outside."""
    top, left = int(np.floor(y)), int(np.floor(x))
    value = 0.0
    for row in (top, top + 1):
        for column in (left, left + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                weight = (1 - abs(y - row)) * (1 - abs(x - column))
                value += weight * float(image[row, column])
    return value


def test_whole_steps_are_exact() -> None:
    images = textured(70)  # more than one chunk
    np.testing.assert_array_equal(warped(images), images)
    down = warped(images, origin=(-3, 0))
    np.testing.assert_array_equal(down[:, 3:], images[:, :-3])
    assert not down[:, :3].any()
    left = warped(images, origin=(0, 28))
    assert not left.any()
    turned = warped(images, [[0, 1], [-1, 0]])
    np.testing.assert_array_equal(turned, np.rot90(images, axes=(1, 2)))
    np.testing.assert_array_equal(warped(images, [[1, 0], [0, -1]]), images[:, :, ::-1])


@pytest.mark.parametrize("size", [(28, 28), (9, 14), (1, 5)])
def test_agrees_with_a_naive_loop(size: tuple[int, int]) -> None:
    height, width = size
    images = textured(3, height, width)
    matrix, origin = random_maps(3, Deformation(rotate=60, scale=0.5, shear=0.5, shift=3), rng())
    field = 4 * random_field(3, size, rng(2))
    result = warp(images, matrix, origin, field)
    middle = np.array([(height - 1) / 2, (width - 1) / 2])
    for n, row, column in np.ndindex(3, height, width):
        place = matrix[n] @ (np.array([row, column]) - middle) + origin[n] + middle
        expected = naive(images[n, :, :, 0], *(place + field[:, n, row, column]))
        assert abs(float(result[n, row, column, 0]) - expected) < 0.501


def test_linear_part_is_rotation_shear_scale() -> None:
    deformation = Deformation(rotate=30, scale=0.3, shear=0.4, shift=5)
    inverse, origin = random_maps(4000, deformation, rng())
    forward = np.linalg.inv(inverse.astype(np.float64))
    moved = -np.einsum("nij,nj->ni", forward, origin)
    angle = np.arctan2(-forward[:, 0, 1], forward[:, 1, 1])
    cos, sin = np.cos(angle), np.sin(angle)
    # forward = R(angle) H(shear) S(scale): undo the parts one by one.
    turn = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], -2)
    rest = turn @ forward
    np.testing.assert_allclose(rest[:, 0, 1], 0, atol=1e-5)
    scale_y, scale_x = rest[:, 0, 0], rest[:, 1, 1]
    shear = rest[:, 1, 0] / scale_y
    for values, low, high in (
        (np.rad2deg(angle), -30, 30),
        (scale_y, 0.7, 1.3),
        (scale_x, 0.7, 1.3),
        (shear, -0.4, 0.4),
        (moved[:, 0], -5, 5),
        (moved[:, 1], -5, 5),
    ):
        margin = 0.01 * (high - low)
        assert low - 1e-3 < values.min() < low + margin
        assert high - margin < values.max() < high + 1e-3
        assert abs(values.mean() - (low + high) / 2) < margin
    together = np.corrcoef([angle, scale_y, scale_x, shear, *moved.T])
    assert np.abs(together - np.eye(6)).max() < 0.06


def test_elastic_field_is_smooth_and_has_the_promised_size() -> None:
    field = random_field(4000, (28, 20), rng())
    assert field.shape == (2, 4000, 28, 20)
    assert field.dtype == np.float32
    assert np.abs(field.mean(axis=1)).max() < 0.08
    assert np.abs(field.std(axis=1) - 1).max() < 0.05  # at every pixel, the corners included
    # Two places d pixels apart correlate as exp(-d**2 / (4 sigma**2)), sigma = 4.
    for distance in (1, 4, 8, 12):
        expected = np.exp(-(distance**2) / 64)
        across = (field[..., distance:] * field[..., :-distance]).mean()
        down = (field[:, :, distance:] * field[:, :, :-distance]).mean()
        assert abs(across - expected) < 0.02
        assert abs(down - expected) < 0.02
    assert abs((field[0] * field[1]).mean()) < 0.02


def test_nothing_to_do_returns_the_images() -> None:
    images = textured()
    generator = rng()
    assert deform(images, Deformation(), generator) is images
    assert generator.random() == rng().random()  # nothing was drawn


def test_function_of_the_generator_alone() -> None:
    images = textured()
    before = images.copy()
    first = deform(images, ALL, rng())
    np.testing.assert_array_equal(images, before)
    np.testing.assert_array_equal(first, deform(images, ALL, rng()))
    assert (first != deform(images, ALL, rng(1))).any()
    assert first.shape == images.shape
    assert first.dtype == np.uint8
    # An image cannot change what happens to another one.
    other = images.copy()
    other[0] = 0
    np.testing.assert_array_equal(deform(other, ALL, rng())[1:], first[1:])
    # Switching a part off leaves the other draws alone.
    with_shift, _ = random_maps(5, Deformation(rotate=20, shift=3), rng())
    without, _ = random_maps(5, Deformation(rotate=20), rng())
    np.testing.assert_array_equal(with_shift, without)


@pytest.mark.parametrize("name", ["rotate", "scale", "shear", "shift", "elastic"])
def test_each_part_does_something(name: str) -> None:
    images = textured()
    changed = deform(images, Deformation(**{name: 0.5}), rng())
    assert (changed != images).any(axis=(1, 2, 3)).all()


def test_elastic_is_in_pixels() -> None:
    ramp = np.tile(np.arange(0, 255, 9, dtype=np.uint8)[:, None, None], (400, 1, 28, 1))
    for pixels in (0.5, 1.0):
        moved = deform(ramp, Deformation(elastic=pixels), rng())[:, 8:20, 8:20]
        difference = (moved.astype(float) - ramp[:, 8:20, 8:20]) / 9
        assert abs(difference.std() / pixels - 1) < 0.05


@pytest.mark.parametrize(
    "values", [{"rotate": -1}, {"scale": 0.95}, {"elastic": float("nan")}, {"shift": 1e9}]
)
def test_wrong_values_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"deformation {next(iter(values))} = .*; allowed: 0 to"):
        Deformation(**values)


def test_colour_is_refused() -> None:
    with pytest.raises(UserError, match="3 channels"):
        deform(np.zeros((1, 8, 8, 3), np.uint8), ALL, rng())
