"""Cutouts of a batch of images in NumPy: squares of the mean colour, rectangles of random grey."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Range = tuple[float, float]  # lowest and highest value

# Rectangles are drawn again until one fits, several per image at once; a 32x32 image rarely needs a
# second round, and an image into which nothing fits stays as it is after the last one.
_ERASING_TRIES = 8
_ERASING_ROUNDS = 16


def cutout_square(
    images: np.ndarray,
    size: int,
    mean: Sequence[float],
    rng: np.random.Generator,
    *,
    prob: float = 1.0,
) -> np.ndarray:
    """Fill a ``size`` x ``size`` square around a random pixel with the mean colour.

    The border clips the square. ``mean`` is per channel in [0, 1] and is rounded to the nearest of
    256 levels, so that the square is 0 after the normalisation up to that rounding. Source: DeVries
    and Taylor 2017, https://arxiv.org/abs/1708.04552.
    """
    count, height, width, _ = images.shape
    chosen = rng.random(count) < prob
    rows = rng.integers(0, height, count) - size // 2
    columns = rng.integers(0, width, count) - size // 2
    colour = np.rint(np.asarray(mean) * 255).astype(images.dtype)
    filled = images.copy()
    for index in np.flatnonzero(chosen):
        top, left = rows[index], columns[index]
        filled[index, max(top, 0) : top + size, max(left, 0) : left + size] = colour
    return filled


def random_erasing(
    images: np.ndarray,
    rng: np.random.Generator,
    *,
    prob: float = 0.5,
    area: Range = (0.02, 0.4),
    aspect: Range = (0.3, 1 / 0.3),
) -> np.ndarray:
    """Fill one random rectangle per image, with probability ``prob``, with one random grey.

    The grey is 0 to 255, the same in all channels. Area (fraction of the image) and aspect ratio
    (height / width) are uniform in their ranges, the corner is uniform over the image, and all four
    are drawn again until the rectangle lies inside: large rectangles are therefore rarer than small
    ones. Source: Zhong et al. 2017, https://arxiv.org/abs/1708.04896, with the constants of
    PistonY's CIFAR script.
    """
    count, height, width, _ = images.shape
    chosen = rng.random(count) < prob
    grey = rng.integers(0, 256, count)
    top, left, rows, columns = _rectangles(count, (height, width), area, aspect, rng)
    erased = images.copy()
    for index in np.flatnonzero(chosen):
        y, x = top[index], left[index]
        erased[index, y : y + rows[index], x : x + columns[index]] = grey[index]
    return erased


def _rectangles(
    count: int, size: tuple[int, int], area: Range, aspect: Range, rng: np.random.Generator
) -> np.ndarray:
    """Top, left, rows, columns (4, count) of rectangles inside an image, or 0, 0, 0, 0."""
    height, width = size
    found = np.zeros((4, count), np.int64)
    pending = np.arange(count)
    for _ in range(_ERASING_ROUNDS):
        shape = (_ERASING_TRIES, len(pending))
        pixels = rng.uniform(*area, shape) * (height * width)
        ratio = rng.uniform(*aspect, shape)
        rows = np.sqrt(pixels * ratio).astype(np.int64)
        columns = np.sqrt(pixels / ratio).astype(np.int64)
        top = rng.integers(0, height, shape)
        left = rng.integers(0, width, shape)
        fits = (top + rows <= height) & (left + columns <= width)
        done = np.flatnonzero(fits.any(axis=0))
        first = fits.argmax(axis=0)[done]
        found[:, pending[done]] = np.stack([top, left, rows, columns])[:, first, done]
        pending = np.delete(pending, done)
        if not len(pending):
            break
    return found
