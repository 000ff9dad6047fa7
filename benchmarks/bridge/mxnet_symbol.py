"""An exported symbol in MXNet itself: what the PyTorch bridge is compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Optional

import mxnet as mx
import numpy as np
from mxnet import autograd

Arrays = dict[str, np.ndarray]


@dataclass
class Result:
    """What one pass gave: outputs in order, gradients by name, running statistics by name."""

    outputs: list[np.ndarray]
    gradients: Arrays
    statistics: Arrays


class Reference:
    """A symbol with values, on the CPU.

    Parameters
    ----------
    symbol_json
        The exported symbol.
    arrays
        Name to values of everything that is no input.
    inputs
        Name to values of the inputs; their shapes stay.
    dtype
        ``float32`` or ``float64``; everything is cast.
    """

    def __init__(
        self,
        symbol_json: str,
        arrays: Mapping[str, np.ndarray],
        inputs: Mapping[str, np.ndarray],
        dtype: str = "float32",
    ) -> None:
        symbol = mx.sym.load_json(symbol_json)
        self.inputs = list(inputs)
        self.statistics = symbol.list_auxiliary_states()
        self.values: dict[str, Any] = {}
        values = {**arrays, **inputs}
        for name in symbol.list_inputs():
            kind = dtype if values[name].dtype.kind == "f" else values[name].dtype
            self.values[name] = mx.nd.array(values[name], dtype=kind)
            if kind == dtype and name not in self.statistics:
                self.values[name].attach_grad()
        # What hybridize() makes. An executor would fuse operators and run another graph.
        self.symbol, self.graph = symbol, mx.nd.CachedOp(symbol)

    def output_shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of the outputs, without running."""
        shapes = {name: value.shape for name, value in self.values.items()}
        found: list[tuple[int, ...]] = self.symbol.infer_shape(**shapes)[1]
        return found

    def forward(self, train: bool) -> list[Any]:
        """Run forwards, recording for `backward`; returns MXNet's arrays."""
        with autograd.record(train_mode=train):
            outputs = self.graph(*self.values.values())
        return outputs if isinstance(outputs, list) else [outputs]

    def gradients(self) -> Arrays:
        """Return the gradients by name, of inputs too."""
        return {n: v.grad.asnumpy() for n, v in self.values.items() if v.grad is not None}

    def run(self, train: bool, cotangents: Iterable[np.ndarray] = ()) -> Result:
        """Run forwards and, where there are gradients of the outputs, backwards."""
        outputs = self.forward(train)
        given = [mx.nd.array(g, dtype=o.dtype) for g, o in zip(cotangents, outputs)]
        if given:
            autograd.backward(outputs, given)
        return Result(
            [output.asnumpy() for output in outputs],
            self.gradients() if given else {},
            {name: self.values[name].asnumpy() for name in self.statistics},
        )

    def train(self, optimizer: Any, batches: Iterable[Mapping[str, np.ndarray]]) -> list[float]:
        """Train on batches of the inputs with one of MXNet's optimizers; returns the losses.

        A batch has the inputs and, for a classifier, ``label``: the loss is then the mean
        cross-entropy, else the mean of the first output.
        """
        update = mx.optimizer.get_updater(optimizer)
        fixed = {*self.inputs, *self.statistics}
        losses = []
        for batch in batches:
            for name in self.inputs:
                self.values[name][:] = mx.nd.array(batch[name])
            first = self.forward(train=True)[0]
            label = None if "label" in self.inputs else batch["label"]
            loss, gradient = loss_and_gradient(first.asnumpy().astype(np.float64), label)
            losses.append(loss)
            autograd.backward([first], [mx.nd.array(gradient, dtype=first.dtype)])
            for index, (name, value) in enumerate(self.values.items()):
                if name not in fixed:
                    update(index, value.grad, value)
        return losses

    def arrays(self) -> Arrays:
        """Return the values of everything that is no input, by name."""
        return {n: v.asnumpy() for n, v in self.values.items() if n not in self.inputs}


def loss_and_gradient(first: np.ndarray, label: Optional[Any]) -> tuple[float, np.ndarray]:
    """Return the mean loss and its gradient for an output, float64.

    The output has logits (N, classes) for `label` (N,), or losses where there is no label.
    """
    if label is None:
        return float(first.mean()), np.full(first.shape, 1 / first.size)
    shifted = first - first.max(1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    rows, places = np.arange(len(first)), np.asarray(label).astype(int)
    gradient = np.exp(log_probs)
    gradient[rows, places] -= 1
    return float(-log_probs[rows, places].mean()), gradient / len(first)
