"""What the classifiers share: steps by fused operators, and a look at what goes on within."""

from __future__ import annotations

from typing import Any

import mxnet as mx
from mxnet import autograd
from mxnet.gluon import nn


class Network(nn.HybridBlock):
    """A network from images (N, C, H, W) to logits (N, classes).

    ``fused`` is what computes training steps, see `model.execution.fused_training`; None: the
    network's own graph.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fused: Any = None
        self._observed: dict[str, tuple[Any, list[str]]] = {}  # by ending

    def forward(self, x: Any, *args: Any) -> Any:
        """Run the network; see the class."""
        if self.fused is not None and self.fused.takes(x):
            return self.fused(x)
        return super().forward(x, *args)

    def observe(self, ending: str, image: mx.nd.NDArray) -> list[mx.nd.NDArray]:
        """Return what the nodes give whose names have this ending, in order of execution.

        They come from a graph of their own over the same parameters, traced at the first call for
        an ending: training is as fast as without it, and the network may be hybridized or not.
        Batch normalisations use their running statistics; no gradient is recorded. `image` is where
        the parameters are.
        """
        if ending not in self._observed:
            internals = self(mx.sym.var("image")).get_internals()
            outputs = enumerate(internals.list_outputs())
            graph = mx.sym.Group(
                [internals[i] for i, name in outputs if name.endswith(f"_{ending}_output")]
            )
            self._observed[ending] = mx.nd.CachedOp(graph), graph.list_inputs()
        run, inputs = self._observed[ending]
        parameters = self.collect_params()
        values = [
            image if name == "image" else parameters[name].data(image.context) for name in inputs
        ]
        with autograd.pause(train_mode=False):
            found = run(*values)
        return found if isinstance(found, list) else [found]
