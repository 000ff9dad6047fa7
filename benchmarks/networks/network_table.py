"""The file of figures of bench_networks.py: whose it is, its rows, and what is left out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any, Optional, Protocol

from benchmarks.harness.report import machine, store
from benchmarks.networks import network_rows as rows
from benchmarks.networks.network_report import processor
from benchmarks.networks.network_workers import reason_of
from training.settings.errors import UserError

QUICK_FOLDER = os.path.join("runs", "bench")  # what is quick is kept out of the way
FIGURES_FOLDER, PAGE_FOLDER = "benchmarks/results", "docs/speed_tables"


class Wanted(Protocol):
    """What the table needs of the benchmark's settings."""

    @property
    def threads(self) -> int:
        """Return the threads of one operator."""
        ...

    @property
    def quick(self) -> bool:
        """Tell whether figures say nothing of speed."""
        ...

    @property
    def prepare(self) -> bool:
        """Tell whether nothing is measured."""
        ...

    @property
    def again(self) -> bool:
        """Tell whether rows that are there are measured anew."""
        ...

    @property
    def out(self) -> Optional[str]:
        """Return the file of the figures, where it is named."""
        ...

    @property
    def page(self) -> Optional[str]:
        """Return the page, where it is named."""
        ...

    def wanted(self) -> Iterator[tuple[str, str, rows.Mode]]:
        """Yield network, name of the mode, and mode of every row."""
        ...


def paths(config: Wanted, known: Mapping[str, Any]) -> tuple[str, str]:
    """Return the file of the figures and the page, which have none of another machine.

    A name that another machine's files have gets a number.

    Raises
    ------
    UserError
        When a file that was named has figures of another machine.
    """
    figures, pages = (QUICK_FOLDER,) * 2 if config.quick else (FIGURES_FOLDER, PAGE_FOLDER)
    for number in count(1):
        name = processor(known) + (f"-{number}" if number > 1 else "")
        found = os.path.join(figures, f"{name}.json"), os.path.join(pages, f"{name}.md")
        if not any(others(path, known) for path in found):
            break
    for named in filter(None, (config.out, config.page)):
        other = others(named, known)
        if other:
            raise UserError(
                f"{named} has figures of another machine ({other}); this is {machine(known)}. Name "
                "another file by --out or --page, or leave them out"
            )
    return config.out or found[0], config.page or found[1]


def others(path: str, known: Mapping[str, Any]) -> Optional[str]:
    """Return another machine than this one that a file of figures or a page is of, or None."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
        if path.endswith(".md"):
            lines = [line[2:] for line in text.splitlines() if line.startswith("- ")]
            owners = [line.split("; load ")[0] for line in lines if "; load " in line]
        else:
            found = json.loads(text)["rows"].values()
            owners = [machine(row["environment"]) for row in found]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # nothing there, or no file of this benchmark, which `Table` refuses
    return next((owner for owner in owners if owner != machine(known)), None)


class Table:
    """The file of figures: rows by network and mode, written after each."""

    def __init__(self, config: Wanted, known: dict[str, Any]) -> None:
        self.config, self.known = config, known
        self.path, self.page = paths(config, known)
        self.record: dict[str, Any] = {"rows": {}, "peak": {}, "parity": {}, "macs": {}}
        if os.path.exists(self.path):
            try:
                with open(self.path, encoding="utf-8") as file:
                    self.record = json.load(file)
                if not isinstance(self.record["rows"], dict):
                    raise ValueError("no rows")
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{self.path} is no file of this benchmark ({error}); name another by --out"
                ) from None

    def has(self, network: str, mode: str) -> bool:
        """Tell whether a row is there, measured as it is wanted now."""
        row = self.record["rows"].get(f"{network}/{mode}")
        wanted = {"threads": self.config.threads, "quick": self.config.quick}
        return row is not None and wanted.items() <= row.items()

    def todo(self, network: str, kind: str) -> list[tuple[str, rows.Mode]]:
        """Return the rows of a kind that are still to be measured."""
        return [
            (name, mode)
            for each, name, mode in self.config.wanted()
            if (each, mode.kind) == (network, kind)
            and (self.config.again or not self.has(network, name))
        ]

    def lacking(self) -> tuple[int, int]:
        """Return how many of the wanted rows are left out, and how many were not reached."""
        wanted = [(network, name) for network, name, _ in self.config.wanted()]
        lacking = [f"{network}/{name}" for network, name in wanted if not self.has(network, name)]
        left_out = sum(key in self.record.get("left_out", {}) for key in lacking)
        return left_out, len(lacking) - left_out

    def add(self, network: str, mode: str, found: dict[str, Any], how: Any) -> None:
        """Store a row with what it depends on, and how our side of it was computed."""
        about = {"threads": self.config.threads, "quick": self.config.quick, "how": how}
        row = {"network": network, "mode": mode, **about, "systems": found}
        self.record.get("left_out", {}).pop(f"{network}/{mode}", None)
        self.record["rows"][f"{network}/{mode}"] = {**row, "environment": self.known}
        self.write()
        times = ", ".join(f"{name} {1e3 * one['median']:.3g} ms" for name, one in found.items())
        print(f"{network}, {mode}: {times}", flush=True)

    def leave_out(self, network: str, mode: str, error: UserError) -> None:
        """Store why a row cannot be measured; an older figure of it goes."""
        reason = reason_of(error)
        self.record["rows"].pop(f"{network}/{mode}", None)
        self.record.setdefault("left_out", {})[f"{network}/{mode}"] = reason
        self.write()
        print(f"{network}, {mode}: left out, {reason}", flush=True)

    def keep(self, name: str, found: Any) -> None:
        """Store one of the further tables."""
        self.record[name] = {"environment": self.known, "found": found}
        self.write()

    def write(self) -> None:
        """Write the file."""
        store(self.path, self.record)
