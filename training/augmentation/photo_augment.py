"""Augmentation of large photographs, one by one: random resized crop, colour jitter, PCA noise.

The formulas are those of ``mx.image.CreateAugmenter``, which PistonY's ImageNet script used.
Colours are float32 in 0 to 255 and are not clipped between the steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from formats.errors import UserError
from formats.images.decode import centre_square

CROP_AREA = (0.08, 1.0)
CROP_ASPECT = (3 / 4, 4 / 3)
CROP_TRIES = 10
GREY = np.array([0.299, 0.587, 0.114], np.float32)
# Principal components of ImageNet's colours (Krizhevsky et al. 2012, section 4.1), in 0 to 255.
EIGENVALUES = np.array([55.46, 4.794, 1.148], np.float32)
EIGENVECTORS = np.array(
    [
        [-0.5675, 0.7192, 0.4009],
        [-0.5808, -0.0045, -0.8140],
        [-0.5836, -0.6948, 0.4203],
    ],
    np.float32,
)


@dataclass(frozen=True)
class PhotoAugmentation:
    """What is done to a training photograph.

    Parameters
    ----------
    flip
        Mirror with probability 1/2.
    jitter
        Brightness, contrast and saturation are each scaled by 1 - jitter to 1 + jitter.
    pca_noise
        Standard deviation of the noise along the principal components.
    crop_area
        Smallest share of the picture that a crop may have; 1 takes the central square.

    Raises
    ------
    UserError
        When a value is outside its range.
    """

    flip: bool = True
    jitter: float = 0.4
    pca_noise: float = 0.1
    crop_area: float = CROP_AREA[0]

    def __post_init__(self) -> None:
        if not 0 <= self.jitter < 1:
            raise UserError(f"--jitter {self.jitter}: give 0 or more and less than 1")
        if not 0 <= self.pca_noise < float("inf"):
            raise UserError(f"--pca-noise {self.pca_noise}: give 0 or more")
        if not 0 < self.crop_area <= 1:
            raise UserError(f"--crop-area {self.crop_area}: give a share above 0, at most 1")


def augment_photo(
    image: Any, size: int, chosen: PhotoAugmentation, rng: np.random.Generator
) -> np.ndarray:
    """Return a training input (size, size, 3) float32, in 0 to 255, from a Pillow image."""
    cropped = random_resized_crop(image, size, chosen.crop_area, rng)
    pixels = np.asarray(cropped, np.float32)
    if chosen.jitter:
        pixels = colour_jitter(pixels, chosen.jitter, rng)
    if chosen.pca_noise:
        pixels = pixels + pca_shift(rng.normal(0, chosen.pca_noise, 3))
    if chosen.flip and rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def random_resized_crop(image: Any, size: int, area: float, rng: np.random.Generator) -> Any:
    """Crop a rectangle of random area and aspect ratio, and resize it to (size, size).

    The area is uniform between `area` and 1 of the picture, the aspect ratio (width / height) is
    uniform in its logarithm between 3/4 and 4/3. When none of ten such rectangles fits, the
    central square is taken.
    """
    from PIL import Image

    width, height = image.size
    for _ in range(CROP_TRIES if area < 1 else 0):
        target = rng.uniform(area, CROP_AREA[1]) * width * height
        ratio = np.exp(rng.uniform(*np.log(CROP_ASPECT)))
        columns = round(float(np.sqrt(target * ratio)))
        rows = round(float(np.sqrt(target / ratio)))
        if 0 < columns <= width and 0 < rows <= height:
            left = int(rng.integers(0, width - columns + 1))
            top = int(rng.integers(0, height - rows + 1))
            box = (left, top, left + columns, top + rows)
            return image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return centre_square(image, size)


def colour_jitter(pixels: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Scale brightness, contrast and saturation of (H, W, 3), in random order."""
    factors = rng.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    for kind in rng.permutation(3):
        if kind == 0:
            towards: Any = np.float32(0)
        elif kind == 1:
            towards = (pixels @ GREY).mean()
        else:
            towards = (pixels @ GREY)[..., None]
        pixels = factors[kind] * pixels + (1 - factors[kind]) * towards
    return pixels


def pca_shift(strengths: np.ndarray) -> np.ndarray:
    """Return the colour (3,) that is added for strengths (3,) along the principal components."""
    shift: np.ndarray = EIGENVECTORS @ (EIGENVALUES * strengths.astype(np.float32))
    return shift


def normalize_photo(
    pixels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]
) -> np.ndarray:
    """Return ``(pixels / 255 - mean) / std`` as (3, H, W) float32."""
    scaled = (pixels / 255 - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1), np.float32)
