"""A user's own images, one folder per class, as a data set."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from formats.errors import UserError
from formats.images.decode import decode_image
from training.data.dataset import (
    FOLDER_PREFIX,
    Dataset,
    ImageData,
    usable_statistics,
)

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
# Names of the folders of a split, in any case.
TRAIN, TEST, VALID = ("train",), ("test",), ("val", "valid", "validation")
TEST_SHARE = 0.2
MAX_TOTAL_BYTES = 16 * 2**30
MAX_SIZE = 1024


class Files(NamedTuple):
    """Paths of images, class by class in sorted order, and their labels, int32 (N,)."""

    paths: list[str]
    labels: np.ndarray


class Listing(NamedTuple):
    """The images of a folder; ``valid`` is empty where it has no such split."""

    class_names: tuple[str, ...]
    train: Files
    test: Files
    valid: Files


def load_image_folder(path: str, size: int = 32) -> Dataset:
    """Load ``PATH/train/<class>/*`` and ``PATH/test/<class>/*``, or ``PATH/<class>/*``.

    ``PATH/val`` (or ``valid``, ``validation``) has the images that are held out to choose epochs
    on; it serves as test where there is no ``PATH/test``. Without either, about a fifth of the
    images becomes the test split, by a digest of their names: those that are added or removed leave
    all others where they were, so that no image that was trained on becomes one of a test. (Of a
    class with a few images one is put into each part, which can be another one later.) Names of
    splits are known in any case. Images are PNG, JPEG, WebP or BMP; they lie in the class folders
    themselves. Names that begin with a dot are left out; what else is, files with other endings or
    further folders, is counted and told.

    Parameters
    ----------
    path : str
        The folder.
    size : int
        Height and width that every image gets: the central square of the image, resized.

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
    _check_total(sum(len(files.paths) for files in listing[1:]), size)
    train, test = _decoded(listing.train, size), _decoded(listing.test, size)
    valid = _decoded(listing.valid, size) if listing.valid.paths else None
    mean, std = usable_statistics(train.images)
    return Dataset(FOLDER_PREFIX + path, train, test, listing.class_names, mean, std, valid)


def list_image_folder(path: str, tell: bool = True) -> Listing:
    """Return what is in the folders of :func:`load_image_folder`, without opening an image.

    With `tell`, what is left out or lacking is said on the standard error.

    Raises
    ------
    UserError
        A missing or empty folder, fewer than two classes, a test class without training images.
    """
    root = os.path.expanduser(path)
    if not os.path.isdir(root):
        raise UserError(f"the image folder {path!r} does not exist; {_expected_layout(path)}")
    train_root, test_root, valid_root = _split_folders(root)
    class_names = _class_names(train_root, path)
    left_out: Counter[str] = Counter()
    train = _files(train_root, class_names, left_out)
    _check_counts(train_root, class_names, train.labels, left_out, 1 if test_root else 2)
    none = Files([], np.empty(0, np.int32))
    test, valid = (
        _test_files(place, class_names, train_root, left_out) if place else none
        for place in (test_root, valid_root)
    )
    used = {os.path.basename(place) for place in (train_root, test_root, valid_root)}
    if train_root != root:
        left_out.update(f"folder {name}" for name in _subfolders(root) if name not in used)
    for place, files in ((test_root, test), (valid_root, valid)):
        lacking = [name for n, name in enumerate(class_names) if place and n not in files.labels]
        if lacking and tell:
            print(f"note: {place} has no images of {', '.join(lacking)}", file=sys.stderr)
    if left_out and tell:
        print(
            f"note: {path}: left out are {_counted(left_out)}; taken are files "
            f"{', '.join(ENDINGS)} in the class folders themselves",
            file=sys.stderr,
        )
    if not test.paths:
        train, test = _split(train, class_names)
    return Listing(class_names, train, test, valid)


def _split(files: Files, class_names: Sequence[str]) -> tuple[Files, Files]:
    """Return the images to train and those of the test; every class, of two or more, has both."""
    places = np.array([_place(path, class_names[n]) for path, n in zip(*files)])
    chosen = places < TEST_SHARE
    for label in range(len(class_names)):
        rows = np.flatnonzero(files.labels == label)
        chosen[rows[places[rows].argmin()]] = True
        chosen[rows[places[rows].argmax()]] = False
    parts = []
    for rows in (np.flatnonzero(~chosen), np.flatnonzero(chosen)):
        parts.append(Files([files.paths[row] for row in rows], files.labels[rows]))
    return parts[0], parts[1]


def _place(path: str, class_name: str) -> float:
    """Return a number from 0 to 1, uniform over names, that is always the same for one."""
    name = f"{class_name}/{os.path.basename(path)}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.sha256(name).digest()[:6], "big") / 2**48


def _counted(left_out: Counter[str]) -> str:
    """Return kinds with their numbers, the most frequent first."""
    return ", ".join(
        kind if kind.startswith("folder ") else f"{count} {kind}"
        for kind, count in left_out.most_common()
    )


def _check_counts(
    folder: str,
    class_names: Sequence[str],
    labels: np.ndarray,
    left_out: Counter[str],
    needed: int,
) -> None:
    counts = np.bincount(labels, minlength=len(class_names))
    for name, count in zip(class_names, counts):
        if count < needed:
            others = f" (left out: {_counted(left_out)})" if left_out else ""
            raise UserError(
                f"{os.path.join(folder, name)} has {count} images, at least {needed} needed; "
                f"accepted endings: {', '.join(ENDINGS)}{others}"
            )


def has_test(path: str) -> bool:
    """Return whether a folder has test images in a folder of their own."""
    return bool(_split_folders(os.path.expanduser(path))[1])


def _split_folders(root: str) -> tuple[str, str, str]:
    """Folders of training, test and held-out images, '' for none; they hold class folders."""
    train = _split_folder(root, TRAIN)
    # A folder named train without sub-folders is a class (of trains).
    if not train or not _subfolders(train):
        return root, "", ""
    test, valid = _split_folder(root, TEST), _split_folder(root, VALID)
    return (train, test, valid) if test else (train, valid, "")


def _split_folder(root: str, names: Sequence[str]) -> str:
    found = [name for name in _subfolders(root) if name.lower() in names]
    if len(found) > 1:
        raise UserError(
            f"{root} has the folders {' and '.join(found)}, which mean the same; keep one of them"
        )
    return os.path.join(root, found[0]) if found else ""


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


def _files(folder: str, class_names: Sequence[str], left_out: Counter[str]) -> Files:
    """Return the images of the class folders in `folder`; what is none is added to `left_out`."""
    paths: list[str] = []
    labels: list[int] = []
    beside = [name for name in _listed(folder) if not os.path.isdir(os.path.join(folder, name))]
    if beside:
        left_out["beside the class folders"] += len(beside)
    for label, name in enumerate(class_names):
        place = os.path.join(folder, name)
        if not os.path.isdir(place):
            continue
        found = []
        for file in _listed(place):
            if os.path.isdir(os.path.join(place, file)):
                left_out["folders in class folders"] += 1
            elif file.lower().endswith(ENDINGS):
                found.append(file)
            else:
                left_out[os.path.splitext(file)[1] or "without an ending"] += 1
        paths += [os.path.join(place, file) for file in found]
        labels += [label] * len(found)
    return Files(paths, np.array(labels, dtype=np.int32))


def _test_files(
    test_root: str, class_names: Sequence[str], train_root: str, left_out: Counter[str]
) -> Files:
    unknown = sorted(set(_subfolders(test_root)) - set(class_names))
    if unknown:
        raise UserError(
            f"{test_root} has classes that {train_root} has not: {', '.join(unknown)}; "
            "give them training images or remove them"
        )
    files = _files(test_root, class_names, left_out)
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


def _decoded(files: Files, size: int) -> ImageData:
    return ImageData(_decode(files.paths, size), files.labels)


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
