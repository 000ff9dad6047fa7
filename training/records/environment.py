"""What a run ran on: versions, processor, threads, git commit, command line."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Optional

from machine.cores import allowed_processors
from machine.processor import cpu_name, instructions
from training.compute.thread_choice import VARIABLE, as_text, inherited_reason, local_workers

PACKAGES = ("mxnet", "mxnet-cu117", "numpy", "gluoncv", "mxboard", "protobuf", "torch")
# Variables that change speed or results.
VARIABLE_PREFIXES = (
    *("OMP_", "GOMP_", "MXNET_", "DNNL_", "MKLDNN_", "CUDA_VISIBLE_DEVICES"),
    *("ONEDNN_", "ATEN_", "ATTENTION_ISA", "ATTENTION_NATIVE"),
)
GIT_TIMEOUT_SEC = 10.0
_facts: dict[str, str] = {}  # found out by this process, see `remember`
PROJECT = Path(__file__).resolve().parents[2]


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
        `machine.processor`), ``cores`` (of the machine), ``usable_cores`` (of this
        process), ``threads`` (see `describe_threads`), ``variables``, ``git``, and what `remember`
        was told.

    Raises
    ------
    UserError
        When ``ATTENTION_ISA`` has an unknown value.
    """
    return {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": _command(),
        "python": platform.python_version(),
        "packages": _versions(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "isa": instructions(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "threads": describe_threads(),
        "variables": _variables(),
        "git": _git_state(PROJECT),
        **_facts,
    }


def _command() -> list[str]:
    """Return the words of the command line; ``-m`` and the module's name in place of its file."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is None:
        return list(sys.argv)
    return ["-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]


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
    return len(allowed_processors())


def describe_threads() -> dict[str, Any]:
    """Describe how many threads this process computes with.

    Returns
    -------
    dict
        JSON-serializable: ``OMP_NUM_THREADS`` as it is set, ``effective`` (the number of an
        operator's threads), ``reason`` (who has chosen it) and ``local_workers`` (processes of one
        training on this machine).
    """
    own = VARIABLE if os.environ.get(VARIABLE) else "the library's own choice"
    return {
        VARIABLE: os.environ.get(VARIABLE),
        "effective": _effective_threads(),
        "reason": inherited_reason(os.environ) or own,
        "local_workers": local_workers(os.environ),
    }


def threads_text() -> str:
    """Return the number of threads of this process and who has chosen it, in words."""
    found = describe_threads()
    return as_text(found["effective"], found["reason"])


def _effective_threads() -> Optional[int]:
    """Number of OpenMP threads: the loaded OpenMP library's own answer, else the expected one."""
    setting = os.environ.get(VARIABLE, "").partition(",")[0].strip()
    number = _loaded_threads()
    if number is None:
        return int(setting) if setting.isdigit() else usable_cores()
    # MXNet takes half of them by itself, at least one.
    return max(1, number // 2) if "mxnet" in sys.modules and not setting else number


def _loaded_threads() -> Optional[int]:
    """Ask the OpenMP library that is in the process already; None: there is none to ask."""
    if not hasattr(os, "RTLD_NOLOAD"):
        return None
    found: list[int] = []

    def ask() -> None:
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
            found.append(int(library.omp_get_max_threads()))

    # In a thread of its own, as MXNet's engine has: what another one has set, as
    # `model.execution.threads.copy_on_one_thread` does for its caller, holds for that one alone.
    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()
    return found[0] if found else None


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


def warn_threads(before: Optional[int], threads: Optional[int]) -> None:
    """Warn when a resumed run has another number of CPU threads than before."""
    if before != threads:
        warn(
            f"this run was made with {before} CPU threads and goes on with {threads}; sums are "
            f"then rounded differently. For the same bits give --threads {before}."
        )


def warn(text: str) -> None:
    """Print a warning, on the standard error."""
    print(f"warning: {text}", file=sys.stderr)
