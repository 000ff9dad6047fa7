"""A user's own images, one folder per class, as a data set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from training.data.dataset import (
    FOLDER_PREFIX,
    Dataset,
    ImageData,
    channel_statistics,
    split_validation,
)
from training.data.decode import decode_image
from training.settings.errors import UserError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TEST_SHARE = 0.2
MAX_TOTAL_BYTES = 16 * 2**30
MAX_SIZE = 1024


class Files(NamedTuple):
    """Paths of images, class by class in sorted order, and their labels, int32 (N,)."""

    paths: list[str]
    labels: np.ndarray


class Listing(NamedTuple):
    """The images of a folder; ``test`` is empty where the folder has no such split."""

    class_names: tuple[str, ...]
    train: Files
    test: Files


def load_image_folder(path: str, size: int = 32, seed: int = 0) -> Dataset:
    """Load ``PATH/train/<class>/*`` and ``PATH/test/<class>/*``, or ``PATH/<class>/*``.

    ``PATH/val`` serves where there is no ``PATH/test``. Without either, a fifth of the images of
    every class becomes the test split. Images are PNG, JPEG, WebP or BMP; they lie in the class
    folders themselves. Names that begin with a dot and files with other endings are left out.

    Parameters
    ----------
    path : str
        The folder.
    size : int
        Height and width that every image gets: the central square of the image, resized.
    seed : int
        Chooses the test split where the folder has none.

    Returns
    -------
    Dataset
        RGB images, classes in the order of their sorted names; mean and std of the training split.

    Raises
    ------
    UserError
        A missing or empty folder, fewer than two classes, a test class without training images, a
        file that cannot be decoded or is too large.
    """
    if not 1 <= size <= MAX_SIZE:
        raise UserError(f"image size {size} was asked for; allowed are 1 to {MAX_SIZE}")
    listing = list_image_folder(path)
    _check_total(len(listing.train.paths) + len(listing.test.paths), size)
    train = ImageData(_decode(listing.train.paths, size), listing.train.labels)
    if listing.test.paths:
        test = ImageData(_decode(listing.test.paths, size), listing.test.labels)
    else:
        train, test = split_validation(train, round(TEST_SHARE * len(train)), seed)
    mean, std = channel_statistics(train.images)
    # One grey level at least: a channel that is constant must not divide by zero later.
    std = tuple(max(value, 1 / 255) for value in std)
    return Dataset(FOLDER_PREFIX + path, train, test, listing.class_names, mean, std)


def list_image_folder(path: str) -> Listing:
    """Return what is in the folders of :func:`load_image_folder`, without opening an image.

    Raises
    ------
    UserError
        A missing or empty folder, fewer than two classes, a test class without training images.
    """
    root = os.path.expanduser(path)
    if not os.path.isdir(root):
        raise UserError(f"the image folder {path!r} does not exist; {_expected_layout(path)}")
    train_root, test_root = _split_folders(root)
    class_names = _class_names(train_root, path)
    train = _files(train_root, class_names)
    _check_counts(train_root, class_names, train.labels, needed=1 if test_root else 2)
    if not test_root:
        return Listing(class_names, train, Files([], np.empty(0, np.int32)))
    return Listing(class_names, train, _test_files(test_root, class_names, train_root))


def _check_counts(folder: str, class_names: Sequence[str], labels: np.ndarray, needed: int) -> None:
    counts = np.bincount(labels, minlength=len(class_names))
    for name, count in zip(class_names, counts):
        if count < needed:
            raise UserError(
                f"{os.path.join(folder, name)} has {count} images, at least {needed} needed; "
                f"accepted endings: {', '.join(ENDINGS)}"
            )


def _split_folders(root: str) -> tuple[str, str]:
    """(training folder, test folder or ''); both hold class folders."""
    train = os.path.join(root, "train")
    # A folder named train without sub-folders is a class (of trains).
    if not os.path.isdir(train) or not _subfolders(train):
        return root, ""
    for name in ("test", "val"):
        if os.path.isdir(os.path.join(root, name)):
            return train, os.path.join(root, name)
    return train, ""


def _subfolders(folder: str) -> list[str]:
    """Sorted names of sub-folders. Links to folders count, unless they lead back up."""
    above = os.path.realpath(folder)
    names = []
    for name in _listed(folder):
        path = os.path.join(folder, name)
        if not os.path.isdir(path):
            continue
        target = os.path.realpath(path)
        if os.path.islink(path) and os.path.commonpath([above, target]) == target:
            continue
        names.append(name)
    return names


def _listed(folder: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}") from error


def _class_names(train_root: str, path: str) -> tuple[str, ...]:
    names = tuple(_subfolders(train_root))
    if len(names) < 2:
        raise UserError(
            f"{train_root} has {len(names)} class folders, at least 2 needed; "
            f"{_expected_layout(path)}"
        )
    return names


def _files(folder: str, class_names: Sequence[str]) -> Files:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        place = os.path.join(folder, name)
        if not os.path.isdir(place):
            continue
        found = [file for file in _listed(place) if file.lower().endswith(ENDINGS)]
        paths += [os.path.join(place, file) for file in found]
        labels += [label] * len(found)
    return Files(paths, np.array(labels, dtype=np.int32))


def _test_files(test_root: str, class_names: Sequence[str], train_root: str) -> Files:
    unknown = sorted(set(_subfolders(test_root)) - set(class_names))
    if unknown:
        raise UserError(
            f"{test_root} has classes that {train_root} has not: {', '.join(unknown)}; "
            "give them training images or remove them"
        )
    files = _files(test_root, class_names)
    if not files.paths:
        raise UserError(
            f"{test_root} has no images in folders named like the classes of {train_root}; "
            "add some, or remove it to have a fifth of the training images held out"
        )
    return files


def _check_total(count: int, size: int) -> None:
    total = count * size * size * 3
    if total > MAX_TOTAL_BYTES:
        raise UserError(
            f"{count:,} images of {size}x{size} need {total / 2**30:.0f} GiB of memory, "
            f"allowed are {MAX_TOTAL_BYTES / 2**30:.0f}; use fewer images or a smaller size"
        )


def _decode(paths: Sequence[str], size: int) -> np.ndarray:
    """All images, uint8, (N, size, size, 3)."""
    from tqdm import tqdm

    images = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    progress = tqdm(paths, desc="reading images", unit="image", disable=None, leave=False)
    for index, path in enumerate(progress):
        images[index] = decode_image(path, size)
    return images


def _expected_layout(path: str) -> str:
    return (
        f"expected {path}/train/<class>/*.png and {path}/test/<class>/*.png, "
        f"or {path}/<class>/*.png (also {', '.join(ENDINGS[1:])})"
    )
