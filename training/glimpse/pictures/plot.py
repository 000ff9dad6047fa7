"""Pictures of what a glimpse model does: a figure, an animation, and overlays for TensorBoard.

==================================================  ============================================
`GlimpsePath`                                       the arrays behind all pictures
`plot_paths`                                        PNG: path, patches, class probabilities
`training.glimpse.pictures.gif.animate_paths`       GIF: one frame per glimpse
`training.glimpse.pictures.overlay.glimpse_images`  uint8 arrays for `Run.images`
==================================================  ============================================
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from formats.atomic import PathLike
from training.glimpse.pictures.gif import RIGHT, WRONG, check_picture, short_name
from training.glimpse.pictures.overlay import (
    OUTSIDE,
    Colour,
    choose_view,
    step_colours,
)
from training.glimpse.pictures.path import GlimpsePath
from training.reports.picture import plain_text, png, write_named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_paths"]

MOST_IMAGES = 16
MOST_CLASSES = 10  # rows of the probability table; of more classes the likeliest are shown
DPI = 120
# Inches.
SIDE = 2.6
PATCH = 0.72
CELL = 0.37
ROW = 3.02
TOP, BOTTOM, LEFT, BETWEEN = 0.45, 0.32, 0.15, 0.45
LABELS = 0.45


def plot_paths(path: GlimpsePath, output: PathLike) -> Path:
    """Draw one row per image: the path of the gaze, the patches, the probabilities per glimpse.

    Parameters
    ----------
    path
        What the model did on up to 16 images; up to 8 make a page.
    output
        File to write; ends in .png.

    Returns
    -------
    Path
        The file that was written.

    Raises
    ------
    UserError
        There are too many images, or the file cannot be written.
    """
    check_picture(path, output, ".png", MOST_IMAGES)
    return write_named(output, png(_figure(path), DPI))


def _figure(path: GlimpsePath) -> Figure:
    # The class itself and not pyplot: no global state, no display.
    from matplotlib.figure import Figure

    count, steps, scales = path.patches.shape[:3]
    patch = min(PATCH, SIDE / scales)
    names = LABELS + 0.07 * max(len(short_name(name)) for name in path.class_names)
    widths = (SIDE, steps * patch, steps * CELL)
    starts = (LEFT, LEFT + SIDE + BETWEEN + LABELS, LEFT + SIDE + BETWEEN + LABELS + widths[1])
    starts = (*starts[:2], starts[2] + names)
    width, height = starts[2] + widths[2] + 0.3, TOP + count * ROW + BOTTOM
    figure = Figure(figsize=(width, height))
    titles = ("where it looked", "what it saw", "what it thought (%)")
    for index in range(count):
        bottom = height - TOP - (index + 1) * ROW + 0.28
        row = [
            figure.add_axes(
                (start / width, bottom / height, wide / width, SIDE / height), frame_on=False
            )
            for start, wide in zip(starts, widths)
        ]
        _draw_path(row[0], path, index)
        _draw_patches(row[1], path, index, SIDE / patch)
        _draw_probabilities(row[2], path, index)
        if index == 0:
            for start, wide, title in zip(starts, widths, titles):
                middle = (start + wide / 2) / width
                figure.text(middle, 1 - 0.2 / height, title, ha="center", va="center", fontsize=11)
    figure.text(
        LEFT / width,
        0.14 / height,
        f"{steps} glimpses, boxes of {', '.join(_sizes(path))} pixels; the square is the first, "
        "the ringed disc the last",
        fontsize=8,
        color="0.35",
        va="center",
    )
    return figure


def _draw_path(axes: Axes, path: GlimpsePath, index: int) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    height, width = path.images.shape[2:]
    margin = choose_view(path, path.overhang()).margin
    colours = [_share(colour) for colour in step_colours(path.glimpses)]
    axes.set_xlim(-margin, width + margin)
    axes.set_ylim(height + margin, -margin)
    axes.set_aspect("equal")
    axes.set_axis_off()
    around = (-margin, -margin), width + 2 * margin, height + 2 * margin
    axes.add_patch(Rectangle(*around, facecolor=_share(OUTSIDE), linewidth=0, zorder=-1))
    # In units of pixel edges: pixel 0 goes from 0 to 1.
    axes.imshow(path.rgb()[index], extent=(0, width, height, 0), interpolation="nearest")
    axes.autoscale(False)
    boxes = path.boxes()[index]
    shadow = [withStroke(linewidth=2.6, foreground="black", alpha=0.6)]
    centres = (boxes[:, 0, :2] + boxes[:, 0, 2:]) / 2
    axes.plot(*centres.T, color="white", linewidth=0.9, path_effects=shadow)
    for scale in reversed(range(boxes.shape[1])):
        for colour, (left, top, right, bottom) in zip(colours, boxes[:, scale].tolist()):
            axes.add_patch(
                Rectangle(
                    (left, top),
                    right - left,
                    bottom - top,
                    fill=False,
                    edgecolor=colour,
                    linewidth=1.5 if scale == 0 else 0.7,
                    alpha=1.0 if scale == 0 else 0.6,
                    path_effects=shadow if scale == 0 else None,
                )
            )
    _draw_markers(axes, centres, boxes[:, 0], colours)
    _draw_title(axes, path, index)


def _draw_markers(axes: Axes, centres: np.ndarray, boxes: np.ndarray, colours: list[Any]) -> None:
    last = len(centres) - 1
    for step, ((x, y), (left, top), colour) in enumerate(zip(centres, boxes[:, :2], colours)):
        axes.plot(
            [x],
            [y],
            marker="s" if step == 0 else "o",
            markersize=5.5 if step == last else 4,
            markerfacecolor=colour,
            markeredgecolor="white" if step == last > 0 else "black",
            markeredgewidth=1.2 if step == last > 0 else 0.6,
        )
        axes.text(
            left,
            top,
            str(step + 1),
            fontsize=6.5,
            va="bottom",
            ha="left",
            color="black",
            clip_on=True,
            bbox={"boxstyle": "square,pad=0.12", "facecolor": colour, "linewidth": 0},
        )


def _draw_title(axes: Axes, path: GlimpsePath, index: int) -> None:
    label, guess = int(path.labels[index]), int(path.predictions[index, -1])
    sure = path.probabilities[index, -1, guess]
    said, true = (plain_text(short_name(path.class_names[number])) for number in (guess, label))
    text = f"label {true}, prediction {said} ({sure:.0%}): "
    text += "right" if guess == label else "wrong"
    colour = RIGHT if guess == label else WRONG
    axes.set_title(text, loc="left", fontsize=9.5, color=_share(colour), pad=3)


def _draw_patches(axes: Axes, path: GlimpsePath, index: int, slots: float) -> None:
    """Draw a column per glimpse, the sharpest patch on top; `slots` patches fit in the height."""
    from matplotlib.patches import Rectangle

    patches = path.rgb_patches()[index]
    steps, scales = patches.shape[:2]
    first = (slots - scales) / 2  # centred in the row
    for step, colour in enumerate(step_colours(steps)):
        for scale in range(scales):
            left, top = step + 0.06, first + scale + 0.06
            extent = (left, left + 0.88, top + 0.88, top)
            axes.imshow(patches[step, scale], extent=extent, interpolation="nearest")
            edge: dict[str, Any] = {"edgecolor": _share(colour), "linewidth": 1.8}
            axes.add_patch(Rectangle((left, top), 0.88, 0.88, fill=False, **edge))
    axes.set_xlim(0, steps)
    axes.set_ylim(slots, 0)
    axes.set_aspect("equal")
    for step in range(steps):
        place = (step + 0.5, first + scales + 0.06)
        axes.text(*place, str(step + 1), fontsize=8, color="0.35", ha="center", va="top")
    axes.set_xticks([])
    axes.set_yticks(first + np.arange(scales) + 0.5, _sizes(path), fontsize=7.5, color="0.35")
    axes.tick_params(length=0, pad=2)


def _draw_probabilities(axes: Axes, path: GlimpsePath, index: int) -> None:
    """Draw a table of classes and glimpses: the darker the likelier, the prediction framed."""
    from matplotlib.patches import Rectangle

    classes = _shown_classes(path, index)
    label = int(path.labels[index])
    shares = path.probabilities[index][:, classes].T
    axes.imshow(shares, cmap="Greys", vmin=0, vmax=1.25, aspect="auto", interpolation="nearest")
    for step, guess in enumerate(path.predictions[index]):
        row = classes.index(int(guess))
        share = float(shares[row, step])
        colour = _share(RIGHT if guess == label else WRONG)
        frame: dict[str, Any] = {
            "edgecolor": colour,
            "linewidth": 1.6,
            "fill": False,
            "clip_on": False,
        }
        axes.add_patch(Rectangle((step - 0.46, row - 0.46), 0.92, 0.92, **frame))
        ink = "white" if share > 0.6 else "black"
        axes.text(step, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=ink)
    numbers = [str(step + 1) for step in range(path.glimpses)]
    axes.set_xticks(np.arange(path.glimpses), numbers, fontsize=8, color="0.35")
    names = [plain_text(short_name(path.class_names[number])) for number in classes]
    axes.set_yticks(np.arange(len(classes)), names, fontsize=8, color="0.35")
    tick = axes.get_yticklabels()[classes.index(label)]
    tick.set(color=_share(RIGHT), fontweight="bold")
    axes.set_xticks(np.arange(path.glimpses + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(classes) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="0.88", linewidth=0.5)
    axes.tick_params(which="both", length=0, pad=3)


def _shown_classes(path: GlimpsePath, index: int) -> list[int]:
    """Return the classes of the table, in order: the true one, all predictions, the likeliest."""
    wanted = [int(path.labels[index]), *map(int, path.predictions[index])]
    wanted += np.argsort(-path.probabilities[index].max(axis=0), kind="stable").tolist()
    unique = list(dict.fromkeys(wanted))
    must = len(set(wanted[: path.glimpses + 1]))
    return sorted(unique[: max(MOST_CLASSES, must)])


def _sizes(path: GlimpsePath) -> list[str]:
    return [f"{size}\u00d7{size}" for size in path.box_sizes()]


def _share(colour: Colour) -> tuple[float, float, float]:
    """Turn bytes into matplotlib's numbers between 0 and 1."""
    red, green, blue = (value / 255 for value in colour)
    return red, green, blue
