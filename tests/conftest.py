"""Fixtures of all tests: seeds drawn from the test's name, and the folder of real data."""

from __future__ import annotations

import os
import random
import zlib
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    """Seed every source of randomness by the test's own name, so that order does not matter."""
    import mxnet as mx

    seed = zlib.crc32(request.node.nodeid.encode())
    random.seed(seed)
    np.random.seed(seed)
    mx.random.seed(seed)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with ``cifar10/`` and ``cifar100/``, from the variable ATTENTION_DATA."""
    folder = os.environ.get("ATTENTION_DATA")
    if not folder:
        pytest.skip("needs real data: set ATTENTION_DATA to a folder with cifar10/ and cifar100/")
    return Path(folder)
