"""Cutouts of a batch of images in NumPy: squares of the mean colour, rectangles of random grey."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.augmentation.draws import Range, Rectangles, draw_erasing, draw_square


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
    drawn = draw_square(count, (height, width), size, prob, rng)
    colour = np.rint(np.asarray(mean) * 255).astype(images.dtype)
    return _filled(images, drawn, np.broadcast_to(colour, (count, len(colour))))


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
    drawn = draw_erasing(count, (height, width), prob, (area, aspect), rng)
    return _filled(images, drawn, np.asarray(drawn.grey))


def _filled(images: np.ndarray, drawn: Rectangles, values: np.ndarray) -> np.ndarray:
    """Return a copy with the chosen rectangles filled; `values` (N,) or (N, channels)."""
    filled = images.copy()
    top, left, rows, columns = drawn.box
    for index in np.flatnonzero(drawn.chosen):
        y, x = top[index], left[index]
        filled[index, y : y + rows[index], x : x + columns[index]] = values[index]
    return filled
