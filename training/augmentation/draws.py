"""The random numbers of augmentation, drawn apart from the pixels that they change.

``augment.py``, ``cutout.py`` and ``colour.py`` apply them to NumPy arrays; PyTorch's side of the
bridge (``bridge/loop/device_batches.py``) draws the same numbers in the same order and
applies them on a GPU. So both train on the same batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import numpy as np

Range = tuple[float, float]  # lowest and highest value
Places = tuple[np.ndarray, np.ndarray]  # top and left, (N,) each

# Rectangles are drawn again until one fits, several per image at once; a 32x32 image rarely needs a
# second round, and an image into which nothing fits stays as it is after the last one.
_ERASING_TRIES = 8
_ERASING_ROUNDS = 16
# Third words of the seeds of what draws apart from all epochs; see `generator`.
_ALTERNATING = 1
STATISTICS = 2
_DROPOUT = 3


class Jitter(NamedTuple):
    """``factors`` float32 (3, N) of brightness, contrast, saturation; ``order`` is a permutation of
    0 to 2."""

    factors: np.ndarray
    order: np.ndarray


class Rectangles(NamedTuple):
    """One rectangle per image where ``chosen``; ``grey`` is what a random erasing fills it with.

    ``box`` is (4, N): top, left, rows, columns, clipped by the image.
    """

    chosen: np.ndarray
    box: np.ndarray
    grey: Optional[np.ndarray] = None


class Mix(NamedTuple):
    """Mixup of a batch: ``lam`` float32 is the share that an image keeps, ``partner`` (N,)."""

    lam: np.float32
    partner: np.ndarray


class Draws(NamedTuple):
    """All draws of a batch; None for what is switched off."""

    crop: Optional[Places] = None
    shift: Optional[Places] = None
    flip: Optional[np.ndarray] = None
    jitter: Optional[Jitter] = None
    cutout: Optional[Rectangles] = None
    mix: Optional[Mix] = None


def generator(*words: int, child: Sequence[int] = ()) -> np.random.Generator:
    """Return what draws by the seed `words`, or its part that `child` numbers.

    The draws of an epoch are those of (seed, epoch), which are (seed, epoch, 0, 0) too; what draws
    apart from all epochs has another third word.
    """
    # spawn_key=(k,) is what SeedSequence.spawn gives its k-th child, without making the children
    # before it.
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence(words, spawn_key=tuple(child)))
    )


def draw_batch(
    chosen: Any,
    count: int,
    size: tuple[int, int],
    mix: bool,
    rng: np.random.Generator,
    mirrored: Optional[np.ndarray] = None,
) -> Draws:
    """Draw what `training.augmentation.augment.augment` and `mixup` would draw, in their order.

    Parameters
    ----------
    chosen
        What is done to a batch, a `training.augmentation.augment.Augmentation`.
    count
        N, images in the batch.
    size
        Height and width of an image before any crop.
    mix
        False leaves mixup out; the other draws stay the same.
    mirrored
        bool (N,), which images are mirrored where that is not drawn.
    """
    crop = shift = flip = jitter = cutout = None
    if chosen.pad or chosen.crop_size:
        rows, columns = (chosen.crop_size,) * 2 if chosen.crop_size else size
        room = (size[0] + 2 * chosen.pad - rows, size[1] + 2 * chosen.pad - columns)
        crop, size = draw_places(count, room, rng), (rows, columns)
    if chosen.shift:
        reach = (int(chosen.shift * size[0]), int(chosen.shift * size[1]))
        shift = draw_places(count, (2 * reach[0], 2 * reach[1]), rng)
    if chosen.flip:
        flip = draw_flips(count, rng) if mirrored is None else mirrored
    if chosen.jitter:
        jitter = draw_jitter(count, chosen.jitter, rng)
    if chosen.cutout == "square":
        cutout = draw_square(count, size, chosen.cutout_size, chosen.cutout_prob, rng)
    elif chosen.cutout == "erasing":
        ranges = (chosen.erasing_area, chosen.erasing_aspect)
        cutout = draw_erasing(count, size, chosen.cutout_prob, ranges, rng)
    mixed = mix and chosen.mixup_alpha > 0
    return Draws(
        crop,
        shift,
        flip,
        jitter,
        cutout,
        draw_mix(count, chosen.mixup_alpha, rng) if mixed else None,
    )


def draw_places(count: int, room: tuple[int, int], rng: np.random.Generator) -> Places:
    """Draw corners, each of 0 to ``room`` rows and columns equally likely."""
    top = rng.integers(0, room[0] + 1, count)
    left = rng.integers(0, room[1] + 1, count)
    return top, left


def draw_flips(count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw bool (N,), True with probability 1/2."""
    return rng.random(count) < 0.5


def draw_first_flips(count: int, seed: int) -> np.ndarray:
    """Draw bool (N,), which of all images are mirrored in the first epoch of alternating flips.

    A function of `seed` alone, whose numbers no epoch and no batch draws.
    """
    return draw_flips(count, generator(seed, 0, _ALTERNATING))


def draw_jitter(count: int, strength: float, rng: np.random.Generator) -> Jitter:
    """Draw factors uniform in 1 - strength to 1 + strength, and one order for the batch."""
    factors = rng.uniform(1 - strength, 1 + strength, (3, count)).astype(np.float32)
    return Jitter(factors, rng.permutation(3))


def draw_square(
    count: int, shape: tuple[int, int], size: int, prob: float, rng: np.random.Generator
) -> Rectangles:
    """Draw a square around a random pixel of an image of `shape`, clipped by its border."""
    height, width = shape
    chosen = rng.random(count) < prob
    top = rng.integers(0, height, count) - size // 2
    left = rng.integers(0, width, count) - size // 2
    low_row, low_column = np.maximum(top, 0), np.maximum(left, 0)
    rows = np.minimum(top + size, height) - low_row
    columns = np.minimum(left + size, width) - low_column
    return Rectangles(chosen, np.stack([low_row, low_column, rows, columns]))


def draw_erasing(
    count: int,
    size: tuple[int, int],
    prob: float,
    ranges: tuple[Range, Range],
    rng: np.random.Generator,
) -> Rectangles:
    """Draw a rectangle and a grey per image; `ranges` are those of area and aspect."""
    chosen = rng.random(count) < prob
    grey = rng.integers(0, 256, count)
    return Rectangles(chosen, _rectangles(count, size, *ranges, rng), grey)


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


def draw_mix(count: int, alpha: float, rng: np.random.Generator) -> Mix:
    """Draw one share from Beta(alpha, alpha) for the batch, and a partner per image."""
    return Mix(np.float32(rng.beta(alpha, alpha)), rng.permutation(count))


def dropout_seed(seed: int, *key: int) -> int:
    """Return the seed, below 2**31, of what a network's dropout draws in an update or its part."""
    return int(np.random.SeedSequence((seed, _DROPOUT, *key)).generate_state(1)[0] >> 1)
