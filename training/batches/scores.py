"""Loss and accuracy, and what a loader gives, as they are counted everywhere."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from formats.errors import UserError


class Scores(NamedTuple):
    """Mean cross-entropy per image in nats, accuracy in 0 to 1, and the images they are over.

    Loss and accuracy are NaN where an output of the network is not finite.
    """

    loss: float
    acc: float
    images: int


def image_and_label(batch: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return images float32 (N, C, H, W) and labels int64 (N,) of what a loader yields.

    Raises
    ------
    UserError
        When it is no pair of such arrays.
    """
    try:
        image, label = _array(batch[0]), _array(batch[1])
    except (TypeError, IndexError, KeyError) as error:
        raise UserError(
            f"a batch is a {type(batch).__name__}; needed is a pair of images and labels"
        ) from error
    if image.ndim != 4 or label.shape not in ((len(image),), (len(image), 1)):
        raise UserError(
            f"a batch has images {image.shape} and labels {label.shape}; "
            "needed are (N, C, H, W) and (N,)"
        )
    image = image.astype(np.float32, copy=False)
    if not np.isfinite(image).all():  # a network may turn NaN into finite numbers: ReLU does
        raise UserError(
            "the loader gave an image that has NaN or infinite values, which no score is worth "
            "anything for; look at its normalization and its files"
        )
    return image, label.reshape(-1).astype(np.int64)


def check_labels(label: np.ndarray, classes: int) -> None:
    """Raise UserError when a label is none of the network's classes."""
    if label.min() < 0 or label.max() >= classes:
        raise UserError(
            f"labels from {label.min()} to {label.max()} for a network of {classes} classes"
        )


def _array(value: Any) -> np.ndarray:
    return value.asnumpy() if hasattr(value, "asnumpy") else np.asarray(value)


def cross_entropy(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return the cross-entropy (N,) in nats, in float64, of logits (N, classes).

    Raises
    ------
    UserError
        When a label is none of the classes.
    """
    check_labels(label, logits.shape[1])
    logits = logits.astype(np.float64)
    top = logits.max(axis=1)
    with np.errstate(invalid="ignore"):  # not finite in, not finite out: for the caller to judge
        log_sum = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top
        result: np.ndarray = log_sum - logits[np.arange(len(label)), label]
    return result
