"""MNIST: where its four files are looked for, and the arrays they become.

The files are those of http://yann.lecun.com/exdb/mnist, plain or as ``.gz``. Only the published
ones are accepted (``digests.py``): the fixed test canvases of the glimpse tasks are made from them,
and other data sets come under the same file names.
"""

from __future__ import annotations

import gzip
import os
import zlib
from typing import Optional

import numpy as np

from formats.downloads.fetch import fetch
from formats.downloads.file_digest import mismatch
from formats.errors import UserError
from training.data.dataset import Dataset, ImageData
from training.downloads.digests import TABLE
from training.downloads.mirrors import candidates
from training.downloads.places import Wanted

# Images before labels, in the order train, test.
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
WANTED = Wanted(
    "MNIST",
    f"the files {', '.join(FILES)} (each plain or .gz)",
    "12 MB free",
    "embedded handwritten digits, which need no file: --dataset digits",
    "mnist",
    "in itself or in mnist/, MNIST/raw/ or datasets/mnist/",
    ("mnist", os.path.join("MNIST", "raw"), os.path.join("datasets", "mnist")),
)
CLASS_NAMES = tuple("0123456789")
# Of the training images; computed with dataset.channel_statistics, four digits as usual.
MEAN, STD = (0.1307,), (0.3081,)
_IMAGE_HEADER, _LABEL_HEADER = 16, 8  # bytes: magic number, count and, for images, rows, columns


def load_mnist(
    data_dir: Optional[str] = None, *, mirror: Optional[str] = None, download: bool = True
) -> Dataset:
    """Load MNIST from disk, or download it.

    Parameters
    ----------
    data_dir : str, optional
        Existing folder with the four files, plain or ``.gz``, in itself, in ``mnist``,
        ``MNIST/raw`` (torchvision's place) or ``datasets/mnist``. Default: ``./data`` in the same
        way, then ``$MXNET_HOME/datasets/mnist``, where Gluon keeps it.
    mirror : str, optional
        URL or local folder to take the ``.gz`` files from before the usual places.
    download : bool
        Whether to download what is not found, into ``data_dir`` or ``$MXNET_HOME/datasets/mnist``.

    Returns
    -------
    Dataset
        60,000 and 10,000 uint8 images, (28, 28, 1), in the order of the files.

    Raises
    ------
    UserError
        Missing folder, damaged or other file, or nothing found and no download possible.
    """
    paths = WANTED.locate(data_dir, download, _find, lambda folder: _fetch(folder, mirror))
    train_images, train_labels, test_images, test_labels = (
        _read(name, path) for name, path in zip(FILES, paths)
    )
    train = _image_data(train_images, train_labels)
    test = _image_data(test_images, test_labels)
    return Dataset("mnist", train, test, CLASS_NAMES, MEAN, STD)


def _fetch(folder: str, mirror: Optional[str]) -> None:
    """Download those of the four files that a folder lacks."""
    for name in FILES:
        present = [os.path.join(folder, n) for n in (f"{name}.gz", name)]
        if not any(map(os.path.isfile, present)):
            urls = candidates("mnist", f"{name}.gz", mirror)
            fetch(f"{name}.gz", urls, TABLE[f"mnist/{name}.gz"], folder)


def _find(folder: str) -> tuple[list[str], str]:
    """(the four paths or none, what was found instead: a short note for the error message)."""
    if not os.path.isdir(folder):
        return [], "no such folder"
    paths, missing = [], []
    for name in FILES:
        both = (os.path.join(folder, name), os.path.join(folder, name + ".gz"))
        there = [path for path in both if os.path.isfile(path)]
        paths += there[:1]
        missing += [] if there else [name]
    if not missing:
        return paths, ""
    return [], f"incomplete: {', '.join(missing)} missing" if paths else "no MNIST files"


def _read(name: str, path: str) -> bytes:
    """Content of one file, which is the published one; nothing larger is ever unpacked."""
    published = TABLE[f"mnist/{name}"]
    limit = max(version.size or 0 for version in published) + 1
    try:
        opened = gzip.open(path, "rb") if path.endswith(".gz") else open(path, "rb")  # noqa: SIM115
        with opened as stream:
            content = stream.read(limit)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    difference = mismatch([content], published)
    if difference and len(content) == limit:
        difference = f"more than {limit - 1:,} bytes"
    if difference:
        raise _damaged(path, difference)
    return content


def _damaged(path: str, difference: str) -> UserError:
    return UserError(
        f"{path} is damaged or not MNIST: {difference}. Delete it and run again to download MNIST, "
        "or replace it by the published file. The embedded handwritten digits need no file: "
        "--dataset digits"
    )


def _image_data(images: bytes, labels: bytes) -> ImageData:
    pixels = np.frombuffer(images, np.uint8, offset=_IMAGE_HEADER).reshape(-1, 28, 28, 1)
    values = np.frombuffer(labels, np.uint8, offset=_LABEL_HEADER)
    return ImageData(pixels, values.astype(np.int32))
