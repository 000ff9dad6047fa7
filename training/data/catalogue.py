"""The names that ``--dataset`` knows, and the reader of each."""

from __future__ import annotations

import difflib
import os
from dataclasses import replace
from typing import Optional

from formats.errors import UserError
from training.data.cifar import load_cifar
from training.data.dataset import FOLDER_PREFIX, Dataset
from training.data.digits import load_digits
from training.data.image_folder import load_image_folder
from training.data.mnist import load_mnist
from training.data.shapes import load_shapes
from training.data.stl10 import load_stl10

NAMES = ("cifar10", "cifar100", "cifar100-coarse", "stl10", "shapes", "mnist", "digits")


def load_dataset(
    name: str,
    data_dir: Optional[str] = None,
    *,
    mirror: Optional[str] = None,
    download: bool = True,
) -> Dataset:
    """Load a data set by name.

    Parameters
    ----------
    name : str
        ``cifar10``, ``cifar100`` (100 fine classes), ``cifar100-coarse`` (the same images in 20
        classes), ``stl10`` (96x96), ``mnist``, ``shapes`` and ``digits`` (embedded, need no file)
        or ``folder:PATH``
        (:func:`training.data.image_folder.load_image_folder`).
    data_dir : str, optional
        Where CIFAR, STL-10 or MNIST is; it must exist when given. Without it: ``./data``, then
        ``$MXNET_HOME/datasets/<name>``, where Gluon keeps it.
    mirror : str, optional
        A URL or a local folder that holds the files to download; tried before the other places.
    download : bool
        Whether CIFAR, STL-10 or MNIST may be downloaded when no file is found.

    Raises
    ------
    UserError
        Unknown name, missing, damaged or unreachable data.
    """
    if name in ("cifar10", "cifar100", "cifar100-coarse"):
        files, _, kind = name.partition("-")
        data = load_cifar(files, data_dir, mirror=mirror, download=download, coarse=bool(kind))
        return replace(data, name=name)
    if name == "stl10":
        return load_stl10(data_dir, mirror=mirror, download=download)
    if name == "mnist":
        return load_mnist(data_dir, mirror=mirror, download=download)
    if name == "digits":
        return load_digits()
    if name == "shapes":
        return load_shapes()
    if name.startswith(FOLDER_PREFIX):
        return load_image_folder(name[len(FOLDER_PREFIX) :])
    raise UserError(_unknown_name(name))


def _unknown_name(name: str) -> str:
    known = ", ".join(NAMES) + ", " + FOLDER_PREFIX + "PATH"
    message = f"unknown data set {name!r}; known: {known}"
    near = difflib.get_close_matches(name.lower(), NAMES, n=1)
    if near:
        message += f"; did you mean {near[0]!r}?"
    elif os.path.isdir(name):
        message += f"; for your own images write {FOLDER_PREFIX}{name}"
    return message
