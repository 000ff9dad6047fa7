"""What the PyTorch bridge is tried with: networks with weights, and random batches for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mxnet as mx
import numpy as np

from model import create_model
from model.export.export_symbol import symbol_json
from model.hybrid_loss import HybridLoss, LossWeights

Arrays = dict[str, np.ndarray]
ROLLOUTS, STD = 2, 0.05


@dataclass(frozen=True)
class Size:
    """Images of a batch, and their edge; networks of one kind take any."""

    batch: int
    edge: int


@dataclass(frozen=True)
class Case:
    """A network to compare: its graph, the graph that is trained, weights, and what inputs are."""

    name: str
    symbol: str
    trained: str
    arrays: Arrays
    size: Size
    steps: int

    @property
    def is_glimpse(self) -> bool:
        """Whether the graph is that of rollouts, and the trained one that of their loss."""
        return self.steps > 0

    def inputs(self, generator: np.random.RandomState, *leading: int) -> Arrays:
        """Return random inputs of the graph, with these axes before their own."""
        batch, edge = self.size.batch, self.size.edge
        channels = 1 if self.is_glimpse else 3
        image = generator.rand(*leading, batch, channels, edge, edge)
        if not self.is_glimpse:
            return {"image": (image * 4 - 2).astype(np.float32)}
        first = generator.uniform(-1, 1, (*leading, batch, ROLLOUTS, 2))
        noise = STD * generator.standard_normal((*leading, batch, ROLLOUTS, self.steps, 2))
        found = {"image": image, "first_location": first, "noise": noise}
        return {name: value.astype(np.float32) for name, value in found.items()}

    def batches(self, generator: np.random.RandomState, count: int) -> Arrays:
        """Return inputs of the trained graph with labels, batches along the first axis."""
        found = self.inputs(generator, count)
        if self.is_glimpse:
            found["std"] = np.full((count, 1), STD, np.float32)
        label = generator.randint(0, 10, (count, self.size.batch)).astype(np.float32)
        return {**found, "label": label}


def size_of(name: str, net: Any) -> Size:
    """Return the smallest batch that says something about a network."""
    if name.startswith("glimpse"):
        return Size(8, net.spec.height)
    if name.startswith("attention"):
        # At least 8 values for each normalisation: the smallest maps have 4 pixels, those of
        # a mask after the published TensorFlow program one.
        edge = {32: 16, 224: 64, 448: 128}[net.spec.image_size]
        return Size(8 if name.endswith("_tf") else 2, edge)
    # Gates that look at each image's deviations: with 4 images rounding grows over 245 layers.
    return Size(16 if "_srm" in name else 4, 8)


def make_case(name: str, size: Any = None, seed: int = 0, **overrides: Any) -> Case:
    """Return a case with the network's own first values and some noise in what begins at 0 or 1."""
    mx.random.seed(seed)
    np.random.seed(seed)
    net = create_model(name, 10, **overrides)
    net.initialize(mx.init.Xavier())
    glimpse = name.startswith("glimpse")
    generator = np.random.RandomState(seed)
    arrays = {}
    for key, parameter in net._collect_params_with_prefix().items():
        value = parameter.data().asnumpy()
        if parameter.grad_req != "null" and np.all(value == value.flat[0]):
            value = value + 0.1 * generator.standard_normal(value.shape).astype(np.float32)
        arrays[key] = value
    graph = symbol_json(net)
    trained = symbol_json(HybridLoss(net, LossWeights(intermediate=0.5))) if glimpse else graph
    steps = net.spec.num_glimpses if glimpse else 0
    return Case(name, graph, trained, arrays, size or size_of(name, net), steps)
