"""A figure of where a glimpse model looks, right and wrong answers apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from formats.atomic import PathLike
from training.reports.picture import png, write_named

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

DPI = 110
RIGHT, WRONG, ANYWHERE = "#2a7f3f", "#c1272d", "0.55"
BINS = 24


def plot_gaze(gaze: Any, output: PathLike) -> Path:
    """Draw a `training.glimpse.gaze.Gaze` as five panels, to a PNG file; return the file.

    Raises
    ------
    UserError
        The file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 3.2), layout="constrained")
    axes = figure.subplots(1, 5)
    looks = np.arange(1, gaze.hits.shape[1] + 1)
    axes[0].plot(looks, 100 * gaze.hits.mean(axis=0), "o-", color="C0", label="own gaze")
    axes[0].plot(looks, 100 * gaze.anywhere, "s--", color=ANYWHERE, label="random gaze")
    axes[0].set(title="accuracy after each look, %", ylim=(0, 101))
    axes[0].legend(fontsize="small", loc="lower right")
    _both(axes[1], gaze, gaze.distance)
    axes[1].set(title="pixels from the digit's middle", ylim=(0, None))
    _both(axes[2], gaze, 100 * gaze.seen)
    axes[2].set(title="share of the digit seen so far, %", ylim=(0, 101))
    axes[2].legend(fontsize="small", loc="lower right")
    for axis in axes[:3]:
        axis.set_xticks(looks)
        axis.set_xlabel("look")
    later, word = (gaze.offset[:, 1:], "later looks") if len(looks) > 1 else (gaze.offset, "looks")
    half = float(max(8.0, np.quantile(np.abs(later), 0.98)))
    for axis, which, name in ((axes[3], gaze.right, "right"), (axes[4], ~gaze.right, "wrong")):
        _density(axis, later[which], half, gaze.patch_size)
        axis.set(title=f"{word}, {name} answers", xlabel="pixels from the digit's middle")
    return write_named(output, png(figure, DPI))


def _both(axis: Axes, gaze: Any, values: np.ndarray) -> None:
    """Draw medians over right and wrong rollouts, with the half that lies in the middle."""
    looks = np.arange(1, values.shape[1] + 1)
    for which, colour, name in ((gaze.right, RIGHT, "right"), (~gaze.right, WRONG, "wrong")):
        if not which.any():
            continue
        low, middle, high = np.quantile(values[which], (0.25, 0.5, 0.75), axis=0)
        axis.plot(looks, middle, "o-", color=colour, label=f"{name} ({which.sum()})")
        axis.fill_between(looks, low, high, color=colour, alpha=0.15, linewidth=0)


def _density(axis: Axes, offset: np.ndarray, half: float, size: int) -> None:
    """Draw how often places around the digit's middle are looked at, darker: oftener."""
    rows, columns = offset.reshape(-1, 2).T
    edges = np.linspace(-half, half, BINS + 1)
    axis.hist2d(columns, rows, bins=(edges, edges), cmap="Purples")
    axis.plot(*(size / 2 * np.array([[-1, 1, 1, -1, -1], [-1, -1, 1, 1, -1]])), ":", color="0.3")
    axis.set(xlim=(-half, half), ylim=(half, -half), aspect="equal")
