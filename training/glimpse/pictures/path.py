"""Where a trained model looked, what it saw and what it thought: the data behind the pictures.

Knows no network. The geometry is the one of the glimpse sensor, so that a box that is drawn is the
box that was cut out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formats.errors import UserError

# Float arithmetic leaves images a little outside [0, 1] and probabilities a little off the sum 1.
TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class GlimpsePath:
    """What a model did on N images in T glimpses of K scales; checked when it is made.

    Parameters
    ----------
    images
        float (N, C, H, W) in [0, 1], C 1 or 3.
    labels
        int (N,), the true classes.
    locations
        float (N, T, 2), (x, y) in [-1, 1]: where each glimpse looked; (-1, -1) is top left.
    patches
        float (N, T, K, C, G, G): what the network saw, the smallest box first, G = `patch_size`.
    probabilities
        float (N, T, classes): after each glimpse; rows sum to 1.
    patch_size
        Edge of the smallest box in pixels.
    scale
        Factor between the edges of one box and the next.
    class_names
        One name per class.

    Raises
    ------
    UserError
        An array has the wrong shape, is not finite or is out of range.
    """

    images: np.ndarray
    labels: np.ndarray
    locations: np.ndarray
    patches: np.ndarray
    probabilities: np.ndarray
    patch_size: int
    scale: float
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_images(self)
        _check_locations(self)
        _check_patches(self)
        _check_classes(self)

    @property
    def glimpses(self) -> int:
        """T, the number of glimpses per image."""
        return int(self.locations.shape[1])

    @property
    def predictions(self) -> np.ndarray:
        """int (N, T): the most probable class after each glimpse."""
        return self.probabilities.argmax(axis=2)

    def box_sizes(self) -> tuple[int, ...]:
        """Edges of the K boxes of a glimpse in pixels, the smallest first."""
        return tuple(int(self.patch_size * self.scale**i) for i in range(self.patches.shape[2]))

    def boxes(self) -> np.ndarray:
        """Pixel edges of every box; a box may leave the image.

        Source: kevinzakka/recurrent-visual-attention, ``Retina.foveate``, in float32 as there. An
        axis of length L is looked at around pixel ``trunc(0.5 * (l + 1) * L)``.

        Returns
        -------
        int64 (N, T, K, 4)
            left, top, right, bottom; the box covers columns left to right - 1 and rows top to
            bottom - 1.
        """
        height, width = self.images.shape[2:]
        start = middle_pixels(self.locations, height, width)[:, :, None]  # (N, T, 1, 2)
        sizes = np.array(self.box_sizes(), np.int64)[:, None]  # (K, 1)
        corner = start - sizes // 2
        return np.concatenate([corner, corner + sizes], axis=3)

    def overhang(self) -> int:
        """Pixels by which the boxes of this path leave the image, the largest of all sides."""
        boxes, (height, width) = self.boxes(), self.images.shape[2:]
        beyond = boxes[..., 2:] - np.array([width, height])
        return max(0, int(beyond.max()), int(-boxes[..., :2].min()))

    def largest_overhang(self) -> int:
        """Pixels by which the boxes of any path with these sizes can leave the image."""
        return max((size + 1) // 2 for size in self.box_sizes())

    def rgb(self) -> np.ndarray:
        """uint8 (N, H, W, 3): the images as they are drawn."""
        return as_rgb(self.images)

    def rgb_patches(self) -> np.ndarray:
        """uint8 (N, T, K, G, G, 3): the patches as they are drawn.

        A network may see normalized pixels. If any is outside of [0, 1], the smallest value of all
        patches is drawn black and the largest white.
        """
        patches = self.patches.astype(np.float64)
        low, high = float(patches.min()), float(patches.max())
        if low < -TOLERANCE or high > 1 + TOLERANCE:
            patches = (patches - low) / (high - low)
        return as_rgb(patches)


def middle_pixels(locations: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the pixels (x, y), int64 (..., 2), that locations (..., 2) in [-1, 1] look at.

    In float32, as `GlimpsePath.boxes` says.
    """
    half = np.float32(0.5) * (locations.astype(np.float32) + np.float32(1))
    pixels: np.ndarray = np.trunc(half * np.array([width, height], np.float32)).astype(np.int64)
    return pixels


def as_rgb(pixels: np.ndarray) -> np.ndarray:
    """Turn float (..., C, H, W) in [0, 1], C 1 or 3, into uint8 (..., H, W, 3)."""
    levels = np.round(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    last = np.moveaxis(levels, -3, -1)
    return np.repeat(last, 3, axis=-1) if last.shape[-1] == 1 else np.ascontiguousarray(last)


def _check_images(path: GlimpsePath) -> None:
    images, labels = path.images, path.labels
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise UserError(
            f"images have the shape {images.shape}; needed is (N, 1 or 3, H, W) with N of 1 or more"
        )
    _check_range("images", images, 0, 1, "undo the normalization first")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"labels are {labels.dtype} {labels.shape}; needed is one whole number per image, "
            f"({len(images)},)"
        )


def _check_locations(path: GlimpsePath) -> None:
    shape = path.locations.shape
    if len(shape) != 3 or shape[0] != len(path.images) or shape[1] < 1 or shape[2] != 2:
        raise UserError(
            f"locations have the shape {shape}; needed is ({len(path.images)}, T, 2): one (x, y) "
            "per image and glimpse"
        )
    _check_range("locations", path.locations, -1, 1, "clip them as the model does", tolerance=0)


def _check_patches(path: GlimpsePath) -> None:
    if int(path.patch_size) != path.patch_size or path.patch_size < 1:
        raise UserError(f"patch_size is {path.patch_size}; needed is a whole number from 1")
    if not 1 <= path.scale < float("inf"):
        raise UserError(f"scale is {path.scale}; needed is a number from 1")
    given, (count, channels) = path.patches.shape, path.images.shape[:2]
    edge = (int(path.patch_size),) * 2
    if (
        len(given) != 6
        or given != (count, path.glimpses, given[2], channels, *edge)
        or not given[2]
    ):
        raise UserError(
            f"patches have the shape {given}; needed is ({count}, {path.glimpses}, K, {channels}, "
            f"{edge[0]}, {edge[1]}): K scales per image and glimpse, each of patch_size pixels"
        )
    _check_range("patches", path.patches, -np.inf, np.inf, "look for a network that diverged")


def _check_classes(path: GlimpsePath) -> None:
    given, wanted = (
        path.probabilities.shape,
        (len(path.images), path.glimpses, len(path.class_names)),
    )
    if given != wanted or not path.class_names:
        raise UserError(
            f"probabilities have the shape {given}; needed is {wanted}: one number per image, "
            "glimpse and class name"
        )
    _check_range("probabilities", path.probabilities, 0, 1, "give softmax, not logits")
    off = float(np.abs(path.probabilities.sum(axis=2) - 1).max())
    if off > TOLERANCE:
        raise UserError(
            f"probabilities of a glimpse sum to 1 with an error of {off:.2g}; give the softmax of "
            "the logits"
        )
    if path.labels.min() < 0 or path.labels.max() >= len(path.class_names):
        raise UserError(
            f"labels go from {path.labels.min()} to {path.labels.max()}; with "
            f"{len(path.class_names)} class names they must be 0 to {len(path.class_names) - 1}"
        )


def _check_range(
    name: str,
    values: np.ndarray,
    low: float,
    high: float,
    remedy: str,
    tolerance: float = TOLERANCE,
) -> None:
    if not np.isfinite(values).all():
        raise UserError(f"{name} are not all finite: look for a network that diverged")
    least, most = float(values.min()), float(values.max())
    if least < low - tolerance or most > high + tolerance:
        raise UserError(
            f"{name} go from {least:g} to {most:g}; allowed is {low:g} to {high:g}: {remedy}"
        )
