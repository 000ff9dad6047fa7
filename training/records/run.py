"""One run, one folder: configuration, environment, metrics, MXBoard event files.

================  ==================================================================
``config.json``   the configuration, written once
``env.json``      `training.records.environment.describe` at the start, and at every resume
``metrics.jsonl`` one JSON object per finished epoch
event files       the same numbers, histograms, images and the graph for TensorBoard
``.lock``         held while a process has the run open
================  ==================================================================
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Optional

import numpy as np

from formats.atomic import PathLike, remove_leftovers, write_atomically
from formats.errors import UserError, first_line, quoted
from training.records.board import Board, NoBoard
from training.records.environment import describe
from training.records.event_file import cut_back_folder
from training.records.metrics import MetricsTable, append_metrics, cut_back_metrics, metrics_row
from training.records.run_folder import (
    CONFIG_FILE,
    ENV_FILE,
    hold,
    read_config,
    read_env,
    refuse_begun,
)
from training.records.seed_log import write_seed_files

__all__ = ["Run"]


ELSEWHERE = "Name a folder that you may write to, on a disk with room, with --run-dir FOLDER."
MAX_RESUMES = 100  # that are kept on record


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
            Made with its parents. It may exist, but not hold a run that has begun to train.
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
        except OSError as error:
            raise UserError(
                f"cannot make the run folder {folder}: {error.strerror}. {ELSEWHERE}"
            ) from error
        run = cls(folder, config, 0, hold(folder, ELSEWHERE))
        try:
            refuse_begun(folder)
            with run._disk(ELSEWHERE):
                # What a run left that was ended before its first checkpoint.
                remove_leftovers(folder, below=False)
                if (folder / CONFIG_FILE).exists():
                    cut_back_folder(folder, -1)
                env = {**describe(), "command": list(command), "resumes": []}
                run._write_json(ENV_FILE, env)
                # Last, because this file is what makes the folder a run.
                run._write_json(CONFIG_FILE, run.config)
        except BaseException:
            run.close()
            raise
        return run

    @classmethod
    def resume(
        cls,
        folder: PathLike,
        epoch: int,
        lock: Optional[IO[bytes]] = None,
        tensorboard: Optional[bool] = None,
    ) -> Run:
        """Reopen a run at a checkpoint: everything recorded after it is dropped.

        Parameters
        ----------
        folder : str or os.PathLike
            Folder of an earlier `Run.create`.
        epoch : int
            Number of finished epochs in the checkpoint. ``metrics.jsonl`` and, where event files
            are written, all of them are cut back to it.
        lock : file, optional
            What `training.records.run_folder.hold` gave for the folder; default: it is locked here.
        tensorboard : bool, optional
            Whether event files are written; default: as before. Those that are there stay as they
            are where none are written.

        Raises
        ------
        UserError
            The folder holds no run, is in use, or its files are damaged.
        """
        folder = Path(folder)
        config = read_config(folder)
        if tensorboard is not None:
            config = {**config, "tensorboard": tensorboard}
        run = cls(folder, config, epoch, lock or hold(folder))
        try:
            with run._disk():
                remove_leftovers(folder)
                cut_back_metrics(folder, epoch)
                if run.config.get("tensorboard", True):
                    cut_back_folder(folder, epoch)
                env = read_env(folder)
                resumes = [*env.get("resumes", []), {"epoch": epoch, **describe()}]
                env["resumes"] = resumes[-MAX_RESUMES:]
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
            `training.records.metrics.METRICS_ORDER` has the common keys. Losses are mean
            cross-entropy per image in nats, accuracies are between 0 and 1. NaN and infinity become
            null in ``metrics.jsonl``: JSON has no name for them.
        """
        if epoch <= self.epoch:
            raise ValueError(f"epoch {epoch} is on record already (last: {self.epoch})")
        row = metrics_row(epoch, values)
        with self._disk():
            if epoch == 1:
                self._board.text("settings", as_table(self.config), epoch)
            self._board.epoch(row)
            self._board.flush()
            append_metrics(self.folder, row)
            if self.config.get("seed_format"):
                write_seed_files(self.folder)
        self.epoch = epoch
        for text in self._table.lines(row):
            print(text, flush=True)

    def histograms(
        self, epoch: int, arrays: Mapping[str, np.ndarray], group: str = "weights"
    ) -> None:
        """Record the distribution of each array, all in one of TensorBoard's groups, a module's
        beside each other.
        """
        with self._disk():
            for name, values in arrays.items():
                self._board.histogram(f"{group}/{name.replace('.', '/')}", values, epoch)
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
            print(
                f"warning: no graph for TensorBoard: {first_line(error)}",
                file=sys.stderr,
                flush=True,
            )

    def write(self, name: str, content: bytes) -> None:
        """Put a further file into the folder."""
        with self._disk():
            write_atomically(self.folder / name, content)

    def close(self) -> None:
        """Close the event files and let other processes open the run."""
        try:
            with self._disk():
                self._board.close()
        finally:
            self._lock.close()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @contextlib.contextmanager
    def _disk(self, remedy: str = "") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            remedy = remedy or f"Mend that, then continue with --resume {quoted(self.folder)}."
            raise UserError(
                f"cannot write to the run folder {self.folder}: {error.strerror}. {remedy}"
            ) from error

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        text = json.dumps(value, indent=2, allow_nan=False)
        write_atomically(self.folder / name, text.encode() + b"\n")


def as_table(settings: Mapping[str, Any]) -> str:
    """Return settings as a table of Markdown, in which no value can end a cell."""
    rows = (
        (name, "" if value is None else str(value).replace("|", "\\|").replace("\n", " "))
        for name, value in settings.items()
    )
    return "\n".join(["| setting | value |", "|---|---|", *(f"| {n} | {v} |" for n, v in rows)])
