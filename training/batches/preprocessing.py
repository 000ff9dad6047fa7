"""What a trained classifier expects of an image and calls its classes, kept beside its parameters.

``preprocessing.json`` in a run folder says it for that run. Published files have no run folder:
the index names their data set and normalization, and the figures of CIFAR are known here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from training.augmentation.augment import normalize
from training.settings.errors import UserError, printable

PREPROCESSING_FILE = "preprocessing.json"
# What torchvision and Gluon's model zoo use; the first files of PistonY were trained with these.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Of CIFAR-10, the standard deviations those of single images on average. The RAM-ResNet repository,
# like bearpaw's, takes them for every data set.
RAM_MEAN = (0.4914, 0.4822, 0.4465)
RAM_STD = (0.2023, 0.1994, 0.2010)
# Beside the data set's own, by the name of the setting `normalization`.
FIGURES = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD), "ram": (RAM_MEAN, RAM_STD)}
IMAGENET_CROP = 0.875  # 224 of 256 pixels
MAX_SIZE = 4096  # of an input, in pixels; no network here takes as much


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

    def name_of(self, label: int) -> str:
        """Return the name of a class, printable, or its number when it has no name."""
        names = self.class_names
        return printable(names[label]) if label < len(names) else f"class {label}"

    def normalize(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Return uint8 images (H, W, 3) as one float32 batch (N, 3, H, W)."""
        return normalize(np.stack(images), self.mean, self.std)


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
            or channels != (3, 3)
            or not (min(known.std) > 0 < known.crop <= 1)
        ):
            raise ValueError("impossible values")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}. Restore it from the run") from error
    return known
