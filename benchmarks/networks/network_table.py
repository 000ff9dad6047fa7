"""What bench_networks.py measures, and its file of figures: whose it is, rows, what is left out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Optional

from benchmarks.harness.interleave import Plan
from benchmarks.harness.report import machine, store
from benchmarks.networks import network_rows as rows
from benchmarks.networks.network_report import processor
from benchmarks.networks.network_workers import COMPILE_TIMEOUT_SEC, reason_of
from formats.errors import UserError
from training.settings.fields import option
from training.settings.run_config import check_least

QUICK_FOLDER = os.path.join("runs", "bench")  # what is quick is kept out of the way
FIGURES_FOLDER, PAGE_FOLDER = "benchmarks/results", "docs/speed_tables"


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    networks: tuple[str, ...] = option(
        tuple(rows.NETWORKS), "classifiers, by name", choices=tuple(rows.NETWORKS)
    )
    glimpse: bool = option(True, "also the glimpse model")
    scaling: bool = option(False, "also how cost grows with batch, depth and image size")
    epoch: bool = option(False, "also the share of an epoch that is the network's")
    data_dir: Optional[str] = option(None, "with --epoch: folder with CIFAR-10; default: shapes")
    modes: tuple[str, ...] = option((), "only modes that begin so, as: train infer 'infer bf16'")
    threads: int = option(0, "threads of one operator; 0: all physical cores")
    quick: bool = option(False, "one short round of each: shows that all works, measures nothing")
    prepare: bool = option(False, "only set up PyTorch, compare forward passes, fill the cache")
    compile: bool = option(True, "also torch.compile, where --prepare compiled it (needs C++)")
    again: bool = option(False, "measure anew the rows that the file has already")
    rounds: int = option(5, "timed rounds of each row; 3 where they take long")
    round_sec: float = option(0.3, "about how long a round lasts, seconds")
    row_sec: float = option(8.0, "after so long no further round of a row is begun, seconds")
    budget_min: float = option(20.0, "after so long no further row is begun, minutes")
    torch_python: Optional[str] = option(None, "interpreter that has PyTorch; default: .venv-torch")
    out: Optional[str] = option(None, "file of the figures; default: benchmarks/results/CPU.json")
    page: Optional[str] = option(None, "Markdown page; default: docs/speed_tables/CPU.md")

    def check(self) -> None:
        """Refuse what measures nothing, or more threads than there are cores."""
        cores = os.cpu_count() or 1
        if not 0 <= self.threads <= cores:
            raise UserError(f"--threads {self.threads}; choose from 1 to {cores}")
        check_least(self, 1, "rounds")
        if self.networks and not list(self.wanted()):
            raise UserError(f"--modes {' '.join(self.modes)}; there is {known_modes()}")

    def wanted(self) -> Iterator[tuple[str, str, rows.Mode]]:
        """Yield network, name of the mode, and mode of every row."""
        for network in self.networks:
            for name, mode in rows.modes_of(rows.NETWORKS[network]).items():
                if not self.modes or name.startswith(self.modes):
                    yield network, name, mode

    @property
    def plan(self) -> Plan:
        """How much is measured of a row."""
        if self.quick or self.prepare:
            return Plan(1, 0, 0.0, COMPILE_TIMEOUT_SEC, repeat=1)
        return Plan(self.rounds, 1, self.round_sec, repeat=1, limit_sec=self.row_sec)


def known_modes() -> str:
    """Return the names of all modes, in a row."""
    return ", ".join(rows.modes_of(next(iter(rows.NETWORKS.values()))))


def paths(config: Config, known: Mapping[str, Any]) -> tuple[str, str]:
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

    def __init__(self, config: Config, known: dict[str, Any]) -> None:
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
