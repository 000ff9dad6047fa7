"""A short version of ``make test-crash``: killed, or met by a full disk, at some places."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.timeout(1200)  # seconds alone, but many processes in turn on a busy machine
def test_a_killed_training_ends_as_one_that_was_left_alone() -> None:
    harness = [sys.executable, str(ROOT / "tests/training/loop/crash_harness.py")]
    done = subprocess.run(
        [*harness, "--every", "33", "--random", "2"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kills, disks = re.search(r"(\d+) kills survived .* and (\d+) full", done.stdout).groups()  # type: ignore[union-attr]
    assert int(kills) >= 8
    assert int(disks) >= 2
