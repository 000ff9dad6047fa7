"""Batches of large photographs that are read and decoded while the network trains.

The counterpart of ``in_memory.py`` for data that does not fit into memory, with the same methods:
image ``i`` of batch ``k`` of epoch ``e`` is a function of ``(seed, e, k, i)`` alone, so a run can
be resumed at any batch. Threads decode; Pillow lets them work at the same time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Callable, Optional, Protocol, Union

import numpy as np

from formats.errors import UserError
from formats.images.decode import centre_square, check_file, open_rgb
from formats.images.preprocessing import IMAGENET_CROP, IMAGENET_MEAN, IMAGENET_STD, Figures
from training.augmentation.draws import generator
from training.augmentation.photo_augment import PhotoAugmentation, augment_photo, normalize_photo
from training.batches.in_memory import Batch, labelled, prefetched
from training.data.image_folder import Files

READERS = min(16, os.cpu_count() or 1)


class Source(Protocol):
    """Encoded images: how many, and label, name and content of each."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[int, str, bytes]:
        """Return label, name for messages, and content of an image."""


class FolderSource:
    """The image files of a listing."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files.paths)

    def read(self, index: int) -> tuple[int, str, bytes]:
        """Return label, path and content of an image."""
        path = self.files.paths[index]
        check_file(path)
        try:
            with open(path, "rb") as file:
                return int(self.files.labels[index]), path, file.read()
        except OSError as error:
            raise UserError(f"cannot read the image {path}: {error.strerror}") from error

    def identity(self) -> Iterator[bytes]:
        """Return what tells these images from others: labels, and names of files and folders."""
        yield self.files.labels.astype("<i4").tobytes()
        for path in self.files.paths:
            yield os.fsencode(os.sep.join(path.split(os.sep)[-2:]))


class Subset:
    """Some images of a source."""

    def __init__(self, source: Source, rows: np.ndarray) -> None:
        self.source, self.rows = source, rows

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.rows)

    def read(self, index: int) -> tuple[int, str, bytes]:
        """Return label, name and content of an image."""
        return self.source.read(int(self.rows[index]))


@dataclass(frozen=True)
class Shape:
    """Edge of the inputs in pixels, number of classes of the network, mean and deviation.

    ``crop`` is the central part of a photograph that is tested.
    """

    size: int
    classes: int
    figures: Figures = (IMAGENET_MEAN, IMAGENET_STD)
    crop: float = IMAGENET_CROP


class _Photos:
    """What training and evaluation share: reading images of a source in parallel."""

    def __init__(self, data: Source, batch_size: int, shape: Shape) -> None:
        self.data, self.batch_size, self.shape = data, batch_size, shape
        self.size, (self.mean, self.std), self.crop = shape.size, shape.figures, shape.crop

    def _load(
        self, rows: Union[Sequence[int], np.ndarray], pool: ThreadPoolExecutor, prepare: Callable
    ) -> tuple[np.ndarray, np.ndarray]:
        def one(place: int) -> tuple[np.ndarray, int]:
            label, name, content = self.data.read(int(rows[place]))
            if label >= self.shape.classes:
                raise UserError(
                    f"{name} has the label {label}, the network has {self.shape.classes} classes; "
                    f"labels count from 0. Give --classes of at least {label + 1}"
                )
            pixels = prepare(open_rgb(name, self.size, content), place)
            return normalize_photo(pixels, self.mean, self.std), label

        images, labels = zip(*pool.map(one, range(len(rows))))
        return np.stack(images), np.array(labels, np.int32)


class PhotoTrainBatches(_Photos):
    """Shuffled, augmented batches; less than one at the end of an epoch is dropped.

    Parameters
    ----------
    data
        Where the images come from.
    batch_size
        Images per batch, 1 to N.
    shape
        Size of the inputs and number of classes.
    augmentation
        What is done to each photograph.
    mixup_alpha, label_smoothing
        Those of `training.augmentation.augment.Augmentation`.
    seed
        0 or larger.

    Raises
    ------
    UserError
        When the data holds less than one batch.
    """

    def __init__(
        self,
        data: Source,
        batch_size: int,
        shape: Shape,
        *,
        augmentation: PhotoAugmentation,
        mixup_alpha: float = 0.0,
        label_smoothing: float = 0.0,
        seed: int,
    ) -> None:
        super().__init__(data, batch_size, shape)
        if batch_size > len(data):
            raise UserError(
                f"a batch of {batch_size} images does not fit into {len(data)} training images; "
                f"choose a batch size of at most {len(data)}"
            )
        self.augmentation, self.seed = augmentation, seed
        self._places = (0, 1, 1)
        self.mixup_alpha, self.label_smoothing = mixup_alpha, label_smoothing

    def __len__(self) -> int:
        """Return the batches per epoch."""
        return len(self.data) // self.batch_size

    def pixels(self, epoch: int) -> int:
        """Return how many pixels an image has, the same in every epoch."""
        return self.size**2

    def keep(self, first: int, count: int, devices: int) -> None:
        """Read only what `count` devices from number `first` on, of `devices`, get of a batch.

        The rest of a batch is zeros, which nobody looks at; mixup then mixes what is read.
        """
        self._places = (first, count, devices)

    def _own(self, images: int) -> slice:
        first, count, devices = self._places
        sizes = [len(part) for part in np.array_split(np.arange(images), devices)]
        return slice(sum(sizes[:first]), sum(sizes[: first + count]))

    def epoch(
        self, epoch: int, mixup: bool = True, start: int = 0, prefetch: int = 0
    ) -> Iterator[Batch]:
        """Return an iterator over batches ``start`` to the last of an epoch.

        Parameters are those of `training.batches.in_memory.TrainBatches.epoch`.
        """
        batches = self._epoch(epoch, mixup, start)
        return prefetched(batches, prefetch) if prefetch else batches

    def _epoch(self, epoch: int, mix: bool, start: int) -> Iterator[Batch]:
        order = generator(self.seed, epoch).permutation(len(self.data))
        with ThreadPoolExecutor(READERS) as pool:
            for k in range(start, len(self)):
                rows = order[k * self.batch_size : (k + 1) * self.batch_size]
                own = self._own(len(rows))

                def prepare(
                    image: object, place: int, k: int = k, begin: int = own.start
                ) -> np.ndarray:
                    rng = generator(self.seed, epoch, child=(k, begin + place))
                    return augment_photo(image, self.size, self.augmentation, rng)

                image, label = self._load(rows[own], pool, prepare)
                alpha = self.mixup_alpha if mix else 0.0
                rng = generator(self.seed, epoch, child=(k,))
                classes, smoothing = self.shape.classes, self.label_smoothing
                batch = labelled(image, label, classes, alpha, smoothing, rng)
                yield _widened(batch, own, len(rows))


class PhotoEvalBatches(_Photos):
    """Every image once, in order: the central square of 7/8 of the shorter side, resized.

    That is a resize of the shorter side to 256 and a crop of 224, and the same for other sizes.
    """

    def __len__(self) -> int:
        """Return the batches per pass."""
        return (len(self.data) + self.batch_size - 1) // self.batch_size

    def share(self, rank: int, size: int) -> Optional[PhotoEvalBatches]:
        """Return every `size`-th image from number `rank` on; None when there is none."""
        rows = np.arange(rank, len(self.data), size)
        if not len(rows):
            return None
        return PhotoEvalBatches(Subset(self.data, rows), self.batch_size, self.shape)

    def __iter__(self) -> Iterator[Batch]:
        return prefetched(self._batches(), 2)

    def _batches(self) -> Iterator[Batch]:
        def prepare(image: object, place: int) -> np.ndarray:
            return np.asarray(centre_square(image, self.size, self.crop), np.float32)

        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(self.data), self.batch_size):
                rows = range(start, min(start + self.batch_size, len(self.data)))
                yield Batch(*self._load(rows, pool, prepare))


def _widened(batch: Batch, own: slice, images: int) -> Batch:
    """Return the batch in its place of a whole one."""
    if len(batch.label) == images:
        return batch

    def widen(values: np.ndarray) -> np.ndarray:
        whole = np.zeros((images, *values.shape[1:]), values.dtype)  # untouched pages cost nothing
        whole[own] = values
        return whole

    soft = None if batch.soft_label is None else widen(batch.soft_label)
    return Batch(widen(batch.image), widen(batch.label), soft)


def held_out(source: Source, count: int, seed: int) -> tuple[Source, Optional[Source]]:
    """Return a source without `count` images chosen by `seed`, and these (None for 0).

    Raises
    ------
    UserError
        When there are not more images than are held out.
    """
    if not count:
        return source, None
    if count >= len(source):
        raise UserError(f"--valid-count {count}: there are {len(source)} training images")
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(source))
    return Subset(source, np.sort(order[count:])), Subset(source, np.sort(order[:count]))
