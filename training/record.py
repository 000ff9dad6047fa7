"""One run, one folder: configuration, environment, metrics, MXBoard event files.

================  ==================================================================
``config.json``   the configuration, written once
``env.json``      `training.environment.describe` at the start, and at every resume
``metrics.jsonl`` one JSON object per finished epoch
event files       the same numbers, histograms, images and the graph for TensorBoard
``.lock``         held while a process has the run open
================  ==================================================================
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Optional, Union

import numpy as np

from bridge.param_file import write_atomically
from training.board import Board, NoBoard
from training.environment import describe
from training.errors import UserError
from training.event_file import cut_back_folder
from training.metrics import (
    METRICS_FILE,
    MetricsTable,
    append_metrics,
    cut_back_metrics,
    metrics_row,
)
from training.seed_log import write_seed_files

PathLike = Union[str, "os.PathLike[str]"]

CONFIG_FILE = "config.json"
ENV_FILE = "env.json"
LOCK_FILE = ".lock"


class Run:
    """The record of one training run. Open it with `Run.create` or `Run.resume`.

    Attributes
    ----------
    folder : Path
        The run folder.
    config : dict
        What ``config.json`` holds.
    epoch : int
        Number of finished epochs on record.
    """

    def __init__(
        self, folder: Path, config: Mapping[str, Any], epoch: int, lock: IO[bytes]
    ) -> None:
        self.folder = folder
        self.config = dict(config)
        self.epoch = epoch
        self._lock = lock
        # Most scripts have no such setting: they always write event files.
        self._board = Board(folder) if self.config.get("tensorboard", True) else NoBoard()
        self._table = MetricsTable(self.config.get("epochs"))

    @classmethod
    def create(cls, folder: PathLike, config: Mapping[str, Any], command: Sequence[str]) -> Run:
        """Start a run in a new folder.

        Parameters
        ----------
        folder : str or os.PathLike
            Made with its parents. It may exist, but not hold a run.
        config : mapping
            JSON-serializable; written to ``config.json``.
        command : sequence of str
            Command line that started the run; written to ``env.json``.

        Raises
        ------
        UserError
            The folder holds a run, is in use, or cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _lock(folder)
        except OSError as error:
            raise UserError(
                f"cannot make the run folder {folder}: {error.strerror}. "
                "Name a folder you may write to with --run-dir FOLDER."
            ) from error
        run = cls(folder, config, 0, lock)
        try:
            if (folder / CONFIG_FILE).exists() or (folder / METRICS_FILE).exists():
                raise UserError(
                    f"{folder} already holds a run, which would be overwritten. Continue it with "
                    f"--resume {folder}, or name another folder with --run-dir FOLDER."
                )
            run._write_json(ENV_FILE, {**describe(), "command": list(command), "resumes": []})
            # Last, because this file is what makes the folder a run.
            run._write_json(CONFIG_FILE, run.config)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def resume(cls, folder: PathLike, epoch: int) -> Run:
        """Reopen a run at a checkpoint: everything recorded after it is dropped.

        Parameters
        ----------
        folder : str or os.PathLike
            Folder of an earlier `Run.create`.
        epoch : int
            Number of finished epochs in the checkpoint. ``metrics.jsonl`` and all event files are
            cut back to it.

        Raises
        ------
        UserError
            The folder holds no run, is in use, or its files are damaged.
        """
        folder = Path(folder)
        config = read_config(folder)
        try:
            lock = _lock(folder)
        except OSError as error:
            raise UserError(
                f"cannot write to the run folder {folder}: {error.strerror}."
            ) from error
        run = cls(folder, config, epoch, lock)
        try:
            cut_back_metrics(folder, epoch)
            cut_back_folder(folder, epoch)
            env = _read_env(folder / ENV_FILE)
            env.setdefault("resumes", []).append({"epoch": epoch, **describe()})
            run._write_json(ENV_FILE, env)
        except BaseException:
            run.close()
            raise
        return run

    def scalars(self, epoch: int, values: Mapping[str, Any]) -> None:
        """Record the numbers of one finished epoch in all three places.

        The event files are written first and ``metrics.jsonl`` last, so that a process killed at
        any moment leaves event files with at least what ``metrics.jsonl`` has. Save a checkpoint
        of the epoch after this call: `resume` cuts back, it cannot fill in.

        Parameters
        ----------
        epoch : int
            Number of finished epochs, from 1.
        values : mapping from str to number or None
            `training.metrics.METRICS_ORDER` has the common keys. Losses are mean cross-entropy per
            image in nats, accuracies are between 0 and 1. NaN and infinity become null in
            ``metrics.jsonl``: JSON has no name for them.
        """
        if epoch <= self.epoch:
            raise ValueError(f"epoch {epoch} is on record already (last: {self.epoch})")
        row = metrics_row(epoch, values)
        with self._disk():
            self._board.epoch(row)
            self._board.flush()
            append_metrics(self.folder, row)
            if self.config.get("seed_format"):
                write_seed_files(self.folder)
        self.epoch = epoch
        for text in self._table.lines(row):
            print(text, flush=True)

    def histograms(self, epoch: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Record the distribution of each array, for example of each parameter."""
        with self._disk():
            for name, values in arrays.items():
                self._board.histogram(name, values, epoch)
            self._board.flush()

    def images(self, tag: str, epoch: int, images: np.ndarray) -> None:
        """Record uint8 images (N, H, W, C), C 1 or 3, as one picture with eight in a row."""
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
            raise ValueError(
                f"images must be uint8 (N, H, W, 1 or 3), not {images.dtype} {images.shape}"
            )
        with self._disk():
            self._board.images(tag, images, epoch)
            self._board.flush()

    def graph(self, net: Any) -> None:
        """Record the graph of a hybridized network that has run forward once.

        A resumed run has it already. MXBoard cannot draw every network; training goes on without
        the picture then, with one line of warning.
        """
        if self.epoch > 0:
            return
        try:
            with self._disk():
                self._board.graph(net)
                self._board.flush()
        except UserError:
            raise
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"warning: no graph for TensorBoard: {reason}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close the event files and let other processes open the run."""
        try:
            with self._disk():
                self._board.close()
        finally:
            self._lock.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"cannot write to the run folder {self.folder}: {error.strerror}. Free the disk, "
                f"then continue with --resume {self.folder}."
            ) from error

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        text = json.dumps(value, indent=2, allow_nan=False)
        write_atomically(self.folder / name, text.encode() + b"\n")


def read_config(folder: PathLike) -> dict[str, Any]:
    """Read ``config.json`` of a run.

    Raises
    ------
    UserError
        There is none, or it is damaged.
    """
    path = Path(folder) / CONFIG_FILE
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{folder} holds no run: cannot read {path}: {error.strerror}. Name the folder that "
            "the training printed when it started."
        ) from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. Restore it, or start a new run.") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged: not a JSON object. Restore it, or start a new run.")
    return config


def _read_env(path: Path) -> dict[str, Any]:
    # A damaged env.json is no reason to refuse to go on: nothing is computed from it.
    try:
        env = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {"resumes": []}
    if not isinstance(env, dict) or not isinstance(env.get("resumes", []), list):
        return {"resumes": []}
    return env


def _lock(folder: Path) -> IO[bytes]:
    """Open and lock the lock file; the system releases it when the process ends in any way."""
    lock = open(folder / LOCK_FILE, "ab")  # noqa: SIM115 - stays open as long as the run
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UserError(
            f"another process has the run {folder} open. Wait until it ends, or name another "
            "folder with --run-dir FOLDER."
        ) from None
    except OSError:
        # Some network file systems cannot lock: better an unguarded run than none.
        pass
    return lock
