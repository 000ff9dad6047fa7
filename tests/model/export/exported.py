"""Small networks with random parameters for the tests of exported files."""

from __future__ import annotations

from typing import Any

import mxnet as mx
import numpy as np

from model import create_model

TINY = {"channels": (8, 8), "mask_depths": (2, 1), "modules": (1, 1), "stem_channels": 8}


def randomize(net: Any, seed: int = 0) -> Any:
    """Give every parameter random values, gates and running statistics too; return the network."""
    net.initialize(mx.init.Zero())
    rng = np.random.default_rng(seed)
    for name, parameter in net.collect_params().items():
        values = rng.normal(0, 0.3, parameter.shape)
        if name.endswith(("gamma", "running_var")):
            values = 0.5 + np.abs(values)
        parameter.set_data(mx.nd.array(values, dtype="float32"))
    return net


def tiny_attention(name: str = "attention56_small", **overrides: Any) -> Any:
    """An attention network with two stages of 8 channels for 32x32 images."""
    return randomize(create_model(name, **{**TINY, "tail_channels": 8, **overrides}))


def tiny_resnet(name: str, **overrides: Any) -> Any:
    """A ResNet with one unit per stage."""
    depth = 8 if "_basic" in name else 11
    return randomize(create_model(name, depth=depth, channels=(4, 4, 8), **overrides))


def tiny_glimpse(**overrides: Any) -> Any:
    """A glimpse model of three glimpses of two scales on 12x14 images."""
    small = {
        "height": 12, "width": 14, "patch_size": 4, "num_patches": 2, "glimpse_scale": 2.0,
        "num_glimpses": 3, "glimpse_hidden": 8, "loc_hidden": 8, "hidden_size": 16,
        "locator_hidden": 8,
    }  # fmt: skip
    return randomize(create_model("glimpse_mnist", **{**small, **overrides}))
