"""Pictures of soft masks over images. Knows no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from training.apply.mask_score import resize_maps
from training.reports.picture import plain_text, png

PANEL = 1.75  # inches
TEXT_WIDTH = 0.55  # of a panel
DPI = 110
MOST_ROWS = 300  # in one picture: matplotlib draws fewer than 2**16 pixels on a side
HEAT = "inferno"
OPACITY = 0.6


class MaskRow(NamedTuple):
    """One image uint8 (H, W, 3), the map (h, w) of every module, and lines of text beside it."""

    image: np.ndarray
    maps: Mapping[str, np.ndarray]
    text: str


def draw_masks(rows: Sequence[MaskRow]) -> bytes:
    """Draw images with the maps of all modules over them, one image per row, as PNG.

    Every panel has its own colours, from the smallest (dark) to the largest (bright) value of its
    map; these two values stand below it. All rows have the same modules.
    """
    # The class itself and not pyplot: no global state, no display.
    from matplotlib.figure import Figure

    names = list(rows[0].maps)
    widths = [TEXT_WIDTH] + [1.0] * (1 + len(names))
    size = (PANEL * sum(widths), (PANEL + 0.2) * len(rows) + 0.35)
    figure = Figure(figsize=size, layout="constrained")
    shape = (len(rows), len(widths))
    panels = figure.subplots(*shape, squeeze=False, gridspec_kw={"width_ratios": widths})
    for row, axes in zip(rows, panels):
        for axis in axes:
            axis.set_axis_off()
        axes[0].text(0.0, 0.5, plain_text(row.text), va="center", fontsize=8, linespacing=1.4)
        axes[1].imshow(row.image)
        for axis, name in zip(axes[2:], names):
            _overlay(axis, row.image, row.maps[name])
    panels[0, 1].set_title("image", fontsize=8)
    for axis, name in zip(panels[0, 2:], names):
        height, width = rows[0].maps[name].shape
        axis.set_title(f"{plain_text(name)}\n{height}x{width}", fontsize=8)
    return png(figure, DPI)


def _overlay(axis: Any, image: np.ndarray, values: np.ndarray) -> None:
    grey = image.mean(axis=2)
    axis.imshow(grey, cmap="gray", vmin=0, vmax=255)
    axis.imshow(resize_maps(values[None], grey.shape)[0], cmap=HEAT, alpha=OPACITY)
    low, high = float(values.min()), float(values.max())
    axis.text(
        0.5,
        -0.03,
        f"{low:.2f} to {high:.2f}",
        transform=axis.transAxes,
        ha="center",
        va="top",
        fontsize=7,
        color="0.3",
    )
