"""A network of torch_networks.py as it is trained and used: a worker of bench_networks.py.

Forms: ``nchw`` and ``channels_last`` are eager with that memory layout, ``compiled`` is
torch.compile of the second. bfloat16 is autocast. A training step has the fused SGD with Nesterov's
momentum, which is what MXNet calls NAG. Runs in the environment of
requirements/bench-torch-py311.txt, where neither MXNet nor gluoncv is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import torch  # type: ignore[import-not-found]
from torch.nn import functional  # type: ignore[import-not-found]

from benchmarks.harness.worker import Action, serve, timed
from benchmarks.networks import network_rows as rows
from benchmarks.networks.torch_networks import build, load
from training.settings.config import parse
from training.settings.fields import option

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
Tensor = Any
Step = Callable[[], object]


@dataclass(frozen=True)
class Config:
    """Settings of the worker."""

    family: str = option("attention", "family of the network", choices=("attention", "resnet"))
    spec: str = option("{}", "its spec, as JSON")
    threads: int = option(1, "threads of one operator")
    weights: Optional[str] = option(None, ".npz of parameters; default: PyTorch's first values")
    size: int = option(rows.SIZE, "height and width of the images, pixels")


def autocast(precision: str) -> Any:
    """Return the context in which a step of this precision runs."""
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")


class Steps(dict[str, Step]):
    """The steps by name, ``form/kind_precision_batch``, each made when it is first asked for."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def __missing__(self, name: str) -> Step:
        form, _, case = name.partition("/")
        kind, precision, batch = case.split("_")
        make = {"train": self._train, "infer": self._infer, "peak": peak_step}[kind]
        self[name] = make(form, precision, int(batch))
        return self[name]

    def _network(self, form: str) -> Any:
        net = create(self.config)
        layout = LAYOUTS["channels_last" if form == rows.COMPILED else form]
        return net.to(memory_format=layout), layout

    def _image(self, batch: int, layout: Any) -> Tensor:
        image = torch.randn(batch, 3, self.config.size, self.config.size)
        return image.contiguous(memory_format=layout)

    def _train(self, form: str, precision: str, batch: int) -> Step:
        net, layout = self._network(form)
        net.train()
        image, label = self._image(batch, layout), torch.arange(batch) % rows.CLASSES
        optimizer = torch.optim.SGD(
            net.parameters(), 0.01, 0.9, nesterov=True, weight_decay=1e-4, fused=True
        )

        def step() -> float:
            optimizer.zero_grad(set_to_none=True)
            with autocast(precision):
                logits = net(image)
            loss = functional.cross_entropy(logits.float(), label)
            loss.backward()
            optimizer.step()
            return float(loss)

        return step

    def _infer(self, form: str, precision: str, batch: int) -> Step:
        net, layout = self._network(form)
        net.eval()
        image = self._image(batch, layout)
        run = torch.compile(net, dynamic=False) if form == rows.COMPILED else net

        def step() -> Tensor:
            with torch.no_grad(), autocast(precision):
                return run(image).float()

        return step


def peak_step(form: str, precision: str, batch: int) -> Step:
    """Return some 3x3 convolutions in a row, which show what the machine can do."""
    channels, layout = rows.PEAK_CHANNELS, LAYOUTS[form]
    dtype = getattr(torch, precision)
    layers = [
        torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        .to(dtype)
        .to(memory_format=layout)
        for _ in range(rows.PEAK_LAYERS)
    ]
    image = torch.randn(batch, channels, rows.SIZE, rows.SIZE).to(dtype)
    image = image.contiguous(memory_format=layout)

    def step() -> Tensor:
        y = image
        with torch.no_grad():
            for layer in layers:
                y = layer(y)
        return y

    return step


def create(config: Config) -> Any:
    """Return the network with its parameters."""
    torch.manual_seed(0)
    net = build(config.family, json.loads(config.spec), rows.CLASSES)
    if config.weights:
        with np.load(config.weights) as file:
            load(net, dict(file))
    return net


def forward_action(config: Config) -> Action:
    """Return the action ``forward``: images from one .npy, logits to another."""

    def action(inputs: str, outputs: str) -> dict[str, Any]:
        net = create(config).eval()
        with torch.no_grad():
            np.save(outputs, net(torch.from_numpy(np.load(inputs))).numpy())
        return {"written": outputs}

    return action


def make(config: Config) -> tuple[dict[str, Any], dict[str, Action]]:
    """Return what this worker is, and its actions; see `serve`."""
    torch.set_num_threads(config.threads)
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    about = {"versions": versions, "threads": torch.get_num_threads()}
    return about, {"time": timed(Steps(config)), "forward": forward_action(config)}


if __name__ == "__main__":
    serve(lambda: make(parse(Config, sys.argv[1:], "torch_classifier.py", __doc__)))
