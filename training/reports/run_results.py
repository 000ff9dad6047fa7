"""What finished runs scored in their last epoch, and mean and spread over runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from formats.atomic import PathLike
from formats.errors import UserError
from training.records.metrics import METRICS_FILE, read_metrics
from training.records.run_folder import CONFIG_FILE, read_config
from training.records.run_progress import Progress


@dataclass(frozen=True)
class RunResult:
    """The settings and epochs of one run."""

    folder: Path
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return int(self.rows[-1]["epoch"]) if self.rows else 0

    @property
    def finished(self) -> bool:
        """Whether the training came to its end, by early stopping too."""
        at_end = bool(self.rows) and self.epoch >= int(self.config.get("epochs", 0))
        return at_end or self._stopped_early()

    def _stopped_early(self) -> bool:
        """Return what `training.records.run_progress.Progress.stops_early` has said, from rows."""
        patience = int(self.config.get("early_stopping") or 0)
        judged = [row for row in self.rows if row.get("valid_acc") is not None]
        if not patience or not judged:
            return False
        every = int(self.config.get("eval_every") or 1)
        best = int(max(judged, key=lambda row: float(row["valid_acc"]))["epoch"])
        rule = SimpleNamespace(early_stopping=patience, eval_every=every)
        return Progress(epoch=self.epoch, best_epoch=best).stops_early(rule)

    def last(self, key: str) -> float:
        """Return a number of the last epoch.

        Raises
        ------
        UserError
            When it is not on record.
        """
        value = self.rows[-1].get(key) if self.rows else None
        if not isinstance(value, (int, float)):
            raise UserError(
                f"{self.folder / METRICS_FILE} has no {key} in its last epoch; name a key that it "
                "has, such as test_acc"
            )
        return float(value)


class Spread(NamedTuple):
    """Mean and sample standard deviation (n - 1) of n values; the latter is nan for n = 1."""

    mean: float
    std: float
    n: int

    def percent(self) -> str:
        """``76.74 ± 0.24 % (n = 5)``: shares in percent."""
        std = f" ± {100 * self.std:.2f}" if self.n > 1 else ""
        return f"{100 * self.mean:.2f}{std} % (n = {self.n})"


def spread(values: Sequence[float]) -> Spread:
    """Return mean and sample standard deviation of one value or more."""
    array = np.asarray(values, np.float64)
    std = float(array.std(ddof=1)) if len(array) > 1 else math.nan
    return Spread(float(array.mean()), std, len(array))


def read_result(folder: PathLike) -> RunResult:
    """Read one run; a run without a finished epoch has no rows.

    Raises
    ------
    UserError
        The folder holds no run, or its files are damaged.
    """
    folder = Path(folder)
    config = read_config(folder)
    rows = read_metrics(folder) if (folder / METRICS_FILE).exists() else []
    return RunResult(folder, config, rows)


def find_runs(folder: PathLike) -> list[Path]:
    """Return a run folder itself, or the run folders right below it, sorted.

    Raises
    ------
    UserError
        When there is none.
    """
    folder = Path(folder)
    if (folder / CONFIG_FILE).exists():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{CONFIG_FILE}"))
    if not found:
        raise UserError(
            f"{folder} is no run and holds none: no {CONFIG_FILE} in it or one level below. Name "
            "the folder that the training printed when it started"
        )
    return found
