"""Drawing of 32x32 pictures for the ``shapes`` data set: outlines, backgrounds and distractors.

Every outline is a signed distance in pixels, negative inside, so that one clip gives an
anti-aliased coverage and one comparison gives the mask. Rotations are rational (no sine), sums are
written out, and only ``+ - * /``, square root, floor, minimum, maximum and comparisons are used:
IEEE 754 fixes each of them to the last bit, so the pictures do not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

IMAGE_SIZE = 32

Point = tuple[float, float]
Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Uniform:
    """Uniform numbers for a block of ``count`` pictures, from one generator, as float32."""

    def __init__(self, rng: np.random.Generator, count: int) -> None:
        self._rng = rng
        self.count = count

    def __call__(self, low: float, high: float, *shape: int) -> np.ndarray:
        """Draw (count, *shape) numbers in [low, high)."""
        draw = self._rng.random((self.count, *shape))
        return (low + (high - low) * draw).astype(np.float32)

    def pixels(self, low: float, high: float) -> np.ndarray:
        """Draw (count, 1, 1) numbers in [low, high), one for all pixels of a picture."""
        return self(low, high, 1, 1)

    def choice(self, options: int) -> np.ndarray:
        """Draw (count,) integers in [0, options)."""
        return np.floor(self._rng.random(self.count) * options).astype(np.int64)

    def noise(self) -> np.ndarray:
        """Draw (count, 32, 32, 3) numbers in [-0.5, 0.5)."""
        shape = (self.count, IMAGE_SIZE, IMAGE_SIZE, 3)
        return self._rng.random(shape, dtype=np.float32) - np.float32(0.5)


def pixel_grid() -> tuple[np.ndarray, np.ndarray]:
    """Return x (1, 1, 32) and y (1, 32, 1) of the pixel centres, 0.5 to 31.5, y downwards."""
    centres = np.arange(IMAGE_SIZE, dtype=np.float32) + np.float32(0.5)
    return centres[None, None, :], centres[None, :, None]


def rotate(x: np.ndarray, y: np.ndarray, half_tangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rotate the plane by 2 atan(``half_tangent``), by division alone."""
    square = half_tangent * half_tangent
    cos = (1 - square) / (1 + square)
    sin = 2 * half_tangent / (1 + square)
    return cos * x + sin * y, cos * y - sin * x


def coverage(distance: np.ndarray) -> np.ndarray:
    """Turn a signed distance in pixels into the covered part of each pixel, 0 to 1."""
    return np.clip(0.5 - distance, 0, 1)


# --- Outlines: functions of (x, y) with area 1 and the centre of area at (0, 0) --------------


def _polygon(corners: Sequence[Point]) -> Distance:
    """Return the signed distance of a simple polygon, scaled to area 1 and centred."""
    edges = list(zip(corners, (*corners[1:], corners[0])))
    cross = [ax * by - bx * ay for (ax, ay), (bx, by) in edges]
    area = sum(cross) / 2
    centre_x = sum((a[0] + b[0]) * c for (a, b), c in zip(edges, cross)) / (6 * area)
    centre_y = sum((a[1] + b[1]) * c for (a, b), c in zip(edges, cross)) / (6 * area)
    side = float(np.sqrt(abs(area)))

    def distance(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        nearest = np.full(np.broadcast(x, y).shape, np.inf, np.float32)
        inside = np.zeros(nearest.shape, bool)
        for (ax, ay), (bx, by) in edges:
            from_x, from_y = x - (ax - centre_x) / side, y - (ay - centre_y) / side
            edge_x, edge_y = (bx - ax) / side, (by - ay) / side
            along = (from_x * edge_x + from_y * edge_y) / (edge_x * edge_x + edge_y * edge_y)
            along = np.clip(along, 0, 1)
            off_x, off_y = from_x - along * edge_x, from_y - along * edge_y
            nearest = np.minimum(nearest, off_x * off_x + off_y * off_y)
            # Even-odd rule: a ray to the right changes sides at every edge that it crosses.
            if edge_y != 0:
                spans = (from_y >= 0) != (from_y - edge_y >= 0)
                inside ^= spans & (from_x < from_y * (edge_x / edge_y))
        root = np.sqrt(nearest)
        return np.where(inside, -root, root)

    return distance


def _disc(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    return np.sqrt(x * x + y * y) - radius


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _disc(x, y, 0.5642)


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Outer radius 0.6755, inner radius 0.3716 (a ratio of 0.55)."""
    return np.abs(_disc(x, y, 0.52355)) - 0.15195


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Join a square that stands on its corner with a disc on each of its two upper sides."""
    half = 0.3742  # of the square's side: 4 half^2 + pi half^2 = 1
    # Along the sides of the square, moved so that the centre of area comes to (0, 0).
    p = 0.70710678 * (x - y) + 0.11714
    q = 0.11714 - 0.70710678 * (x + y)
    square = np.maximum(np.abs(p), np.abs(q)) - half
    return np.minimum(square, np.minimum(_disc(p, q - half, half), _disc(p - half, q, half)))


def _crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Cut a disc of 0.8 times the radius, half a radius aside, out of a disc."""
    return np.maximum(_disc(x - 0.3121, y, 0.8086), -_disc(x - 0.7164, y, 0.6469))


_TRIANGLE = ((0, -1), (0.866, 0.5), (-0.866, 0.5))
_SQUARE = ((-1, -1), (1, -1), (1, 1), (-1, 1))
_STAR = (
    *((0, -1), (0.2469, -0.3398), (0.9511, -0.309), (0.3994, 0.1298), (0.5878, 0.809)),
    *((0, 0.42), (-0.5878, 0.809), (-0.3994, 0.1298), (-0.9511, -0.309), (-0.2469, -0.3398)),
)
_CROSS = (
    *((-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3)),
    *((0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)),
)
_ARROW = (
    *((0, -1), (0.75, -0.1), (0.28, -0.1), (0.28, 0.9)),
    *((-0.28, 0.9), (-0.28, -0.1), (-0.75, -0.1)),
)
_CORNER = ((-0.7, -0.9), (-0.15, -0.9), (-0.15, 0.35), (0.7, 0.35), (0.7, 0.9), (-0.7, 0.9))

OUTLINES: dict[str, Distance] = {
    "circle": _circle,
    "square": _polygon(_SQUARE),
    "triangle": _polygon(_TRIANGLE),
    "star": _polygon(_STAR),
    "cross": _polygon(_CROSS),
    "ring": _ring,
    "heart": _heart,
    "crescent": _crescent,
    "arrow": _polygon(_ARROW),
    "corner": _polygon(_CORNER),
}
"""Class name to signed distance, in the order of the labels.

Each has area 1 and its centre of area at (0, 0), so that size and position say nothing about the
class, and each may be mirrored without becoming another class.
"""


# --- Backgrounds: a number in [0, 1] per pixel that mixes the two background colours -----------


def background_mix(uniform: Uniform) -> np.ndarray:
    """Draw a texture (N, 32, 32) in [0, 1]: ramp, spot, stripes, chequers or clouds."""
    x, y = pixel_grid()
    style = uniform.choice(5)[:, None, None]
    across, along = rotate(
        x - uniform.pixels(0, 32), y - uniform.pixels(0, 32), uniform.pixels(-1, 1)
    )
    period = uniform.pixels(5, 14)
    across_wave = _triangle_wave(across / period)
    along_wave = _triangle_wave(along / period)
    hard = uniform.pixels(1, 4)

    ramp = np.abs(across) / 24
    spot = np.sqrt(across * across + along * along) / 24
    stripes = 0.5 + hard * (across_wave - 0.5)
    chequers = 0.5 + 2 * hard * (across_wave - 0.5) * (2 * along_wave - 1)
    clouds = _clouds(uniform(-0.2, 1.2, 6, 6))
    conditions = [style == number for number in range(4)]
    mix = np.select(conditions, [ramp, spot, stripes, chequers], clouds)
    return np.clip(mix, 0, 1)


def _triangle_wave(phase: np.ndarray) -> np.ndarray:
    """Go from 0 to 1 and back once per unit of phase."""
    return np.abs(phase - np.floor(phase) - 0.5) * 2


def _clouds(knots: np.ndarray) -> np.ndarray:
    """Interpolate (N, 6, 6) values linearly to (N, 32, 32)."""
    place = (np.arange(IMAGE_SIZE, dtype=np.float32) + np.float32(0.5)) * np.float32(5 / 32)
    low = np.floor(place).astype(np.int64)
    part = place - low
    rows = knots[:, low] * (1 - part[:, None]) + knots[:, low + 1] * part[:, None]
    return rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part


# --- Distractors: small, thin or partial; none is an instance of a class ------------------------


def distractor_coverage(uniform: Uniform) -> np.ndarray:
    """Draw one distractor per picture, a spot, a stroke or a quarter arc: (N, 32, 32) coverage."""
    x, y = pixel_grid()
    kind = uniform.choice(3)[:, None, None]
    x, y = rotate(x - uniform.pixels(1, 31), y - uniform.pixels(1, 31), uniform.pixels(-1, 1))

    length, width = uniform.pixels(1.6, 3), uniform.pixels(0.35, 0.6)
    spot = (_disc(x, y / width, 0) - length) * width
    reach, pen = uniform.pixels(2.5, 7), uniform.pixels(0.45, 0.8)
    stroke = _disc(np.maximum(np.abs(x) - reach, 0), y, 0) - pen
    arc = np.maximum(np.abs(_disc(x, y, 0) - reach) - pen, -np.minimum(x, y))
    return coverage(np.where(kind == 0, spot, np.where(kind == 1, stroke, arc)))
