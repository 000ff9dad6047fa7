"""Weights of kevinzakka/recurrent-visual-attention (PyTorch, MIT), both generations.

Its attribute names are ours. Its images are normalised, ``(x - 0.1307) / 0.3081``, and padded with
0 afterwards, that is with 0.1307 of an unnormalised image. Here images stay in [0, 1]: the
normalisation goes into the layer that sees the patches, and the border gets the value it had.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Optional

import numpy as np

from formats.atomic import PathLike
from formats.torch_file import read_torch
from formats.weight_file import TORCH, detect_format, read_weights
from model.weights.file_match import LoadError

MEAN, STD = 0.1307, 0.3081  # of MNIST's training images
EDGE = 28  # of these images
# Hidden layer in the location network: since its pull request 32 of 2019.
MODELS = {False: "glimpse_mnist_209677", True: "glimpse_mnist_242317"}
POLICY_STD = {"glimpse_mnist_209677": 0.17, "glimpse_mnist_242317": 0.05}
WORD = "best_valid_acc"  # beside the parameters, in both generations
NEEDED = ("sensor.fc1.weight", "sensor.fc1.bias", "rnn.h2h.weight", "locator.fc.weight")


def is_seed_checkpoint(path: PathLike, names: Collection[str]) -> bool:
    """Tell whether a file with arrays of these names is such a checkpoint, by its own words too.

    Others with the same names are this project's own, such as a `state_dict` of the bridge.
    """
    if detect_format(path) != TORCH or not all(name in names for name in NEEDED):
        return False
    content = read_torch(path)
    return isinstance(content, dict) and WORD in content


def read_for_unit_range(path: PathLike) -> tuple[Optional[str], dict[str, np.ndarray]]:
    """Return a file's arrays, those of such a checkpoint by `from_seed` with its model's name."""
    arrays = read_weights(path)
    return from_seed(arrays) if is_seed_checkpoint(path, arrays) else (None, arrays)


def from_seed(arrays: Mapping[str, np.ndarray]) -> tuple[str, dict[str, np.ndarray]]:
    """Return the model's name and its parameters for images in [0, 1].

    Raises
    ------
    LoadError
        When the arrays are not such a checkpoint.
    """
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        raise LoadError(
            f"a PyTorch file without {missing[0]}: only checkpoints of "
            "kevinzakka/recurrent-visual-attention are read here"
        )
    if arrays["sensor.fc1.weight"].ndim != 2:
        raise LoadError(f"sensor.fc1.weight is {arrays['sensor.fc1.weight'].shape}, not a matrix")
    rows, found = arrays["sensor.fc1.weight"].shape[:1], arrays["sensor.fc1.bias"].shape
    if found != rows:
        raise LoadError(f"sensor.fc1.bias is {found}; {rows} belongs to the rows of its weight")
    weight = arrays["sensor.fc1.weight"].astype(np.float64)
    bias = arrays["sensor.fc1.bias"] - weight.sum(axis=1) * (MEAN / STD)
    changed = {
        **arrays,
        "sensor.fc1.weight": (weight / STD).astype(np.float32),
        "sensor.fc1.bias": bias.astype(np.float32),
    }
    return MODELS["locator.fc_lt.weight" in arrays], changed
