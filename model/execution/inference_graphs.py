"""Forms of a network for inference, and how near each is to the network itself.

`model.execution.inference.prepare_inference` chooses among them: graphs of the project's own
operators, and graphs of MXNet's operators, rewritten and fused.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable, Optional

import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.gluon import SymbolBlock, nn

from machine.processor import Unavailable
from model.execution import graph_rewrite as rewrite
from model.execution.fused_inference import DATA, Ranges, inference_graph
from model.execution.fused_limits import Unsupported
from model.execution.gate_folding import FOLDABLE, fold_gates
from model.execution.graph import Graph
from model.native.build import UNITS, load, require_bfloat16
from model.ram_resnet import ResNet

BACKEND = "MKLDNN"
CONSTANTS = "constants of the image size"


@dataclass(frozen=True)
class Target:
    """What a form must give: `expected` (N, classes) for an image, and how near."""

    image: Any
    expected: np.ndarray
    tolerance: float

    def difference(self, block: Callable[[Any], Any]) -> float:
        """Return the largest difference over the largest logit; infinite where not finite."""
        found = logits_of(block, self.image)
        scale = float(np.abs(self.expected).max()) or 1.0
        difference = float(np.abs(found - self.expected).max()) / scale
        return difference if np.isfinite(difference) else float("inf")

    def check(self, block: Callable[[Any], Any]) -> float:
        """Return the difference.

        Raises
        ------
        ValueError
            When it is too large; the message goes on "it ...".
        """
        difference = self.difference(block)
        if not difference <= self.tolerance:
            raise ValueError(
                f"it changes the outputs by {difference:.2g} of the largest logit (allowed: "
                f"{self.tolerance:g})"
            )
        return difference


def logits_of(block: Callable[[Any], Any], image: Any) -> np.ndarray:
    """Return the logits of a block in inference mode, float32."""
    with autograd.pause(train_mode=False):
        logits: np.ndarray = block(image).astype("float32").asnumpy()
    return logits


Checked = tuple[Optional[SymbolBlock], float, str]  # block, difference, what it is or why not


def by_operators(
    net: nn.HybridBlock,
    precision: str,
    target: Target,
    ranges: Optional[Callable[[], Ranges]] = None,
) -> Checked:
    """Return a block of the project's own operators, its difference, and what computes.

    None and the reason where they cannot be built or do not know the network. What they compute
    wrongly is told as a warning. `ranges`, for ``int8``, gives those of
    `model.execution.fused_inference.InferenceTrace` once the operators are loaded.
    """
    try:
        found = load(UNITS)
        known = ranges() if ranges else None
        if precision != "float32":
            require_bfloat16()  # int8 has maps in bfloat16 between units
        graph = inference_graph(net, target.image.shape, precision, known)
    except (Unavailable, Unsupported) as error:
        return None, 0.0, str(error)
    try:
        block = compiled(graph.symbol(), graph.parameters())
        return block, target.check(block), f"residual units by {found}"
    except (mx.MXNetError, ValueError) as error:
        why = reason(error)
    warnings.warn(f"own operators are left out: {why}", stacklevel=3)
    return None, 0.0, why


@dataclass
class Rewritten:
    """The rewritten graph of a network, compiled when it is needed; `steps` are what was done."""

    graph: Graph
    steps: list[str]
    precision: str
    fuse: bool
    target: Target
    difference: float = 0.0  # of the block
    _block: Optional[SymbolBlock] = None

    def block(self) -> SymbolBlock:
        """Return the block, fused where that works; further calls return the same one.

        Raises
        ------
        ValueError
            When even the graph that is not fused is not equal to the network, or cannot be
            computed here.
        """
        if self._block is None:
            self._block = self._made()
        return self._block

    def _made(self) -> SymbolBlock:
        target = self.target
        if self.precision == "bfloat16":
            rewrite.cast_products(self.graph)
            symbol, values = to_bfloat16(self.graph.symbol(), self.graph.parameters())
            self.steps.append("bfloat16")
        else:
            symbol, values = self.graph.symbol(), self.graph.parameters()
        best = compiled(symbol, values, static_shape=self.precision == "float32")
        try:
            self.difference = target.difference(best)
        except mx.MXNetError as error:
            raise ValueError(
                f"this network cannot be computed in {self.precision} here (bfloat16 takes a "
                f"processor with AVX-512): {reason(error)}"
            ) from error
        if not self.difference <= target.tolerance:
            raise ValueError(
                f"the prepared network differs by {self.difference:.2g} of the largest logit, "
                f"allowed is {target.tolerance:g}; raise the tolerance, or leave the network as it "
                "is"
            )
        if not self.fuse:
            return best
        try:
            fused = compiled(*fuse_symbol(symbol, values, target.image))
            self.difference, best = target.check(fused), fused
            self.steps.append("fused by oneDNN")
        except (mx.MXNetError, ValueError) as error:
            why = reason(error)
            self.steps.append(f"not fused: {why}")
            warnings.warn(f"oneDNN's fusion is left out: {why}", stacklevel=3)
        return best


def reason(error: Exception) -> str:
    """Return what an error says; MXNet's without the places in its sources that it passed."""
    if not isinstance(error, mx.MXNetError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    own = "MXNetError: "
    said = [line[len(own) :] for line in lines if line.startswith(own)]
    said += lines[-1:] if lines and lines[0].startswith("Traceback") else lines[:1]
    return f"MXNet failed ({said[0] if said else 'without a reason'})"


def rewritten(net: nn.HybridBlock, shape: tuple[int, ...]) -> tuple[Graph, list[str]]:
    """Return the rewritten graph of a network, and what was done.

    `shape` is that of the images; the batch size does not matter.
    """
    steps = []
    if isinstance(net, ResNet) and net.spec.attention in FOLDABLE and not net.norms["norm_layer"]:
        try:
            net = fold_gates(net)
            steps.append("gates folded")
        except ValueError as error:
            steps.append(f"gates not folded: {error}")
    with autograd.pause(train_mode=False):
        symbol = net(mx.sym.var(DATA))
    values = {p.name: p.data(p.list_ctx()[0]) for p in net.collect_params().values()}
    graph = Graph(symbol, values)
    for what, count in (
        ("normalisations folded", rewrite.fold_batch_norms(graph)),
        ("means pooled", rewrite.pool_means(graph)),
        ("gates broadcast", rewrite.broadcast_gates(graph)),
        (CONSTANTS, rewrite.fold_shapes(graph, shape, DATA)),
        ("normalisations as convolutions", rewrite.norms_to_convolutions(graph)),
    ):
        if count:
            steps.append(f"{count} {what}")
    rewrite.freeze_norms(graph)
    return graph, steps


def snapshot(
    net: nn.HybridBlock, shape: tuple[int, ...]
) -> tuple[Graph, list[str], Optional[tuple[int, int]]]:
    """Return what `rewritten` does, and the only (H, W) that the graph takes; None: any.

    The values are the graph's own: what the network learns does not reach what is exported later.
    """
    graph, steps = rewritten(net, shape)
    graph.values = {name: value.copy() for name, value in graph.values.items()}
    fixed = any(step.endswith(CONSTANTS) for step in steps)
    *_, height, width = shape
    return graph, steps, (height, width) if fixed else None


def to_bfloat16(symbol: Any, values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Insert casts into a graph so that its matrix products run in bfloat16."""
    from mxnet.contrib import amp

    arguments, auxiliary = _split(symbol, values)
    converted, arguments, auxiliary = amp.convert_model(
        symbol, arguments, auxiliary, target_dtype="bfloat16", cast_optional_params=False
    )
    return converted, {**arguments, **auxiliary}


def compiled(symbol: Any, values: Mapping[str, Any], static_shape: bool = True) -> SymbolBlock:
    """Return a block of a graph with its values, ready to run."""
    block = SymbolBlock(symbol, [mx.sym.var(DATA)])
    for name, parameter in block.collect_params().items():
        value = values[name]
        parameter.shape, parameter.dtype, parameter.grad_req = value.shape, value.dtype, "null"
        parameter.initialize(init=mx.init.Zero(), ctx=mx.cpu())
        parameter.set_data(value)
    block.hybridize(static_alloc=True, static_shape=static_shape)
    return block


def _split(symbol: Any, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    arguments = {name: values[name] for name in symbol.list_arguments() if name in values}
    return arguments, {name: values[name] for name in symbol.list_auxiliary_states()}


def fuse_symbol(symbol: Any, values: Mapping[str, Any], image: Any) -> tuple[Any, dict[str, Any]]:
    """Let oneDNN fuse a graph; return it with the values that it reads."""
    arguments, auxiliary = _split(symbol, values)
    arguments[DATA] = image
    fused = symbol.optimize_for(BACKEND, arguments, auxiliary)
    found = {**values, **arguments, **auxiliary}
    return fused, {name: found[name] for name in fused.list_inputs() if name != DATA}
