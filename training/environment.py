"""What a run ran on: versions, processor, threads, git commit, command line."""

from __future__ import annotations

import ctypes
import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Optional

from training.processor import cpu_name, instructions

PACKAGES = ("mxnet", "mxnet-cu117", "numpy", "gluoncv", "mxboard", "protobuf", "torch")
# Variables that change speed or results.
VARIABLE_PREFIXES = (
    *("OMP_", "MXNET_", "DNNL_", "MKLDNN_", "CUDA_VISIBLE_DEVICES"),
    *("ONEDNN_", "ATEN_", "ATTENTION_ISA", "ATTENTION_NATIVE"),
)
GIT_TIMEOUT_SEC = 10.0
_facts: dict[str, str] = {}  # found out by this process, see `remember`
PROJECT = Path(__file__).resolve().parent.parent


def remember(name: str, fact: str) -> None:
    """Let `describe` say from now on what this process has found out or chosen."""
    _facts[name] = fact


def describe() -> dict[str, Any]:
    """Describe the machine, the software and the command of this process.

    Nothing is imported and no device is touched. What cannot be found out is None.

    Returns
    -------
    dict
        JSON-serializable: ``time`` (UTC, ISO 8601), ``command``, ``python``, ``packages``
        (name to version), ``platform``, ``cpu`` and ``isa`` (its name and instruction sets, see
        `training.processor`), ``cores`` (of the machine), ``usable_cores`` (of this process),
        ``threads``, ``variables``, ``git``, and what `remember` was told.

    Raises
    ------
    UserError
        When ``ATTENTION_ISA`` has an unknown value.
    """
    return {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": list(sys.argv),
        "python": platform.python_version(),
        "packages": _versions(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "isa": instructions(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "threads": {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
            "effective": _effective_threads(),
        },
        "variables": _variables(),
        "git": _git_state(PROJECT),
        **_facts,
    }


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _effective_threads() -> Optional[int]:
    """Number of OpenMP threads: the loaded OpenMP library's own answer, else the expected one."""
    # RTLD_NOLOAD asks for a library that is in the process already, and loads nothing.
    mode = getattr(os, "RTLD_NOLOAD", 0) | getattr(os, "RTLD_LAZY", 0)
    if hasattr(os, "RTLD_NOLOAD"):
        try:
            return int(ctypes.CDLL("libgomp.so.1", mode=mode).omp_get_max_threads())
        except (OSError, AttributeError):
            pass
    setting = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(setting) if setting.isdigit() else usable_cores()


def _variables() -> dict[str, str]:
    """Values that look like paths are left out: they say nothing on another machine."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(VARIABLE_PREFIXES) and os.sep not in value
    }


def _git_state(folder: Path) -> Optional[dict[str, Any]]:
    # A copy of the project inside another repository must not report that one's commit.
    if not (folder / ".git").exists():
        return None
    commit = _git(folder, ["rev-parse", "HEAD"])
    if commit is None:
        return None
    changes = _git(folder, ["status", "--porcelain", "--untracked-files=no"])
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _git(folder: Path, arguments: Sequence[str]) -> Optional[str]:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_SEC,
            stdin=subprocess.DEVNULL,
            # Reading the state must not take the index lock from a commit in progress.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
            check=True,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()
