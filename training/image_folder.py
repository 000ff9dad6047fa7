"""A user's own images, one folder per class, as a data set."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from training.datasets import (
    FOLDER_PREFIX,
    Dataset,
    ImageData,
    channel_statistics,
    split_validation,
)
from training.errors import UserError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
DECODERS = ("PNG", "JPEG", "WEBP", "BMP")
TEST_SHARE = 0.2
MAX_PIXELS = 50_000_000  # of one image: decoded as RGB that is 150 MB
MAX_TOTAL_BYTES = 16 * 2**30
MAX_SIZE = 1024


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
    root = os.path.expanduser(path)
    if not os.path.isdir(root):
        raise UserError(f"the image folder {path!r} does not exist; {_expected_layout(path)}")
    train_root, test_root = _split_folders(root)
    class_names = _class_names(train_root, path)
    train_files, train_labels = _files(train_root, class_names)
    _check_counts(train_root, class_names, train_labels, needed=1 if test_root else 2)
    if test_root:
        test_files, test_labels = _test_files(test_root, class_names, train_root)
        _check_total(len(train_files) + len(test_files), size)
        train = ImageData(_decode(train_files, size), train_labels)
        test = ImageData(_decode(test_files, size), test_labels)
    else:
        _check_total(len(train_files), size)
        everything = ImageData(_decode(train_files, size), train_labels)
        train, test = split_validation(everything, round(TEST_SHARE * len(everything)), seed)
    mean, std = channel_statistics(train.images)
    # One grey level at least: a channel that is constant must not divide by zero later.
    std = tuple(max(value, 1 / 255) for value in std)
    return Dataset(FOLDER_PREFIX + path, train, test, class_names, mean, std)


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


def _files(folder: str, class_names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Paths of all images, class by class in sorted order, and their labels."""
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        place = os.path.join(folder, name)
        if not os.path.isdir(place):
            continue
        found = [file for file in _listed(place) if file.lower().endswith(ENDINGS)]
        paths += [os.path.join(place, file) for file in found]
        labels += [label] * len(found)
    return paths, np.array(labels, dtype=np.int32)


def _test_files(
    test_root: str, class_names: Sequence[str], train_root: str
) -> tuple[list[str], np.ndarray]:
    unknown = sorted(set(_subfolders(test_root)) - set(class_names))
    if unknown:
        raise UserError(
            f"{test_root} has classes that {train_root} has not: {', '.join(unknown)}; "
            "give them training images or remove them"
        )
    paths, labels = _files(test_root, class_names)
    if not paths:
        raise UserError(
            f"{test_root} has no images in folders named like the classes of {train_root}; "
            "add some, or remove it to have a fifth of the training images held out"
        )
    return paths, labels


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
        images[index] = _decode_one(path, size)
    return images


def _decode_one(path: str, size: int) -> np.ndarray:
    from PIL import Image, ImageFile, ImageOps

    # gluoncv sets this for the whole process when it is imported; a cut-off file is an error here.
    ImageFile.LOAD_TRUNCATED_IMAGES = False

    try:
        with warnings.catch_warnings():
            # Pillow's own limit is higher; the check below is an error where it only warns.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=DECODERS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise UserError(
                        f"{path} has {width} x {height} pixels, more than the {MAX_PIXELS:,} "
                        "allowed; make it smaller"
                    )
                # JPEG decodes at a half, quarter or eighth while that is still twice the size.
                image.draft("RGB", (2 * size, 2 * size))
                upright = ImageOps.exif_transpose(image)
                return np.asarray(_centre_square(_as_rgb(upright), size))
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} has more than the {MAX_PIXELS:,} pixels allowed") from error
    except Exception as error:  # a damaged image can raise nearly anything
        raise UserError(
            f"cannot read the image {path}: {error}; replace or remove the file"
        ) from error


def _as_rgb(image: Any) -> Any:
    from PIL import Image

    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip, not scale
        return Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8)).convert(
            "RGB"
        )
    return image.convert("RGB")


def _centre_square(image: Any, size: int) -> Any:
    """Crop the central square and resize it: the same as resizing the shorter side first."""
    from PIL import Image

    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return image.resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )


def _expected_layout(path: str) -> str:
    return (
        f"expected {path}/train/<class>/*.png and {path}/test/<class>/*.png, "
        f"or {path}/<class>/*.png (also {', '.join(ENDINGS[1:])})"
    )
