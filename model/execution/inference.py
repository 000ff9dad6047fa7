"""``prepare_inference(net, image)``: the same outputs for less work.

Residual units are computed by the project's own operators (`model.execution.fused_inference`) where
these can be built. Elsewhere, and in what is exported, the network is traced, its graph rewritten
(`model.execution.graph_rewrite`; gates by `model.execution.gate_folding`), and oneDNN fuses what
follows a convolution into it. Every step is checked: a batch must give what the network itself
gives, else the step is undone with a warning. That is needed, for oneDNN's fusion in MXNet 1.9.1 is
known to compute something else on some networks without a word.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

import mxnet as mx
import numpy as np
from mxnet.gluon import SymbolBlock, nn

from model.execution.inference_graphs import Rewritten, Target, by_operators, logits_of, snapshot
from model.execution.threads import release_callers_team

PRECISIONS = ("float32", "bfloat16")
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
        portable: Optional[Callable[[], SymbolBlock]] = None,
    ) -> None:
        super().__init__()
        self.block, self.steps, self.difference, self.size = block, steps, difference, size
        self._portable = portable

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

    def load_parameters(self, filename: str, *args: Any, **kwargs: Any) -> None:
        """Raise ValueError: parameters of the network were rewritten and are here in part."""
        raise ValueError(
            f"{filename}: a prepared network takes no parameters; load them into the network that "
            "it was made from and call prepare_inference (or quantize) again"
        )

    def export(self, path: str, epoch: int = 0, remove_amp_cast: bool = False) -> tuple[str, str]:
        """Write the graph and its parameters, for images of the prepared size.

        What is written has MXNet's operators alone: this project is not needed to run it.
        """
        block = self._portable() if self._portable else self.block
        written: tuple[str, str] = block.export(path, epoch, remove_amp_cast=remove_amp_cast)
        return written


def prepare_inference(
    net: nn.HybridBlock,
    image: Any,
    precision: str = "float32",
    tolerance: Optional[float] = None,
    fuse: bool = True,
    operators: Optional[bool] = None,
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
    operators
        Compute residual units by the project's own operators, which is faster. None: where they can
        be built and know the network. True: or else fail. False: by MXNet's operators.

    Raises
    ------
    ValueError
        When the precision is unknown, the image has another shape or type, even the rewritten
        graph without fusion is not equal to the network, or own operators were asked for in vain.

    Warns
    -----
    UserWarning
        When oneDNN's fusion or an own operator fails or gives something else, and is left out.

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
    target = Target(image, logits_of(net, image), tolerance)
    graph, steps, size = snapshot(net, image.shape)
    portable = Rewritten(graph, steps, precision, fuse, target)
    if operators is not False:
        own, difference, how = by_operators(net, precision, target)
        if own is not None:
            return PreparedNetwork(own, (how, precision), difference, size, portable.block)
        if operators:
            raise ValueError(f"own operators do not compute this network: {how}")
        steps.append(f"not by own operators: {how}")
    block = portable.block()
    return PreparedNetwork(block, tuple(steps), portable.difference, size)


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
