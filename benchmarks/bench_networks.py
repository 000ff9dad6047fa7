"""All networks against PyTorch, training and inference: ``python benchmarks/bench_networks.py``.

Each row is a network and a mode; both systems take turns, round by round. Before anything is timed
PyTorch's network must give the same logits with the same parameters. Rows are written as they are
done: a run that was stopped goes on where it was, ``--again`` measures anew what is there already.

torch.compile takes minutes for each network. ``--prepare`` compiles all of them into a cache, on a
machine that may be busy; after that the whole table takes about 15 minutes with 2 threads, on a
quiet machine. PyTorch runs in .venv-torch, which is set up when it is missing.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Optional

import numpy as np

# Also as `python benchmarks/bench_networks.py`, which has only this folder on its path.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from benchmarks import network_rows as rows
from benchmarks.bench_glimpse import find_torch
from benchmarks.interleave import ROOT, Asked, Plan, Worker, compare, interleave
from benchmarks.network_report import markdown, page_name
from benchmarks.report import environment, headline, store
from bridge.atomic import write_atomically
from training.config import option, parse
from training.errors import UserError

TOLERANCE = 1e-5  # between the logits of the two systems, over the largest
COMPILE_TIMEOUT_SEC = 3600.0


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    networks: tuple[str, ...] = option(
        tuple(rows.NETWORKS), "networks, by name", choices=tuple(rows.NETWORKS)
    )
    modes: tuple[str, ...] = option((), "only modes that begin so, as: train infer 'infer bf16'")
    threads: int = option(2, "threads of one operator")
    quick: bool = option(False, "one short round of each: shows that all works, measures nothing")
    prepare: bool = option(False, "only set up PyTorch, compare forward passes, fill the cache")
    compile: bool = option(True, "also torch.compile, for inference (needs a C++ compiler)")
    again: bool = option(False, "measure anew the rows that the file has already")
    rounds: int = option(5, "timed rounds of each row; 3 where they take long")
    round_sec: float = option(0.3, "about how long a round lasts, seconds")
    row_sec: float = option(8.0, "after so long no further round of a row is begun, seconds")
    budget_min: float = option(20.0, "after so long no further row is begun, minutes")
    torch_python: Optional[str] = option(None, "interpreter that has PyTorch; default: .venv-torch")
    out: str = option("runs/bench/networks.json", "file that the figures are stored in")
    page: Optional[str] = option(None, "Markdown page; default: docs/speed/CPU.md; '' for none")

    def check(self) -> None:
        """Refuse what measures nothing, or more threads than there are cores."""
        cores = os.cpu_count() or 1
        if not 1 <= self.threads <= cores:
            raise UserError(f"--threads {self.threads}; choose from 1 to {cores}")
        if self.rounds < 1 or not self.networks:
            raise UserError("--rounds and --networks need one or more each")
        if not list(self.wanted()):
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


@dataclass(frozen=True)
class Variant:
    """One form of a system: a worker, and what it is asked for."""

    name: str
    worker: Worker
    prefix: str = ""

    def ask(self, **request: Any) -> dict[str, Any]:
        """Ask the worker for this form of the case."""
        return self.worker.ask(**{**request, "case": self.prefix + request["case"]})


@dataclass(frozen=True)
class Machines:
    """Starts the workers of both systems."""

    config: Config
    torch_python: str
    folder: str

    def ours(self, network: str, precision: str = "float32") -> Worker:
        """Start our worker of a network."""
        overrides = json.dumps(dict(rows.NETWORKS[network].overrides))
        command = [sys.executable, "benchmarks/mxnet_classifier.py", "--model", network]
        command += ["--overrides", overrides, "--precision", precision]
        return Worker("ours", command, self._variables())

    def torch(self, network: str, weights: Optional[str] = None) -> Worker:
        """Start PyTorch's worker of a network."""
        from model import create_model

        known = rows.NETWORKS[network]
        spec = json.dumps(asdict(create_model(network, **dict(known.overrides)).spec))
        command = [self.torch_python, "benchmarks/torch_classifier.py", "--family", known.family]
        command += ["--spec", spec, "--threads", str(self.config.threads)]
        command += ["--weights", weights] if weights else []
        timeout = COMPILE_TIMEOUT_SEC
        return Worker("PyTorch", command, self._variables(), timeout)

    def _variables(self) -> dict[str, str]:
        threads = str(self.config.threads)
        cache = os.path.join(ROOT, "runs", "bench", "torch_cache")
        return {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        }

    def parity(self, network: str, ours: Worker, weights: str) -> tuple[Worker, float]:
        """Give PyTorch our parameters; return its worker, and the difference of the logits.

        Raises
        ------
        UserError
            When it is above `TOLERANCE`.
        """
        paths = [os.path.join(self.folder, f"{network}_{n}.npy") for n in ("in", "ours", "torch")]
        ours.ask(do="save", weights=weights, inputs=paths[0], outputs=paths[1])
        worker = self.torch(network, weights)
        worker.ask(do="forward", inputs=paths[0], outputs=paths[2])
        expected, found = np.load(paths[1]), np.load(paths[2])
        difference = float(np.abs(found - expected).max() / np.abs(expected).max())
        if not difference < TOLERANCE:
            raise UserError(
                f"PyTorch's {network} differs by {difference:.2g} of the largest logit, allowed is "
                f"{TOLERANCE}: it is another network, and its speed says nothing"
            )
        return worker, difference


def measure_training(machines: Machines, network: str, mode: rows.Mode) -> dict[str, Any]:
    """Measure a row of training; every form has a process of its own, whose memory peaks."""
    with ExitStack() as stack:
        variants = [Variant("ours", stack.enter_context(machines.ours(network, mode.precision)))]
        for form in mode.forms:
            worker = stack.enter_context(machines.torch(network))
            variants.append(Variant(form, worker, f"{form}/"))
        return compare(interleave(variants, mode.case, machines.config.plan))


@dataclass
class Inference:
    """The two workers of a network that measure its rows of inference."""

    machines: Machines
    network: str
    ours: Worker
    torch: Worker

    def measure(self, mode: rows.Mode) -> dict[str, Any]:
        """Measure a row."""
        variants: list[Asked] = [Variant("ours", self.ours)]
        for form in mode.forms:
            if form != rows.COMPILED or self.machines.config.compile:
                variants.append(Variant(form, self.torch, f"{form}/"))
        return compare(interleave(variants, mode.case, self.machines.config.plan))


def measure_peak(machines: Machines) -> dict[str, float]:
    """Return seconds of the convolutions that show the machine's peak, the faster system's."""
    found = {}
    network = machines.config.networks[0]  # any will do
    with machines.ours(network) as ours, machines.torch(network) as torch:
        for precision in ("float32", "bfloat16"):
            variants = [Variant("ours", ours)]
            variants += [Variant(form, torch, f"{form}/") for form in rows.EAGER]
            case = f"peak_{precision}_{rows.PEAK_BATCH}"
            series = interleave(variants, case, machines.config.plan)
            for name, one in series.items():
                found[f"{precision}/{name}"] = one.summary()["min"]
    return found


def macs(network: str) -> int:
    """Return the multiply-adds of a network for one image."""
    from model import create_model
    from model.summary import summary_rows

    net = create_model(network, **dict(rows.NETWORKS[network].overrides))
    return sum(row.macs for row in summary_rows(net))


class Table:
    """The file of figures: rows by network and mode, written after each."""

    def __init__(self, config: Config) -> None:
        self.config, self.record = config, {"rows": {}, "peak": {}, "parity": {}, "macs": {}}
        if os.path.exists(config.out):
            try:
                with open(config.out, encoding="utf-8") as file:
                    self.record = json.load(file)
                self.record["rows"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{config.out} is no file of this benchmark ({error}); name another by --out"
                ) from None

    def has(self, network: str, mode: str) -> bool:
        """Tell whether a row need not be measured."""
        return not self.config.again and f"{network}/{mode}" in self.record["rows"]

    def add(self, network: str, mode: str, found: dict[str, Any], known: dict[str, Any]) -> None:
        """Store a row with what it depends on."""
        about = {"threads": self.config.threads, "quick": self.config.quick}
        row = {"network": network, "mode": mode, **about, "systems": found, "environment": known}
        self.record["rows"][f"{network}/{mode}"] = row
        self.write()
        times = ", ".join(f"{name} {1e3 * one['median']:.3g} ms" for name, one in found.items())
        print(f"{network}, {mode}: {times}", flush=True)

    def write(self) -> None:
        """Write the file."""
        store(self.config.out, self.record)


def fill(config: Config, machines: Machines, table: Table, known: dict[str, Any]) -> None:
    """Measure all rows that are wanted and not there, as long as time allows."""
    end = time.monotonic() + 60 * config.budget_min
    if not config.prepare and (config.again or not table.record["peak"]):
        table.record["peak"] = measure_peak(machines)
    for network in config.networks:
        table.record["macs"][network] = macs(network)
        todo = [
            (name, mode)
            for each, name, mode in config.wanted()
            if each == network and not (config.prepare or table.has(network, name))
        ]
        for name, mode in todo:
            if mode.kind == "train" and time.monotonic() < end:
                table.add(network, name, measure_training(machines, network, mode), known)
        infer = [(name, mode) for name, mode in todo if mode.kind == "infer"]
        if (infer or config.prepare) and time.monotonic() < end:
            fill_inference(machines, table, network, infer, known, end)
    table.write()


def fill_inference(
    machines: Machines,
    table: Table,
    network: str,
    todo: Sequence[tuple[str, rows.Mode]],
    known: dict[str, Any],
    end: float,
) -> None:
    """Compare the forward passes of a network, then measure its rows of inference."""
    weights = os.path.join(machines.folder, f"{network}.npz")
    with ExitStack() as stack:
        ours = stack.enter_context(machines.ours(network))
        torch, difference = machines.parity(network, ours, weights)
        stack.enter_context(torch)
        table.record["parity"][network] = difference
        print(f"{network}: PyTorch's logits differ by {difference:.2g} of the largest", flush=True)
        if machines.config.prepare:
            warm_up(torch, network, machines.config)
        for name, mode in todo:
            if time.monotonic() < end:
                found = Inference(machines, network, ours, torch).measure(mode)
                table.add(network, name, found, known)


def warm_up(torch: Worker, network: str, config: Config) -> None:
    """Let torch.compile fill its cache with what the rows of a network need."""
    for each, name, mode in config.wanted():
        if each == network and rows.COMPILED in mode.forms and config.compile:
            start = time.monotonic()
            torch.ask(do="time", case=f"{rows.COMPILED}/{mode.case}", repeat=1)
            print(f"{network}, {name}: compiled in {time.monotonic() - start:.0f} s", flush=True)


def main(argv: Sequence[str]) -> int:
    """Measure, print the table and store the figures; 2 for bad input or a worker that failed."""
    config = parse(Config, argv, "bench_networks.py", __doc__)
    known = environment()
    print(headline(known), flush=True)
    try:
        table = Table(config)
        torch_python = find_torch(config)
        with tempfile.TemporaryDirectory() as folder:
            fill(config, Machines(config, torch_python, folder), table, known)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if config.prepare:
        return 0
    text = markdown(table.record)
    page = page_name(known) if config.page is None else config.page
    print("\n" + text)
    if page and not config.quick:
        os.makedirs(os.path.dirname(os.path.abspath(page)), exist_ok=True)
        write_atomically(page, text.encode())
    print(f"stored in {config.out}" + (f" and {page}" if page and not config.quick else ""))
    missing = sum(not table.has(network, name) for network, name, _ in config.wanted())
    if missing and not config.again:
        print(f"{missing} rows are missing: time was over; the same command measures them")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
