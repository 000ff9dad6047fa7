"""Training graphs of the operators in ``model/native/units``: same parameters and results.

A graph is traced from the network's blocks. Between the stem and the mean over the pixels all maps
are kept in blocks of 16 or 8 channels, (N, C / 16, H, W, 16), which MXNet takes for plain arrays of
shape (N, C, H, W): only additions and the operators of ``model/native/units`` may touch them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import mxnet as mx
from mxnet.gluon import nn

from model.execution.fused_limits import (
    Unsupported,
    check_channels,
    check_learning,
    constants_of,
    stride_of,
)
from model.layers.attention_module import AttentionModule
from model.layers.basic_layer import ResidualBlock
from model.layers.channel_attention import RecurrentGate, StaticGate
from model.layers.resnet_unit import Unit
from model.ram_resnet import ResNet
from model.residual_attention_network import ResidualAttentionNetwork


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
        """Return the logits of a network of either family."""
        image = mx.sym.var(self.data)
        if type(net) is ResidualAttentionNetwork:
            return self.attention_network(net, image)
        if type(net) is ResNet:
            return self.resnet(net, image)
        raise Unsupported(f"no operators for {type(net).__name__}")

    def attention_network(self, net: ResidualAttentionNetwork, image: Any) -> Any:
        """Return the logits (N, classes) of a residual attention network."""
        y, blocked = image, False
        for name, block in net.blocks():
            if name == "mpool2":
                y = self.mean(y, block[0])
            elif isinstance(block, (ResidualBlock, AttentionModule)):
                y = y if blocked else self.block(y, net.spec.stem_channels)
                blocked = True
                unit = isinstance(block, ResidualBlock)
                y = self.residual_block(block, y) if unit else self.attention_module(block, y)
            elif blocked:
                raise Unsupported(f"a {type(block).__name__} in the network")
            else:
                y = block(y)  # the stem
        return mx.sym.Flatten(net.fc(mx.sym.reshape(y, shape=(0, 0, 1, 1))))

    def resnet(self, net: ResNet, image: Any) -> Any:
        """Return the logits (N, classes) of a CIFAR ResNet."""
        y = net.conv1(image)
        if net.spec.version == 1:
            y = mx.sym.Activation(net.bn1(y), act_type="relu")
        y = self.block(y, net.spec.channels[0])
        for stage in net.stages():
            if stage.dia is not None:
                raise Unsupported("a gate that is shared by units")
            for unit in stage.units:
                y = self.resnet_unit(unit, y)
        return net.fc(self.mean(y, net.bn if net.spec.version == 2 else None))

    def attention_module(self, module: AttentionModule, x: Any) -> Any:
        """Return the blocked output of an attention module for blocked maps."""
        x = self.chain(module.first_residual_blocks, x)
        trunk = self.chain(module.trunk_branches, x)
        depth, legacy = module._mask_depth, module._wiring == "legacy"
        down: list[Any] = []
        skips: list[Any] = []
        y = x
        for level in range(1, max(depth, 1) + 1):
            if depth:
                y = self.emit("pool", y)
            y = self.chain(module._child(f"softmax{level}_blocks"), y)
            if level < depth:
                down.append(y)
                skip = module._child(f"skip{level}_connection_residual_block")
                skips.append(self.chain(skip, y))
        for level in range(depth - 1, 0, -1):
            added = [skips[level - 1], *([down[level - 1]] if legacy else [])]
            y = self.upsample(y, skips[level - 1], added)
            y = self.chain(module._child(f"softmax{2 * depth - level}_blocks"), y)
        if depth:
            y = self.upsample(y, x, [trunk] if legacy else [])
        norm1, _, conv1, norm2, _, conv2 = module._child(f"softmax{2 * max(depth, 1)}_blocks")
        y = self.unit(2, [conv1, conv2], [norm1, norm2], y, shortcut="none")
        settings = {"attention": module._attention, "learning": module._learning}
        return self.chain(module.last_blocks, self.emit("mask", y, trunk, **settings))

    def chain(self, block: Any, x: Any) -> Any:
        """Return the output of one unit or of several in a row."""
        for unit in block if isinstance(block, nn.HybridSequential) else [block]:
            x = self.residual_block(unit, x)
        return x

    def residual_block(self, block: Any, x: Any) -> Any:
        """Return the output of a pre-activation unit."""
        if type(block) is not ResidualBlock:
            raise Unsupported(f"a {type(block).__name__} in the network")
        return self.unit(
            2,
            [block.conv1, block.conv2, block.conv3],
            [block.bn1, block.bn2, block.bn3],
            x,
            projection=(block.conv4, None),
        )

    def resnet_unit(self, unit: Unit, x: Any) -> Any:
        """Return the output of a ResNet's unit, gate included."""
        numbers = range(1, unit.depth + 1)
        conv, bn = None, None
        if unit.downsample is not None:
            conv, bn = [*unit.downsample, None][:2]
        return self.unit(
            unit.version,
            [getattr(unit, f"conv{number}") for number in numbers],
            [getattr(unit, f"bn{number}") for number in numbers],
            x,
            projection=(conv, bn),
            gate=unit.gate,
        )

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
            Of the residual branch; None: no gate.
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
        if type(gate) is StaticGate:
            inputs.append(self.parameter(gate.b))
            return "static", 1
        if type(gate) is not RecurrentGate:
            raise Unsupported(f"a {type(gate).__name__}")
        inputs += [self.parameter(gate.w), self.parameter(gate.b)]
        for bn in gate.batch_norms():
            inputs += self.norm(bn)
            used.append(bn)
        return "recurrent", gate.steps

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

    def block(self, x: Any, channels: int) -> Any:
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
