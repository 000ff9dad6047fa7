"""Draw the mean curves of groups of runs, with a band of one sample standard deviation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from training.reports.picture import plain_text, png
from training.reports.plot import COLOURS, DPI

Rows = Sequence[Mapping[str, Any]]
PANELS = (("test_acc", "Test error (%)"), ("train_loss", "Training loss (nats per image)"))
STYLES = ("-", "--", ":", "-.")
WIDTH, HEIGHT, LINE_HEIGHT = 10.0, 4.2, 0.24  # inches


def draw_groups(groups: Sequence[tuple[str, Sequence[Rows]]]) -> bytes:
    """Return a PNG of test error and training loss over the epochs.

    Parameters
    ----------
    groups
        Name of each group, and the rows of ``metrics.jsonl`` of its runs.
    """
    # The class itself and not pyplot: no global state, no display.
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

    figure = Figure(
        figsize=(WIDTH, HEIGHT + LINE_HEIGHT * len(groups)), layout=ConstrainedLayoutEngine()
    )
    handles = []
    for axes, (key, title) in zip(figure.subplots(1, 2), PANELS):
        for index, (_, runs) in enumerate(groups):
            epochs, values = curves(runs, key)
            if not len(epochs):
                continue
            look = _look(index)
            mean = values.mean(axis=0)
            axes.plot(epochs, mean, **look, marker="o" if len(epochs) < 16 else None, markersize=3)
            if len(values) > 1:
                std = values.std(axis=0, ddof=1)
                band = {"color": look["color"], "alpha": 0.2, "linewidth": 0}
                axes.fill_between(epochs, mean - std, mean + std, **band)
        axes.set_title(title, loc="left", fontsize="medium")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_ylim(bottom=0)
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    for index, (label, runs) in enumerate(groups):
        text = plain_text(f"{label} (n = {len(runs)})")
        handles.append(Line2D([], [], label=text, **_look(index)))
    figure.legend(handles=handles, loc="outside lower center", frameon=False)
    return png(figure, DPI)


def curves(runs: Sequence[Rows], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the epochs (E,) at which all runs have a number, and the numbers (runs, E).

    Accuracies become errors in percent.
    """
    series = [
        {row["epoch"]: row[key] for row in rows if isinstance(row.get(key), (int, float))}
        for rows in runs
    ]
    common = sorted(set.intersection(*(set(one) for one in series)))
    values = np.array([[one[epoch] for epoch in common] for one in series], np.float64)
    return np.array(common), 100 * (1 - values) if key.endswith("_acc") else values


def _look(index: int) -> dict[str, Any]:
    """Colour and line style of a group: the styles change when the colours are used up."""
    style = STYLES[index // len(COLOURS) % len(STYLES)]
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": style, "linewidth": 1.6}
