"""The tasks of the glimpse model by name: a data set, and the canvas its images are put on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Optional

import numpy as np

from formats.errors import UserError
from training.data.catalogue import load_dataset
from training.data.dataset import FOLDER_PREFIX, Dataset, ImageData
from training.data.image_folder import load_image_folder
from training.glimpse.batches import place_split
from training.glimpse.canvas import CANVASES, Canvas

TEST_SEED = 0  # of the test canvases: they are the same for every training

# Data set and canvas of every task but the folders.
TASKS: dict[str, tuple[str, Optional[Canvas]]] = {
    "mnist": ("mnist", None),
    "translated": ("mnist", CANVASES["translated"]),
    "cluttered": ("mnist", CANVASES["cluttered"]),
    "cluttered100": ("mnist", CANVASES["cluttered100"]),
    "digits": ("digits", None),
    "digits-translated": ("digits", CANVASES["translated"]),
}
FOLDER_SIZE = 60

# Digests of the pixels of MNIST's test split, as it is and on its canvases.
_MNIST_TEST = "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161"
_TEST_CANVASES = {
    "translated": "4329f8ddfe9f2bebde8e316acfecedfce0f3de046102d12f2a77639c1ebc6dfc",
    "cluttered": "1d25a97429e279d83e76645c8cc164778ef040ebe75ccad393b506769eb1b3c0",
    "cluttered100": "e723ffc968544808c30bcc32e448f36e70f409d222609419c4b3231647ff1fb3",
}


@dataclass(frozen=True)
class GlimpseTask:
    """A data set before its images are put on ``canvas`` (None: they stay as they are)."""

    name: str
    dataset: Dataset
    canvas: Optional[Canvas]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of what the network sees."""
        if self.canvas is not None:
            return self.canvas.size, self.canvas.size
        height, width = self.dataset.train.images.shape[1:3]
        return int(height), int(width)

    @property
    def channels(self) -> int:
        """Channels of what the network sees."""
        return int(self.dataset.train.images.shape[3])


def load_task(
    task: str,
    data_dir: Optional[str] = None,
    *,
    mirror: Optional[str] = None,
    download: bool = True,
    size: int = FOLDER_SIZE,
) -> GlimpseTask:
    """Load the data of a task.

    Parameters
    ----------
    task : str
        ``mnist``, ``translated``, ``cluttered``, ``cluttered100`` (all from MNIST), ``digits``,
        ``digits-translated`` (embedded) or ``folder:PATH`` (a user's images, see
        :func:`training.data.image_folder.load_image_folder`).
    data_dir, mirror, download
        As for :func:`training.data.catalogue.load_dataset`.
    size : int
        Height and width that the images of a folder get.

    Returns
    -------
    GlimpseTask
        The images of a folder have one channel when all of them are grey, else three.

    Raises
    ------
    UserError
        Unknown task, missing, damaged or unreachable data.
    """
    if task.startswith(FOLDER_PREFIX):
        folder = load_image_folder(task[len(FOLDER_PREFIX) :], size)
        return GlimpseTask(task, _grey(folder), None)
    if task not in TASKS:
        known = ", ".join(TASKS)
        raise UserError(f"unknown task {task!r}; known: {known}, {FOLDER_PREFIX}PATH")
    name, canvas = TASKS[task]
    dataset = load_dataset(name, data_dir, mirror=mirror, download=download)
    return GlimpseTask(task, dataset, canvas)


def draw_test(task: GlimpseTask) -> ImageData:
    """The test images of the task, on canvases that are the same in every run; see `place_test`."""
    return place_test(task)[0]


def place_test(task: GlimpseTask) -> tuple[ImageData, np.ndarray]:
    """The test images of the task, and where on their canvases the digits lie.

    Returns
    -------
    images, places
        int (N, 2): the row and column of the top left pixel of a digit's own image.

    Raises
    ------
    UserError
        The test split is MNIST's, but its canvases are not those that published results are for.
    """
    drawn, places = place_split(task.dataset.test, task.canvas, TEST_SEED)
    expected = _TEST_CANVASES.get(task.name)
    if expected and _pixels_digest(task.dataset.test) == _MNIST_TEST:
        actual = _pixels_digest(drawn)
        if actual != expected:
            raise UserError(
                f"the test images of {task.name} came out with sha256 {actual}, expected "
                f"{expected}: this NumPy draws other random numbers, so results could not be "
                "compared. Use numpy==1.23.5"
            )
    return drawn, places


def _pixels_digest(data: ImageData) -> str:
    return hashlib.sha256(data.images.tobytes()).hexdigest()


def _grey(dataset: Dataset) -> Dataset:
    """The data set with one channel, when all its channels are equal."""
    splits = {"train": dataset.train, "test": dataset.test, "valid": dataset.valid}
    there = {name: split for name, split in splits.items() if split is not None}
    if any((split.images != split.images[..., :1]).any() for split in there.values()):
        return dataset
    grey: dict[str, Any] = {
        name: ImageData(split.images[..., :1].copy(), split.labels) for name, split in there.items()
    }
    return replace(dataset, **grey, mean=dataset.mean[:1], std=dataset.std[:1])
