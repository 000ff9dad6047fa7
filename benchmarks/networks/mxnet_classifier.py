"""A network of this project as it is trained and used: a worker of bench_networks.py.

A training step is `training.loop.engine.Updater.step` with the trainer, the precision and the
settings of hybridize that the scripts use, and the reading of its sums. Inference is what
`model.execution.inference.prepare_inference` returns. MXNet's own bfloat16 cannot be switched off
again in a process, so a worker that trains in it does nothing else.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.harness.worker import Action, serve, timed
from benchmarks.networks import network_rows as rows
from training.compute.thread_choice import take_threads
from training.settings.config import parse
from training.settings.fields import option

Step = Callable[[], object]


@dataclass(frozen=True)
class Config:
    """Settings of the worker; the number of threads is OMP_NUM_THREADS."""

    model: str = option("attention92", "network, by name")
    overrides: str = option("{}", "fields of its spec to replace, as JSON")
    size: int = option(rows.SIZE, "height and width of the images, pixels")


def create(config: Config) -> Any:
    """Return the network, its normalisations with statistics of a real batch."""
    import mxnet as mx
    from mxnet import autograd

    from model import create_model

    mx.random.seed(0)
    np.random.seed(0)
    net = create_model(config.model, rows.CLASSES, **json.loads(config.overrides))
    net.initialize(mx.init.MSRAPrelu())
    for _ in range(2):
        with autograd.train_mode():
            net(mx.nd.array(images(16, config.size)))
    mx.nd.waitall()
    return net


def images(count: int, size: int) -> np.ndarray:
    """Return random normalised images (count, 3, size, size)."""
    return np.random.RandomState(1).normal(size=(count, 3, size, size)).astype(np.float32)


class Steps(dict[str, Step]):
    """The steps by name, ``kind_precision_batch``, each made when it is first asked for."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self._prepared: dict[tuple[str, int], Any] = {}
        self.trained_by = ""

    def __missing__(self, name: str) -> Step:
        kind, precision, batch = name.split("_")
        make = {"train": self._train, "infer": self._infer, "peak": peak_step}[kind]
        self[name] = make(precision, int(batch))
        return self[name]

    def _train(self, precision: str, batch: int) -> Step:
        import mxnet as mx

        from machine.processor import Unavailable
        from model.execution.fused_training import fuse
        from model.execution.threads import copy_on_one_thread
        from training.batches.in_memory import Batch
        from training.classifier.config import ClassifierConfig
        from training.compute.devices import hybridize_options, use_precision
        from training.compute.optimizer import build_trainer
        from training.loop.engine import Updater, measure
        from training.loop.task import ClassificationTask

        copy_on_one_thread()  # as every training does
        # As training.classifier.graph_choice: fused operators bring their own precision.
        net = create(self.config)
        try:
            self.trained_by, amp = f"{fuse(net, precision)}, {precision}", "float32"
        except Unavailable as error:
            self.trained_by, amp = f"MXNet's own operators ({error})", precision
        use_precision(amp, [mx.cpu()])
        net.hybridize(**hybridize_options(amp))
        config = ClassifierConfig(optimizer="nag", batch_size=batch, lr=0.01, wd=1e-4)
        updater = Updater(ClassificationTask(net, build_trainer(net, config), [mx.cpu()]))
        label = (np.arange(batch) % rows.CLASSES).astype(np.int32)
        data = Batch(images(batch, self.config.size), label)
        return lambda: measure(updater.step(data))

    def _infer(self, precision: str, batch: int) -> Step:
        import mxnet as mx

        run = self.prepared(precision, batch)
        image = mx.nd.array(images(batch, self.config.size))
        return lambda: run(image).wait_to_read()

    def prepared(self, precision: str, batch: int) -> Any:
        """Return the network prepared for inference in a precision; in 8 bits, for a batch."""
        import mxnet as mx

        from model.execution.inference import prepare_inference
        from model.execution.quantization import quantize

        key = (precision, batch if precision == "int8" else 0)
        if key not in self._prepared:
            image, net = mx.nd.array(images(8, self.config.size)), create(self.config)
            if precision == "int8":  # random weights: bench_accuracy.py judges trained ones
                self._prepared[key] = quantize(net, image, max_loss=1.0, batch_size=batch)
            else:
                self._prepared[key] = prepare_inference(net, image, precision)
        return self._prepared[key]


def peak_step(precision: str, batch: int) -> Step:
    """Return some 3x3 convolutions in a row, which show what the machine can do."""
    import mxnet as mx

    from training.compute.devices import check_bfloat16

    if precision == "bfloat16":
        check_bfloat16()
    channels = rows.PEAK_CHANNELS
    # NumPy has no bfloat16; this is how MXNet writes it.
    dtype = np.dtype([("bfloat16", np.uint16)]) if precision == "bfloat16" else np.dtype("float32")
    y = mx.sym.amp_cast(mx.sym.var("data"), dtype=dtype)
    for index in range(rows.PEAK_LAYERS):
        weight = mx.sym.amp_cast(mx.sym.var(f"weight{index}"), dtype=dtype)
        y = mx.sym.Convolution(
            y, weight, kernel=(3, 3), pad=(1, 1), num_filter=channels, no_bias=True
        )
    run = mx.nd.CachedOp(y, [("static_alloc", True)])
    shapes = {"data": (batch, channels, rows.SIZE, rows.SIZE)}
    values = [
        mx.nd.random.normal(shape=shapes.get(name, (channels, channels, 3, 3)))
        for name in y.list_inputs()
    ]
    return lambda: run(*values).wait_to_read()


def make(config: Config) -> tuple[dict[str, Any], dict[str, Action]]:
    """Return what this worker is, and its actions; see `serve`."""
    import mxnet as mx

    from machine.processor import limit_onednn

    limit_onednn()
    steps = Steps(config)
    about: dict[str, Any] = {
        "versions": {"mxnet": mx.__version__, "numpy": np.__version__},
        "threads": os.environ.get("OMP_NUM_THREADS"),
    }

    def save(weights: str, inputs: str, outputs: str) -> dict[str, Any]:
        net, image = create(config), images(4, config.size)
        parameters = net._collect_params_with_prefix()
        np.savez(weights, **{name: p.data().asnumpy() for name, p in parameters.items()})
        np.save(inputs, image)
        np.save(outputs, net(mx.nd.array(image)).asnumpy())
        return {"written": weights}

    def describe(kind: str, precision: str, batch: int) -> dict[str, Any]:
        if kind == "train":
            return {"steps": [steps.trained_by]}
        net = steps.prepared(precision, batch)
        return {"steps": list(net.steps), "difference": net.difference}

    time_action = timed(steps, mx.nd.waitall)
    return about, {"time": time_action, "save": save, "describe": describe}


if __name__ == "__main__":
    take_threads([])  # before MXNet is loaded, which reads it once
    serve(lambda: make(parse(Config, sys.argv[1:], "mxnet_classifier.py", __doc__)))
