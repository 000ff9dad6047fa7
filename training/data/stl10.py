"""STL-10: 5,000 training and 8,000 test images of 96x96, in ten classes.

The files are those of https://cs.stanford.edu/~acoates/stl10: ``train_X.bin``, ``train_y.bin``,
``test_X.bin`` and ``test_y.bin``, in a folder or in ``stl10_binary.tar.gz`` (2.6 GB), which has
100,000 unlabeled images too: nothing here reads those. An image is 27,648 bytes: red, green and
blue, each column by column; labels are bytes from 1 to 10.

Two protocols of training are in use. ``native`` crops 96x96 from images padded by 12
(``--pad 12``). ``released``, that of the RAM-ResNet repository, crops 32x32 from images padded by
4 (``--pad 4 --crop-size 32``) and tests on whole images.
"""

from __future__ import annotations

import os
import tarfile
import warnings
import zlib
from typing import Any, Optional

import numpy as np

from formats.atomic import replacing
from formats.downloads.fetch import exclusive, fetch
from formats.downloads.file_digest import mismatch
from formats.errors import UserError
from training.data.dataset import Dataset, ImageData, usable_statistics
from training.downloads.digests import TABLE
from training.downloads.mirrors import candidates
from training.downloads.places import Wanted
from training.downloads.tar_members import BoundedTarInfo

CLASS_NAMES = (
    "airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck",
)  # fmt: skip
SIZE = 96
IMAGE_BYTES = 3 * SIZE * SIZE
LABELED_FILES = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin")
ARCHIVE = "stl10_binary.tar.gz"
ARCHIVE_FOLDER = "stl10_binary"
BLOCK = 2**20
WANTED = Wanted(
    "STL-10",
    f"{ARCHIVE} or the files {', '.join(LABELED_FILES)}",
    "3 GB free",
    "embedded data set, which needs no file: --dataset shapes",
    "stl10",
    f"in itself, in stl10/ or in {ARCHIVE_FOLDER}/",
    ("stl10", os.path.join("datasets", "stl10")),
)


def load_stl10(
    data_dir: Optional[str] = None, *, mirror: Optional[str] = None, download: bool = True
) -> Dataset:
    """Load the labeled images of STL-10 from disk, or download the archive.

    Parameters
    ----------
    data_dir : str, optional
        Existing folder with the files or the archive, in itself, in ``stl10``, ``stl10_binary``
        (torchvision's place), ``stl10/stl10_binary`` or ``datasets/stl10``. Default: ``./data`` in
        the same way, then ``$MXNET_HOME/datasets/stl10``.
    mirror : str, optional
        URL or local folder to take the archive from before the authors' page.
    download : bool
        Whether to download what is not found, into ``data_dir`` or ``$MXNET_HOME/datasets/stl10``.

    Returns
    -------
    Dataset
        uint8 images (96, 96, 3) in the order of the files, labels 0 to 9; mean and std are those
        of the training images.

    Raises
    ------
    UserError
        Missing folder, damaged file, or nothing found and no download possible.

    Warns
    -----
    UserWarning
        Valid files that are not the published ones.
    """
    folder = _locate(data_dir, mirror, download)
    unusual: list[str] = []
    parts = [_checked(os.path.join(folder, name), unusual) for name in LABELED_FILES]
    if unusual:
        warnings.warn(
            "not the published files of STL-10; sizes and labels are valid, so they are used "
            f"({'; '.join(unusual)})",
            UserWarning,
            stacklevel=2,
        )
    train, test = (_image_data(folder, *parts[first : first + 2]) for first in (0, 2))
    mean, std = usable_statistics(train.images)
    return Dataset("stl10", train, test, CLASS_NAMES, mean, std)


def _locate(data_dir: Optional[str], mirror: Optional[str], download: bool) -> str:
    """Folder that holds the files, unpacked or downloaded where there is none yet."""

    def fetch_archive(folder: str) -> None:
        if not os.path.isfile(os.path.join(folder, ARCHIVE)):
            fetch(ARCHIVE, candidates("stl10", ARCHIVE, mirror), TABLE[f"stl10/{ARCHIVE}"], folder)

    return WANTED.locate(data_dir, download, _find, fetch_archive)


def _find(folder: str) -> tuple[str, str]:
    """(where in a folder the files are, unpacked from the archive; what is there instead)."""
    notes, below = [], os.path.join(folder, ARCHIVE_FOLDER)
    for place in (folder, below):
        missing = _missing(place)
        if not missing:
            return place, ""
        if os.path.isfile(os.path.join(place, ARCHIVE)):
            return _unpack(place), ""
        there = "no such folder" if not os.path.isdir(place) else "no STL-10 files"
        part = f"incomplete: {', '.join(missing)} missing"
        notes.append(part if len(missing) < len(LABELED_FILES) else there)
    return "", f"\n  {below}: ".join(notes)


def _missing(folder: str) -> list[str]:
    return [name for name in LABELED_FILES if not os.path.isfile(os.path.join(folder, name))]


def _unpack(folder: str) -> str:
    """Write members of the archive beside it, each complete or not at all; return the folder.

    The archive stays: the unlabeled images, its larger part, are nowhere else.
    """
    archive = os.path.join(folder, ARCHIVE)
    try:
        with (
            exclusive(folder),
            tarfile.open(archive, mode="r|gz", tarinfo=BoundedTarInfo) as members,
        ):
            missing = _missing(folder)  # another process may have been faster
            for member in members:
                name = os.path.basename(member.name)
                if name in missing and member.isreg():
                    _check_size(f"{archive}/{name}", member.size)
                    _write_member(members.extractfile(member), os.path.join(folder, name))
                    missing.remove(name)
                if not missing:
                    return folder
    except (tarfile.TarError, EOFError, zlib.error) as error:
        size = os.path.getsize(archive)
        raise UserError(f"{archive} is damaged ({error}): {size:,} bytes. {_advice()}") from error
    except OSError as error:
        raise WANTED.cannot_store(folder, error) from error
    if missing:
        raise UserError(f"{archive} lacks {', '.join(missing)}. {_advice()}")
    return folder


def _write_member(stream: Any, target: str) -> None:
    with replacing(target) as file:
        for block in iter(lambda: stream.read(BLOCK), b""):
            file.write(block)


def _checked(path: str, unusual: list[str]) -> np.ndarray:
    """Content of a file of a valid size, uint8; what differs from the published is appended."""
    try:
        size = os.path.getsize(path)
        _check_size(path, size)
        with open(path, "rb") as stream:
            content = stream.read()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    difference = mismatch([content], TABLE[f"stl10/{os.path.basename(path)}"])
    if difference:
        unusual.append(f"{path}: {difference}")
    return np.frombuffer(content, np.uint8)


def _check_size(path: str, size: int) -> None:
    """Raise UserError for what cannot be whole records, or is larger than any file of STL-10."""
    name = os.path.basename(path)
    published = TABLE[f"stl10/{name}"][0].size or 0
    width = IMAGE_BYTES if name.endswith("_X.bin") else 1
    if not size or size % width or size > published:
        raise UserError(
            f"{path} is damaged: {size:,} bytes, expected {published:,}"
            + (f", {width:,} for each image" if width > 1 else "")
            + f". {_advice()}"
        )


def _image_data(folder: str, pixels: np.ndarray, labels: np.ndarray) -> ImageData:
    count = len(pixels) // IMAGE_BYTES
    if count != len(labels):
        raise UserError(
            f"{folder} is damaged: {count:,} images with {len(labels):,} labels. {_advice()}"
        )
    if labels.min() < 1 or labels.max() > len(CLASS_NAMES):
        wrong = int(labels.min()) if labels.min() < 1 else int(labels.max())
        raise UserError(
            f"{folder} is damaged: label {wrong} where 1 to {len(CLASS_NAMES)} are allowed. "
            f"{_advice()}"
        )
    return ImageData(_pixels(pixels), labels.astype(np.int32) - 1)


def _pixels(content: np.ndarray) -> np.ndarray:
    """Bytes of the file to (N, H, W, C): a channel of an image is stored column by column."""
    planes = content.reshape(-1, 3, SIZE, SIZE)  # (N, C, W, H)
    return np.ascontiguousarray(planes.transpose(0, 3, 2, 1))


def _advice() -> str:
    return (
        f"Delete it and run again to get STL-10 anew, or replace it by the one from {ARCHIVE}. "
        "The embedded data set needs no file: --dataset shapes"
    )
