"""Draw the curves of runs from their ``metrics.jsonl``.

``python -m training.reports.plot RUN`` writes ``RUN/curves.png``; with several runs, or with
``--output FILE``, one figure compares them.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from formats.atomic import PathLike
from formats.errors import UserError
from training.records.metrics import METRICS_FILE, read_metrics
from training.records.run_folder import CURVES_FILE, read_config
from training.reports.picture import plain_text, png, write_named
from training.settings.exit_code import exits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette without yellow and black: colour-blind readers can tell these apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
# Splits differ in colour in the figure of one run, and always in the style of the line.
SPLIT_COLOURS = {"train": COLOURS[0], "valid": COLOURS[2], "test": COLOURS[1]}
SPLIT_STYLES = {"train": "--", "valid": ":", "test": "-"}
MARKED_EPOCHS = 15
LOG_RATIO = 4.0
PANELS_HEIGHT = 7.0  # inches
LINE_HEIGHT = 0.24
DPI = 150


@dataclass(frozen=True)
class _Curves:
    """What one run has to draw."""

    name: str
    title: str
    rows: list[dict[str, Any]]

    def points(self, key: str) -> tuple[list[int], list[float]]:
        """Epochs and values of a key; epochs without a value are left out."""
        pairs = [(row["epoch"], row[key]) for row in self.rows if _is_number(row.get(key))]
        return [epoch for epoch, _ in pairs], [value for _, value in pairs]


def plot_runs(folders: Sequence[PathLike], output: Optional[PathLike] = None) -> Path:
    """Draw loss, error, learning rate and speed over the epochs as a PNG file.

    Parameters
    ----------
    folders : sequence of str or os.PathLike
        Run folders; only ``metrics.jsonl`` is needed, ``config.json`` adds the title.
    output : str or os.PathLike, optional
        File to write. By default ``curves.png``, in the run folder if there is one run and in the
        current folder if there are several.

    Returns
    -------
    Path
        The file that was written.

    Raises
    ------
    UserError
        No run is given, one has no finished epoch, or the file cannot be written.
    """
    if not folders:
        raise UserError("no run is given. Name at least one run folder.")
    runs = [_load(Path(folder), name) for folder, name in zip(folders, _short_names(folders))]
    if output is None:
        output = Path(folders[0]) / CURVES_FILE if len(runs) == 1 else Path(CURVES_FILE)
    path = Path(output)
    if path.suffix.lower() != ".png":
        raise UserError(
            f"cannot write {path}: curves are PNG images. Name a file that ends in .png."
        )
    return write_named(path, png(_figure(runs), DPI))


@exits()
def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reports.plot",
        description="Draw the curves of training runs as PNG.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder; several are compared")
    parser.add_argument("--output", metavar="FILE", help=f"PNG file (default: {CURVES_FILE})")
    options = parser.parse_args(arguments)
    print(plot_runs(options.runs, options.output))
    return 0


def _load(folder: Path, name: str) -> _Curves:
    rows = read_metrics(folder)
    if not rows:
        raise UserError(
            f"{folder / METRICS_FILE} has no finished epoch. Wait for the first one to end."
        )
    try:
        config: Mapping[str, Any] = read_config(folder)
    except UserError:
        config = {}  # the curves do not need it
    parts = [str(config[key]) for key in ("model", "dataset") if config.get(key)]
    accuracy = rows[-1].get("test_acc")
    if _is_number(accuracy):
        parts.append(f"{accuracy:.2%} test accuracy after epoch {rows[-1]['epoch']}")
    return _Curves(name, ", ".join(parts) or name, rows)


def _short_names(folders: Sequence[PathLike]) -> list[str]:
    """Shortest last parts of the paths that tell the folders apart."""
    paths = [Path(folder).absolute() for folder in folders]
    for depth in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = [str(Path(*path.parts[-depth:])) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names


def _figure(runs: Sequence[_Curves]) -> Figure:
    # The class itself and not pyplot: no global state, no display.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    named = len(runs) > 1
    height = PANELS_HEIGHT + (LINE_HEIGHT * len(runs) if named else 0.0)
    figure = Figure(figsize=(10.0, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    (loss, error), (rate, speed) = figure.subplots(2, 2)
    _draw_splits(loss, runs, "loss", "Cross-entropy per image (nats)", 1.0)
    _draw_splits(error, runs, "acc", "Error (%)", 100.0)
    _draw_single(rate, runs, "lr", "Learning rate")
    _draw_single(speed, runs, "images_per_sec", "Training speed (images/s)")
    figure.suptitle(f"{len(runs)} runs" if named else plain_text(runs[0].title))
    _add_split_legend(loss, runs)
    if named:
        _add_run_legend(figure, runs)
    return figure


def _draw_splits(
    axes: Axes, runs: Sequence[_Curves], quantity: str, label: str, scale: float
) -> None:
    for index, run in enumerate(runs):
        for split, style in SPLIT_STYLES.items():
            epochs, numbers = run.points(f"{split}_{quantity}")
            # Error and not accuracy: on a log axis, halving it looks the same at 20 % and at 2 %.
            values = [scale * (1 - n if quantity == "acc" else n) for n in numbers]
            colour = SPLIT_COLOURS[split] if len(runs) == 1 else _colour(index, len(runs))
            axes.plot(epochs, values, style, color=colour, **_style(epochs))
    _finish(axes, label)
    _scale(axes)


def _draw_single(axes: Axes, runs: Sequence[_Curves], key: str, label: str) -> None:
    for index, run in enumerate(runs):
        epochs, values = run.points(key)
        axes.plot(epochs, values, color=_colour(index, len(runs)), **_style(epochs))
    _finish(axes, label)
    _start_at_zero(axes)


def _finish(axes: Axes, label: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(label, loc="left", fontsize="medium")
    axes.set_xlabel("epoch")
    axes.set_xlim(0, 1.02 * max(_coordinates(axes, 0), default=1.0))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if not _coordinates(axes, 1):
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", color="0.5")


def _scale(axes: Axes) -> None:
    """Take a logarithmic axis where a linear one would flatten the end of the training."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    values = _coordinates(axes, 1)
    if not values or min(values) <= 0 or max(values) < LOG_RATIO * min(values):
        _start_at_zero(axes)
        return
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _start_at_zero(axes: Axes) -> None:
    axes.set_ylim(0, 1.08 * max(_coordinates(axes, 1), default=1.0) or 1.0)


def _coordinates(axes: Axes, dimension: int) -> list[float]:
    """All x (0) or y (1) values that are drawn."""
    return [float(pair[dimension]) for line in axes.lines for pair in np.asarray(line.get_xydata())]


def _add_split_legend(axes: Axes, runs: Sequence[_Curves]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for split, style in SPLIT_STYLES.items():
        if any(run.points(f"{split}_loss")[0] for run in runs):
            colour = SPLIT_COLOURS[split] if len(runs) == 1 else "0.3"
            handles.append(Line2D([], [], color=colour, linestyle=style, label=split))
    if handles:
        axes.legend(handles=handles, loc="best", handlelength=3)


def _add_run_legend(figure: Figure, runs: Sequence[_Curves]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for index, run in enumerate(runs):
        text = run.name if run.title == run.name else f"{run.name}: {run.title}"
        handles.append(Line2D([], [], color=_colour(index, len(runs)), label=plain_text(text)))
    figure.legend(handles=handles, loc="outside lower center", frameon=False)


def _colour(index: int, count: int) -> Any:
    if count <= len(COLOURS):
        return COLOURS[index]
    from matplotlib import colormaps

    return colormaps["viridis"](0.95 * index / (count - 1))


def _style(epochs: Sequence[int]) -> dict[str, Any]:
    marked = len(epochs) <= MARKED_EPOCHS
    return {"linewidth": 1.6, "marker": "o" if marked else None, "markersize": 3.5}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


if __name__ == "__main__":
    sys.exit(main())
