"""Where the time of a step goes: ``python -m benchmarks.networks.profile_operators --model
attention92``.

A training step or a forward pass as bench_networks.py measures it runs under MXNet's profiler, each
operator by itself (bulk execution off), and the time is added up by kind of operator. Own operators
of this project are one entry each: a residual unit is one of them.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.harness.report import begin, headline
from benchmarks.networks import network_rows as rows
from training.compute.thread_choice import take_threads
from training.settings.config import parse
from training.settings.exit_code import exits
from training.settings.fields import option

WARM_UP = 3
BULK = (
    "MXNET_EXEC_BULK_EXEC_INFERENCE",
    "MXNET_EXEC_BULK_EXEC_TRAIN",
    "MXNET_EXEC_BULK_EXEC_MAX_NODE_TRAIN",
)


@dataclass(frozen=True)
class Config:
    """Settings of the profile; the number of threads is OMP_NUM_THREADS."""

    model: str = option("attention92", "network", choices=tuple(rows.NETWORKS))
    mode: str = option("train", "what is done", choices=("train", "infer"))
    precision: str = option("float32", "arithmetic", choices=("float32", "bfloat16"))
    batch: int = option(0, "images; 0: as bench_networks.py trains with, or 128")
    steps: int = option(5, "profiled steps")
    least: float = option(1.0, "least share of an entry that is printed, per cent")


def by_operator(events: Sequence[Mapping[str, Any]], steps: int) -> dict[str, tuple[float, float]]:
    """Return milliseconds and calls of a step by operator, from a trace of begins and ends."""
    found: dict[str, tuple[float, float]] = {}
    begun: dict[tuple[Any, Any, str], float] = {}
    for event in events:
        if event.get("cat") != "operator" or event["ph"] not in "BE":
            continue
        key = (event["pid"], event["tid"], event["name"])
        if event["ph"] == "B":
            begun[key] = event["ts"]
        elif key in begun:
            milliseconds, calls = found.get(event["name"], (0.0, 0.0))
            spent = (event["ts"] - begun.pop(key)) / 1e3 / steps
            found[event["name"]] = milliseconds + spent, calls + 1 / steps
    return found


def profile(config: Config) -> dict[str, tuple[float, float]]:
    """Run the steps under the profiler and return `by_operator`."""
    import mxnet as mx

    from benchmarks.networks.mxnet_classifier import Config as Worker
    from benchmarks.networks.mxnet_classifier import Steps

    known = rows.NETWORKS[config.model]
    batch = config.batch or (known.train_batch if config.mode == "train" else rows.LARGE)
    worker = Worker(model=config.model, overrides=json.dumps(dict(known.overrides)))
    step = Steps(worker)[f"{config.mode}_{config.precision}_{batch}"]
    for _ in range(WARM_UP):
        step()
    mx.nd.waitall()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        mx.profiler.set_config(filename=path, profile_symbolic=True, profile_imperative=True)
        mx.profiler.set_state("run")
        for _ in range(config.steps):
            step()
        mx.nd.waitall()
        mx.profiler.set_state("stop")
        mx.profiler.dump()
        with open(path, encoding="utf-8") as file:
            events = json.load(file)["traceEvents"]
    return by_operator(events, config.steps)


def table(found: Mapping[str, tuple[float, float]], least: float) -> str:
    """Return the operators as a Markdown table, the longest first; small ones in one line."""
    total = sum(milliseconds for milliseconds, _ in found.values()) or 1.0
    lines = ["| operator | ms | share | calls |", "|---|---|---|---|"]
    rest, rest_calls = 0.0, 0.0
    for name, (milliseconds, calls) in sorted(found.items(), key=lambda item: -item[1][0]):
        if 100 * milliseconds / total < least:
            rest, rest_calls = rest + milliseconds, rest_calls + calls
            continue
        lines.append(f"| {name} | {milliseconds:.1f} | {milliseconds / total:.0%} | {calls:.0f} |")
    lines.append(f"| others | {rest:.1f} | {rest / total:.0%} | {rest_calls:.0f} |")
    lines.append(f"| all | {total:.1f} | 100% | {sum(c for _, c in found.values()):.0f} |")
    return "\n".join(lines)


@exits()
def main(argv: Sequence[str]) -> int:
    """Print the profile of a step."""
    config = parse(Config, argv, "profile_operators.py", __doc__)
    # Several operators that run as one would be one entry; must be set before MXNet is loaded.
    os.environ.update(dict.fromkeys(BULK, "0"))
    print(headline(begin()) + "\n")
    print(table(profile(config), config.least))
    return 0


if __name__ == "__main__":
    take_threads([])  # before MXNet is loaded, which reads it once
    sys.exit(main(sys.argv[1:]))
