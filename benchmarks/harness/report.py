"""What a benchmark prints and stores: machine, table, JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from formats.atomic import write_atomically
from formats.errors import UserError
from machine.processor import library_caps
from training.records.environment import describe

QUIET_LOAD = 0.3  # load average above which a machine is not called quiet


def environment() -> dict[str, Any]:
    """What the figures depend on, with the load average; call it before anything is started."""
    return {**describe(), "load": [round(x, 2) for x in os.getloadavg()]}


def begin() -> dict[str, Any]:
    """Cap this process's libraries as ``ATTENTION_ISA`` says, and return `environment`.

    For the beginning of a program, before it imports MXNet. UserError for an unknown value.
    """
    os.environ.update(library_caps())
    return environment()


def check_threads(numbers: Iterable[int]) -> None:
    """Raise UserError for numbers of threads that this machine has no cores for."""
    cores = os.cpu_count() or 1
    wrong = [number for number in numbers if not 1 <= number <= cores]
    if wrong:
        raise UserError(f"--threads {' '.join(map(str, wrong))}; choose from 1 to {cores}")


def machine(known: Mapping[str, Any]) -> str:
    """Return what figures are of: processor, instruction sets, number of cores, no operators."""
    parts = [known["cpu"], known.get("isa"), f"{known['usable_cores']} cores"]
    if known.get("variables", {}).get("ATTENTION_NATIVE") == "0":
        parts.append("without own operators")
    return ", ".join(str(part) for part in parts if part)


def headline(known: Mapping[str, Any]) -> str:
    """Return the line above a table: `machine`, load and commit of `environment`."""
    load = known["load"][0]
    state = "quiet" if load <= QUIET_LOAD else "NOT quiet"
    git = known["git"] or {"commit": "unknown", "dirty": False}
    commit = git["commit"][:7] + (" with changes" if git["dirty"] else "")
    return f"{machine(known)}; load {load} before the start ({state}); commit {commit}"


def header(names: Sequence[str], unit: str) -> str:
    """Return the two lines that begin a Markdown table of `row`."""
    columns = [*names, f"{unit}: median (min to max)", "x first (min to max)", "peak MiB"]
    ruler = ["---"] * len(names) + ["--:"] * 3
    return "\n".join("| " + " | ".join(line) + " |" for line in (columns, ruler))


def row(names: Sequence[str], found: Mapping[str, Any], scale: float = 1e3) -> str:
    """Return a line of the table.

    Parameters
    ----------
    names
        Of the row.
    found
        An entry of `series.compare`; its times are in seconds.
    scale
        What makes the unit of the table of a second.
    """
    low, middle, high = (_three_digits(scale * found[key]) for key in ("min", "median", "max"))
    factor = found["ratio"]
    factors = f"{factor['ratio']:.2f} ({factor['min']:.2f} to {factor['max']:.2f})"
    cells = [*names, f"{middle} ({low} to {high})", factors, f"{found['peak_mib']:.0f}"]
    return "| " + " | ".join(cells) + " |"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def write_between(path: Path, begin: str, end: str, text: str) -> None:
    """Put the text between two marks of a page; UserError where they are missing."""
    page = path.read_text(encoding="utf-8")
    head, mark, rest = page.partition(begin)
    _, last, tail = rest.partition(end)
    if not (mark and last):
        raise UserError(f"{path}: lacks the lines {begin} and {end} that the table goes between")
    write_atomically(path, f"{head}{begin}\n\n{text}\n\n{end}{tail}".encode())


def store(path: str, record: Any) -> None:
    """Write the record as JSON, making its folder."""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
