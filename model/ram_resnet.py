"""CIFAR ResNets with channel attention: stem, three stages of units, mean, classifier.

Source: He et al. 2015, arXiv 1512.03385 (version 1), and 2016, arXiv 1603.05027 (version 2); the
gate and its place, at the end of the residual branch and before the addition, of zhongshsh/RAM
(MIT), whose attribute names these are up to PyTorch's words and the child ``gate``.

Measured (pinned in ``tests/model/test_ram_resnet.py``), trainable parameters for 10 and 100
classes:

    resnet164       1,704,154    1,727,284
    resnet164_ie    1,720,282    1,743,412
    resnet164_ram   1,736,410    1,759,540
    resnet164_se    1,906,258    1,929,388
    resnet164_dia   1,923,002    1,946,132
    preresnet164    1,703,258    1,726,388

Each layer has its own first values, whatever `initialize` is given: convolutions normal with
variance 2 / (k k C_out), dense layers uniform in +-1/sqrt(fan-in), as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Callable, Optional

import mxnet as mx
from mxnet import autograd
from mxnet.gluon import nn

from model.layers.basic_layer import norm
from model.layers.channel_attention import GATE, SharedLSTM, dense, global_mean
from model.layers.network import Network
from model.layers.resnet_spec import SPECS, STAGES, ResNetSpec
from model.layers.resnet_unit import Stage, Unit, convolution, create_gate

__all__ = ["FAMILY", "ResNet"]


class ResNet(Network):
    """Stem, three stages, mean over the pixels, classifier.

    Parameters
    ----------
    spec
        The variant.
    classes
        Number of classes, 1 or more; None: the spec's.
    norm_layer, norm_kwargs
        Normalisation in place of batch normalisation, and its settings; see
        `model.layers.basic_layer.norm`.

    Attributes
    ----------
    image_shape : tuple
        (3, H, W) of the images that the variant is meant for.

    Inputs
        - **image**: (N, 3, H, W) float32, normalised as the parameter file expects; any H and W. In
          training N must be `minimum_batch` or more on each device.

    Outputs
        - **logits**: (N, classes) float32, before softmax.

    Raises
    ------
    ValueError
        When `classes` is below 1; in training, when there are fewer than `minimum_batch` images.
    """

    def __init__(
        self,
        spec: ResNetSpec,
        classes: Optional[int] = None,
        norm_layer: Optional[Callable[..., nn.HybridBlock]] = None,
        norm_kwargs: Optional[dict[str, Any]] = None,
    ) -> None:
        super().__init__()
        classes = spec.classes if classes is None else classes
        if classes < 1:
            raise ValueError(f"classes must be 1 or more, got {classes}")
        self.spec, self.classes = spec, classes
        self.image_shape = (3, spec.image_size, spec.image_size)
        self.norms: dict[str, Any] = {"norm_layer": norm_layer, "norm_kwargs": norm_kwargs}
        width = spec.channels[0]
        with self.name_scope():
            self.conv1 = convolution(width, 3, 1, 3)
            if spec.version == 1:
                self.bn1 = norm(width, **self.norms)
            for number in range(1, STAGES + 1):
                setattr(self, f"layer{number}", self._stage(number, width))
                width = spec.channels[number - 1] * spec.expansion
            if spec.version == 2:
                self.bn = norm(width, **self.norms)
            self.fc = dense(classes, width)

    def _stage(self, number: int, in_channels: int) -> Stage:
        spec, channels = self.spec, self.spec.channels[number - 1]
        out_channels = channels * spec.expansion
        units = []
        for index in range(spec.units):
            gated = (number, index) not in spec.ungated
            gate = create_gate(spec, out_channels, **self.norms) if gated else None
            stride = 2 if index == 0 and number > 1 else 1
            units.append(Unit(spec, channels, in_channels, stride, gate, **self.norms))
            in_channels = out_channels
        dia = (
            SharedLSTM(out_channels, spec.hidden(out_channels)) if spec.attention == "dia" else None
        )
        return Stage(units, dia)

    def stages(self) -> tuple[Stage, ...]:
        """Return the three stages."""
        return tuple(getattr(self, f"layer{number}") for number in range(1, STAGES + 1))

    def units(self) -> Iterator[tuple[int, int, Unit]]:
        """Yield (stage from 1, index from 0, unit) in order of execution."""
        for number, stage in enumerate(self.stages(), 1):
            for index, unit in enumerate(stage.units):
                yield number, index, unit

    @property
    def minimum_batch(self) -> int:
        """Images per device that training needs: 2 where a gate normalises over the images alone.

        Of one image such a normalisation returns its beta, whatever the image, and stores a
        variance of 0 (PyTorch refuses it, MXNet does not). 1 where its statistics are frozen.
        """
        norms = [bn for _, _, u in self.units() if u.gate for bn in u.gate.batch_norms()]
        return 2 if any(not bn._kwargs.get("use_global_stats") for bn in norms) else 1

    def forward(self, x: Any, *args: Any) -> Any:
        """Run the network; see the class."""
        single = isinstance(x, mx.nd.NDArray) and len(x) == 1 and autograd.is_training()
        if single and self.minimum_batch > 1:
            raise ValueError(
                f"training a network with attention {self.spec.attention!r} needs 2 or more "
                "images per device, got 1: its gates normalise over the images"
            )
        return super().forward(x, *args)

    def hybrid_forward(self, F: Any, image: Any) -> Any:
        y = self.conv1(image)
        if self.spec.version == 1:
            y = F.Activation(self.bn1(y), act_type="relu")
        for stage in self.stages():
            y = stage(y)
        if self.spec.version == 2:
            y = F.Activation(self.bn(y), act_type="relu")
        return self.fc(global_mean(F, F.reshape(y, shape=(0, 0, 0, 0))))  # (N, classes)

    def trace(self, ops: Any, image: Any) -> Any:
        """Return the logits by fused operators; see `model.execution.fused_graph.Trace`."""
        y = self.conv1(image)
        if self.spec.version == 1:
            y = mx.sym.Activation(self.bn1(y), act_type="relu")
        y = ops.blocked(y, self.spec.channels[0])
        for stage in self.stages():
            y = ops.run(stage, y)
        return self.fc(ops.mean(y, self.bn if self.spec.version == 2 else None))

    def gates(self, image: mx.nd.NDArray) -> dict[tuple[int, int], mx.nd.NDArray]:
        """Return the gate of every unit for these images.

        See `model.layers.network.Network.observe`.

        Parameters
        ----------
        image
            (N, 3, H, W) float32, normalised as for the network itself, where the parameters are.

        Returns
        -------
        dict
            (stage from 1, unit from 0) to gate (N, C), in order of execution; units without a gate
            are left out.
        """
        keys = [
            (number, index)
            for number, index, unit in self.units()
            if unit.gate is not None or self.spec.attention == "dia"
        ]
        found = self.observe(GATE, image) if keys else []
        return {key: gate.reshape((0, -1)) for key, gate in zip(keys, found)}


# What `model.registry` reads.
FAMILY = {name: (spec, ResNet) for name, spec in SPECS.items()}
