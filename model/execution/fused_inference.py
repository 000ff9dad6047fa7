"""Inference graphs of the operators in ``model/native/units``: same parameters and results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import mxnet as mx

from model.execution.fused_graph import Trace
from model.execution.graph import Graph
from model.execution.graph_rewrite import fold_batch_norms, freeze_norms

DATA = "data"
INT8 = "int8"
Ranges = Sequence[Sequence[float]]  # of each unit in its order: what its convolutions read


class InferenceTrace(Trace):
    """Emits the operators that use stored statistics.

    Their maps are float32, or, where the precision is another, arrays of two bytes a number that
    nothing but these operators can read.

    Parameters
    ----------
    shape
        Of the images, (N, 3, H, W).
    precision
        ``float32``, ``bfloat16``, or ``int8``, which has maps in bfloat16 between units.
    ranges
        For ``int8``: the largest numbers that the units' convolutions read.
    """

    data = DATA
    trained = False

    def __init__(
        self, shape: tuple[int, ...], precision: str, ranges: Optional[Ranges] = None
    ) -> None:
        super().__init__(shape, False, precision)
        self._ranges = iter(ranges or ())

    def emit(self, name: str, *inputs: Any, **attributes: Any) -> Any:
        """Return what an operator gives."""
        if name == "unit" and self.precision == INT8:
            attributes["ranges"] = ",".join(f"{float(each):.9g}" for each in next(self._ranges))
        make = getattr(mx.sym, f"attn_infer_{name}")
        return make(*inputs, inputs=len(inputs), precision=self.precision, **attributes)


class RangesTrace(InferenceTrace):
    """Also lists the symbols of what each unit's convolutions read, (N, convolutions)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape, "float32")
        self.ranges: list[Any] = []

    def emit(self, name: str, *inputs: Any, **attributes: Any) -> Any:
        """Return what an operator gives."""
        if name == "unit":
            self.ranges.append(super().emit("ranges", *inputs, **attributes))
        return super().emit(name, *inputs, **attributes)


def inference_graph(
    net: Any, shape: tuple[int, ...], precision: str, ranges: Optional[Ranges] = None
) -> Graph:
    """Return the graph from images (N, 3, H, W) of this `shape` to logits, with its values.

    An attention network's is for images of this height and width, a ResNet's for any. Parameters
    are copied. See `InferenceTrace`; the stem and the classifier are float32.

    Raises
    ------
    Unsupported
        The message says what the operators do not know.
    """
    symbol = InferenceTrace(shape, precision, ranges).network(net)
    graph = Graph(symbol, _values(net, symbol))
    fold_batch_norms(graph)
    freeze_norms(graph)
    return graph


def ranges_graph(net: Any, shape: tuple[int, ...]) -> tuple[Any, dict[str, Any]]:
    """Return the symbol of what units' convolutions read, (N, convolutions) each, and its values.

    Raises
    ------
    Unsupported
        As `inference_graph` does.
    """
    trace = RangesTrace(shape)
    trace.network(net)
    symbol = mx.sym.Group(trace.ranges)
    return symbol, _values(net, symbol)


def _values(net: Any, symbol: Any) -> dict[str, Any]:
    parameters = {p.name: p for p in net.collect_params().values()}
    names = [name for name in symbol.list_inputs() if name != DATA]
    return {name: parameters[name].data(parameters[name].list_ctx()[0]).copy() for name in names}
