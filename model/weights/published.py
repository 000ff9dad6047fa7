"""What is on record about a published parameter file: its row in an index.

Published files are in ``cifar_param/`` and ``mnist_param/``, each with an ``index.csv``. Networks
and training read them here.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Optional

from formats.card import CardError, without_block
from formats.digest import sha256_hex

ROOT = Path(__file__).resolve().parents[2]
INDEX = ROOT / "cifar_param" / "index.csv"
GLIMPSE_INDEX = ROOT / "mnist_param" / "index.csv"


def read_index(path: Path = INDEX) -> list[dict[str, str]]:
    """Return the rows of an index; none when there is no index."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def find_row(param_file: Path, *indices: Path) -> Optional[dict[str, str]]:
    """Return the row of a parameter file, recognised by its arrays, or None.

    Its card may be another than that of the published file, or none.
    """
    rows = [row for index in indices for row in read_index(index)]
    try:
        digest = sha256_hex(without_block(param_file.read_bytes())) if rows else ""
    except (OSError, CardError):
        return None  # reading the parameters reports it, with what to do
    return next((row for row in rows if row["arrays"] == digest), None)
