"""Inference graphs of the operators in ``model/native/units``: same parameters and results."""

from __future__ import annotations

from typing import Any

import mxnet as mx

from model.fused_graph import Trace
from model.graph import Graph
from model.graph_rewrite import fold_batch_norms, freeze_norms

DATA = "data"


class InferenceTrace(Trace):
    """Emits the operators that use stored statistics.

    Their maps are float32, or, where the precision is bfloat16, arrays of two bytes a number that
    nothing but these operators can read.
    """

    data = DATA

    def emit(self, name: str, *inputs: Any, **attributes: Any) -> Any:
        """Return what an operator gives."""
        make = getattr(mx.sym, f"attn_infer_{name}")
        return make(*inputs, inputs=len(inputs), precision=self.precision, **attributes)


def inference_graph(net: Any, shape: tuple[int, ...], precision: str) -> Graph:
    """Return the graph from images (N, 3, H, W) of this `shape` to logits, with its values.

    An attention network's is for images of this height and width, a ResNet's for any. Parameters
    are copied. `precision`: ``float32`` or ``bfloat16``; the stem and the classifier are float32.

    Raises
    ------
    Unsupported
        The message says what the operators do not know.
    """
    symbol = InferenceTrace(shape, False, precision).network(net)
    parameters = {p.name: p for p in net.collect_params().values()}
    names = [name for name in symbol.list_inputs() if name != DATA]
    values = {name: parameters[name].data(parameters[name].list_ctx()[0]).copy() for name in names}
    graph = Graph(symbol, values)
    fold_batch_norms(graph)
    freeze_norms(graph)
    return graph
