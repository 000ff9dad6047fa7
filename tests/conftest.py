"""Fixtures of all tests: seeds drawn from the test's name, real data, PyTorch and its files."""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import random
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from machine.cores import physical_cores
from machine.processor import limit_onednn

ROOT = Path(__file__).resolve().parent.parent
# The same examples in every run, and no folder of them.
settings.register_profile("repeated", derandomize=True, database=None)
settings.load_profile("repeated")
limit_onednn()  # before MXNet's first operator


def pytest_xdist_auto_num_workers() -> int:
    """Return the processes of ``-n auto``: one for each physical core."""
    return physical_cores().number


def pytest_configure(config: pytest.Config) -> None:
    """Give each of several processes its share of threads; they inherit the variable."""
    workers = getattr(config.option, "numprocesses", None)
    if workers:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, physical_cores().number // workers)))


@pytest.fixture(autouse=True, scope="session")
def _imported() -> None:
    """Import MXNet once, and let the collector pass over what every test shares."""
    import mxnet  # noqa: F401

    gc.freeze()


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Free a test's networks: each of Gluon's blocks is a circle (block and name scope).

    Python's collector counts objects, not bytes, so that without it hundreds of networks stay.
    """
    yield
    gc.collect()


@pytest.fixture(autouse=True, scope="module")
def _returned() -> Iterator[None]:
    """Give the memory that a file's tests have freed back to the machine, where glibc keeps it."""
    yield
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


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
    """Folder with ``cifar10/``, ``cifar100/`` and ``mnist/``, from the variable ATTENTION_DATA."""
    folder = os.environ.get("ATTENTION_DATA")
    if not folder:
        pytest.skip("needs real data: set ATTENTION_DATA to a folder with cifar10/ and so on")
    return Path(folder)


@pytest.fixture(scope="session")
def unit_operators() -> None:
    """Load the operators of residual units; skips where a machine cannot have them."""
    from model.native.build import UNITS

    _load_or_skip(UNITS)


@pytest.fixture(scope="session")
def glimpse_operators() -> None:
    """Load the operator of glimpses; skips where a machine cannot have it."""
    from model.native.build import GLIMPSE

    _load_or_skip(GLIMPSE)


def _load_or_skip(operators: Any) -> None:
    from machine.processor import Unavailable
    from model.native.build import BuildFailed, load

    try:
        load(operators)
    except BuildFailed:
        raise  # sources that do not compile would else be sources that nobody tests
    except Unavailable as error:
        pytest.skip(f"needs the operators in C++: {error}")


@pytest.fixture(scope="session")
def torch_python() -> str:
    """The interpreter that has PyTorch, in an environment of its own; skips where there is none."""
    python = Path(os.environ.get("TORCH_PYTHON", ROOT / ".venv-torch/bin/python"))
    if not python.exists():
        pytest.skip("needs PyTorch: make test-bridge sets it up in .venv-torch")
    return str(python)


@pytest.fixture(scope="session")
def torch_files() -> Any:
    """The writers of PyTorch files in test_torch_file.py, which need no PyTorch."""
    return _module_of("test_torch_file")


@pytest.fixture(scope="session")
def small_runs() -> Any:
    """The runs of a small network in test_fit.py: ``finish(folder, config)`` and what compares."""
    return _module_of("test_fit")


def _module_of(name: str) -> Any:
    (path,) = Path(__file__).parent.rglob(f"{name}.py")
    spec = importlib.util.spec_from_file_location(f"{name}_for_others", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
