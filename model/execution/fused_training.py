"""Training steps by fused operators: ``fuse(net)``, once, after the network was initialized.

Only a call that records gradients in training takes them; evaluation, export and everything else
use the network's own graph. Parameters, their names and their files are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import mxnet as mx
import numpy as np
from mxnet import autograd

from machine.processor import Unavailable
from model.execution.fused_graph import training_graph
from model.execution.fused_limits import Unsupported
from model.execution.fused_update import update
from model.native.build import UNITS, load, require_bfloat16

__all__ = ["FusedTraining", "fuse"]

PRECISIONS = ("float32", "bfloat16")
FLAGS = [("static_alloc", "true"), ("static_shape", "true")]


class FusedTraining:
    """The training graphs of one network, traced when they are first needed.

    A size of image, and whether gradients are added up, make a graph of their own.
    """

    def __init__(self, net: Any, precision: str = "float32") -> None:
        self._net, self.precision = net, precision
        self._parameters = {p.name: p for p in net.collect_params().values()}
        self._graphs: dict[tuple[Any, ...], tuple[Any, list[Optional[Any]]]] = {}
        self._other_calls = False

    def takes(self, x: Any) -> bool:
        """Return whether a call with these images is a training step that is computed here."""
        taken = (
            isinstance(x, mx.nd.NDArray)
            and autograd.is_recording()
            and autograd.is_training()
            and x.context.device_type == "cpu"
        )
        self._other_calls |= not taken
        return taken

    def __call__(self, x: Any) -> Any:
        """Return the logits (N, classes) of images (N, 3, H, W)."""
        run, inputs = self._graph(x)
        return run(*(x if p is None else p.data(x.context) for p in inputs))

    def update(self, *arrays: Sequence[Any], **how: Any) -> None:
        """Update parameters as `model.execution.fused_update.update` does, after any evaluation."""
        if self._other_calls:
            # They may still change the layout of weights, which could come between.
            mx.nd.waitall()
            self._other_calls = False
        update(*arrays, **how)

    def _graph(self, x: Any) -> tuple[Any, list[Optional[Any]]]:
        copied = any(p.grad_req == "add" for p in self._parameters.values())
        key = (*x.shape[1:], copied)
        if key not in self._graphs:
            symbol = training_graph(self._net, x.shape, copied, self.precision)
            names = symbol.list_inputs()
            inputs = [None if name == "image" else self._parameters[name] for name in names]
            self._graphs[key] = mx.nd.CachedOp(symbol, FLAGS), inputs
        return self._graphs[key]


def difference_of(net: Any) -> float:
    """Return by how much a fused network would train on other logits than its own graph gives.

    In parts of the largest logit, for a few random images, in float32; rounding makes 1e-4. `net`
    gets random parameters on the CPU: it is one made for this, not one to train. Random numbers of
    MXNet and NumPy begin anew.
    """
    np.random.seed(0)  # the initializers of MXNet draw from both
    mx.random.seed(0)
    net.initialize(mx.init.MSRAPrelu())
    count = max(2, getattr(net, "minimum_batch", 1))
    pixels = np.random.default_rng(0).standard_normal((count, *net.image_shape))
    image = mx.nd.array(pixels)
    with autograd.train_mode():  # not recorded, so by the network's own graph
        own = net(image).asnumpy()
    with autograd.record():
        fused = FusedTraining(net)(image).asnumpy()
    return float(np.abs(fused - own).max() / np.abs(own).max())


def fuse(net: Any, precision: str = "float32") -> str:
    """Let a network train by fused operators from now on; return what computes.

    Parameters
    ----------
    net
        A network of the registry, initialized; its parameters' ``grad_req`` may change between
        ``write`` and ``add`` later, not to or from ``null``.
    precision
        What convolutions multiply: ``float32`` or ``bfloat16``.

    Raises
    ------
    Unavailable
        When the operators cannot be built or loaded, or do not know the precision or something in
        the network; it trains with its own graph then.
    """
    if not hasattr(net, "fused"):
        raise Unavailable(f"no operators for {type(net).__name__}")
    if precision not in PRECISIONS:
        raise Unavailable(f"the operators compute {' or '.join(PRECISIONS)}, not {precision}")
    found = load(UNITS)
    if precision == "bfloat16":
        require_bfloat16()
    try:
        training_graph(net, (1, *net.image_shape), copied=False)
    except Unsupported as error:
        raise Unavailable(f"the operators do not know {error}") from None
    net.fused = FusedTraining(net, precision)
    return found
