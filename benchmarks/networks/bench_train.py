"""Speed of a training step and of inference: ``python -m benchmarks.networks.bench_train``.

Random images, the real network, loss, backward pass and NAG update; the input pipeline is measured
by ``bench_input.py``. Median over steps, after two to warm up. Run it on a quiet machine.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass

import numpy as np

from benchmarks.harness.report import begin, headline
from formats.errors import UserError
from training.compute.thread_choice import take_threads
from training.settings.config import parse, to_dict
from training.settings.exit_code import exits
from training.settings.fields import option

WARM_UP = 2


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    models: tuple[str, ...] = option(
        ("attention56_small", "attention56", "attention92"), "networks, by name"
    )
    batch_size: int = option(64, "images per step", flags=("-b",))
    size: int = option(32, "height and width of the images, pixels")
    steps: int = option(5, "steps measured")
    precision: str = option("float32", "arithmetic", choices=("float32", "bfloat16"))
    json: bool = option(False, "print one line of JSON instead of the table")


def measure(name: str, config: Config) -> dict[str, float]:
    """Median images/s of training and inference of one network on the CPU."""
    import mxnet as mx
    from mxnet import autograd, gluon

    from model import create_model
    from training.compute.devices import hybridize_options

    net = create_model(name)
    net.initialize(mx.init.MSRAPrelu())
    net.hybridize(**hybridize_options(config.precision))
    trainer = gluon.Trainer(net.collect_params(), "nag", {"learning_rate": 0.01, "momentum": 0.9})
    loss_function = gluon.loss.SoftmaxCrossEntropyLoss()
    image = mx.nd.random.normal(shape=(config.batch_size, 3, config.size, config.size))
    label = mx.nd.array(np.arange(config.batch_size) % 10)

    def train_step() -> None:
        with autograd.record():
            loss = loss_function(net(image).astype("float32"), label)
        loss.backward()
        trainer.step(config.batch_size)
        mx.nd.waitall()

    def infer_step() -> None:
        net(image).wait_to_read()

    rates = {}
    for key, step in (("train_images_per_sec", train_step), ("infer_images_per_sec", infer_step)):
        seconds = []
        for _ in range(WARM_UP + config.steps):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
        rates[key] = round(config.batch_size / statistics.median(seconds[WARM_UP:]), 1)
    return rates


@exits()
def main() -> int:
    """Measure all networks and print the figures with what they depend on; 2 for bad input."""
    config = parse(Config, sys.argv[1:], description=__doc__)
    known = begin()
    import mxnet as mx

    from training.compute.devices import use_precision

    try:
        use_precision(config.precision, [mx.cpu()])
    except UserError as error:  # the processor cannot
        print(f"{headline(known)}\nleft out: {error}")
        return 0
    about = {
        **{key: known[key] for key in ("cpu", "isa", "cores")},
        "load": known["load"][0],
        "python": platform.python_version(),
        "mxnet": mx.__version__,
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        **to_dict(config),
    }
    rows = {name: measure(name, config) for name in config.models}
    if config.json:
        print(json.dumps({**about, "rows": rows}))
        return 0
    print(", ".join(f"{key} {value}" for key, value in about.items() if key != "json"))
    print(f"{'network':<24}{'train images/s':>16}{'infer images/s':>16}")
    for name, row in rows.items():
        print(f"{name:<24}{row['train_images_per_sec']:>16}{row['infer_images_per_sec']:>16}")
    return 0


if __name__ == "__main__":
    take_threads([])  # before MXNet is loaded, which reads it once
    sys.exit(main())
