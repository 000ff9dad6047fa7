"""The indices of published parameter files: what each one is and scores.

Columns of ``cifar_param/index.csv``: file, sha256, model, dataset, normalization, classes, test_acc
(last epoch, all test images), test_loss, epochs, seed, precision (of the training), hours,
hardware, commit, command. Those of ``mnist_param/index.csv`` are explained in
``mnist_param/README.md``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from model.weights.published import GLIMPSE_INDEX, INDEX, ROOT, find_row, read_index

__all__ = ["GLIMPSE_INDEX", "INDEX", "ROOT", "find_result", "read_index"]


def find_result(param_file: Path, index: Path = INDEX) -> Optional[dict[str, str]]:
    """Return the row of a parameter file, recognised by its content, or None."""
    return find_row(param_file, index)
