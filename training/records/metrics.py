"""``metrics.jsonl``, the one record of a run that everything else is drawn from, and its table."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from formats.atomic import PathLike, sync_folder, write_atomically
from formats.errors import UserError

METRICS_FILE = "metrics.jsonl"
METRICS_ORDER = (
    "epoch",
    "step",
    "lr",
    "train_loss",
    "train_acc",
    "valid_loss",
    "valid_acc",
    "test_loss",
    "test_acc",
    "images_per_sec",
    "wall_sec",
)


def metrics_row(epoch: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """Put the values of an epoch into the documented order, as plain Python numbers.

    `training.records.epochs.Epochs` gives the values, `training.loop.fit.Fit._finish_epoch` adds
    some, `training.loop.task.Task.statistics` a network's own.

    Raises
    ------
    TypeError
        A value is neither a number nor None.
    """
    values = {**values, "epoch": epoch}
    names = [name for name in METRICS_ORDER if name in values]
    names += [name for name in values if name not in METRICS_ORDER]
    return {name: _plain(name, values[name]) for name in names}


def append_metrics(folder: PathLike, row: Mapping[str, Any]) -> None:
    """Append one line and wait until it is on the disk. NaN and infinity become null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
    line = json.dumps(finite, allow_nan=False).encode() + b"\n"
    with open(Path(folder) / METRICS_FILE, "ab") as file:
        new = file.tell() == 0
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(folder)


def read_metrics(folder: PathLike) -> list[dict[str, Any]]:
    """Read the finished epochs of a run; an incomplete last line is left out.

    Raises
    ------
    UserError
        The file is missing, unreadable, or damaged before its last line.
    """
    path = Path(folder) / METRICS_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}. Name the folder of a run, which holds "
            f"{METRICS_FILE}."
        ) from error
    return [row for _, row in _lines(path, data)]


def cut_back_metrics(folder: PathLike, epoch: int) -> None:
    """Drop the lines after `epoch` and an incomplete last line; the other bytes stay as they are.

    Raises
    ------
    UserError
        The file is damaged before its last line.
    """
    path = Path(folder) / METRICS_FILE
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    kept = b"".join(line for line, row in _lines(path, data) if row["epoch"] <= epoch)
    if kept != data:
        write_atomically(path, kept)


class MetricsTable:
    """The terminal's view of the rows: one aligned line per epoch under a header."""

    def __init__(self, epochs: Any = None) -> None:
        self._epochs = epochs if isinstance(epochs, int) else None
        self._columns: list[tuple[str, int]] = []

    def lines(self, row: Mapping[str, Any]) -> list[str]:
        """Text of a row, after the header if it is the first one or has the first of a score."""
        cells = self._cells(row)
        header = []
        if [title for title, _, _ in cells] != [title for title, _ in self._columns]:
            self._columns = [(title, max(len(title), width)) for title, width, _ in cells]
            header = ["  ".join(title.rjust(width) for title, width in self._columns)]
        texts = (text.rjust(width) for (_, _, text), (_, width) in zip(cells, self._columns))
        return [*header, "  ".join(texts)]

    def _cells(self, row: Mapping[str, Any]) -> list[tuple[str, int, str]]:
        """Title, least width and text of every cell."""
        of_epochs = "" if self._epochs is None else f"/{self._epochs}"
        cells = [
            ("epoch", 1 + 2 * len(of_epochs), f"{row['epoch']}{of_epochs}"),
            ("step", 7, _text(row, "step", "d")),
            ("lr", 9, _text(row, "lr", ".3g")),
        ]
        has_valid = any(title == "valid loss" for title, _ in self._columns)
        for split in ("train", "valid", "test"):
            if split == "valid" and not has_valid and row.get("valid_loss") is None:
                continue
            cells.append((f"{split} loss", 7, _text(row, f"{split}_loss", ".4f")))
            cells.append(("acc", 7, _text(row, f"{split}_acc", ".2%")))
        cells.append(("images/s", 7, _text(row, "images_per_sec", ".1f")))
        cells.append(("time", 7, _clock(row.get("wall_sec"))))
        return cells


def _lines(path: Path, data: bytes) -> Iterator[tuple[bytes, dict[str, Any]]]:
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not line.endswith(b"\n") or not isinstance(row["epoch"], int):
                raise ValueError("incomplete line")
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                return
            raise UserError(
                f"line {number} of {path} is damaged: {error}. Restore the file, or delete that "
                "line and the ones after it."
            ) from error
        yield line, row


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is not None and not isinstance(value, (bool, int, float)):
        raise TypeError(f"{name} must be a number or None, not {type(value).__name__}")
    return value


def _text(row: Mapping[str, Any], name: str, style: str) -> str:
    value = row.get(name)
    return "-" if value is None else format(value, style)


def _clock(seconds: Any) -> str:
    if seconds is None or not math.isfinite(seconds):
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
