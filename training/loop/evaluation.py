"""Scoring a network over exactly all images of a loader."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Callable, Optional

import mxnet as mx
import numpy as np

from formats.errors import UserError, last_line
from training.batches.scores import Scores, cross_entropy, image_and_label


def evaluate(
    net: Any,
    batches: Iterable[Any],
    contexts: Sequence[Any],
    advance: Optional[Callable[[int], None]] = None,
) -> Scores:
    """Score a network over exactly all images of `batches`.

    Parameters
    ----------
    net
        Network, with parameters on `contexts`.
    batches
        `Batch` objects, or (image, label) pairs of NDArrays or arrays as a gluon ``DataLoader``
        yields them. The last may be short.
    contexts
        MXNet contexts; each batch is split over them.
    advance
        Called with the number of images of each batch when it is done.

    Raises
    ------
    UserError
        When there are no images, or images, labels and network do not belong together.
    """
    loss_sum, correct, images, full, finite = 0.0, 0, 0, 0, True
    for image, label in map(image_and_label, batches):
        count = len(image)
        if not count:
            continue
        full = max(full, math.ceil(count / len(contexts)))
        logits = _logits(net, image, contexts, full)
        finite = finite and bool(np.isfinite(logits).all())
        loss_sum += float(cross_entropy(logits, label).sum())
        correct += int((logits.argmax(axis=1) == label).sum())
        images += count
        if advance:
            advance(count)
    if not images:
        raise UserError("there is nothing to evaluate: the loader gave no images")
    if not finite:
        return Scores(math.nan, math.nan, images)
    return Scores(loss_sum / images, correct / images, images)


def _logits(net: Any, image: np.ndarray, contexts: Sequence[Any], full: int) -> np.ndarray:
    """Return the logits (N, classes) as float32, computed on all contexts at the same time.

    A share that is shorter than `full` images is filled up: a hybridized graph with static shapes
    would otherwise be built anew for it. What the filling gives is thrown away.
    """
    outputs = []
    try:
        for part, context in zip(np.array_split(image, len(contexts)), contexts):
            count = len(part)
            if count:
                filled = np.concatenate([part, np.repeat(part[-1:], full - count, axis=0)])
                outputs.append((net(mx.nd.array(filled, ctx=context)).astype("float32"), count))
        logits = np.concatenate([output.asnumpy()[:count] for output, count in outputs])
    except mx.MXNetError as error:
        raise UserError(
            f"the network cannot compute images {image.shape} (N, C, H, W): {last_line(error)}"
        ) from error
    if logits.ndim != 2:
        raise UserError(f"the network gives {logits.shape}; needed are logits (N, classes)")
    return logits
