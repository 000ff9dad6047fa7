"""Random deformation of small grey images: rotation, scale, shear, shift and elastic distortion.

One bilinear sampling per batch does all of it; what comes from outside an image is black. It is
meant for digits, before they are put on a canvas (``canvas.py``).
"""

from __future__ import annotations

import functools
from dataclasses import astuple, dataclass
from typing import Optional

import numpy as np

from formats.errors import UserError

# Images that are sampled at once: what one step writes stays in the cache for the next.
_CHUNK = 64
_KNOT_SPACING = 4  # pixels between the random numbers of a displacement field
_SMOOTHNESS = 4.0  # pixels: the Gaussian's standard deviation, as in Simard et al. for 29x29


@dataclass(frozen=True)
class Deformation:
    """How far an image may be deformed; 0 switches a part off, and the default is none at all.

    Each value is drawn uniformly and independently per image.

    Parameters
    ----------
    rotate : float
        Largest angle in degrees, either way.
    scale : float
        Height and width are multiplied by factors of 1 - scale to 1 + scale, drawn separately.
    shear : float
        Largest horizontal shear: columns that a row moves per row of distance from the middle.
    shift : float
        Largest shift in pixels, fractions included, up, down, left and right.
    elastic : float
        Standard deviation in pixels of a smooth random displacement, in each direction and at each
        place. Source: Simard et al. 2003, "Best practices for convolutional neural networks applied
        to visual document analysis", section 2; their sigma 4, alpha 34 is about 1.4 here.

    Raises
    ------
    UserError
        A value is negative or too large; the message names it.
    """

    rotate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    shift: float = 0.0
    elastic: float = 0.0

    def __post_init__(self) -> None:
        limits = (("rotate", 180), ("scale", 0.9), ("shear", 2), ("shift", 1000), ("elastic", 100))
        for name, high in limits:
            value = getattr(self, name)
            if not 0 <= value <= high:
                raise UserError(f"deformation {name} = {value!r}; allowed: 0 to {high}")


def deform(images: np.ndarray, deformation: Deformation, rng: np.random.Generator) -> np.ndarray:
    """Deform each image at random.

    Parameters
    ----------
    images : np.ndarray
        uint8, (N, H, W, 1).
    deformation : Deformation
        How far.
    rng : np.random.Generator
        What is drawn does not depend on the pixels, and the elastic part is drawn last, so that
        switching a part off leaves the others as they are.

    Returns
    -------
    np.ndarray
        uint8, (N, H, W, 1); the argument itself when nothing is to be done.
    """
    if not any(astuple(deformation)):
        return images
    if images.shape[3] != 1:
        raise UserError(f"images of {images.shape[3]} channels cannot be deformed; grey ones can")
    matrix, shift = random_maps(len(images), deformation, rng)
    field = None
    if deformation.elastic:
        field = random_field(len(images), (images.shape[1], images.shape[2]), rng)
        field *= np.float32(deformation.elastic)
    return warp(images, matrix, shift, field)


def random_maps(
    count: int, deformation: Deformation, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the linear part and the shift of ``count`` images.

    Returns
    -------
    tuple
        float32 (count, 2, 2) and (count, 2), both for :func:`warp`: the inverse of rotation x shear
        x scale, and where the middle of the image is taken from.
    """
    draws = 2 * rng.random((6, count)) - 1
    angle = np.deg2rad(deformation.rotate) * draws[0]
    cos, sin = np.cos(angle), np.sin(angle)
    scale_y, scale_x = 1 + deformation.scale * draws[1:3]
    shear = deformation.shear * draws[3]
    # Inverse of (y, x) -> rotation(shear(scale)): rows of the product of the three inverses.
    inverse = np.empty((count, 2, 2))
    inverse[:, 0, 0], inverse[:, 0, 1] = cos / scale_y, sin / scale_y
    inverse[:, 1, 0] = (-sin - shear * cos) / scale_x
    inverse[:, 1, 1] = (cos - shear * sin) / scale_x
    moved = deformation.shift * draws[4:6].T
    origin = -np.einsum("nij,nj->ni", inverse, moved)
    return inverse.astype(np.float32), origin.astype(np.float32)


def random_field(count: int, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Smooth random displacements with mean 0 and standard deviation 1 at every pixel.

    Uniform random numbers on a grid of knots, four pixels apart, are blurred by a Gaussian of four
    pixels: constant matrices left and right. Simard et al. blur one random number per pixel, which
    differs by less than a thousandth and takes many times as long.

    Returns
    -------
    np.ndarray
        float32, (2, count, H, W): down, right.
    """
    rows, columns = _blur(size[0]), _blur(size[1])
    knots = rng.random((2, count, rows.shape[1], columns.shape[1]), dtype=np.float32)
    knots -= np.float32(0.5)
    knots *= np.float32(12**0.5)  # variance 1
    return rows @ (knots @ columns.T)


@functools.lru_cache(maxsize=16)
def _blur(size: int) -> np.ndarray:
    """float32 (size, knots); the squares of each row sum to 1, which keeps the variance."""
    margin = 3 * _SMOOTHNESS
    knots = np.arange(-margin, size - 1 + margin + _KNOT_SPACING, _KNOT_SPACING)
    weights = np.exp(-0.5 * ((np.arange(size)[:, None] - knots) / _SMOOTHNESS) ** 2)
    return (weights / np.sqrt((weights**2).sum(axis=1, keepdims=True))).astype(np.float32)


def warp(
    images: np.ndarray, matrix: np.ndarray, origin: np.ndarray, field: Optional[np.ndarray] = None
) -> np.ndarray:
    """Sample each image at ``matrix @ (position - middle) + origin + middle + displacement``.

    Parameters
    ----------
    images : np.ndarray
        uint8, (N, H, W, 1); the middle is at ((H - 1) / 2, (W - 1) / 2).
    matrix, origin : np.ndarray
        float32, (N, 2, 2) and (N, 2): row before column.
    field : np.ndarray, optional
        float32, (2, N, H, W): displacement in pixels, row before column.

    Returns
    -------
    np.ndarray
        uint8, (N, H, W, 1): bilinear, 0 outside, rounded to the nearest level.
    """
    count, height, width, _ = images.shape
    # Black around every image, wide enough for all four neighbours of a clipped place.
    padded = np.zeros((count, height + 3, width + 3), np.float32)
    padded[:, 1:-2, 1:-2] = images[..., 0]
    result = np.empty((count, height, width), np.uint8)
    for start in range(0, count, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        displaced = None if field is None else field[:, chunk]
        y, x = _places((height, width), matrix[chunk], origin[chunk], displaced)
        result[chunk] = _sample(padded[chunk], y, x)
    return result[..., None]


def _places(
    size: tuple[int, int], matrix: np.ndarray, origin: np.ndarray, field: Optional[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Row and column, float32 (n, H, W), in the padded image, clipped to its black border."""
    steps = [np.arange(length, dtype=np.float32) - np.float32((length - 1) / 2) for length in size]
    places = []
    for axis, length in enumerate(size):
        middle = origin[:, axis, None] + np.float32((length - 1) / 2 + 1)
        along_rows = matrix[:, axis, 0, None] * steps[0] + middle
        along_columns = matrix[:, axis, 1, None] * steps[1]
        place = along_rows[:, :, None] + along_columns[:, None, :]
        if field is not None:
            place += field[axis]
        places.append(np.clip(place, 0, length + 1, out=place))
    return places[0], places[1]


def _sample(padded: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Bilinear values at rows ``y`` and columns ``x``, rounded: uint8, (n, H, W)."""
    count, height, width = padded.shape
    flat = padded.reshape(-1)
    top, left = y.astype(np.int64), x.astype(np.int64)
    y, x = y - top.astype(np.float32), x - left.astype(np.float32)
    first = np.arange(count)[:, None, None] * (height * width)
    index = first + top * width + left
    above, below = flat[index], flat[index + width]
    above += x * (flat[index + 1] - above)
    below += x * (flat[index + width + 1] - below)
    above += y * (below - above)
    above += np.float32(0.5)
    return above.astype(np.uint8)
