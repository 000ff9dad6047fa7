"""Digits on a larger, cluttered canvas: the ``translated`` and ``cluttered`` tasks.

The convention is that of https://github.com/deepmind/mnist-cluttered: the digit lies at a random
place, the clutter are small pieces of other digits of the same split, and where things overlap
their grey levels are added and saturate at white. All ranges are inclusive: a digit or a piece may
touch each border. Published generators differ in every one of these points, so their error rates
compare only roughly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from formats.errors import UserError


@dataclass(frozen=True)
class Canvas:
    """What a digit is put on.

    Parameters
    ----------
    size : int
        Height and width in pixels.
    pieces : int
        Pieces of clutter, at most 256.
    piece_size : int
        Height and width of a piece in pixels.
    """

    size: int
    pieces: int = 0
    piece_size: int = 8

    def __post_init__(self) -> None:
        if self.size < 1 or not 0 <= self.pieces <= 256 or not 1 <= self.piece_size <= self.size:
            raise UserError(
                f"canvas of {self.size} pixels with {self.pieces} pieces of {self.piece_size}; "
                "the size must be positive, the pieces 0 to 256 and no larger than the canvas"
            )


# 60x60 and 4 pieces, 100x100 and 8 pieces: Mnih et al. 2014, section 4.1,
# https://arxiv.org/abs/1406.6247 (the counts as in the generator above).
CANVASES = {
    "translated": Canvas(60),
    "cluttered": Canvas(60, pieces=4),
    "cluttered100": Canvas(100, pieces=8),
}


def draw_canvases(
    sources: np.ndarray,
    pool: np.ndarray,
    canvas: Canvas,
    rng: np.random.Generator,
    own: Optional[np.ndarray] = None,
) -> np.ndarray:
    """Put each source image on its own canvas and add the clutter; see `draw_places`."""
    return draw_places(sources, pool, canvas, rng, own)[0]


def draw_places(
    sources: np.ndarray,
    pool: np.ndarray,
    canvas: Canvas,
    rng: np.random.Generator,
    own: Optional[np.ndarray] = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Put each source image on its own canvas, add the clutter, and tell where the sources lie.

    Parameters
    ----------
    sources : np.ndarray
        uint8, (N, h, w, 1), no larger than the canvas.
    pool : np.ndarray
        uint8, (M, H, W, 1): the split that the pieces are cut from, each at a uniform place that
        lies wholly inside its image. Not looked at when there are no pieces.
    canvas : Canvas
        Size and clutter.
    rng : np.random.Generator
        What is drawn does not depend on the pixels.
    own : np.ndarray, optional
        Integer, (N,): where each source stands in the pool; pieces then come from the others.

    Returns
    -------
    images, places : np.ndarray
        uint8, (N, size, size, 1), and int (N, 2): the row and column of a source's top left pixel.

    Raises
    ------
    UserError
        Colour images, a source that does not fit, a pool that is too small.
    """
    _check(sources, pool, canvas, own is not None)
    count, height, width, _ = sources.shape
    rows = np.arange(count)
    # 16 bits hold the sum of 257 layers, and clipping the sum of all is saturating after each.
    layers = np.zeros((count, canvas.size, canvas.size), np.uint16 if canvas.pieces else np.uint8)
    top = rng.integers(0, canvas.size - height + 1, count)
    left = rng.integers(0, canvas.size - width + 1, count)
    places = np.stack([top, left], axis=1)
    windows = sliding_window_view(layers, (1, height, width), writeable=True)
    windows[rows, top, left, 0] = sources[..., 0]
    if not canvas.pieces:
        return layers[..., None], places
    windows = sliding_window_view(layers, (1, *(canvas.piece_size,) * 2), writeable=True)
    for _ in range(canvas.pieces):
        piece = _random_pieces(pool, canvas.piece_size, count, rng, own)
        top, left = rng.integers(0, canvas.size - canvas.piece_size + 1, (2, count))
        windows[rows, top, left, 0] += piece
    return np.minimum(layers, 255).astype(np.uint8)[..., None], places


def _random_pieces(
    pool: np.ndarray, size: int, count: int, rng: np.random.Generator, own: Optional[np.ndarray]
) -> np.ndarray:
    """uint8 (count, size, size) from random images of the pool, at random places."""
    if own is None:
        chosen = rng.integers(0, len(pool), count)
    else:
        chosen = rng.integers(0, len(pool) - 1, count)
        chosen += chosen >= own  # skips the image itself; the others stay equally likely
    top = rng.integers(0, pool.shape[1] - size + 1, count)
    left = rng.integers(0, pool.shape[2] - size + 1, count)
    return sliding_window_view(pool[..., 0], (1, size, size))[chosen, top, left, 0]


def _check(sources: np.ndarray, pool: np.ndarray, canvas: Canvas, others: bool) -> None:
    if sources.shape[3] != 1:
        raise UserError(
            f"images of {sources.shape[3]} channels cannot be put on a canvas; grey ones can"
        )
    if max(sources.shape[1:3]) > canvas.size:
        raise UserError(
            f"images of {sources.shape[1]}x{sources.shape[2]} do not fit on a canvas of "
            f"{canvas.size}x{canvas.size}; choose a larger canvas"
        )
    if not canvas.pieces:
        return
    if len(pool) < 1 + others:
        raise UserError(f"clutter from {len(pool)} images; at least {1 + others} are needed")
    if min(pool.shape[1:3]) < canvas.piece_size:
        raise UserError(
            f"pieces of {canvas.piece_size} pixels from images of {pool.shape[1]}x{pool.shape[2]}; "
            "choose smaller pieces"
        )
