"""Colour jitter of a batch of small images; ``photo_augment.py`` does large photographs one by one.

Source: the factors and the greys of ``mx.image.ColorJitterAug``, which PistonY's and osmr's CIFAR
scripts use through ``RandomColorJitter``.
"""

from __future__ import annotations

import numpy as np

from training.augmentation.draws import draw_jitter
from training.augmentation.photo_augment import GREY


def colour_jitter(images: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Scale brightness, contrast and saturation of each image by random factors.

    Parameters
    ----------
    images
        uint8 (N, H, W, 3). Images of one channel have no saturation: the other two are scaled.
    strength
        Factors are uniform in 1 - strength to 1 + strength, of each image its own.
    rng
        The order of the three is drawn once for the batch.

    Returns
    -------
    np.ndarray
        uint8, of the same shape; rounded and clipped once, after the last step.
    """
    count, channels = len(images), images.shape[3]
    factors, order = draw_jitter(count, strength, rng)
    pixels = images.astype(np.float32)
    weights = GREY if channels == 3 else np.full(channels, 1 / channels, np.float32)
    for kind in order:
        factor = factors[kind][:, None, None, None]
        if kind == 0:
            pixels *= factor
            continue
        grey = (pixels @ weights)[..., None]
        towards = grey.mean(axis=(1, 2, 3), keepdims=True) if kind == 1 else grey
        # Towards the grey by 1 - factor, in place: fresh pages cost more than the arithmetic.
        pixels -= towards
        pixels *= factor
        pixels += towards
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
