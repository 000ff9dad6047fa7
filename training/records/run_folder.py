"""A run folder as such: who may write to it, whether it holds a run, and what the run was told."""

from __future__ import annotations

import fcntl
import json
import time
from pathlib import Path
from typing import IO, Any

from formats.atomic import PathLike
from formats.errors import UserError, quoted
from training.records.metrics import METRICS_FILE

CONFIG_FILE = "config.json"
ENV_FILE = "env.json"
LOCK_FILE = ".lock"
REMEDY = "Make it writable, or continue a copy of it in another place."
STATE_FILE = "resume.state"
LAST_FILE = "last.param"
BEST_FILE = "best.param"
CURVES_FILE = "curves.png"


def hold(folder: PathLike, remedy: str = REMEDY) -> IO[bytes]:
    """Keep other processes out of a run folder, as long as the file that is returned is open.

    The system releases it when the process ends in any way. `remedy` is what to do where the folder
    cannot be written.

    Raises
    ------
    UserError
        When another process holds the folder, or it cannot be written.
    """
    try:
        lock = open(Path(folder) / LOCK_FILE, "ab")  # noqa: SIM115 - stays open as long as the run
    except OSError as error:
        raise UserError(
            f"cannot write to the run folder {folder}: {error.strerror}. {remedy}"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UserError(
            f"another process has the run {folder} open. Wait until it ends, or end it. A new run "
            "can have another folder: --run-dir FOLDER."
        ) from None
    except OSError:
        # Some network file systems cannot lock: better an unguarded run than none.
        pass
    return lock


def has_begun(folder: PathLike) -> bool:
    """Return whether a run in the folder has anything that a fresh start would overwrite.

    A run that was ended between its configuration and its first checkpoint has not.
    """
    return any((Path(folder) / name).exists() for name in (STATE_FILE, METRICS_FILE, LAST_FILE))


def refuse_begun(folder: PathLike) -> None:
    """Raise UserError where a new run would overwrite one that has begun to train."""
    if has_begun(folder):
        raise UserError(
            f"{folder} already holds a run, which would be overwritten. Continue it with "
            f"--resume {quoted(folder)}, or name another folder with --run-dir FOLDER."
        )


def weight_files(folder: PathLike) -> list[str]:
    """Return the paths of a run's last and best file, those of them that are there."""
    paths = [Path(folder) / name for name in (LAST_FILE, BEST_FILE)]
    return [str(path) for path in paths if path.exists()]


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
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}. Restore it, or start a new run.") from error
    if not isinstance(config, dict):
        raise UserError(f"{path} is damaged: not a JSON object. Restore it, or start a new run.")
    return config


def read_env(folder: PathLike) -> dict[str, Any]:
    """Return what ``env.json`` holds, or an empty record where it is missing or damaged."""
    # A damaged env.json is no reason to refuse to go on: nothing is computed from it.
    try:
        env = json.loads((Path(folder) / ENV_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {"resumes": []}
    if not isinstance(env, dict) or not isinstance(env.get("resumes", []), list):
        return {"resumes": []}
    return env


def default_folder(dataset: str, model: str) -> str:
    """Return a new run folder's name, with the time in it."""
    return f"runs/{dataset.split(':')[0]}-{model}-{time.strftime('%Y%m%d-%H%M%S')}"
