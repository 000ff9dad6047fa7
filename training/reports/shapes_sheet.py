"""``python -m training.reports.shapes_sheet FILE.png``: pictures of every class of ``shapes`` and
masks.
"""

from __future__ import annotations

import sys

import numpy as np

from formats.errors import UserError
from training.data.shapes import CLASS_NAMES, draw_shapes
from training.reports.picture import write_png
from training.settings.exit_code import exits

ENLARGED = 3
GAP = 4
TEST_SEED = 1  # the pictures of the test set


def contact_sheet(rows: int = 3) -> np.ndarray:
    """Return a sheet with one column per class: `rows` pictures, each above its mask.

    Returns
    -------
    uint8 (H, W, 3)
    """
    data = draw_shapes(40 * rows, TEST_SEED)
    assert data.masks is not None
    columns = []
    for label in range(len(CLASS_NAMES)):
        chosen = np.flatnonzero(data.labels == label)[:rows]
        tiles = []
        for index in chosen:
            mask = np.repeat(data.masks[index][..., None] * np.uint8(255), 3, axis=2)
            tiles += [_tile(data.images[index]), _tile(mask)]
        columns.append(np.concatenate(tiles, axis=0))
    return np.concatenate(columns, axis=1)


def _tile(picture: np.ndarray) -> np.ndarray:
    large = picture.repeat(ENLARGED, axis=0).repeat(ENLARGED, axis=1)
    return np.pad(large, ((0, GAP), (0, GAP), (0, 0)), constant_values=255)


@exits()
def main() -> int:
    """Write the sheet to the file that the command line names."""
    if len(sys.argv) != 2 or not sys.argv[1].endswith(".png"):
        raise UserError("give the file to write: python -m training.reports.shapes_sheet FILE.png")
    write_png(sys.argv[1], contact_sheet())
    return 0


if __name__ == "__main__":
    sys.exit(main())
