"""The embedded data set ``digits``: real handwritten digits, 28x28, without any download.

``digits.npz`` holds the 1,797 images that scikit-learn ships as ``load_digits``: the test part of
"Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning
Repository, https://doi.org/10.24432/C50P49, CC BY 4.0), 8x8 pixels of 17 grey levels. Here they are
enlarged to 28x28, so that a digit is as large as those of MNIST and an 8x8 glimpse sees a twelfth
of it. The enlargement is exact integer arithmetic: the images are the same on every machine.
"""

from __future__ import annotations

import os

import numpy as np

from training.data.dataset import Dataset, ImageData, channel_statistics, stratified_mask

SIZE = 28
TEST_COUNT = 500
CLASS_NAMES = tuple("0123456789")
_FILE = os.path.join(os.path.dirname(__file__), "digits.npz")
_LEVELS = 16  # the brightest level of the file


def load_digits() -> Dataset:
    """Load the 1,297 training and 500 test images, uint8 (N, 28, 28, 1).

    The split is fixed and holds every class in its proportion.
    """
    with np.load(_FILE) as file:
        small, labels = file["images"], file["labels"].astype(np.int32)
    everything = ImageData(enlarge(small)[..., None], labels)
    test = stratified_mask(labels, TEST_COUNT, seed=0)
    train = everything.take(np.flatnonzero(~test))
    mean, std = channel_statistics(train.images)
    return Dataset("digits", train, everything.take(np.flatnonzero(test)), CLASS_NAMES, mean, std)


def enlarge(images: np.ndarray) -> np.ndarray:
    """Cubic interpolation of uint8 (N, 8, 8) of levels 0 to 16 to uint8 (N, 28, 28) of 0 to 255.

    Pixels are areas (the outer edges of both grids coincide), and what lies outside is black.
    Source: Keys 1981, "Cubic convolution interpolation for digital image processing", a = -1/2.
    """
    weights, scale = _cubic_weights(images.shape[1], SIZE)
    sums = weights @ images.astype(np.int64) @ weights.T
    levels = np.rint(sums * (255 / _LEVELS) / scale**2)
    return levels.clip(0, 255).astype(np.uint8)


def _cubic_weights(old: int, new: int) -> tuple[np.ndarray, int]:
    """Integer weights (new, old) and what they have to be divided by."""
    # Distance between output pixel i and input pixel j, in units of 1 / (2 * new) input pixels.
    unit = 2 * new
    centres = (2 * np.arange(new, dtype=np.int64) + 1) * old
    distance = np.abs(centres[:, None] - (2 * np.arange(old, dtype=np.int64) + 1) * new)
    near = 3 * distance**3 - 5 * unit * distance**2 + 2 * unit**3
    far = -(distance**3) + 5 * unit * distance**2 - 8 * unit**2 * distance + 4 * unit**3
    weights = np.where(distance <= unit, near, np.where(distance < 2 * unit, far, 0))
    return weights, 2 * unit**3
