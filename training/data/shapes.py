"""``shapes``: an embedded data set of 32x32 colour pictures in 10 classes, with object masks.

Each picture shows one object on a textured background among distractors. Colours, size, position,
rotation, background and distractors are drawn before the class is looked at, and all outlines
have the same area, so pixels, colours and nearest neighbours say little: with the default 10,000
training and 2,000 test pictures a linear classifier, a colour histogram and the nearest neighbour
stay below 60 % accuracy (tests/training/data/test_shapes.py measures them: 53 % is the highest),
whereas small residual networks pass 95 % within a few epochs. The masks tell whether soft attention
finds the object.
"""

from __future__ import annotations

import numpy as np

from formats.errors import UserError
from training.data.dataset import Dataset, ImageData, channel_statistics
from training.data.shapes_draw import (
    IMAGE_SIZE,
    OUTLINES,
    Uniform,
    background_mix,
    coverage,
    distractor_coverage,
    pixel_grid,
    rotate,
)

CLASS_NAMES = tuple(OUTLINES)

# Pictures are drawn in blocks, each from its own generator: the working arrays stay small, and the
# first pictures of a seed do not depend on how many are asked for.
BLOCK = 100
MOST_DISTRACTORS = 3
COLOUR_CANDIDATES = 12
# Distances in RGB, where black to white is 1.73. The background keeps to a part of the colours, so
# that most candidates contrast with all of it.
OBJECT_CONTRAST = 0.5
DISTRACTOR_CONTRAST = 0.25
BACKGROUND_RANGE = 0.3
# Channel values overlap, but objects tend to be the brighter ones. Without this tendency every edge
# has either sign equally often, and networks of 20 layers and more stay at chance for an epoch.
BRIGHTEST_BACKGROUND = 0.7
DARKEST_OBJECT = 0.3
# Tangent of half the largest rotation: 23 degrees to either side.
MAX_HALF_TANGENT = 0.2


def load_shapes(train_count: int = 10000, test_count: int = 2000, seed: int = 0) -> Dataset:
    """Draw the training and the test pictures of the ``shapes`` data set.

    Parameters
    ----------
    train_count, test_count
        Number of pictures, at least 1. Classes are balanced: their counts differ by at most 1.
    seed
        Not negative. The two sets come from the seeds 2 ``seed`` and 2 ``seed`` + 1 of
        :func:`draw_shapes`, so no two data sets share a stream.

    Returns
    -------
    Dataset
        Named ``shapes``, with masks, and with the mean and standard deviation of the training
        pictures per channel.

    Raises
    ------
    UserError
        When a count is below 1 or the seed is negative.
    """
    _check(train_count, test_count, seed)
    train = draw_shapes(train_count, 2 * seed)
    mean, std = channel_statistics(train.images)
    test = draw_shapes(test_count, 2 * seed + 1)
    return Dataset(
        name="shapes", train=train, test=test, class_names=CLASS_NAMES, mean=mean, std=std
    )


def draw_shapes(count: int, seed: int) -> ImageData:
    """Draw pictures, labels and masks: a function of the arguments alone, to the last bit.

    Parameters
    ----------
    count
        Number of pictures, at least 1. Fewer pictures of a seed are the first of more.
    seed
        Not negative.

    Returns
    -------
    ImageData
        images (count, 32, 32, 3) uint8, labels (count,) int32, masks (count, 32, 32) uint8, 1
        where the object covers at least half of the pixel.

    Raises
    ------
    UserError
        When the count is below 1 or the seed is negative.

    Examples
    --------
    >>> data = draw_shapes(20, seed=3)
    >>> data.images.shape, data.masks.shape, sorted(set(data.labels.tolist()))
    ((20, 32, 32, 3), (20, 32, 32), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    _check(count, count, seed)
    images = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    labels = np.empty(count, np.int32)
    masks = np.empty((count, IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for start in range(0, count, BLOCK):
        rng = np.random.Generator(np.random.PCG64([seed, start // BLOCK]))
        part = slice(start, min(start + BLOCK, count))
        number = part.stop - start
        drawn_images, drawn_labels, drawn_masks = _draw_block(rng)
        images[part] = drawn_images[:number]
        labels[part] = drawn_labels[:number]
        masks[part] = drawn_masks[:number]
    return ImageData(images=images, labels=labels, masks=masks)


def _check(train_count: int, test_count: int, seed: int) -> None:
    for count in (train_count, test_count):
        if count < 1:
            raise UserError(f"shapes: {count} pictures asked for; the number must be at least 1")
    if seed < 0:
        raise UserError(f"shapes: seed {seed} given; it must be 0 or more")


def _draw_block(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw BLOCK pictures, labels and masks; everything random comes before the labels."""
    uniform = Uniform(rng, BLOCK)
    mix = background_mix(uniform)[..., None]
    first = uniform(0, BRIGHTEST_BACKGROUND, 1, 1, 3)
    second = np.clip(first + uniform(-BACKGROUND_RANGE, BACKGROUND_RANGE, 1, 1, 3), 0, 1)
    picture = first + mix * (second - first)

    candidates = uniform(DARKEST_OBJECT, 1, COLOUR_CANDIDATES, 3)
    colour = _contrasting(candidates, first[:, 0], second[:, 0], OBJECT_CONTRAST)
    shown = uniform.choice(MOST_DISTRACTORS) + 1
    for number in range(MOST_DISTRACTORS):
        part = distractor_coverage(uniform) * (number < shown)[:, None, None]
        candidates = uniform(0, 1, COLOUR_CANDIDATES, 3)
        paint = _contrasting(candidates, colour[:, None], colour[:, None], DISTRACTOR_CONTRAST)
        picture += part[..., None] * (paint[:, None, None] - picture)

    shade = uniform.pixels(-0.015, 0.015)
    noise = uniform.noise() * uniform(0.02, 0.12, 1, 1, 1)
    x, y, side = _object_frame(uniform)
    labels = _balanced_labels(rng)
    distance = _object_distance(labels, x, y, side)
    fill = colour[:, None, None] + (shade * x)[..., None]
    picture += coverage(distance)[..., None] * (fill - picture)
    picture = np.clip(picture + noise, 0, 1)
    return np.floor(picture * 255 + 0.5).astype(np.uint8), labels, (distance <= 0).astype(np.uint8)


def _contrasting(
    candidates: np.ndarray, first: np.ndarray, second: np.ndarray, least: float
) -> np.ndarray:
    """Choose the first colour that is far from every mixture of two others.

    ``candidates`` is (N, K, 3), ``first`` and ``second`` are (N, 1, 3), all in [0, 1]; distances
    are Euclidean in RGB. Without a candidate at distance ``least`` the farthest one is taken.
    """
    ramp, to_candidate = second - first, candidates - first
    along = _dot(to_candidate, ramp) / np.maximum(_dot(ramp, ramp), np.float32(1e-6))
    away = to_candidate - np.clip(along, 0, 1)[..., None] * ramp
    distance = np.minimum(np.sqrt(_dot(away, away)), np.float32(least))
    return candidates[np.arange(len(candidates)), distance.argmax(axis=1)]


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    product = a * b
    return product[..., 0] + product[..., 1] + product[..., 2]


def _object_frame(uniform: Uniform) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw size, position, rotation and mirroring: pixel coordinates seen from the object.

    Returns x and y (N, 32, 32) in pixels and the side (N, 1, 1) of the square of equal area.
    """
    x, y = pixel_grid()
    side = uniform.pixels(9, 14)
    margin = 0.9 * side  # nearly all of every outline is nearer to its centre
    centre_x = margin + uniform.pixels(0, 1) * (IMAGE_SIZE - 2 * margin)
    centre_y = margin + uniform.pixels(0, 1) * (IMAGE_SIZE - 2 * margin)
    mirror = 1 - 2 * uniform.choice(2)[:, None, None].astype(np.float32)
    x, y = rotate(x - centre_x, y - centre_y, uniform.pixels(-MAX_HALF_TANGENT, MAX_HALF_TANGENT))
    return mirror * x, y, side


def _balanced_labels(rng: np.random.Generator) -> np.ndarray:
    """Draw BLOCK labels, ten at a time, each ten a permutation of the classes."""
    keys = rng.random((BLOCK // len(CLASS_NAMES), len(CLASS_NAMES)))
    return keys.argsort(axis=1, kind="stable").ravel().astype(np.int32)


def _object_distance(
    labels: np.ndarray, x: np.ndarray, y: np.ndarray, side: np.ndarray
) -> np.ndarray:
    """Return the signed distance in pixels (N, 32, 32) to the outline of each label."""
    distance = np.empty_like(x)
    for label, outline in enumerate(OUTLINES.values()):
        chosen = labels == label
        scale = side[chosen]
        distance[chosen] = outline(x[chosen] / scale, y[chosen] / scale) * scale
    return distance
