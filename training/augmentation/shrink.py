"""Images made smaller by the mean of the area that each new pixel covers."""

from __future__ import annotations

from typing import Any

import numpy as np


def shrink(images: np.ndarray, size: int) -> np.ndarray:
    """Return uint8 (N, size, size, C) of uint8 (N, H, W, C), where `size` is at most H and W.

    Rounded to the nearest level. All sums are of whole numbers that the arithmetic holds exactly,
    so that the pixels are the same on every machine.
    """
    count, height, width, channels = images.shape
    area = height * width
    exact: Any = np.float32 if 255 * area < 2**24 else np.float64
    rows, columns = (_shares(edge, size).astype(exact) for edge in (height, width))
    planes = images.transpose(0, 3, 1, 2).astype(exact)
    narrow = (planes.reshape(-1, width) @ columns.T).reshape(count, channels, height, size)
    levels = np.rint(rows @ narrow / exact(area)).astype(np.uint8)
    return levels.transpose(0, 2, 3, 1)


def _shares(edge: int, size: int) -> np.ndarray:
    """Return (size, edge), how much of each old pixel a new one covers, in 1 / size pixels."""
    new, old = np.arange(size)[:, None] * edge, np.arange(edge)[None] * size
    shares: np.ndarray = np.minimum(new + edge, old + size) - np.maximum(new, old)
    return np.maximum(shares, 0)
