"""CIFAR-10 and CIFAR-100: where they are looked for, and the arrays they become.

Files are read by `training.downloads.cifar_files`, their digests are in
`training.downloads.digests`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Optional

import numpy as np

from formats.atomic import write_atomically
from formats.downloads.fetch import fetch
from formats.errors import UserError
from training.data.dataset import Dataset, ImageData
from training.downloads.cifar_files import FORMATS, Format, Source, find_source, read_source
from training.downloads.digests import TABLE
from training.downloads.mirrors import candidates
from training.downloads.places import Wanted

CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
CIFAR100_CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle",
    "bowl", "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle",
    "chair", "chimpanzee", "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup",
    "dinosaur", "dolphin", "elephant", "flatfish", "forest", "fox", "girl", "hamster", "house",
    "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard", "lobster", "man",
    "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy",
    "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal",
    "shark", "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar",
    "sunflower", "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor",
    "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman",
    "worm",
)  # fmt: skip
CIFAR100_COARSE_CLASSES = (
    "aquatic_mammals", "fish", "flowers", "food_containers", "fruit_and_vegetables",
    "household_electrical_devices", "household_furniture", "insects", "large_carnivores",
    "large_man-made_outdoor_things", "large_natural_outdoor_scenes",
    "large_omnivores_and_herbivores", "medium_mammals", "non-insect_invertebrates", "people",
    "reptiles", "small_mammals", "trees", "vehicles_1", "vehicles_2",
)  # fmt: skip

# In the order of the label bytes of a record.
CLASS_NAMES: dict[str, tuple[tuple[str, ...], ...]] = {
    "cifar10": (CIFAR10_CLASSES,),
    "cifar100": (CIFAR100_COARSE_CLASSES, CIFAR100_CLASSES),
}
# Of the training images; computed with dataset.channel_statistics, four digits as usual.
MEAN = {"cifar10": (0.4914, 0.4822, 0.4465), "cifar100": (0.5071, 0.4865, 0.4409)}
STD = {"cifar10": (0.2470, 0.2435, 0.2616), "cifar100": (0.2673, 0.2564, 0.2762)}


def load_cifar(
    name: str,
    data_dir: Optional[str] = None,
    *,
    mirror: Optional[str] = None,
    download: bool = True,
    coarse: bool = False,
) -> Dataset:
    """Load CIFAR-10 or CIFAR-100 from disk, or download it.

    Parameters
    ----------
    name : str
        ``cifar10`` or ``cifar100``.
    data_dir : str, optional
        Existing folder with the ``.bin`` files, the python batches or an archive, in itself, in
        ``<name>`` or ``datasets/<name>``. Default: ``./data``, ``$MXNET_HOME/datasets/<name>``.
    mirror : str, optional
        URL or local folder to take the archive from before the usual places.
    download : bool
        Whether to download what is not found, into ``data_dir`` or ``$MXNET_HOME/datasets/<name>``,
        as the ``.bin`` files that Gluon's classes read too.
    coarse : bool
        The 20 coarse labels of CIFAR-100 in place of the 100 fine ones.

    Returns
    -------
    Dataset
        50,000 and 10,000 uint8 images, (32, 32, 3), in the order of the files.

    Raises
    ------
    UserError
        Missing folder, damaged file, or nothing found and no download possible.

    Warns
    -----
    UserWarning
        Valid CIFAR-100 files that are not the published ones (their order differs).
    """
    if coarse and name != "cifar100":
        raise UserError(f"coarse labels exist for cifar100 only, not for {name}")
    form = FORMATS[name]
    source = _wanted(form).locate(
        data_dir,
        download,
        lambda folder: find_source(form, folder),
        lambda folder: _fetch(form, folder, mirror),
    )
    records = read_source(form, source)
    column = 0 if coarse else len(form.label_limits) - 1
    train = _image_data([records[file] for file in form.train_files], column)
    test = _image_data([records[file] for file in form.test_files], column)
    return Dataset(name, train, test, CLASS_NAMES[name][column], MEAN[name], STD[name])


def _fetch(form: Format, folder: str, mirror: Optional[str]) -> None:
    """Download the archive into a folder and leave ``.bin`` files there."""
    if find_source(form, folder)[0]:  # another process may have been faster
        return
    file_name = form.archives[0]
    urls = candidates(form.name, file_name, mirror)
    archive = fetch(file_name, urls, TABLE[f"{form.name}/{file_name}"], folder)
    for name, records in read_source(form, Source("archive", archive)).items():
        write_atomically(os.path.join(folder, name), records.tobytes())
    os.remove(archive)


def _wanted(form: Format) -> Wanted:
    files = f"{' or '.join(form.archives)} or the files {', '.join(form.files)}"
    embedded = "embedded data set, which needs no file: --dataset shapes"
    inside = f"in itself or in {form.name}/ or datasets/{form.name}/"
    below = (form.name, os.path.join("datasets", form.name))
    return Wanted(form.title, files, "400 MB free", embedded, form.name, inside, below)


def _image_data(parts: Sequence[np.ndarray], column: int) -> ImageData:
    """Records, each (n, labels + 3072), to images in NHWC and the labels of one column."""
    count = sum(len(part) for part in parts)
    images = np.empty((count, 32, 32, 3), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int32)
    start = 0
    for part in parts:
        stop = start + len(part)
        planes = part[:, -3072:].reshape(-1, 3, 32, 32)
        images[start:stop] = planes.transpose(0, 2, 3, 1)
        labels[start:stop] = part[:, column]
        start = stop
    return ImageData(images, labels)
