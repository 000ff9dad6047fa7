"""The two systems of bench_networks.py: their processes, their parity, and one row at a time."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Optional

import numpy as np

from benchmarks.harness.interleave import ROOT, Asked, Plan, Worker, interleave
from benchmarks.harness.report import store
from benchmarks.harness.series import Series, compare
from benchmarks.networks import network_rows as rows
from formats.errors import UserError
from machine.processor import instructions, instructions_slug

ATTEMPTS = 3  # of measuring a row, until it is steady
TOLERANCE = 1e-5  # between the logits of the two systems, over the largest
COMPILE_TIMEOUT_SEC = 3600.0
CACHE = os.path.join(ROOT, "runs", "bench", "torch_cache")
CACHED = os.path.join(CACHE, "bench_networks.json")  # what the cache has, as `key` names it


@dataclass(frozen=True)
class Variant:
    """One form of a system: a worker, and what it is asked for."""

    name: str
    worker: Worker
    prefix: str = ""
    case: Optional[str] = None  # another one than is asked for

    def ask(self, **request: Any) -> dict[str, Any]:
        """Ask the worker for this form of the case."""
        case = self.prefix + (self.case or request["case"])
        return self.worker.ask(**{**request, "case": case})


@dataclass(frozen=True)
class Machines:
    """Starts the workers of both systems.

    Parameters
    ----------
    torch_python
        Interpreter that has PyTorch.
    folder
        For the files by which parameters and logits are handed over.
    threads
        Of one operator.
    plan
        How much is measured of a row.
    compile
        Measure torch.compile too, for inference, where `warm_up` has filled its cache.
    """

    torch_python: str
    folder: str
    threads: int
    plan: Plan
    compile: bool = True

    def ours(self, network: str) -> Worker:
        """Start our worker of a network."""
        overrides = json.dumps(dict(rows.NETWORKS[network].overrides))
        command = [sys.executable, "-m", "benchmarks.networks.mxnet_classifier", "--model", network]
        command += ["--overrides", overrides]
        return Worker("ours", command, self._variables())

    def torch(self, network: str, weights: Optional[str] = None) -> Worker:
        """Start PyTorch's worker of a network."""
        from model import create_model

        known = rows.NETWORKS[network]
        spec = json.dumps(asdict(create_model(network, **dict(known.overrides)).spec))
        command = [
            self.torch_python,
            "-m",
            "benchmarks.networks.torch_classifier",
            "--family",
            known.family,
        ]
        command += ["--spec", spec, "--threads", str(self.threads)]
        command += ["--weights", weights] if weights else []
        timeout = COMPILE_TIMEOUT_SEC
        return Worker("PyTorch", command, self._variables(), timeout)

    def _variables(self) -> dict[str, str]:
        threads = str(self.threads)
        return {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TORCHINDUCTOR_CACHE_DIR": CACHE,
            "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        }

    def key(self, network: str, mode: rows.Mode) -> str:
        """Return the name of a compiled network; its code depends on threads and processor."""
        return f"{network}/{mode.case}/{self.threads}/{instructions_slug(instructions())}"

    def has_compiled(self, network: str, mode: rows.Mode) -> bool:
        """Tell whether torch.compile is to be measured."""
        return self.compile and self.key(network, mode) in cached()

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


def settled(variants: Sequence[Asked], case: str, plan: Plan) -> dict[str, Series]:
    """Return the series of a case; one that the machine disturbed is measured again.

    Where no attempt is steady the steadiest is returned; `network_report` names such rows.
    """
    best: dict[str, Series] = {}
    for _ in range(ATTEMPTS):
        found = interleave(variants, case, plan)
        if not best or spread_of(found) < spread_of(best):
            best = found
        if spread_of(best) <= rows.STEADY:
            break
    return best


def spread_of(found: Mapping[str, Series]) -> float:
    """Return the largest spread of a case's series."""
    return max(one.spread for one in found.values())


Measured = tuple[dict[str, Any], Any]  # figures by system, and how ours was computed


@dataclass(frozen=True)
class Training:
    """Measures a network's rows of training: every form in a process of its own, for its memory."""

    machines: Machines
    network: str

    def measure(self, mode: rows.Mode) -> Measured:
        """Measure a row."""
        with ExitStack() as stack:
            variants = [Variant("ours", stack.enter_context(self.machines.ours(self.network)))]
            for form in mode.forms:
                worker = stack.enter_context(self.machines.torch(self.network))
                variants.append(Variant(form, worker, f"{form}/"))
            found = compare(settled(variants, mode.case, self.machines.plan))
            return found, describe(variants[0].worker, mode)


def describe(ours: Asked, mode: rows.Mode) -> dict[str, Any]:
    """Return how our worker computed a row."""
    about = {"kind": mode.kind, "precision": mode.precision, "batch": mode.batch}
    return ours.ask(do="describe", **about)


@dataclass
class Inference:
    """The two workers of a network that measure its rows of inference."""

    machines: Machines
    network: str
    ours: Worker
    torch: Worker

    def measure(self, mode: rows.Mode) -> Measured:
        """Measure a row."""
        variants: list[Asked] = [Variant("ours", self.ours)]
        for form in mode.forms:
            if form == rows.WIDE:
                variants.append(Variant(form, self.ours, case=mode.case_in(rows.WIDE)))
            elif form != rows.COMPILED or self.machines.has_compiled(self.network, mode):
                variants.append(Variant(form, self.torch, f"{form}/"))
        found = compare(settled(variants, mode.case, self.machines.plan))
        return found, describe(self.ours, mode)


def measure_peak(machines: Machines, network: str) -> dict[str, Any]:
    """Return what convolutions that show the machine's peak take, and what cannot be computed.

    Any network will do: its workers have the convolutions too.

    Returns
    -------
    dict
        ``peak``: seconds by precision and system, ``peak_left_out``: a reason by the same. Without
        ours nothing is measured, as no row needs it.
    """
    found: dict[str, float] = {}
    left_out: dict[str, str] = {}
    with machines.ours(network) as ours, machines.torch(network) as torch:
        forms = [Variant(form, torch, f"{form}/") for form in rows.EAGER]
        for precision in ("float32", "bfloat16"):
            case = f"peak_{precision}_{rows.PEAK_BATCH}"
            able: list[Asked] = []
            for variant in (Variant("ours", ours), *forms):
                try:
                    variant.ask(do="time", case=case, repeat=1)
                except UserError as error:
                    left_out[f"{precision}/{variant.name}"] = reason_of(error)
                    if variant.worker is ours:
                        break
                else:
                    able.append(variant)
            for name, one in interleave(able, case, machines.plan).items():
                found[f"{precision}/{name}"] = one.summary()["min"]
    return {"peak": found, "peak_left_out": left_out}


def reason_of(error: UserError) -> str:
    """Return the first line of a worker's error: who it is, and what it says."""
    (reason, *_) = str(error).splitlines()
    return re.sub(r"^worker (.+?): \w+: \w+: ", r"\1: ", reason)


def cached() -> list[str]:
    """Return what `warm_up` has compiled so far."""
    try:
        with open(CACHED, encoding="utf-8") as file:
            return list(json.load(file))
    except (OSError, ValueError):
        return []


def warm_up(
    machines: Machines,
    ours: Asked,
    torch: Asked,
    network: str,
    modes: Sequence[tuple[str, rows.Mode]],
) -> None:
    """Let torch.compile fill its cache with what the rows of a network need.

    A row that ours cannot compute on this processor is left out of the table and needs nothing.
    """
    for name, mode in modes:
        if rows.COMPILED in mode.forms and not machines.has_compiled(network, mode):
            start = time.monotonic()
            try:
                ours.ask(do="time", case=mode.case, repeat=1)
                torch.ask(do="time", case=f"{rows.COMPILED}/{mode.case}", repeat=1)
            except UserError as error:  # no C++ compiler, or no such arithmetic
                print(f"{network}, {name}: not compiled, {reason_of(error)}", flush=True)
                continue
            store(CACHED, [*cached(), machines.key(network, mode)])
            print(f"{network}, {name}: compiled in {time.monotonic() - start:.0f} s", flush=True)
