"""Training graphs of the operators in ``model/native/units``: same parameters and results.

A graph is traced from the network's blocks, each of which says how: ``trace(ops, x)``, beside its
``hybrid_forward``, calls the methods of `Trace` and returns what they give. Between the stem and
the mean over the pixels all maps are kept in blocks of 16 or 8 channels, (N, C / 16, H, W, 16),
which MXNet takes for plain arrays of shape (N, C, H, W): only additions and the operators of
``model/native/units`` may touch them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Optional

import mxnet as mx
from mxnet.gluon import nn

from model.execution.fused_limits import (
    Unsupported,
    check_channels,
    check_learning,
    constants_of,
    stride_of,
)


def training_graph(
    net: Any, shape: tuple[int, ...], copied: bool, precision: str = "float32"
) -> Any:
    """Return the symbol from ``image`` to logits for images (N, 3, H, W) of this `shape`.

    The symbol computes batch statistics and is for training only. `copied`: parameters are copied
    first; the operators write gradients, they do not add to them, as ``grad_req = "add"`` asks.
    `precision`: what the units' convolutions multiply, ``float32`` or ``bfloat16``; outputs of
    convolutions and gradients that stay within a unit are stored so too. Sums, statistics, and
    all that goes from one unit to the next are float32.

    Raises
    ------
    Unsupported
        The message says what the operators do not know.
    """
    return Trace(shape, copied, precision).network(net)


class Trace:
    """Emits operators; its methods take and return symbols.

    Parameters
    ----------
    shape
        Of the images, (N, 3, H, W).
    copied
        See `training_graph`.
    precision
        Of the units' convolutions.
    """

    data = "image"  # name of the input
    trained = True  # gradients are wanted

    def __init__(self, shape: tuple[int, ...], copied: bool, precision: str) -> None:
        self.shape, self.copied, self.precision = shape, copied, precision
        self._copies: dict[str, Any] = {}

    def emit(self, name: str, *inputs: Any, **attributes: Any) -> Any:
        """Return what an operator gives."""
        if name == "unit":
            attributes["precision"] = self.precision
        return getattr(mx.sym, f"attn_{name}")(*inputs, inputs=len(inputs), **attributes)

    def network(self, net: Any) -> Any:
        """Return the logits (N, classes) of a network."""
        return self.run(net, mx.sym.var(self.data))

    def run(self, block: Any, x: Any) -> Any:
        """Return what a block's ``trace(ops, x)`` gives, or that of several blocks in a row."""
        if type(block) is nn.HybridSequential:
            for part in block:
                x = self.run(part, x)
            return x
        if not _is_traced(block, "hybrid_forward"):
            self.refuse(f"a {type(block).__name__} in the network")
        return block.trace(self, x)

    def refuse(self, what: str) -> NoReturn:
        """Raise `Unsupported`: the operators do not know this."""
        raise Unsupported(what)

    def unit(
        self,
        version: int,
        convolutions: Sequence[Any],
        norms: Sequence[Any],
        x: Any,
        shortcut: str = "identity",
        projection: tuple[Any, Any] = (None, None),
        gate: Any = None,
    ) -> Any:
        """Return the output of a unit of convolutions and normalisations.

        Parameters
        ----------
        version
            1: each normalisation follows its convolution; 2: it comes before.
        convolutions, norms
            In their order; one of the convolutions may have a stride.
        x
            Blocked maps.
        shortcut
            ``identity`` or ``none``.
        projection
            Convolution and normalisation of the shortcut, where it has them.
        gate
            Of the residual branch, with its own ``trace()``; None: no gate.
        """
        strides = [stride_of(conv, self.trained) for conv in convolutions]
        strided = next((i for i, stride in enumerate(strides, 1) if stride != 1), 0)
        stride = strides[strided - 1] if strided else 1
        inputs = [x]
        used = list(norms)
        for conv, bn in zip(convolutions, norms):
            inputs += [self.parameter(conv.weight), *self.norm(bn)]
        if projection[0] is not None:
            shortcut = "projected"
            if stride_of(projection[0], self.trained) != stride:
                raise Unsupported("a shortcut with another stride")
            inputs.append(self.parameter(projection[0].weight))
            if projection[1] is not None:
                inputs += self.norm(projection[1])
                used.append(projection[1])
        kind, steps = self.gate(gate, inputs, used)
        epsilon, momentum = constants_of(used)
        return self.emit(
            "unit",
            *inputs,
            version=version,
            convolutions=len(convolutions),
            strided=strided,
            stride=stride,
            shortcut=shortcut,
            gate=kind,
            steps=steps,
            epsilon=epsilon,
            momentum=momentum,
        )

    def gate(self, gate: Any, inputs: list[Any], used: list[Any]) -> tuple[str, int]:
        """Append a gate's parameters to `inputs`; return its kind and number of steps."""
        if gate is None:
            return "none", 1
        if not _is_traced(gate, "_gate"):
            self.refuse(f"a {type(gate).__name__}")
        kind, parameters, norms, steps = gate.trace()
        inputs += map(self.parameter, parameters)
        for bn in norms:
            inputs += self.norm(bn)
            used.append(bn)
        return kind, steps

    def norm(self, bn: Any) -> list[Any]:
        """Return gamma, beta, mean and variance of a batch normalisation."""
        settings = getattr(bn, "_kwargs", {})
        if (
            type(bn) is not nn.BatchNorm
            or settings.get("axis") != 1
            or settings.get("fix_gamma")
            or settings.get("use_global_stats")
        ):
            raise Unsupported("a normalisation other than plain batch normalisation")
        if self.trained:
            check_learning(bn.gamma, bn.beta)
        check_channels(bn.gamma.shape[0])
        return [self.parameter(p) for p in (bn.gamma, bn.beta, bn.running_mean, bn.running_var)]

    def parameter(self, parameter: Any) -> Any:
        """Return a parameter as an input, copied where gradients are added up."""
        if not self.copied or parameter.grad_req == "null":
            return parameter.var()
        if parameter.name not in self._copies:
            self._copies[parameter.name] = mx.sym.identity(parameter.var())
        return self._copies[parameter.name]

    def blocked(self, x: Any, channels: int) -> Any:
        """Return plain maps (N, C, H, W) in blocks of channels."""
        check_channels(channels)
        return self.emit("block", x)

    def mean(self, x: Any, bn: Optional[Any]) -> Any:
        """Return the means (N, C) over the pixels, after normalisation and ReLU where wanted."""
        inputs = [x] if bn is None else [x, *self.norm(bn)]
        epsilon, momentum = constants_of([] if bn is None else [bn])
        return self.emit("mean", *inputs, epsilon=epsilon, momentum=momentum)

    def upsample(self, low: Any, like: Any, added: Sequence[Any]) -> Any:
        """Return maps as large as `like`, with others added."""
        height, width = like.infer_shape(**{self.data: self.shape})[1][0][2:]
        return self.emit("upsample", low, *added, height=height, width=width)


def _is_traced(block: Any, computed_by: str) -> bool:
    """Tell whether a block says how it is traced, as the same class that says how it computes.

    A class that computes otherwise than the one that it is derived from must say so anew.
    """
    for kind in type(block).__mro__:
        if "trace" in vars(kind):
            return True
        if computed_by in vars(kind):
            return False
    return False
