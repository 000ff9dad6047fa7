"""Training steps and inference by MXNet's own operators and fused ones, in turn:
``python -m benchmarks.networks.bench_train``.

Random images, the real network, loss, backward pass and NAG update; the input pipeline is measured
by ``bench_input.py``. All variants run in one process on the same parameters, A B A B ..., and what
counts in the comparison is the process's CPU time divided by its threads' number: with one thread
it is right beside other busy processes too.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

if __name__ == "__main__":  # before MXNet is loaded, which reads it once
    from training.compute.thread_choice import take_threads

    take_threads([])

import mxnet as mx
from mxnet import autograd, gluon

from benchmarks.harness.report import begin, headline, store
from formats.errors import UserError
from machine.processor import Unavailable
from model import create_model
from model.execution.fused_training import fuse
from training.compute.devices import hybridize_options, use_precision
from training.settings.config import parse
from training.settings.exit_code import exits
from training.settings.fields import option

MODELS = (
    "attention56_small",
    "attention56_paper",
    "attention92",
    "attention92_paper",
    "resnet164",
    "resnet164_ram",
    "resnet20_ram",
)
PARTS = ("forward", "backward", "update")  # of a step
AMP = "amp"  # MXNet's own bfloat16, which a process cannot take back


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    models: tuple[str, ...] = option(MODELS, "networks, by name")
    batch_size: int = option(64, "images per step", flags=("-b",))
    size: int = option(32, "height and width of the images, pixels")
    rounds: int = option(3, "steps of each variant that are measured, after one to warm up")
    variants: tuple[str, ...] = option(
        ("own", "fused", "bfloat16"),
        "what is measured; bfloat16 is fused too; amp, MXNet's own bfloat16, is measured alone",
        choices=("own", "fused", "bfloat16", AMP),
    )
    out: str = option("runs/bench/train.json", "file that the figures are stored in")

    def check(self) -> None:
        """Raise UserError for variants that cannot be measured beside each other."""
        if AMP in self.variants and len(self.variants) > 1:
            raise UserError(f"--variants {' '.join(self.variants)}: {AMP} is measured alone")


Step = Callable[[], list[tuple[float, float]]]


def steps(name: str, config: Config) -> tuple[dict[str, Step], dict[str, str]]:
    """Return a training step of each variant, and why others cannot be had here.

    A step gives (CPU seconds, seconds) of its parts, and of an inference after it.
    """
    net = create_model(name, classes=10)
    net.initialize(mx.init.MSRAPrelu())
    net.hybridize(**hybridize_options("bfloat16" if AMP in config.variants else "float32"))
    trainer = gluon.Trainer(
        net.collect_params(),
        "nag",
        {"learning_rate": 0.001, "momentum": 0.9},
        update_on_kvstore=False,
    )
    loss_function = gluon.loss.SoftmaxCrossEntropyLoss()
    image = mx.nd.random.normal(shape=(config.batch_size, 3, config.size, config.size))
    label = mx.nd.array(np.arange(config.batch_size) % 10)
    fused: dict[str, Any] = {"own": None, AMP: None}
    left_out: dict[str, str] = {}
    for variant, precision in (("fused", "float32"), ("bfloat16", "bfloat16")):
        if variant in config.variants:
            try:
                fuse(net, precision)
            except Unavailable as error:
                left_out[variant] = str(error)
            else:
                fused[variant] = net.fused

    def step(variant: str) -> list[tuple[float, float]]:
        net.fused = fused[variant]
        marks = [(time.process_time(), time.perf_counter())]

        def mark() -> None:
            mx.nd.waitall()
            marks.append((time.process_time(), time.perf_counter()))

        with autograd.record():
            loss = loss_function(net(image).astype("float32", copy=False), label)
        mark()
        loss.backward()
        mark()
        trainer.step(config.batch_size)
        mark()
        net(image)
        mark()
        return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(marks, marks[1:])]

    able = [variant for variant in config.variants if variant not in left_out]
    return {variant: partial(step, variant) for variant in able}, left_out


def measure(name: str, config: Config) -> dict[str, Any]:
    """Return medians, over the rounds, of each variant's parts, in seconds, and images/s.

    A variant that cannot be had here has its reason, as ``left_out``.
    """
    variants, left_out = steps(name, config)
    found: dict[str, list[list[tuple[float, float]]]] = {variant: [] for variant in variants}
    for number in range(config.rounds + 1):
        for variant, step in variants.items():
            parts = step()
            if number:
                found[variant].append(parts)
    rows: dict[str, Any] = {variant: {"left_out": why} for variant, why in left_out.items()}
    for variant, rounds in found.items():
        cpu = {part: statistics.median(one[i][0] for one in rounds) for i, part in enumerate(PARTS)}
        totals = [sum(cpu_seconds for cpu_seconds, _ in one[:-1]) for one in rounds]
        wall = statistics.median(sum(seconds for _, seconds in one[:-1]) for one in rounds)
        inference = statistics.median(one[-1][1] for one in rounds)
        rates = {"train": config.batch_size / wall, "infer": config.batch_size / inference}
        rows[variant] = {"cpu": cpu, "cpu_total": totals, "seconds": wall, "images_per_sec": rates}
    return {variant: rows[variant] for variant in config.variants}


def lines(name: str, rows: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line of the table for each variant; ratios are to the first that was measured."""
    measured = [found["cpu_total"] for found in rows.values() if "left_out" not in found]
    for variant, found in rows.items():
        if "left_out" in found:
            yield f"{name:<20}{variant:<10}  left out: {found['left_out']}"
            continue
        totals = found["cpu_total"]
        ratios = sorted(a / b for a, b in zip(measured[0], totals))
        ratio = statistics.median(measured[0]) / statistics.median(totals)
        cells = "".join(f"{found['cpu'][part]:>9.3f}" for part in PARTS)
        yield (
            f"{name:<20}{variant:<10}{cells}{statistics.median(totals):>9.3f}"
            f"{found['images_per_sec']['train']:>9.1f}{found['images_per_sec']['infer']:>9.1f}"
            f"  {ratio:.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        )


@exits()
def main() -> int:
    """Measure all networks, print a table and store the figures."""
    config = parse(Config, sys.argv[1:], description=__doc__)
    config.check()
    known = begin()
    if AMP in config.variants:
        try:
            use_precision("bfloat16", [mx.cpu()])
        except UserError as error:  # the processor cannot
            print(f"{headline(known)}\nleft out: {error}")
            return 0
    print(headline(known) + f", batch {config.batch_size}, {config.size}x{config.size}\n")
    print("CPU seconds of a step, median; the ratio is that of the medians, [least, most]")
    columns = (*PARTS, "step", "train/s", "infer/s")
    cells = "".join(f"{column:>9}" for column in columns)
    print(f"{'network':<20}{'variant':<10}{cells}  ratio")
    table = {}
    for name in config.models:
        table[name] = measure(name, config)
        print(*lines(name, table[name]), sep="\n", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    store(config.out, {"environment": known, "networks": table, "peak_mib": peak})
    return 0


if __name__ == "__main__":
    sys.exit(main())
