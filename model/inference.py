"""``prepare_inference(net, image)``: the same outputs for less work.

The network is traced, its graph rewritten (`model.graph_rewrite`; gates by `model.gate_folding`),
and oneDNN fuses what follows a convolution into it. Every step is checked: a batch must give what
the network itself gives, else the step is undone with a warning. That is needed, for oneDNN's
fusion in MXNet 1.9.1 is known to compute something else on some networks without a word.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Callable, Optional

import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.gluon import SymbolBlock, nn

from model import graph_rewrite as rewrite
from model.gate_folding import FOLDABLE, fold_gates
from model.graph import Graph
from model.ram_resnet import ResNet
from model.threads import release_callers_team

PRECISIONS = ("float32", "bfloat16")
DATA = "data"
BACKEND = "MKLDNN"
CONSTANTS = "constants of the image size"
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05}  # of the largest logit


class PreparedNetwork(nn.HybridBlock):
    """What `prepare_inference` returns: a block that computes logits and cannot be trained.

    Attributes
    ----------
    steps : tuple of str
        What was done, in order; also what was undone, and why.
    difference : float
        Largest difference from the network's own logits on the image that was given, over the
        largest of these.
    size : tuple of int, or None
        (H, W) of the only images that it takes; None: any.

    Inputs
        - **image**: (N, C, H, W) float32, normalised as for the network itself.

    Outputs
        - **logits**: (N, classes) float32, before softmax.

    Raises
    ------
    ValueError
        When the images have another size.
    """

    def __init__(
        self,
        block: SymbolBlock,
        steps: tuple[str, ...],
        difference: float,
        size: Optional[tuple[int, int]],
    ) -> None:
        super().__init__()
        self.block, self.steps, self.difference, self.size = block, steps, difference, size

    def forward(self, image: Any, *args: Any) -> Any:
        """Return the logits; see the class."""
        if isinstance(image, mx.nd.NDArray) and self.size not in (None, image.shape[2:]):
            raise ValueError(
                f"prepared for images of {self.size[0]}x{self.size[1]} pixels, got "
                f"{'x'.join(map(str, image.shape[2:]))}; call prepare_inference with such an image"
            )
        return self.block(image)

    def hybridize(self, active: bool = True, **kwargs: Any) -> None:
        """Do nothing: the graph is compiled as is best for it."""

    def export(self, path: str, epoch: int = 0, remove_amp_cast: bool = False) -> tuple[str, str]:
        """Write the graph and its parameters, for images of the prepared size."""
        written: tuple[str, str] = self.block.export(path, epoch, remove_amp_cast=remove_amp_cast)
        return written


def prepare_inference(
    net: nn.HybridBlock,
    image: Any,
    precision: str = "float32",
    tolerance: Optional[float] = None,
    fuse: bool = True,
) -> PreparedNetwork:
    """Return a network with the same outputs that computes them faster on a CPU.

    Parameters
    ----------
    net
        A classifier with parameters on the CPU; it is not changed and can be trained on. What it
        learns afterwards does not reach the prepared network.
    image
        (N, C, H, W) float32: normalised images, best some of the data set, on which the comparison
        is made. Any number will do later, but a network whose graph depends on height and width, as
        residual attention networks, is prepared for these only.
    precision
        ``float32``, or ``bfloat16``: convolutions and dense layers in it, parameters stored in
        float32.
    tolerance
        Largest difference allowed from the network itself, over its largest logit. None: 1e-5 for
        float32, 0.05 for bfloat16.
    fuse
        Let oneDNN fuse operators.

    Raises
    ------
    ValueError
        When the precision is unknown, the image has another shape or type, or even the rewritten
        graph without fusion is not equal to the network.

    Warns
    -----
    UserWarning
        When oneDNN's fusion fails or gives something else, and is left out.

    Examples
    --------
    >>> from model import create_model
    >>> net = create_model("resnet20")
    >>> net.initialize()
    >>> image = mx.nd.random.normal(shape=(4, 3, 32, 32))
    >>> fast = prepare_inference(net, image)
    >>> bool(mx.nd.abs(fast(image) - net(image)).max() < 1e-4)
    True
    """
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise ValueError(f"unknown precision {precision!r}; available: {known} (int8: quantize)")
    release_callers_team()
    image = check_image(net, image)
    tolerance = TOLERANCE[precision] if tolerance is None else tolerance
    expected = _logits(net, image)
    graph, steps = rewritten(net, image.shape)
    if precision == "bfloat16":
        rewrite.cast_products(graph)
        symbol, values = to_bfloat16(graph.symbol(), graph.parameters())
        steps.append("bfloat16")
    else:
        symbol, values = graph.symbol(), graph.parameters()
    best = compiled(symbol, values, static_shape=precision == "float32")
    difference = _difference(best, image, expected)
    if not difference <= tolerance:
        raise ValueError(
            f"the prepared network differs by {difference:.2g} of the largest logit, allowed is "
            f"{tolerance:g}; raise the tolerance, or leave the network as it is"
        )
    if fuse:
        fused, found, why = _fused(symbol, values, image, expected, tolerance)
        if fused is None:
            steps.append(f"not fused: {why}")
            warnings.warn(f"oneDNN's fusion is left out: {why}", stacklevel=2)
        else:
            best, difference = fused, found
            steps.append("fused by oneDNN")
    size = tuple(image.shape[2:]) if any(step.endswith(CONSTANTS) for step in steps) else None
    return PreparedNetwork(best, tuple(steps), difference, size)


def rewritten(net: nn.HybridBlock, shape: tuple[int, ...]) -> tuple[Graph, list[str]]:
    """Return the rewritten graph of a network, and what was done.

    `shape` is that of the images; the batch size does not matter.
    """
    steps = []
    if isinstance(net, ResNet) and net.spec.attention in FOLDABLE and not net.norms["norm_layer"]:
        net = fold_gates(net)
        steps.append("gates folded")
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


def fuse_symbol(
    symbol: Any, values: Mapping[str, Any], image: Any, backend: str = BACKEND
) -> tuple[Any, dict[str, Any]]:
    """Let oneDNN fuse a graph; return it with the values that it reads."""
    arguments, auxiliary = _split(symbol, values)
    arguments[DATA] = image
    fused = symbol.optimize_for(backend, arguments, auxiliary)
    found = {**values, **arguments, **auxiliary}
    return fused, {name: found[name] for name in fused.list_inputs() if name != DATA}


def _fused(
    symbol: Any, values: Mapping[str, Any], image: Any, expected: np.ndarray, tolerance: float
) -> tuple[Optional[SymbolBlock], float, str]:
    """Return the fused block and its difference, or None and why there is none."""
    try:
        block = compiled(*fuse_symbol(symbol, values, image))
        difference = _difference(block, image, expected)
    except mx.MXNetError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return None, 0.0, f"MXNet failed ({lines[0] if lines else 'without a reason'})"
    if not difference <= tolerance:
        return (
            None,
            difference,
            (
                f"it changes the outputs by {difference:.2g} of the largest logit (allowed: "
                f"{tolerance:g})"
            ),
        )
    return block, difference, ""


def check_image(net: nn.HybridBlock, image: Any) -> Any:
    """Return the image as an NDArray on the CPU; ValueError when the network cannot take it."""
    image = image if isinstance(image, mx.nd.NDArray) else mx.nd.array(np.asarray(image, "float32"))
    if image.ndim != 4 or image.dtype != np.float32 or not image.shape[0]:
        raise ValueError(
            f"images must be float32 (N, C, H, W) with N 1 or more, got {np.dtype(image.dtype)} "
            f"{image.shape}"
        )
    devices = {ctx for p in net.collect_params().values() for ctx in p.list_ctx()}
    if any(ctx.device_type != "cpu" for ctx in devices):
        raise ValueError(
            "prepare_inference is for networks on the CPU, this one is on "
            f"{', '.join(sorted(map(str, devices)))}; move it to mx.cpu() by reset_ctx"
        )
    return image


def _logits(block: Callable[[Any], Any], image: Any) -> np.ndarray:
    with autograd.pause(train_mode=False):
        logits: np.ndarray = block(image).astype("float32").asnumpy()
    return logits


def _difference(block: Callable[[Any], Any], image: Any, expected: np.ndarray) -> float:
    """Return the largest difference over the largest expected logit; infinite where not finite."""
    found = _logits(block, image)
    scale = float(np.abs(expected).max()) or 1.0
    difference = float(np.abs(found - expected).max()) / scale
    return difference if np.isfinite(difference) else float("inf")
