"""Small trained networks, and how far prepared ones are from them; shared by several tests."""

from __future__ import annotations

import warnings
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from model.execution.inference import PreparedNetwork, prepare_inference

# What oneDNN 2.4 of MXNet 1.9.1 says of a symbol whose input has no type.
UNTYPED_INPUT = "Cannot decide type for the following arguments"
QUIET = [
    pytest.mark.filterwarnings(f"ignore:{UNTYPED_INPUT}"),
    # MXNet's, raised again by pytest.warns where the project's filter no longer knows it.
    pytest.mark.filterwarnings("ignore:Please import `csr_matrix`:DeprecationWarning"),
]


def images(count: int, height: int, width: int = 0, seed: int = 0) -> Any:
    shape = (count, 3, height, width or height)
    return mx.nd.array(np.random.RandomState(seed).normal(size=shape))


def as_trained(net: Any, *gates: str) -> Any:
    """Give a network statistics of a batch, and other values in every normalisation.

    `gates` are further endings of names whose values become others.
    """
    net.initialize(mx.init.MSRAPrelu())
    with autograd.train_mode():
        net(images(8, 16))
    random = np.random.RandomState(5)
    for key, parameter in net._collect_params_with_prefix().items():
        if key.endswith((*gates, "gamma", "beta", "running_mean", "running_var")):
            values = parameter.data().asnumpy()
            noise = random.uniform(0.1, 0.5, values.shape)
            parameter.set_data(mx.nd.array(values + noise * max(1e-3, np.abs(values).mean())))
    return net


def prepared_without_warning(net: Any, image: Any, **settings: Any) -> PreparedNetwork:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", UNTYPED_INPUT)
        return prepare_inference(net, image, **settings)


def difference(net: Any, prepared: Any, image: Any) -> float:
    """Return the largest difference of the outputs as a share of the largest number."""
    expected, found = (n(image).asnumpy() for n in (net, prepared))
    assert expected.shape == found.shape
    scale = float(np.abs(expected).max())
    assert len(image) == 1 or np.ptp(expected, axis=0).max() > 1e-3 * scale  # images matter
    return float(np.abs(found - expected).max()) / scale
