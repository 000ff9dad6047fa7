"""Residual Attention Networks: stem, stages of attention modules, tail, classifier.

Source: Wang et al. 2017, "Residual Attention Network for Image Classification", arXiv 1704.06904;
attribute names of PistonY/ResidualAttentionNetwork (MIT), which are a file format.

Measured (pinned in ``tests/model/test_attention_sizes.py``):

    attention56          32x32      7,202,794 trainable parameters   450 tensors    0.694 GMAC
    attention92          32x32     12,170,730                        750            1.089
    attention92_paper    32x32      1,932,474                        884            0.211
    attention56_imagenet 224x224   31,810,728                        540            6.271
    attention92_imagenet 224x224   52,466,344                        885           10.534

Differs from the public implementations: pooling at the end is global and the mask's resizing reads
its size from the maps, so any height and width will do. At the nominal size both are equal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Optional

import mxnet as mx
from mxnet.gluon import nn

from model.layers.attention_module import (
    OLD_NAMES_DEPTH_2,
    SOFT_MASK,
    AttentionModule,
    NormLayer,
    unit_builder,
)
from model.layers.attention_presets import SPECS, STEMS, AttentionSpec
from model.layers.basic_layer import norm
from model.layers.network import Network

__all__ = [
    "FAMILY",
    "ResidualAttentionModel",
    "ResidualAttentionModel_32input",
    "ResidualAttentionModel_92_32input_update",
    "ResidualAttentionModel_448input",
    "ResidualAttentionNetwork",
]


STEM = ("conv1", "mpool1")


class ResidualAttentionNetwork(Network):
    """Stem, stages of attention modules, residual units, classifier.

    Parameters
    ----------
    spec
        The variant.
    classes
        Number of classes, 1 or more; None: the spec's.
    norm_layer
        Takes the place of every batch normalisation, see `model.layers.basic_layer.norm`.
    norm_kwargs
        Passed on to every normalisation, for example ``{"epsilon": 1e-4}``.

    Attributes
    ----------
    image_shape : tuple
        (3, H, W) of the images that the variant is meant for.

    Inputs
        - **image**: (N, 3, H, W) float32, normalised as the parameter file expects; any H and W.

    Outputs
        - **logits**: (N, classes) float32, before softmax.

    Raises
    ------
    ValueError
        When `classes` is below 1 or the spec is impossible.
    """

    def __init__(
        self,
        spec: AttentionSpec,
        classes: Optional[int] = None,
        norm_layer: Optional[NormLayer] = None,
        norm_kwargs: Optional[dict[str, Any]] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        classes = spec.classes if classes is None else classes
        if classes < 1:
            raise ValueError(f"classes must be 1 or more, got {classes}")
        self.spec, self.classes = spec, classes
        self.image_shape = (3, spec.image_size, spec.image_size)
        self._norms: dict[str, Any] = {"norm_layer": norm_layer, "norm_kwargs": norm_kwargs}
        unit = unit_builder(spec.unit, spec.groups, **self._norms)
        with self.name_scope():
            self._build_stem()
            in_channels = spec.stem_channels
            for index, (stage, channels) in enumerate(self._stages()):
                setattr(
                    self, f"residual_block{stage}", unit(channels, in_channels, 2 if index else 1)
                )
                for name in self.module_names(stage):
                    setattr(self, name, self._module(index))
                in_channels = channels
            for index, name in enumerate(self._tail()):
                stride = 1 if index else spec.tail_stride
                setattr(self, name, unit(spec.tail_channels, in_channels, stride))
                in_channels = spec.tail_channels
            if spec.unit == "bottleneck":  # a ResNeXt unit ends with its activation
                self.mpool2 = nn.HybridSequential(prefix="")
                self.mpool2.add(norm(in_channels, **self._norms), nn.Activation("relu"))
            # A 1x1 convolution instead of a dense layer keeps the shape that the files have.
            self.fc = nn.Conv2D(classes, 1, in_channels=in_channels)

    def _build_stem(self) -> None:
        channels, stem = self.spec.stem_channels, STEMS[self.spec.stem]
        self.conv1 = nn.HybridSequential(prefix="")
        self.conv1.add(
            nn.Conv2D(
                channels,
                stem.kernel,
                stem.stride,
                padding=stem.kernel // 2,
                use_bias=False,
                in_channels=3,
            ),
            norm(channels, **self._norms),
            nn.Activation("relu"),
        )
        if stem.pool:
            self.mpool1 = nn.MaxPool2D(*stem.pool)

    def _module(self, index: int) -> AttentionModule:
        spec = self.spec
        return AttentionModule(
            spec.channels[index],
            spec.mask_depths[index],
            spec.ptr,
            post_units=spec.post_units,
            wiring=spec.wiring,
            learning=spec.learning,
            attention=spec.attention,
            unit=spec.unit,
            groups=spec.groups,
            names=OLD_NAMES_DEPTH_2 if spec.old_names and index == 0 else None,
            **self._norms,
        )

    def _stages(self) -> Iterator[tuple[int, int]]:
        """Yield (number in names, channels)."""
        return enumerate(self.spec.channels, self.spec.first_stage)

    def _tail(self) -> Iterator[str]:
        first = self.spec.first_stage + len(self.spec.channels)
        return (f"residual_block{first + index}" for index in range(self.spec.tail_units))

    def module_names(self, stage: Optional[int] = None) -> tuple[str, ...]:
        """Return the modules' names, of one stage or of all: attention_module2, ..._2, ..."""
        first = self.spec.first_stage
        return tuple(
            f"attention_module{number}" + (f"_{index}" if index > 1 else "")
            for number, count in enumerate(self.spec.modules, first)
            for index in range(1, count + 1)
            if stage in (None, number)
        )

    def blocks(self) -> Iterator[tuple[str, nn.HybridBlock]]:
        """Yield (attribute name, block) from input to last feature map, in order of execution."""
        names = [*STEM]
        for stage, _ in self._stages():
            names += [f"residual_block{stage}", *self.module_names(stage)]
        names += [*self._tail(), "mpool2"]
        for name in names:
            if hasattr(self, name):
                yield name, getattr(self, name)

    def hybrid_forward(self, F: Any, image: Any) -> Any:
        y = image
        for _, block in self.blocks():
            y = block(y)

        # Global pooling as a mean: the backward pass of GlobalAvgPool2D makes oneDNN choose a
        # layout in which the batch normalisations of the last stage run ten times slower.
        y = F.mean(y, axis=(2, 3), keepdims=True)  # (N, C, 1, 1)
        return F.Flatten(self.fc(y))  # (N, classes)

    def trace(self, ops: Any, image: Any) -> Any:
        """Return the logits by fused operators; see `model.execution.fused_graph.Trace`."""
        blocks = dict(self.blocks())
        y = image
        for name in STEM:
            y = blocks.pop(name)(y) if name in blocks else y
        y = ops.blocked(y, self.spec.stem_channels)
        for name, block in blocks.items():
            y = ops.mean(y, block[0]) if name == "mpool2" else ops.run(block, y)
        return mx.sym.Flatten(self.fc(mx.sym.reshape(y, shape=(0, 0, 1, 1))))

    def attention_maps(self, image: mx.nd.NDArray) -> dict[str, mx.nd.NDArray]:
        """Return the soft mask of every attention module for these images.

        See `model.layers.network.Network.observe`.

        Parameters
        ----------
        image
            (N, 3, H, W) float32, normalised as for the network itself, where the parameters are.

        Returns
        -------
        dict
            Name of the module (see `module_names`) to its mask M (N, C, h, w), in order of
            execution, h and w those of its stage.

        Examples
        --------
        >>> net = ResidualAttentionModel_32input()
        >>> net.initialize()
        >>> [mask.shape for mask in net.attention_maps(mx.nd.zeros((1, 3, 32, 32))).values()]
        [(1, 128, 32, 32), (1, 256, 16, 16), (1, 512, 8, 8)]
        """
        return dict(zip(self.module_names(), self.observe(SOFT_MASK, image)))


# What `model.registry` reads.
FAMILY = {name: (spec, ResidualAttentionNetwork) for name, spec in SPECS.items()}


def _depth(additional_stage: bool) -> int:
    return 92 if additional_stage else 56


def ResidualAttentionModel_32input(
    classes: int = 10, additional_stage: bool = False, **kwargs: Any
) -> ResidualAttentionNetwork:
    """Return Attention-56, or Attention-92 when `additional_stage`, with PistonY's HEAD names."""
    spec = SPECS[f"attention{_depth(additional_stage)}"]
    return ResidualAttentionNetwork(spec, classes, **kwargs)


def ResidualAttentionModel(
    classes: int = 1000, additional_stage: bool = False, **kwargs: Any
) -> ResidualAttentionNetwork:
    """Return PistonY's network for 224x224 images: Attention-56, or 92 when `additional_stage`."""
    spec = SPECS[f"attention{_depth(additional_stage)}_imagenet"]
    return ResidualAttentionNetwork(spec, classes, **kwargs)


def ResidualAttentionModel_448input(
    classes: int = 1000, additional_stage: bool = False, **kwargs: Any
) -> ResidualAttentionNetwork:
    """Return the network for 448x448 images: the one for 224x224 with a stage 0 before it.

    PistonY's leaves one unit of stage 0 unused and can be neither hybridized nor saved, so there
    are no files of it; here that unit is where its place in the mask is.
    """
    spec = SPECS[f"attention{_depth(additional_stage)}_imagenet448"]
    return ResidualAttentionNetwork(spec, classes, **kwargs)


def ResidualAttentionModel_92_32input_update(
    **kwargs: Any,
) -> ResidualAttentionNetwork:
    """Return Attention-92 for 10 classes with the attribute names from before 2018-10-15.

    It computes what ``ResidualAttentionModel_32input(additional_stage=True)`` computes; only the
    names in stage 1 differ.
    """
    return ResidualAttentionNetwork(replace(SPECS["attention92"], old_names=True), **kwargs)
