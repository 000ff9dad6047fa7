"""Scoring a network over exactly all images, in float32."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Optional

import numpy as np
import torch  # type: ignore[import-not-found]

from bridge.loop.device_batches import DeviceImages
from training.batches.scores import Scores, cross_entropy

EVAL_BATCH = 500  # divides the 10,000 test images of CIFAR


def score(
    module: Any, data: DeviceImages, advance: Optional[Callable[[int], None]] = None
) -> Scores:
    """Return mean cross-entropy and accuracy over all images; `advance` gets images done."""
    return scores_of(compute_logits(module, data, advance), data.labels.cpu().numpy())


def scores_of(logits: np.ndarray, labels: np.ndarray) -> Scores:
    """Return the scores of logits (N, classes), in float64.

    Raises
    ------
    UserError
        When a label is none of the network's classes.
    """
    losses = cross_entropy(logits, labels)
    if not np.isfinite(logits).all():
        return Scores(math.nan, math.nan, len(labels))
    return Scores(float(losses.mean()), float((logits.argmax(1) == labels).mean()), len(labels))


def compute_logits(
    module: Any, data: DeviceImages, advance: Optional[Callable[[int], None]] = None
) -> np.ndarray:
    """Return float32 logits (N, classes) in inference mode, computed in full float32."""
    parts = []
    with inference(module), full_precision(), torch.no_grad():
        for start in range(0, len(data), EVAL_BATCH):
            image, _ = data.batch(start, start + EVAL_BATCH)
            parts.append(module(image).float().cpu().numpy())
            if advance:
                advance(len(image))
    return np.concatenate(parts)


@contextmanager
def inference(module: Any) -> Iterator[None]:
    """Put a module into inference mode, and into its own mode again at the end."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


@contextmanager
def full_precision() -> Iterator[None]:
    """Switch TF32 off for convolutions and products."""
    places = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = False
        yield
    finally:
        for place, value in zip(places, before):
            place.allow_tf32 = value
