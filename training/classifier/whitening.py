"""First filters that whiten patches of the training images, as Page and Jordan start theirs.

Sources: Page 2019, "How to train your ResNet 8"; Jordan 2024, https://arxiv.org/abs/2404.00498,
who keeps them fixed. Here they are first weights like others, and are trained.
"""

from __future__ import annotations

from typing import Any

import mxnet as mx
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from formats.errors import UserError
from formats.images.preprocessing import normalize
from training.batches.in_memory import TrainBatches

IMAGES = 2000  # with about two million patches for 378 numbers
_TOGETHER = 100
_LEAST = 5e-4  # added to variances, so that what hardly varies is not blown up; Jordan's


def whiten_stem(net: Any, train: TrainBatches) -> str:
    """Give the first convolution of `net` whitening filters; return the weight's name.

    Its filters become those of `whitening_filters`, then their negatives; what is left keeps its
    first weights.

    Raises
    ------
    UserError
        When the network does not begin with a convolution over the channels of the images.
    """
    parameters = net._collect_params_with_prefix()
    name = next((n for n, p in parameters.items() if len(p.shape or ()) == 4), "")
    shape: tuple[int, ...] = parameters[name].shape if name else ()
    channels = len(train.mean)
    if not name or shape[1] != channels or shape[2] != shape[3]:
        raise UserError(
            f"--stem-init whitened: this network does not begin with a convolution k x k over "
            f"{channels} channels ({name or 'it has none'} is {tuple(shape)}); leave it out"
        )
    filters = whitening_filters(train, shape[2])
    chosen = np.concatenate([filters, -filters])[: shape[0]]
    weight = parameters[name].list_data()[0].asnumpy()
    weight[: len(chosen)] = chosen
    parameters[name].set_data(mx.nd.array(weight, dtype=weight.dtype))
    return name


def whitening_filters(train: TrainBatches, size: int) -> np.ndarray:
    """Return float32 (C * size * size, C, size, size), the most varying first.

    On patches of the normalised images, their outputs have the variance 1 (nearly) and are not
    correlated.
    """
    channels = len(train.mean)
    width = channels * size * size
    total, products, count = np.zeros(width), np.zeros((width, width)), 0
    # Evenly from all, because a folder is sorted by class.
    rows = np.unique(np.linspace(0, len(train.data.images) - 1, IMAGES).astype(np.int64))
    for start in range(0, len(rows), _TOGETHER):
        pixels = train.data.images[rows[start : start + _TOGETHER]]
        planes = normalize(pixels, train.mean, train.std).astype(np.float64)
        windows = sliding_window_view(planes, (1, channels, size, size))
        patches = windows.reshape(-1, width)
        total += patches.sum(axis=0)
        products += patches.T @ patches
        count += len(patches)
    mean = total / count
    variances, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
    filters = (vectors / np.sqrt(np.maximum(variances, 0) + _LEAST)).T[::-1]
    # Whether a vector or its negative comes out is the library's choice; take it from that.
    largest = np.abs(filters).argmax(axis=1)
    signs = np.sign(filters[np.arange(width), largest])
    shaped: np.ndarray = (filters * signs[:, None]).reshape(width, channels, size, size)
    return shaped.astype(np.float32)
