"""Training and evaluation batches from arrays in memory: reproducible, no worker processes.

Worker processes are not used on purpose: forked workers of a gluon ``DataLoader`` share one random
state and repeat each other's crops, and which worker makes which batch changes from run to run. One
core makes batches many times faster than a CIFAR network takes them
(``benchmarks/pipeline/bench_input.py``).

Batch ``k`` of epoch ``e`` is a function of ``(seed, e, k)`` alone: the order of the images comes
from ``SeedSequence([seed, e])``, the augmentation of batch ``k`` from its ``k``-th child. A resumed
run can so start at any batch of any epoch without making the batches before it.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple, Optional, TypeVar

import numpy as np

from formats.errors import UserError
from formats.images.preprocessing import normalize
from training.augmentation.augment import Augmentation, augment, mixup, smooth_labels
from training.augmentation.draws import Draws, draw_batch, draw_first_flips, generator
from training.augmentation.shrink import shrink
from training.data.dataset import ImageData
from training.data.identity import DataIdentity

T = TypeVar("T")


class Batch(NamedTuple):
    """One batch of N images.

    ``image`` is float32 (N, C, H, W), normalised and C-contiguous; ``label`` is int32 (N,);
    ``soft_label`` is float32 (N, classes) with rows that sum to 1, or None when the labels are
    hard.
    """

    image: np.ndarray
    label: np.ndarray
    soft_label: Optional[np.ndarray] = None

    def take(self, rows: np.ndarray) -> Batch:
        """Return the batch of the images with these numbers."""
        soft = None if self.soft_label is None else self.soft_label[rows]
        return Batch(self.image[rows], self.label[rows], soft)


class Plan(NamedTuple):
    """Which images a batch is made of, (N,), and what is drawn for them."""

    rows: np.ndarray
    draws: Draws


class TrainBatches:
    """Shuffled, augmented batches; what is left at the end of an epoch, less than one, is dropped.

    Parameters
    ----------
    data
        Images uint8 (N, H, W, C) of any size, labels (N,) in 0 to ``classes - 1``.
    batch_size
        Images per batch, 1 to N.
    augmentation
        What is done to each batch.
    mean, std
        Per channel, in [0, 1] units.
    classes
        Width of the soft labels.
    seed
        0 or larger. The same seed gives the same batches bit for bit.

    Raises
    ------
    UserError
        When the data holds less than one batch, or an argument does not fit the data.
    """

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        *,
        augmentation: Augmentation,
        mean: Sequence[float],
        std: Sequence[float],
        classes: int,
        seed: int,
    ) -> None:
        _check(data, batch_size, mean, std)
        if batch_size > len(data.images):
            raise UserError(
                f"a batch of {batch_size} images does not fit into {len(data.images)} training "
                f"images; choose a batch size of at most {len(data.images)}"
            )
        low, high = int(data.labels.min()), int(data.labels.max())
        if low < 0 or high >= classes:
            raise UserError(
                f"labels from {low} to {high} for a network of {classes} classes; "
                f"labels must be 0 to {classes - 1}"
            )
        if seed < 0:
            raise UserError(f"seed {seed} is negative; choose 0 or larger")
        self.data = data
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.mean, self.std = tuple(mean), tuple(std)
        self.classes = classes
        self.seed = seed
        alternates = augmentation.flip and augmentation.flip_mode == "alternating"
        self._first_flips = draw_first_flips(len(data.images), seed) if alternates else None

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.data.images) // self.batch_size

    def pixels(self, epoch: int) -> int:
        """Return how many pixels an image of a batch has in `epoch`, from 0, before a canvas."""
        chosen = self.augmentation
        edge = chosen.small_size if epoch < chosen.small_epochs else chosen.crop_size
        height, width = (edge, edge) if edge else self.data.images.shape[1:3]
        return height * width

    def epoch(
        self, epoch: int, mixup: bool = True, start: int = 0, prefetch: int = 0
    ) -> Iterator[Batch]:
        """Batches ``start`` to ``len(self) - 1`` of one epoch.

        Parameters
        ----------
        epoch
            0-based.
        mixup
            False leaves mixup out (as in the last epochs of the recipe); crops, flips and cutouts
            stay the same.
        start
            First batch to make, for a resume in the middle of an epoch.
        prefetch
            Batches that a background thread makes ahead; 0 makes each batch when it is asked for.

        Raises
        ------
        UserError
            When ``epoch`` is negative or ``start`` is not in 0 to ``len(self)``.
        """
        if epoch < 0:
            raise UserError(f"epoch {epoch} is negative; epochs count from 0")
        if not 0 <= start <= len(self):
            raise UserError(
                f"batch {start} of an epoch of {len(self)} batches; choose 0 to {len(self)}"
            )
        batches = self._epoch(epoch, mixup, start)
        return prefetched(batches, prefetch) if prefetch else batches

    def _epoch(self, epoch: int, mix: bool, start: int) -> Iterator[Batch]:
        for rows, rng in self._parts(epoch, start):
            yield self.make(rows, mix, rng, epoch)

    def plans(self, epoch: int, mixup: bool = True, start: int = 0) -> Iterator[Plan]:
        """Yield what makes the batches of `epoch`, for one who makes them on a GPU."""
        size = (self.data.images.shape[1], self.data.images.shape[2])
        for rows, rng in self._parts(epoch, start):
            mirrored = self._mirrored(rows, epoch)
            draws = draw_batch(self.augmentation, len(rows), size, mixup, rng, mirrored)
            yield Plan(rows, draws)

    def _parts(self, epoch: int, start: int) -> Iterator[tuple[np.ndarray, np.random.Generator]]:
        order = generator(self.seed, epoch).permutation(len(self.data.images))
        for k in range(start, len(self)):
            rows = order[k * self.batch_size : (k + 1) * self.batch_size]
            yield rows, generator(self.seed, epoch, child=(k,))

    def _mirrored(self, rows: np.ndarray, epoch: int) -> Optional[np.ndarray]:
        """Return which images are mirrored, where that is not drawn anew for each batch."""
        return None if self._first_flips is None else self._first_flips[rows] ^ bool(epoch % 2)

    def make(self, rows: np.ndarray, mix: bool, rng: np.random.Generator, epoch: int) -> Batch:
        """Return the batch of these images, augmented by what `rng` draws as in `epoch`."""
        chosen, mirrored = self.augmentation, self._mirrored(rows, epoch)
        pixels = augment(self.data.images[rows], chosen, self.mean, rng, mirrored)
        if epoch < chosen.small_epochs:
            pixels = shrink(pixels, chosen.small_size)
        image = normalize(pixels, self.mean, self.std)
        label = self.data.labels[rows].astype(np.int32)
        alpha = chosen.mixup_alpha if mix else 0.0
        return labelled(image, label, self.classes, alpha, chosen.label_smoothing, rng)


class EvalBatches:
    """Every image exactly once, in order, without augmentation; the last batch may be short.

    Parameters are those of :class:`TrainBatches`. Can be iterated any number of times.
    """

    def __init__(
        self, data: ImageData, batch_size: int, *, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        _check(data, batch_size, mean, std)
        self.data = data
        self.batch_size = batch_size
        self.mean, self.std = tuple(mean), tuple(std)

    def __len__(self) -> int:
        """Batches per pass."""
        return (len(self.data.images) + self.batch_size - 1) // self.batch_size

    def share(self, rank: int, size: int) -> Optional[EvalBatches]:
        """Every `size`-th image from number `rank` on; None when there is none."""
        data = self.data.take(slice(rank, None, size))
        if not len(data.images):
            return None
        return EvalBatches(data, self.batch_size, mean=self.mean, std=self.std)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self.data.images), self.batch_size):
            rows = slice(start, start + self.batch_size)
            image = normalize(self.data.images[rows], self.mean, self.std)
            yield Batch(image, self.data.labels[rows].astype(np.int32))


def labelled(
    image: np.ndarray,
    label: np.ndarray,
    classes: int,
    mixup_alpha: float,
    label_smoothing: float,
    rng: np.random.Generator,
) -> Batch:
    """Return the batch of these images, mixed and with soft labels where that is wanted."""
    if mixup_alpha <= 0 and not label_smoothing:
        return Batch(image, label)
    soft = smooth_labels(label, classes, label_smoothing)
    if mixup_alpha > 0:  # drawn last, so that switching it off leaves the other draws as they are
        image, soft = mixup(image, soft, mixup_alpha, rng)
    return Batch(image, label, soft)


def parts_of_batch(images: int, devices: int, micro_batch: int) -> int:
    """Return in how many parts, of at most `micro_batch` images, each device takes its share.

    0: the whole share at once. Shares and parts are those of ``np.array_split``.
    """
    return math.ceil(math.ceil(images / devices) / micro_batch) if micro_batch else 1


def prefetched(items: Iterable[T], depth: int = 2) -> Generator[T, None, None]:
    """The same items, up to ``depth`` of them made ahead by a background thread.

    An exception of ``items`` is raised here, after the items before it. Closing or dropping the
    iterator, at any moment, stops the thread and waits for it.
    """
    if depth < 1:
        raise UserError(f"prefetch depth {depth}; choose 1 or more")
    return _prefetched(items, depth)


def _prefetched(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    # Messages: (True, item) for each item, then (False, None) or (False, exception).
    buffer: queue.Queue = queue.Queue(depth)
    stop = threading.Event()
    thread = threading.Thread(
        target=_fill, args=(items, buffer, stop), name="prefetch", daemon=True
    )
    thread.start()
    try:
        while True:
            is_item, value = buffer.get()
            if is_item:
                yield value
            elif value is None:
                return
            else:
                raise value
    finally:
        stop.set()
        # A thread that waits for room in the buffer sees the flag only when there is room.
        while thread.is_alive():
            try:
                buffer.get(timeout=0.01)
            except queue.Empty:
                continue


def _fill(items: Iterable[T], buffer: queue.Queue, stop: threading.Event) -> None:
    try:
        for item in items:
            buffer.put((True, item))
            if stop.is_set():
                return
    except BaseException as error:  # handed to the consumer, which raises it
        buffer.put((False, error))
    else:
        buffer.put((False, None))


def _check(data: ImageData, batch_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
    if batch_size < 1:
        raise UserError(f"batch size {batch_size}; choose 1 or more")
    if not len(data.images):
        raise UserError("the data set holds no images; at least one is needed")
    channels = data.images.shape[3]
    if len(mean) != channels or len(std) != channels:
        raise UserError(
            f"{len(mean)} means and {len(std)} deviations for images of {channels} channels"
        )
    if min(std) <= 0:
        raise UserError(f"standard deviations {tuple(std)}; all must be positive")


class Loaders(NamedTuple):
    """Batches of one run; ``valid`` is None when no training images are held out.

    ``identity`` is that of the data set, which a checkpoint keeps.
    """

    train: TrainBatches
    valid: Optional[EvalBatches]
    test: EvalBatches
    identity: Optional[DataIdentity] = None
