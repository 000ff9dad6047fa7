"""Training steps by fused operators against MXNet's own, in turn: ``bench_train_variants.py``.

Random images, the real network, loss, backward pass and NAG update. Both variants run in one
process on the same parameters, A B A B ..., and what counts is the process's CPU time divided by
its threads' number: with one thread it is right beside other busy processes too.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

# Also as `python benchmarks/bench_train_variants.py`, which has only this folder on its path.
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

if __name__ == "__main__":  # before MXNet is loaded, which reads it once
    from training.thread_choice import take_threads

    take_threads([])

from benchmarks.report import environment, headline, store
from training.config import option, parse

MODELS = (
    "attention56_small",
    "attention56_paper",
    "attention92",
    "attention92_paper",
    "resnet164",
    "resnet164_ram",
    "resnet20_ram",
)
PARTS = ("forward", "backward", "update")


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    models: tuple[str, ...] = option(MODELS, "networks, by name")
    batch_size: int = option(64, "images per step", flags=("-b",))
    size: int = option(32, "height and width of the images, pixels")
    rounds: int = option(3, "steps of each variant that are measured, after one to warm up")
    variants: tuple[str, ...] = option(
        ("own", "fused", "bfloat16"), "what is measured: own, fused, bfloat16 (fused too)"
    )
    out: str = option("runs/bench/train_variants.json", "file that the figures are stored in")


def steps(name: str, config: Config) -> dict[str, Callable[[], list[tuple[float, float]]]]:
    """Return a training step of each variant; it gives (CPU seconds, seconds) of its parts."""
    import mxnet as mx
    from mxnet import autograd, gluon

    from model import create_model
    from model.fused_training import fuse
    from training.devices import hybridize_options

    net = create_model(name, classes=10)
    net.initialize(mx.init.MSRAPrelu())
    net.hybridize(**hybridize_options("float32"))
    trainer = gluon.Trainer(
        net.collect_params(),
        "nag",
        {"learning_rate": 0.001, "momentum": 0.9},
        update_on_kvstore=False,
    )
    loss_function = gluon.loss.SoftmaxCrossEntropyLoss()
    image = mx.nd.random.normal(shape=(config.batch_size, 3, config.size, config.size))
    label = mx.nd.array(np.arange(config.batch_size) % 10)
    fused: dict[str, Any] = {"own": None}
    for variant, precision in (("fused", "float32"), ("bfloat16", "bfloat16")):
        if variant in config.variants:
            fuse(net, precision)
            fused[variant] = net.fused

    def step(variant: str) -> list[tuple[float, float]]:
        net.fused = fused[variant]
        marks = [(time.process_time(), time.perf_counter())]

        def mark() -> None:
            mx.nd.waitall()
            marks.append((time.process_time(), time.perf_counter()))

        with autograd.record():
            loss = loss_function(net(image), label)
        mark()
        loss.backward()
        mark()
        trainer.step(config.batch_size)
        mark()
        return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(marks, marks[1:])]

    return {variant: partial(step, variant) for variant in config.variants}


def measure(name: str, config: Config) -> dict[str, Any]:
    """Return medians, over the rounds, of each variant's parts, in seconds."""
    variants = steps(name, config)
    found: dict[str, list[list[tuple[float, float]]]] = {variant: [] for variant in variants}
    for number in range(config.rounds + 1):
        for variant, step in variants.items():
            parts = step()
            if number:
                found[variant].append(parts)
    rows = {}
    for variant, rounds in found.items():
        cpu = {part: statistics.median(one[i][0] for one in rounds) for i, part in enumerate(PARTS)}
        totals = [sum(cpu_seconds for cpu_seconds, _ in one) for one in rounds]
        wall = statistics.median(sum(seconds for _, seconds in one) for one in rounds)
        rows[variant] = {"cpu": cpu, "cpu_total": totals, "seconds": wall}
    return rows


def main() -> None:
    """Measure all networks, print a table and store the figures."""
    config = parse(Config, sys.argv[1:], description=__doc__)
    known = environment()
    print(headline(known) + f", batch {config.batch_size}, {config.size}x{config.size}\n")
    print("CPU seconds of a step, median; the ratio is that of the medians, [least, most]")
    header = f"{'network':<20}{'variant':<10}{'forward':>9}{'backward':>9}{'update':>9}{'step':>9}"
    print(header + "  ratio")
    table = {}
    for name in config.models:
        rows = table[name] = measure(name, config)
        base = rows[config.variants[0]]["cpu_total"]
        for variant, found in rows.items():
            totals = found["cpu_total"]
            ratios = sorted(a / b for a, b in zip(base, totals))
            ratio = statistics.median(base) / statistics.median(totals)
            cells = "".join(f"{found['cpu'][part]:>9.3f}" for part in PARTS)
            print(
                f"{name:<20}{variant:<10}{cells}{statistics.median(totals):>9.3f}"
                f"  {ratio:.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]",
                flush=True,
            )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    store(config.out, {"environment": known, "networks": table, "peak_mib": peak})


if __name__ == "__main__":
    main()
