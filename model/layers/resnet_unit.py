"""Residual units of CIFAR ResNets, with a gate on the residual branch, and stages of them.

    version 1    relu(gate(bn3 W3 relu(bn2 W2 relu(bn1 W1 x))) + shortcut(x))
    version 2    gate(W3 relu(bn3 W2 relu(bn2 W1 a))) + shortcut,  a = relu(bn1 x)

The shortcut is x, or a 1x1 convolution (version 1: and a normalisation) of x (version 2: of a)
where the shape changes. The 3x3 convolution of a bottleneck has the stride; a basic unit has two
3x3 convolutions.

Source: He et al. 2015, arXiv 1512.03385 (version 1), and 2016, arXiv 1603.05027 (version 2).
Attribute names are a file format: ``.param`` files have them.
"""

from __future__ import annotations

from typing import Any, Optional

import mxnet as mx
from mxnet.gluon import nn

from model.layers.basic_layer import norm
from model.layers.channel_attention import (
    ChannelGate,
    ConvolutionalGate,
    EfficientGate,
    RecurrentGate,
    SharedLSTM,
    SqueezeExcitation,
    StaticGate,
    StyleGate,
)
from model.layers.resnet_spec import CONVOLUTIONS, ResNetSpec


def convolution(channels: int, kernel: int, strides: int, in_channels: int) -> nn.Conv2D:
    """Return a convolution without bias, normal first values with variance 2 / (k k C_out)."""
    return nn.Conv2D(
        channels,
        kernel,
        strides,
        padding=kernel // 2,
        use_bias=False,
        in_channels=in_channels,
        weight_initializer=mx.init.MSRAPrelu("out", slope=0),
    )


def create_gate(spec: ResNetSpec, channels: int, **norms: Any) -> Optional[ChannelGate]:
    """Return the gate of a unit with this many output channels; None where units have none."""
    if spec.attention == "ram":
        return RecurrentGate(channels, spec.steps, spec.w_init, spec.b_init, **norms)
    if spec.attention == "static":
        return StaticGate(channels, spec.b_init)
    if spec.attention == "se":
        return SqueezeExcitation(channels, spec.hidden(channels))
    if spec.attention == "eca":
        return EfficientGate(channels)
    if spec.attention == "srm":
        return StyleGate(channels, **norms)
    if spec.attention == "cbam":
        return ConvolutionalGate(channels, spec.hidden(channels), **norms)
    return None


class Unit(nn.HybridBlock):
    """Residual unit of either version, bottleneck or basic; see the first lines.

    Parameters
    ----------
    spec
        The variant.
    channels
        Width of the 3x3 convolution; the output has ``channels * spec.expansion``.
    in_channels, stride
        Input channels, and stride of the unit.
    gate
        Scales the residual branch; None: nothing does.
    norms
        ``norm_layer`` and ``norm_kwargs`` of `model.layers.basic_layer.norm`.

    Inputs
        - **x**: (N, in_channels, H, W) float32.

    Outputs
        - (N, channels * expansion, ceil(H / stride), ceil(W / stride)) float32.
    """

    def __init__(
        self,
        spec: ResNetSpec,
        channels: int,
        in_channels: int,
        stride: int,
        gate: Optional[ChannelGate],
        **norms: Any,
    ) -> None:
        super().__init__()
        out_channels = channels * spec.expansion
        self.version, self.depth = spec.version, CONVOLUTIONS[spec.block]
        bottleneck = spec.block == "bottleneck"
        kernels = (1, 3, 1) if bottleneck else (3, 3)
        widths = (channels, channels, out_channels) if bottleneck else (channels, channels)
        strided = 2 if bottleneck else 1
        width = in_channels
        with self.name_scope():
            for index, (kernel, wider) in enumerate(zip(kernels, widths), 1):
                strides = stride if index == strided else 1
                setattr(self, f"conv{index}", convolution(wider, kernel, strides, width))
                setattr(self, f"bn{index}", norm(wider if spec.version == 1 else width, **norms))
                width = wider
            self.gate = gate
            self.downsample: Optional[nn.HybridSequential] = None
            if stride != 1 or in_channels != out_channels:
                self.downsample = nn.HybridSequential()
                self.downsample.add(convolution(out_channels, 1, stride, in_channels))
                if spec.version == 1:
                    self.downsample.add(norm(out_channels, **norms))

    def branches(self, F: Any, x: Any) -> tuple[Any, Any]:
        """Return the residual branch before its gate, and the shortcut."""
        y = x
        for index in range(1, self.depth + 1):
            conv, bn = getattr(self, f"conv{index}"), getattr(self, f"bn{index}")
            # Activation keeps the tensor in oneDNN's blocked layout, F.relu does not.
            if self.version == 1:
                y = bn(conv(y))
                y = F.Activation(y, act_type="relu") if index < self.depth else y
            else:
                y = F.Activation(bn(y), act_type="relu")
                x = y if index == 1 and self.downsample is not None else x
                y = conv(y)
        return y, x if self.downsample is None else self.downsample(x)

    def merge(self, F: Any, residual: Any, shortcut: Any) -> Any:
        """Return the unit's output."""
        y = residual + shortcut
        return F.Activation(y, act_type="relu") if self.version == 1 else y

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        residual, shortcut = self.branches(F, x)
        return self.merge(F, residual if self.gate is None else self.gate(residual), shortcut)

    def trace(self, ops: Any, x: Any) -> Any:
        """Return blocked maps by fused operators; see `model.execution.fused_graph.Trace`."""
        convolutions, norms = (
            [getattr(self, f"{kind}{number}") for number in range(1, self.depth + 1)]
            for kind in ("conv", "bn")
        )
        conv, bn = (None, None) if self.downsample is None else [*self.downsample, None][:2]
        projection = (conv, bn)
        return ops.unit(self.version, convolutions, norms, x, projection=projection, gate=self.gate)


class Stage(nn.HybridBlock):
    """Units one after another; children ``0``, ``1``, ... and, for DIA, ``dia``."""

    def __init__(self, units: list[Unit], dia: Optional[SharedLSTM]) -> None:
        super().__init__()
        self.units = tuple(units)
        for index, unit in enumerate(units):
            self.register_child(unit, str(index))
        self.dia = dia

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        state: tuple[Any, ...] = ()
        for unit in self.units:
            if self.dia is None:
                x = unit(x)
            else:
                residual, shortcut = unit.branches(F, x)
                residual, *carried = self.dia(residual, *state)
                x, state = unit.merge(F, residual, shortcut), tuple(carried)
        return x

    def trace(self, ops: Any, x: Any) -> Any:
        """Return blocked maps by fused operators; see `model.execution.fused_graph.Trace`."""
        if self.dia is not None:
            ops.refuse("a gate that is shared by units")
        for unit in self.units:
            x = ops.run(unit, x)
        return x
