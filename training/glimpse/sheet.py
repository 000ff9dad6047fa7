"""``python -m training.glimpse.sheet FILE.png [DATA_DIR]``: pictures of every glimpse task."""

from __future__ import annotations

import sys
from typing import Optional

import numpy as np

from formats.errors import UserError
from training.augmentation.deform import Deformation
from training.data.dataset import Dataset
from training.glimpse.batches import GlimpseTrainBatches
from training.glimpse.data import TASKS, GlimpseTask, draw_test, load_task
from training.reports.picture import write_png
from training.settings.exit_code import exits

COLUMNS = 10
GAP = 3
SHOWN = ("mnist", "translated", "cluttered", "cluttered100", "digits")
DEFORMATION = Deformation(rotate=15, scale=0.15, shear=0.2, shift=1.5, elastic=1.0)


def contact_sheet(datasets: dict[str, Dataset]) -> np.ndarray:
    """Draw a sheet: a row of test images per task, then deformed training digits.

    Parameters
    ----------
    datasets : dict
        ``mnist`` and ``digits``.

    Returns
    -------
    np.ndarray
        uint8 (H, W), one pixel per pixel of the images, ``COLUMNS`` images a row.
    """
    rows = []
    for name in SHOWN:
        dataset, canvas = TASKS[name]
        test = draw_test(GlimpseTask(name, datasets[dataset], canvas))
        rows.append(test.images[:COLUMNS, ..., 0])
    for name in ("mnist", "digits"):
        train = datasets[name].train
        batches = GlimpseTrainBatches(
            train, COLUMNS, canvas=None, deformation=DEFORMATION, seed=0
        ).epoch(0)
        rows.append(np.rint(255 * next(iter(batches)).image[:, 0]).astype(np.uint8))
    width = max(row.shape[2] for row in rows)
    return np.concatenate([_row(row, width) for row in rows])


def _row(images: np.ndarray, width: int) -> np.ndarray:
    """Images side by side, each as many times larger as fits into ``width``."""
    times = max(width // images.shape[2], 1)
    large = images.repeat(times, axis=1).repeat(times, axis=2)
    free = width - large.shape[2] + GAP
    margins = ((0, 0), (GAP, GAP), (free // 2, free - free // 2))
    return np.concatenate(list(np.pad(large, margins, constant_values=96)), axis=1)


def _load(data_dir: Optional[str]) -> dict[str, Dataset]:
    return {name: load_task(name, data_dir).dataset for name in ("mnist", "digits")}


@exits()
def main() -> int:
    """Write the sheet to the file that the command line names."""
    if len(sys.argv) not in (2, 3) or not sys.argv[1].endswith(".png"):
        raise UserError(
            "give the file to write: python -m training.glimpse.sheet FILE.png [DATA_DIR]"
        )
    write_png(sys.argv[1], contact_sheet(_load(sys.argv[2] if len(sys.argv) > 2 else None)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
