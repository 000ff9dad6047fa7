"""Wrong labels on purpose: the label-noise experiment of Wang et al. 2017, section 4.1."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from training.data.dataset import ImageData

NOISE_FILE = "label_noise.json"
# Beside the numbers of epochs in the seeds of training.batches.in_memory, which no training
# reaches.
NOISE_STREAM = 2**32 - 1


@dataclass(frozen=True)
class NoisyImageData(ImageData):
    """Images with labels of which some are wrong; ``clean_labels`` int32 (N,) are the true ones."""

    clean_labels: Optional[np.ndarray] = None


def add_label_noise(data: ImageData, classes: int, clean_ratio: float, seed: int) -> NoisyImageData:
    """Draw every label anew by the confusion matrix of a clean ratio.

    Row c of that matrix has `clean_ratio` at c and ``(1 - clean_ratio) / (classes - 1)`` elsewhere:
    a wrong label is each of the other classes equally often. Images are drawn independently, so
    the number of wrong labels is binomial.

    Parameters
    ----------
    data
        Images with true labels, 0 to ``classes - 1``.
    classes
        2 or more.
    clean_ratio
        Probability that a label stays, in (0, 1].
    seed
        The new labels are a function of (labels, classes, clean_ratio, seed).
    """
    generator = np.random.Generator(np.random.PCG64([seed, NOISE_STREAM]))
    wrong = generator.random(len(data)) >= clean_ratio
    others = generator.integers(1, classes, len(data))
    labels = np.where(wrong, (data.labels + others) % classes, data.labels).astype(np.int32)
    return NoisyImageData(data.images, labels, data.masks, clean_labels=data.labels)


def describe_noise(data: NoisyImageData, classes: int) -> dict[str, Any]:
    """Return how many labels are wrong, and the counts (true class, given class) of them all."""
    true, given = np.asarray(data.clean_labels), data.labels
    counts = np.bincount(true * classes + given, minlength=classes * classes)
    return {
        "images": len(data),
        "wrong_labels": int((true != given).sum()),
        "counts": counts.reshape(classes, classes).tolist(),
    }


def noise_files(data: ImageData, clean_ratio: float, seed: int) -> Mapping[str, bytes]:
    """Return the record of the noise for the run folder; nothing for clean labels."""
    if not isinstance(data, NoisyImageData):
        return {}
    classes = int(max(data.labels.max(), np.asarray(data.clean_labels).max())) + 1
    record = {"clean_ratio": clean_ratio, "seed": seed, **describe_noise(data, classes)}
    share = record["wrong_labels"] / record["images"]
    print(f"label noise: {record['wrong_labels']:,} training labels are wrong ({share:.2%})")
    return {NOISE_FILE: json.dumps(record).encode() + b"\n"}
