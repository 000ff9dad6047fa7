"""The page, served by a program of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "cifar_param" / "attention56_small_shapes_0.9930_315e1841.param"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Give the address, with a slash at its end."""
    command = [sys.executable, "-m", "demo", "--port", "0", "--classifier", str(FILE)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        said = running.stdout.readline()
        assert said.startswith("serving on http://127.0.0.1:"), said
        yield said.split()[2]
        running.terminate()
