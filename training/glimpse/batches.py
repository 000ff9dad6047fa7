"""Batches of the glimpse tasks: deformed digits on fresh canvases, and canvases that stay.

Pixels stay in [0, 1] and are not normalised further, so that the background is exactly 0, which is
also what a glimpse sees beyond the border.
"""

from __future__ import annotations

from typing import Optional

import numpy as np

from formats.images.preprocessing import normalize
from training.augmentation.augment import Augmentation
from training.augmentation.deform import Deformation, deform
from training.batches.in_memory import Batch, TrainBatches
from training.data.dataset import ImageData
from training.glimpse.canvas import Canvas, draw_canvases, draw_places

# Canvases that are drawn together in draw_split. The draws follow one another, so the pictures of
# a fixed test set depend on it.
_DRAWN_TOGETHER = 1000


class GlimpseTrainBatches(TrainBatches):
    """Shuffled batches, each image deformed and put on a canvas of its own anew in every epoch.

    ``epoch`` yields :class:`training.batches.in_memory.Batch` with image float32 (N, C, S, S) in
    [0, 1] and label int32 (N,). Batch ``k`` of epoch ``e`` is a function of ``(seed, e, k)`` alone.

    Parameters
    ----------
    data : ImageData
        Training images. Clutter is cut from them too, from any image but the one on the canvas.
    batch_size : int
        Images per batch, 1 to N.
    canvas : Canvas, optional
        What the images are put on; None leaves them as they are.
    deformation : Deformation
        What is done to each image before.
    seed : int
        0 or larger.

    Raises
    ------
    UserError
        As :class:`training.batches.in_memory.TrainBatches`; also when the images do not fit the
        canvas.
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        *,
        canvas: Optional[Canvas],
        deformation: Deformation,
        seed: int,
    ) -> None:
        channels = data.images.shape[3]
        super().__init__(
            data,
            batch_size,
            augmentation=Augmentation(pad=0, flip=False),
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
            classes=int(data.labels.max(initial=0)) + 1,
            seed=seed,
        )
        self.canvas = canvas
        self.deformation = deformation
        self.make(np.arange(1), False, np.random.Generator(np.random.PCG64(0)), 0)  # raises early

    def make(self, rows: np.ndarray, mix: bool, rng: np.random.Generator, epoch: int) -> Batch:
        """Return the batch of these images, deformed and put on canvases by what `rng` draws."""
        images = deform(self.data.images[rows], self.deformation, rng)
        if self.canvas is not None:
            images = draw_canvases(images, self.data.images, self.canvas, rng, own=rows)
        return Batch(normalize(images, self.mean, self.std), self.data.labels[rows])


def draw_split(data: ImageData, canvas: Optional[Canvas], seed: int) -> ImageData:
    """Put every image of a held-out or test split on one canvas, for good.

    Parameters
    ----------
    data : ImageData
        The split; clutter comes from its other images.
    canvas : Canvas, optional
        None returns ``data`` as it is.
    seed : int
        The canvases are a function of (images, canvas, seed), integers throughout.

    Returns
    -------
    ImageData
        uint8 (N, S, S, 1), in the order of ``data``.
    """
    return place_split(data, canvas, seed)[0]


def place_split(
    data: ImageData, canvas: Optional[Canvas], seed: int
) -> tuple[ImageData, np.ndarray]:
    """Do what `draw_split` does; return int (N, 2) too, the row and column of every image on it."""
    places: np.ndarray = np.zeros((len(data), 2), np.int64)
    if canvas is None:
        return data, places
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = np.empty((len(data), canvas.size, canvas.size, 1), np.uint8)
    for start in range(0, len(data), _DRAWN_TOGETHER):
        rows = np.arange(start, min(start + _DRAWN_TOGETHER, len(data)))
        found = draw_places(data.images[rows], data.images, canvas, rng, own=rows)
        drawn[rows], places[rows] = found
    return ImageData(drawn, data.labels), places
