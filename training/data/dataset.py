"""What a data set is here, and the validation split.

Reading order: this file, then ``cifar.py`` (CIFAR-10/100), ``stl10.py``, ``mnist.py``,
``shapes.py`` and ``digits.py`` (embedded), ``image_folder.py`` (a user's own images);
``catalogue.py`` has the names that ``--dataset`` knows, `training.downloads` serves those that are
downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Union

import numpy as np

from formats.errors import UserError

FOLDER_PREFIX = "folder:"
SPLIT_SEED = 0  # held-out images stay the same whatever the seed of a run, so runs can be compared


@dataclass(frozen=True)
class ImageData:
    """One split, in memory.

    Parameters
    ----------
    images : np.ndarray
        uint8, (N, H, W, C).
    labels : np.ndarray
        int32, (N,).
    masks : np.ndarray, optional
        uint8, (N, H, W): 1 on the object, 0 elsewhere. Only data sets with a known object have it.
    """

    images: np.ndarray
    labels: np.ndarray
    masks: Optional[np.ndarray] = None

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4:
            raise ValueError(
                f"images must be uint8 (N, H, W, C), got {self.images.dtype} {self.images.shape}"
            )
        if self.labels.dtype != np.int32 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"labels must be int32 ({len(self.images)},), "
                f"got {self.labels.dtype} {self.labels.shape}"
            )
        if self.masks is not None and (
            self.masks.dtype != np.uint8 or self.masks.shape != self.images.shape[:3]
        ):
            raise ValueError(
                f"masks must be uint8 {self.images.shape[:3]}, "
                f"got {self.masks.dtype} {self.masks.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Union[np.ndarray, slice]) -> ImageData:
        """The images at ``index`` in that order: a copy for integers (K,), a view for a slice."""
        masks = None if self.masks is None else self.masks[index]
        return ImageData(self.images[index], self.labels[index], masks)

    def sample(self, count: int, seed: int) -> ImageData:
        """Return ``count`` images of all classes by their shares, in order; all when fewer."""
        if count >= len(self):
            return self
        return self.take(np.flatnonzero(stratified_mask(self.labels, count, seed)))

    def first(self, count: int) -> ImageData:
        """A copy of the first ``count`` images, or of all when there are fewer."""
        return self.take(np.arange(min(count, len(self))))


@dataclass(frozen=True)
class Dataset:
    """A named data set with both splits.

    Parameters
    ----------
    name : str
        As given to :func:`load_dataset`.
    train, test : ImageData
        Both splits; labels index ``class_names``.
    class_names : tuple of str
        One name per class.
    mean, std : tuple of float
        Per channel over the training images, in units where 0 is black and 1 is white.
    valid : ImageData, optional
        Images to choose epochs and settings on, where the data set has a split for that.
    """

    name: str
    train: ImageData
    test: ImageData
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    valid: Optional[ImageData] = None

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


def hold_out(dataset: Dataset, count: int) -> tuple[ImageData, Optional[ImageData]]:
    """Return the images to train on, and those held out: the data set's own, or `count`, or None.

    Raises
    ------
    UserError
        When `count` is out of range, or not 0 for a data set with a split of its own.
    """
    if dataset.valid is not None:
        check_one_split(count, len(dataset.valid), dataset.name)
        return dataset.train, dataset.valid
    if not count:
        return dataset.train, None
    return split_validation(dataset.train, count, SPLIT_SEED)


def check_one_split(count: int, own: int, name: str) -> None:
    """Raise UserError when `count` images are to be held out of data with `own` ones."""
    if count:
        raise UserError(
            f"--valid-count {count}: {name} has {own} held-out images in a folder of its own "
            "(val), which are taken; leave --valid-count out, or give 0"
        )


def split_validation(data: ImageData, count: int, seed: int) -> tuple[ImageData, ImageData]:
    """Hold out ``count`` images, every class in its proportion.

    Parameters
    ----------
    data : ImageData
        The training split.
    count : int
        Images to hold out, 0 < count < len(data).
    seed : int
        The held-out images are a function of (labels, count, seed).

    Returns
    -------
    tuple of ImageData
        (rest, held out), each in the order of ``data``.

    Raises
    ------
    UserError
        ``count`` is out of range.
    """
    if not 0 < count < len(data):
        raise UserError(
            f"a validation split of {count} images was asked for; "
            f"the training set has {len(data)}, so give 1 to {len(data) - 1}"
        )
    held_out = stratified_mask(data.labels, count, seed)
    return data.take(np.flatnonzero(~held_out)), data.take(np.flatnonzero(held_out))


def stratified_mask(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose ``count`` of the items, every class in its proportion.

    Parameters
    ----------
    labels : np.ndarray
        Integer, (N,).
    count : int
        Items to choose, 0 to N.
    seed : int
        Seed of the choice.

    Returns
    -------
    np.ndarray
        bool, (N,), ``count`` of them True. Every class gets its exact share rounded down, the
        classes with the largest remainders one more.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    classes, sizes = np.unique(labels, return_counts=True)
    # Integers throughout: count * size never exceeds 2**63 here, and no rounding can tip a share.
    shares, remainders = np.divmod(count * sizes.astype(np.int64), len(labels))
    # A random order before the stable sort, so that ties are not always won by the first classes.
    order = generator.permutation(len(classes))
    largest = order[np.argsort(-remainders[order], kind="stable")]
    shares[largest[: count - int(shares.sum())]] += 1
    chosen = np.zeros(len(labels), dtype=bool)
    for value, share in zip(classes, shares):
        members = np.flatnonzero(labels == value)
        chosen[generator.permutation(members)[:share]] = True
    return chosen


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in [0, 1] units.

    Parameters
    ----------
    images : np.ndarray
        uint8, (N, H, W, C).

    Returns
    -------
    tuple
        (mean, std), C floats each; population standard deviation over all pixels. Exact: computed
        from the 256-bin histogram of each channel.
    """
    levels = np.arange(256, dtype=np.float64) / 255.0
    mean, std = [], []
    for channel in range(images.shape[3]):
        counts = np.bincount(images[..., channel].ravel(), minlength=256).astype(np.float64)
        share = counts / counts.sum()
        centre = float(share @ levels)
        mean.append(centre)
        std.append(float(np.sqrt(share @ (levels - centre) ** 2)))
    return tuple(mean), tuple(std)


def usable_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return `channel_statistics` with deviations of one grey level at least.

    A channel that is constant must not divide by zero later.
    """
    mean, std = channel_statistics(images)
    return mean, tuple(max(value, 1 / 255) for value in std)
