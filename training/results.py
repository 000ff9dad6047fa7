"""The indices of published parameter files: what each one is and scores.

Columns of ``cifar_param/index.csv``: file, sha256, model, dataset, normalization, classes, test_acc
(last epoch, all test images), test_loss, epochs, seed, precision (of the training), hours,
hardware, commit, command. Those of ``mnist_param/index.csv`` are explained in
``mnist_param/README.md``.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Optional

from bridge.digest import sha256_hex

ROOT = Path(__file__).resolve().parent.parent
INDEX = ROOT / "cifar_param" / "index.csv"
GLIMPSE_INDEX = ROOT / "mnist_param" / "index.csv"


def read_index(path: Path = INDEX) -> list[dict[str, str]]:
    """Return the rows of the index; none when there is no index."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def find_result(param_file: Path, index: Path = INDEX) -> Optional[dict[str, str]]:
    """Return the row of a parameter file, recognised by its content, or None."""
    rows = read_index(index)
    try:
        digest = sha256_hex(param_file.read_bytes()) if rows else ""
    except OSError:
        return None  # reading the parameters reports it, with what to do
    return next((row for row in rows if row["sha256"] == digest), None)
