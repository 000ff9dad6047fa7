"""How many threads a command computes with: chosen before OpenMP is loaded, which reads it once.

The number is that of ``--threads``, else the one that a resumed run began with, else
``OMP_NUM_THREADS``, else the physical cores that other processes leave idle. `take_threads` is for
the first lines of a program, before MXNet, PyTorch or NumPy is imported; importing this module
changes nothing.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Optional

from formats.errors import UserError
from machine.cores import Cores, idle_cores, physical_cores
from training.settings.words import value_of

FLAG, VARIABLE = "--threads", "OMP_NUM_THREADS"
# What a process tells those that it starts: the number that it has put into OMP_NUM_THREADS, and
# why, so that they do not take it for the user's.
REASON_VARIABLE = "ATTENTION_THREADS"
# Workers of one training on this machine, each of which gets its share.
WORKERS_VARIABLES = ("ATTENTION_LOCAL_WORKERS", "HOROVOD_LOCAL_SIZE")
# How threads wait for each other at the end of every operator: spinning as long as libgomp does by
# itself. Sleeping costs more than a second thread gives, and does not help beside a busy process;
# docs/speed.md has the measurements.
WAIT_POLICY: Mapping[str, str] = {"GOMP_SPINCOUNT": "300000"}
# With one of these set the user has chosen how to wait.
WAIT_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
ENV_FILE = "env.json"  # of a run folder
WRONG_INPUT_EXIT = 2


class Threads(NamedTuple):
    """A number of threads, why it was taken, and lines to tell the user."""

    number: int
    reason: str
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return as_text(self.number, self.reason)


def as_text(number: Optional[int], reason: str) -> str:
    """Return a number of threads with its reason: ``2 threads: physical cores``."""
    return f"{number} thread{'' if number == 1 else 's'}: {reason}"


def take_threads(
    argv: Sequence[str], wait_policy: Optional[Mapping[str, str]] = None, needs: Sequence[str] = ()
) -> Threads:
    """Choose the number of threads by a command line, and let OpenMP and OpenBLAS read it.

    Parameters
    ----------
    argv
        Words of the command line, of which ``--threads`` and ``--resume`` are read.
    wait_policy
        Environment that says how threads wait, set where the user has not chosen; None:
        `WAIT_POLICY`.
    needs
        Packages that the program imports next.

    Returns
    -------
    Threads
        What was chosen, and is in the environment now. A number that cannot be used, or a package
        that is not there, ends the program with exit code 2 and one line.
    """
    missing = [name for name in needs if find_spec(name) is None]
    if missing:
        print(
            f"error: {sys.executable} has no {', '.join(missing)}: run make setup once in the "
            "project's folder, then start this with .venv/bin/python",
            file=sys.stderr,
        )
        sys.exit(WRONG_INPUT_EXIT)
    try:
        chosen = choose_threads(argv, os.environ, physical_cores(), idle_cores)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(WRONG_INPUT_EXIT)
    for note in chosen.notes:
        print(f"note: {note}", file=sys.stderr)
    set_threads(chosen, os.environ, WAIT_POLICY if wait_policy is None else wait_policy)
    return chosen


def set_threads(
    chosen: Threads, environ: MutableMapping[str, str], wait_policy: Mapping[str, str]
) -> None:
    """Put a number of threads, its reason and a way to wait into an environment."""
    # A list of numbers, for nested teams, stays.
    if _first_number(environ.get(VARIABLE, "")) != chosen.number:
        environ[VARIABLE] = str(chosen.number)
    environ[REASON_VARIABLE] = f"{chosen.number} {chosen.reason}"
    if not any(environ.get(name) for name in WAIT_VARIABLES):
        for name, value in wait_policy.items():
            environ.setdefault(name, value)


def choose_threads(
    argv: Sequence[str],
    environ: Mapping[str, str],
    cores: Cores,
    idle: Callable[[], Optional[int]] = lambda: None,
) -> Threads:
    """Return the number of threads for a command line, an environment and a machine.

    `idle` is asked for the number of idle cores where nothing else says how many to take: threads
    wait for each other at the end of every operator, so one that shares its core with another
    process makes all of them slower than the idle cores alone would be.

    Raises
    ------
    UserError
        For a ``--threads`` or ``OMP_NUM_THREADS`` that is no whole number of 1 or more.
    """
    flag = check_threads(value_of(argv, FLAG), FLAG)
    variable = check_threads(environ.get(VARIABLE) or None, VARIABLE)
    began = recorded_threads(read_record(value_of(argv, "--resume")), local_workers(environ))
    notes = []
    if flag is not None:
        number, reason = flag, FLAG
        if variable not in (None, flag) and not inherited_reason(environ):
            notes.append(f"{FLAG} {flag} goes before {VARIABLE}={variable}")
    elif began is not None:
        number, reason = began, "as the run began"
        if variable not in (None, began) and not inherited_reason(environ):
            notes.append(
                f"the run began with {began} threads and keeps them, {VARIABLE}={variable} is not "
                f"taken; {FLAG} {variable} takes another number, which changes how sums are rounded"
            )
    elif variable is not None:
        number, reason = variable, inherited_reason(environ) or VARIABLE
    else:
        workers = local_workers(environ)
        number, reason, _ = share_of(cores, workers)
        # Workers of one training start together, each busy in the eyes of the others.
        free = idle() if workers == 1 and number > 1 else None
        if free is not None and free < number:
            reason = f"idle ones of {number} {reason}, {FLAG} {number} takes all"
            number = max(1, free)
    if number > cores.number:
        notes.append(
            f"{as_text(number, reason)}; this process may use {cores.number} ({cores.reason}). "
            "More threads than cores are slow"
        )
    return Threads(number, reason, tuple(notes))


def share_of(cores: Cores, workers: int) -> Threads:
    """Return the threads of one of several workers on a machine."""
    among = f" shared by {workers} workers" if workers > 1 else ""
    number = f"{cores.number} " if workers > 1 else ""
    return Threads(max(1, cores.number // workers), f"{number}{cores.reason}{among}")


def check_threads(text: Optional[str], name: str) -> Optional[int]:
    """Return the number that a flag or variable called `name` gives; None where it is not given.

    Raises
    ------
    UserError
        When it is no whole number of 1 or more.
    """
    if text is None:
        return None
    # OpenMP takes a list, of which the first number counts for teams that are not nested.
    number = _first_number(text) if name == VARIABLE else _whole(text)
    if not number:
        given = f"{name}{'=' if name == VARIABLE else ' '}{text}".rstrip()
        raise UserError(
            f"{given}: give a whole number of threads from 1 on, or leave it out to take all "
            "physical cores"
        )
    return number


def _first_number(text: str) -> Optional[int]:
    return _whole(text.partition(",")[0].strip())


def _whole(text: str) -> Optional[int]:
    return int(text) if text.isascii() and text.isdigit() else None


def inherited_reason(environ: Mapping[str, str]) -> Optional[str]:
    """Return why a parent process of this project has set OMP_NUM_THREADS; None: it was not one."""
    number, _, reason = environ.get(REASON_VARIABLE, "").partition(" ")
    mine = _first_number(environ.get(VARIABLE, ""))
    return reason if reason and mine is not None and number == str(mine) else None


def local_workers(environ: Mapping[str, str]) -> int:
    """Return how many workers of one training are on this machine."""
    found = (_whole(environ.get(name, "")) for name in WORKERS_VARIABLES)
    return next((number for number in found if number), 1)


def read_record(run: Optional[str]) -> Mapping[str, Any]:
    """Return ``env.json`` of a run folder, or of the folder of one of its files; empty for none."""
    if not run:
        return {}
    for folder in (Path(run), Path(run).parent):
        try:
            record = json.loads((folder / ENV_FILE).read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        return record if isinstance(record, dict) else {}
    return {}


def recorded_threads(record: Mapping[str, Any], workers: Optional[int] = None) -> Optional[int]:
    """Return the number of threads that a run began with, by its ``env.json``.

    None: it is not known, or others than `workers` workers shared the machine then.
    """
    threads = record.get("threads")
    if not isinstance(threads, dict):
        return None
    if workers not in (None, threads.get("local_workers", workers)):
        return None
    number = threads.get("effective")
    if "reason" not in threads:  # a record from before threads were chosen, where it may be wrong
        variable, cores = threads.get(VARIABLE), record.get("usable_cores")
        number = _first_number(variable) if isinstance(variable, str) else None
        if variable is None and type(cores) is int:
            number = max(1, cores // 2)  # MXNet's own choice
    return number if type(number) is int and number > 0 else None
