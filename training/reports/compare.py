"""Compare runs: last epoch, mean and spread over the seeds, as a table and as curves.

    python -m training.reports.compare runs/a runs/b runs/repeat-1234abcd --output compare.png

A folder that holds runs stands for all of them. Runs whose settings differ in nothing but the seed
are one row; rows are named by the settings in which they differ.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

from formats.atomic import PathLike
from formats.errors import UserError
from training.reports.compare_plot import draw_groups
from training.reports.picture import write_named
from training.reports.run_results import RunResult, Spread, find_runs, read_result, spread
from training.settings.exit_code import exits
from training.settings.run_config import RESUMABLE

# Settings that say where a run is and what is recorded, not what is computed.
NOT_COMPARED = frozenset(
    (
        *("seed", "run_dir", "resume", "recipe", "histogram_every", "seed_format", *RESUMABLE),
        *("device", "compile", "stop_after", "tensorboard"),  # of bridge.train
    )
)
# Options that came later, with what programs did before.
ADDED: Mapping[str, Any] = {
    "kvstore": "device",
    "distributed": "none",
    "scale_batch": False,
    "sync_batch_norm": False,
    "export_start": None,
}
# Numbers that only some runs have: title and format of their column.
GATES = {"gate_alive": ("gates alive", ".1%"), "gate_std": ("gate's spread", ".4f")}
MISSING = "-"
IMAGENET = "imagenet"  # what train_imagenet.py calls any photographs


@dataclass(frozen=True)
class Group:
    """Finished runs of the same settings; ``label`` says what sets them apart from the others."""

    label: str
    runs: tuple[RunResult, ...]

    def spread(self, key: str = "test_acc") -> Spread:
        """Mean and sample standard deviation of a number of the last epoch."""
        return spread([run.last(key) for run in self.runs])

    def has(self, key: str) -> bool:
        """Return whether all runs have recorded a number in their last epoch."""
        return all(key in run.rows[-1] for run in self.runs)

    @property
    def hours(self) -> float:
        """Mean wall time of a run, in hours."""
        return sum(float(run.rows[-1].get("wall_sec") or 0) for run in self.runs) / (
            3600 * len(self.runs)
        )


def group_runs(results: Sequence[RunResult]) -> list[Group]:
    """Return the finished runs in groups that differ in their settings, in order of appearance.

    A setting that a run does not have, because it is older, differs from every value of it, but for
    those of `ADDED`.

    Raises
    ------
    UserError
        When one seed is there twice with the same settings: it would count twice.
    """
    members: dict[str, list[RunResult]] = {}
    for result in results:
        members.setdefault(json.dumps(_settings(result.config), sort_keys=True), []).append(result)
    settings = [_settings(runs[0].config) for runs in members.values()]
    names = [key for one in settings for key in one]
    differing = [
        name
        for name in dict.fromkeys(names)
        if len({json.dumps(one.get(name, MISSING)) for one in settings}) > 1
    ]
    groups = []
    for one, runs in zip(settings, members.values()):
        seeds = [run.config.get("seed") for run in runs]
        twice = next((seed for seed in seeds if seeds.count(seed) > 1), None)
        if twice is not None:
            same = ", ".join(str(r.folder) for r in runs if r.config.get("seed") == twice)
            raise UserError(f"seed {twice} is there twice with the same settings: {same}; name one")
        groups.append(Group(_label(one, differing), tuple(runs)))
    return groups


def comparison_table(groups: Sequence[Group]) -> str:
    """Return one Markdown row per group: last-epoch accuracy as mean ± sample deviation, with n.

    Where runs have recorded their gates: the share of channels whose gate looks at the image, and
    the standard deviation of gates over images.
    """
    gates = [key for key in GATES if any(group.has(key) for group in groups)]
    names = ("settings", "test accuracy", "test loss", "training accuracy", "epochs", "hours a run")
    titles = [*names, *(GATES[key][0] for key in gates)]
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for group in groups:
        cells = [
            group.label,
            group.spread().percent(),
            f"{group.spread('test_loss').mean:.4f}",
            f"{group.spread('train_acc').mean:.2%}",
            _epochs_of(group),
            f"{group.hours:.2f}",
        ]
        for key in gates:
            _, shown = GATES[key]
            cells.append(format(group.spread(key).mean, shown) if group.has(key) else MISSING)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _epochs_of(group: Group) -> str:
    """Return how many epochs the runs had; early stopping can end each at another."""
    return "/".join(str(epoch) for epoch in sorted({run.epoch for run in group.runs}))


def comparison_csv(groups: Sequence[Group]) -> str:
    """Return the same numbers unrounded, one line per group."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("settings", "n", "test_acc_mean", "test_acc_std", "epochs", "seeds", "folders"))
    for group in groups:
        accuracy, runs = group.spread(), group.runs
        seeds = " ".join(str(run.config.get("seed")) for run in runs)
        folders = " ".join(str(run.folder) for run in runs)
        numbers = (accuracy.n, accuracy.mean, accuracy.std, _epochs_of(group))
        table.writerow((group.label, *numbers, seeds, folders))
    return text.getvalue()


def compare(folders: Sequence[PathLike]) -> tuple[list[Group], list[RunResult]]:
    """Return the groups of the runs that `folders` are or hold, and the unfinished runs.

    Raises
    ------
    UserError
        When no run is finished, or a folder cannot be read.
    """
    paths = dict.fromkeys(path.resolve() for folder in folders for path in find_runs(folder))
    results = [read_result(path) for path in paths]
    finished = [result for result in results if result.finished]
    if not finished:
        raise UserError("none of the runs is finished; wait for one, or go on with --resume RUN")
    return group_runs(finished), [result for result in results if not result.finished]


@exits()
def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.reports.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or a folder of runs")
    parser.add_argument("--output", default="compare.png", metavar="FILE", help="curves, as PNG")
    parser.add_argument("--csv", metavar="FILE", help="write the table here too, unrounded")
    options = parser.parse_args(arguments)
    groups, unfinished = compare(options.runs)
    print(comparison_table(groups))
    for run in unfinished:
        print(f"left out: {run.folder} stands at epoch {run.epoch} of {run.config['epochs']}")
    print(write_named(options.output, _picture(options.output, groups)))
    if options.csv:
        print(write_named(options.csv, comparison_csv(groups).encode()))
    return 0


def _picture(path: str, groups: Sequence[Group]) -> bytes:
    if not path.lower().endswith(".png"):
        raise UserError(f"cannot write {path}: curves are PNG images. Name a .png file")
    return draw_groups([(group.label, [run.rows for run in group.runs]) for group in groups])


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    settings = {**ADDED, **config}
    if settings.get("dataset") == IMAGENET:  # photographs of any kind, so their place tells them
        settings["photographs"] = os.path.abspath(os.path.expanduser(str(settings.get("data_dir"))))
    return {key: value for key, value in settings.items() if key not in NOT_COMPARED}


def _label(settings: Mapping[str, Any], differing: Sequence[str]) -> str:
    """The differing settings, or model and data set where nothing differs."""
    shown = differing or [name for name in ("model", "dataset") if name in settings]
    parts = []
    for name in shown:
        value = settings.get(name, MISSING)
        text = " ".join(map(str, value)) if isinstance(value, list) else value
        parts.append(str(text) if name in ("model", "dataset") else f"{name} {text}")
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
