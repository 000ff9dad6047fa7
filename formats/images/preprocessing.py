"""What a trained classifier expects of an image and calls its classes, kept beside its parameters.

``preprocessing.json`` in a run folder says it for that run, a card (`formats.card`) for the file
that it is in. Known here are the figures that a setting names; those of a data set are with its
reader in `training.data`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from formats.atomic import PathLike
from formats.card import MAX_SIZE, is_newer
from formats.errors import UserError, printable
from formats.weight_file import read_card

PREPROCESSING_FILE = "preprocessing.json"
# What torchvision and Gluon's model zoo use; the first files of PistonY were trained with these.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Of CIFAR-10, the standard deviations those of single images on average. The RAM-ResNet repository,
# like bearpaw's, takes them for every data set.
RAM_MEAN = (0.4914, 0.4822, 0.4465)
RAM_STD = (0.2023, 0.1994, 0.2010)
# Beside the data set's own, by the name of the setting `normalization`. "none" leaves pixels from 0
# to 1, as tengshaofeng's networks want them.
FIGURES = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "ram": (RAM_MEAN, RAM_STD),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
DATASET = "dataset"
NORMALIZATIONS = (DATASET, *FIGURES)
Figures = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation per channel
IMAGENET_CROP = 0.875  # 224 of 256 pixels


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes an input, and what the outputs are called.

    `size` is the edge of the square input in pixels, `crop` the edge of the central square that it
    is resized from, as a part of the picture's shorter side; `mean` and `std` are per channel in
    [0, 1] units.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...] = ()
    crop: float = 1.0

    def to_json(self) -> bytes:
        """Return the content of the file."""
        return json.dumps(asdict(self), indent=1).encode() + b"\n"

    def card_sections(self) -> dict[str, Any]:
        """Return the same as the sections ``image`` and ``classes`` of a card."""
        image = image_section((self.size, self.size), self.mean, self.std, self.crop)
        return {"image": image, "classes": list(self.class_names)}

    def name_of(self, label: int) -> str:
        """Return the name of a class, printable, or its number when it has no name."""
        names = self.class_names
        return printable(names[label]) if label < len(names) else f"class {label}"

    def normalize(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return uint8 images (H, W, 3) as one float32 batch (N, 3, H, W)."""
        return normalize(np.stack(images), self.mean, self.std)


def image_section(
    size: tuple[int, int], mean: Sequence[float], deviation: Sequence[float], crop: float = 1.0
) -> dict[str, Any]:
    """Return what a network expects of an image; see docs/files.md."""
    return {
        "height": int(size[0]),
        "width": int(size[1]),
        "mean": list(map(float, mean)),
        "deviation": list(map(float, deviation)),
        "crop": float(crop),
    }


def normalize(images: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """``(image / 255 - mean) / std``: uint8 (N, H, W, C) to C-contiguous float32 (N, C, H, W).

    ``mean`` and ``std`` are in [0, 1] units. Computed as one multiplication and one subtraction in
    float32.
    """
    scale = 1 / (255 * np.asarray(std, np.float64))
    offset = np.asarray(mean, np.float64) / np.asarray(std, np.float64)
    # Transposing bytes first moves a quarter of the memory, and leaves long contiguous rows for the
    # arithmetic.
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    pixels = planes * scale.astype(np.float32)[:, None, None]
    pixels -= offset.astype(np.float32)[:, None, None]
    return pixels


def own_preprocessing(path: PathLike) -> tuple[Optional[Preprocessing], str]:
    """Return what a file's network expects, and who says so: its card, or else its run folder.

    For where MXNet is not; `model.weights.known` knows more.

    Raises
    ------
    UserError, formats.param_reader.ParamFileError
        When the file, or ``preprocessing.json`` beside it, cannot be read.
    """
    card = read_card(path) or {}
    image = {} if not card or is_newer(card) else card.get("image", {})
    if "height" in image and "mean" in image:
        figures = tuple(image["mean"]), tuple(image["deviation"])
        crop = image.get("crop", 1.0)
        names = tuple(card.get("classes", ()))
        return Preprocessing(image["height"], *figures, names, crop), "its card"
    folder = Path(path).parent
    if (folder / PREPROCESSING_FILE).is_file():
        return read_preprocessing(folder), "its run folder"
    return None, ""


def figures_of(normalization: str, channels: Optional[int] = None) -> Optional[Figures]:
    """Return mean and standard deviation that a setting names; None for the data set's own.

    Parameters
    ----------
    normalization
        One of `NORMALIZATIONS`, or the numbers themselves, ``0.5,0.5,0.5/0.2,0.2,0.2``.
    channels
        Of the images; None: not known yet, 1 or 3.

    Raises
    ------
    UserError
        When it is none of them, or has another number of channels.
    """
    if normalization == DATASET:
        return None
    if (normalization, channels) == ("none", 1):
        return (0.0,), (1.0,)
    figures = FIGURES.get(normalization) or _figures(normalization)
    if channels not in (None, len(figures[0])):
        raise UserError(
            f"--normalization {normalization}: it has {len(figures[0])} channel(s), the images "
            f"have {channels}; give a mean and a standard deviation for each, or {DATASET}"
        )
    return figures


def _figures(normalization: str) -> Figures:
    try:
        mean, deviation = (
            tuple(float(word) for word in part.split(",")) for part in normalization.split("/")
        )
        counts = len(mean), len(deviation)
        sound = counts in ((1, 1), (3, 3)) and all(map(math.isfinite, mean + deviation))
        if sound and min(deviation) > 0:
            return mean, deviation
    except ValueError:
        pass
    raise UserError(
        f"--normalization {normalization}: give one of {', '.join(NORMALIZATIONS)}, or mean and "
        "standard deviation of red, green and blue as 0.5,0.5,0.5/0.2,0.2,0.2 (of grey: 0.5/0.2)"
    )


def normalization_text(mean: Sequence[float], deviation: Sequence[float]) -> str:
    """Return the setting that stands for these numbers, bit for bit."""
    return "/".join(",".join(map(repr, map(float, part))) for part in (mean, deviation))


def read_preprocessing(folder: Path) -> Preprocessing:
    """Read the file of a run folder.

    Raises
    ------
    UserError
        When it cannot be read or is damaged.
    """
    path = folder / PREPROCESSING_FILE
    try:
        values = json.loads(path.read_bytes())
        known = Preprocessing(
            int(values["size"]),
            tuple(float(value) for value in values["mean"]),
            tuple(float(value) for value in values["std"]),
            tuple(str(name) for name in values["class_names"]),
            float(values["crop"]),
        )
        channels = (len(known.mean), len(known.std))
        if (
            not 1 <= known.size <= MAX_SIZE
            or channels not in ((1, 1), (3, 3))
            or not (min(known.std) > 0 < known.crop <= 1)
        ):
            raise ValueError("impossible values")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}. Restore it from the run") from error
    return known
