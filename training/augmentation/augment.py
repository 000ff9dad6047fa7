"""Batched image augmentation in NumPy: crop, flip, shift, normalisation, mixup, labels.

Colours are changed in ``colour.py``, rectangles cut out in ``cutout.py``.

Every function is pure: it reads a whole batch, leaves its argument alone and returns a new array.
Randomness comes only from the ``numpy.random.Generator`` handed in, and no draw depends on the
pixels, so an image cannot change what happens to another one in its batch. Images are uint8 (N, H,
W, C) until :func:`normalize`, the last step on pixels, turns them into the float32 (N, C, H, W)
that the networks take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from formats.errors import UserError
from training.augmentation.colour import colour_jitter
from training.augmentation.cutout import cutout_square, random_erasing
from training.augmentation.draws import Range, draw_flips, draw_mix, draw_places

CUTOUT_KINDS = ("none", "square", "erasing")
FLIP_MODES = ("random", "alternating")
PAD_MODES = ("black", "reflect")


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training batch; the defaults are the usual CIFAR ones, pad, crop and flip.

    Parameters
    ----------
    pad
        Pixels of padding on each side before a random crop; 0: none.
    pad_mode
        What the padding is, see :func:`pad_crop`.
    crop_size
        Edge of the random crop in pixels; 0: the size that the image has without the padding.
    flip
        Mirror each image left to right with probability 1/2.
    flip_mode
        ``alternating`` draws that for the first epoch only; from then on an image is mirrored in
        every epoch after one in which it was not (Jordan 2024, https://arxiv.org/abs/2404.00498).
    shift
        Largest shift as a fraction of height and width, in [0, 1); 0 switches it off.
    jitter
        Brightness, contrast and saturation are each scaled by 1 - jitter to 1 + jitter
        (:func:`training.augmentation.colour.colour_jitter`); 0 switches it off.
    cutout
        ``none``, ``square`` (:func:`cutout_square`) or ``erasing`` (:func:`random_erasing`).
    cutout_prob
        Probability per image of either cutout.
    cutout_size
        Edge of the square in pixels.
    erasing_area, erasing_aspect
        Ranges of the erased rectangle's area (fraction of the image) and aspect ratio (height /
        width).
    small_size, small_epochs
        In so many first epochs the images are shrunk to this edge at the end
        (:func:`training.augmentation.shrink.shrink`); 0: never.
    mixup_alpha
        Both parameters of the beta distribution that mixup draws from; 0 switches it off.
    label_smoothing
        Probability mass spread evenly over all classes, in [0, 1).

    Raises
    ------
    UserError
        When a value is outside its range; the message names the field, the value and the range.
    """

    pad: int = 4
    pad_mode: str = "black"
    crop_size: int = 0
    flip: bool = True
    flip_mode: str = "random"
    shift: float = 0.0
    jitter: float = 0.0
    cutout: str = "none"
    cutout_prob: float = 0.5
    cutout_size: int = 16
    erasing_area: Range = (0.02, 0.4)
    erasing_aspect: Range = (0.3, 1 / 0.3)
    small_size: int = 0
    small_epochs: int = 0
    mixup_alpha: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        checks = (
            ("pad", self.pad >= 0, "0 or more pixels"),
            ("pad_mode", self.pad_mode in PAD_MODES, "one of " + ", ".join(PAD_MODES)),
            ("crop_size", self.crop_size >= 0, "0 (the image's size) or more pixels"),
            ("flip_mode", self.flip_mode in FLIP_MODES, "one of " + ", ".join(FLIP_MODES)),
            ("shift", 0 <= self.shift < 1, "a fraction of the image, 0 <= shift < 1"),
            ("jitter", 0 <= self.jitter < 1, "0 (off) or more and less than 1"),
            ("cutout", self.cutout in CUTOUT_KINDS, "one of " + ", ".join(CUTOUT_KINDS)),
            ("cutout_prob", 0 <= self.cutout_prob <= 1, "a probability, 0 to 1"),
            ("cutout_size", self.cutout_size >= 1, "1 or more pixels"),
            (
                "erasing_area",
                0 < self.erasing_area[0] <= self.erasing_area[1] <= 1,
                "0 < low <= high <= 1",
            ),
            (
                "erasing_aspect",
                0 < self.erasing_aspect[0] <= self.erasing_aspect[1],
                "0 < low <= high",
            ),
            ("small_size", self.small_size >= (1 if self.small_epochs else 0), "1 or more pixels"),
            ("mixup_alpha", 0 <= self.mixup_alpha < np.inf, "0 (off) or a positive number"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "0 <= label_smoothing < 1"),
        )
        for name, ok, allowed in checks:
            if not ok:
                raise UserError(
                    f"augmentation {name} = {getattr(self, name)!r}; allowed: {allowed}"
                )


def augment(
    images: np.ndarray,
    augmentation: Augmentation,
    mean: Sequence[float],
    rng: np.random.Generator,
    mirrored: Optional[np.ndarray] = None,
) -> np.ndarray:
    """Crop, shift, flip, jitter and cut out as ``augmentation`` says; uint8 (N, H, W, C) in, out.

    Height and width change where ``crop_size`` says so. ``mirrored``, bool (N,), says which images
    are flipped; None draws it.

    The cutout comes last, on the image that the network sees. PistonY's script erases the padded
    40x40 image before the crop, so that there a part of the rectangle can be cropped away.
    """
    if augmentation.pad or augmentation.crop_size:
        size, mode = augmentation.crop_size, augmentation.pad_mode
        images = pad_crop(images, augmentation.pad, rng, size=size, mode=mode)
    if augmentation.shift:
        images = random_shift(images, augmentation.shift, rng)
    if augmentation.flip:
        images = random_flip(images, rng) if mirrored is None else mirror(images, mirrored)
    if augmentation.jitter:
        images = colour_jitter(images, augmentation.jitter, rng)
    if augmentation.cutout == "square":
        images = cutout_square(
            images, augmentation.cutout_size, mean, rng, prob=augmentation.cutout_prob
        )
    elif augmentation.cutout == "erasing":
        images = random_erasing(
            images,
            rng,
            prob=augmentation.cutout_prob,
            area=augmentation.erasing_area,
            aspect=augmentation.erasing_aspect,
        )
    return images


def pad_crop(
    images: np.ndarray,
    pad: int,
    rng: np.random.Generator,
    *,
    size: int = 0,
    mode: str = "black",
) -> np.ndarray:
    """Surround each (H, W) image with ``pad`` pixels and crop it at a random place.

    The crop is (H, W), or (``size``, ``size``) where that is not 0. All places are equally likely.
    Padding of the mode ``black`` is 0 in raw pixels, before the normalisation, as in the usual
    Gluon scripts; padding with the mean (0 after the normalisation) is a different augmentation.
    ``reflect`` mirrors the image at its border pixels, so that no edge is made that a test image
    does not have (Page 2018, https://github.com/davidcpage/cifar10-fast).

    Raises
    ------
    UserError
        When the crop is larger than the padded image, or reflected padding as large as the image.
    """
    count, height, width, channels = images.shape
    rows, columns = (size, size) if size else (height, width)
    check_crop(size, pad, (height, width), mode)
    if mode == "reflect":
        padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect")
    else:
        padded = np.zeros((count, height + 2 * pad, width + 2 * pad, channels), images.dtype)
        padded[:, pad : pad + height, pad : pad + width] = images
    room = (height + 2 * pad - rows, width + 2 * pad - columns)
    top, left = draw_places(count, room, rng)
    return _crop(padded, top, left, rows, columns)


def check_crop(size: int, pad: int, shape: tuple[int, int], mode: str = "black") -> None:
    """Raise UserError for what `pad_crop` cannot do with images of a shape (H, W)."""
    if mode == "reflect" and pad >= min(shape):
        raise UserError(
            f"padding of {pad} pixels cannot be reflected from images of {shape[0]}x{shape[1]}; "
            f"choose at most {min(shape) - 1}"
        )
    largest = min(shape) + 2 * pad
    if size > largest:
        raise UserError(
            f"a crop of {size}x{size} does not fit into images of {shape[0]}x{shape[1]} with "
            f"{pad} pixels of padding; choose at most {largest}"
        )


def random_shift(images: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Move each image by up to ``fraction`` of its height and width.

    The border pixels are repeated into what is left open. Shifts are whole pixels, uniform in
    -floor(fraction * size) to floor(fraction * size); Keras' ``width_shift_range`` with
    ``fill_mode='nearest'`` draws fractions of pixels and interpolates.
    """
    count, height, width, _ = images.shape
    rows, columns = int(fraction * height), int(fraction * width)
    padded = np.pad(images, ((0, 0), (rows, rows), (columns, columns), (0, 0)), mode="edge")
    top, left = draw_places(count, (2 * rows, 2 * columns), rng)
    return _crop(padded, top, left, height, width)


def _crop(
    padded: np.ndarray, top: np.ndarray, left: np.ndarray, height: int, width: int
) -> np.ndarray:
    # One gather over a view of all windows copies whole rows, several times faster than indexing
    # pixels.
    windows = sliding_window_view(padded, (1, height, width, padded.shape[3]))
    return windows[np.arange(len(padded)), top, left, 0, 0]


def random_flip(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror each (H, W, C) image left to right with probability 1/2."""
    return mirror(images, draw_flips(len(images), rng))


def mirror(images: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Mirror the (H, W, C) images left to right that ``chosen``, bool (N,), says."""
    flipped = images.copy()
    flipped[chosen] = images[chosen, :, ::-1]
    return flipped


def mixup(
    images: np.ndarray, labels: np.ndarray, alpha: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """``lam * batch + (1 - lam) * permuted batch``: float32 images, soft labels (N, classes).

    One ``lam`` from Beta(alpha, alpha) serves the whole batch. Source: Zhang et al. 2017,
    https://arxiv.org/abs/1710.09412. PistonY's script pairs the batch with its reverse, which is a
    permutation too.
    """
    lam, partner = draw_mix(len(images), alpha, rng)
    return _blend(images, partner, lam), _blend(labels, partner, lam)


def _blend(values: np.ndarray, partner: np.ndarray, lam: np.float32) -> np.ndarray:
    # value + (1 - lam) * (partner - value), in place: fresh pages cost more than the arithmetic.
    blended = values[partner]
    blended -= values
    blended *= 1 - lam
    blended += values
    return blended


def smooth_labels(labels: np.ndarray, classes: int, epsilon: float = 0.0) -> np.ndarray:
    """``(1 - epsilon) * one-hot + epsilon / classes``: float32 (N, classes) from labels (N,).

    ``epsilon = 0`` gives plain one-hot rows. Source: Szegedy et al. 2016, section 7,
    https://arxiv.org/abs/1512.00567.
    """
    soft = np.full((len(labels), classes), epsilon / classes, np.float32)
    soft[np.arange(len(labels)), labels] += np.float32(1 - epsilon)
    return soft
