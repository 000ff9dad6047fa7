"""What importing the networks says where MXNet is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_without_mxnet_the_command_that_helps_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-m", "model.weights.card", "x.param"],  # -S: no site-packages
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert sys.executable in last
    assert "make setup" in last
