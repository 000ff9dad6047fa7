"""Residual Attention Networks for 32x32 images.

Source: Wang et al. 2017, "Residual Attention Network for Image Classification", arXiv 1704.06904;
layer table and attribute names of PistonY/ResidualAttentionNetwork (MIT).

Measured, 32x32 input, 10 classes (pinned in ``tests/test_models.py``):

    attention56        7,202,794 trainable parameters   450 tensors   0.694 GMAC
    attention92       12,170,730 trainable parameters   750 tensors   1.089 GMAC

Differs from the paper: widths 128/256/512 with a 1024-channel tail, modules 1/1/1 or 1/2/3 per
stage and mask depths 2/1/0 are PistonY's; the paper's CIFAR networks are narrower. Pooling at the
end is global, which equals PistonY's 8x8 pooling at 32x32 and accepts other sizes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional

from mxnet.gluon import nn

from model.attention_module import OLD_NAMES_DEPTH_2, AttentionModule
from model.attention_presets import MODULES_56, MODULES_92, SPECS, AttentionSpec
from model.basic_layer import ResidualBlock, norm


class ResidualAttentionNetwork(nn.HybridBlock):
    """Stem, three stages of attention modules, three residual units, classifier.

    Parameters
    ----------
    spec
        The variant.
    classes
        Number of classes, 1 or more.
    norm_kwargs
        Passed on to every batch normalisation, for example ``{"epsilon": 1e-4}``.

    Inputs
        - **image**: (N, 3, H, W) float32, normalised as the parameter file expects; nominal 32x32.

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
        classes: int = 10,
        norm_kwargs: Optional[dict[str, Any]] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if classes < 1:
            raise ValueError(f"classes must be 1 or more, got {classes}")
        self.spec, self.classes = spec, classes
        with self.name_scope():
            self.conv1 = nn.HybridSequential(prefix="")
            self.conv1.add(
                nn.Conv2D(spec.stem_channels, 3, padding=1, use_bias=False, in_channels=3),
                norm(spec.stem_channels, norm_kwargs),
                nn.Activation("relu"),
            )
            in_channels = spec.stem_channels
            for stage, channels in enumerate(spec.channels, 1):
                strides = 1 if stage == 1 else 2
                unit = ResidualBlock(channels, in_channels, strides, norm_kwargs)
                setattr(self, f"residual_block{stage}", unit)
                for name in module_names(stage, spec.modules[stage - 1]):
                    setattr(self, name, self._module(stage, norm_kwargs))
                in_channels = channels
            for index in range(4, 7):
                unit = ResidualBlock(spec.tail_channels, in_channels, norm_kwargs=norm_kwargs)
                setattr(self, f"residual_block{index}", unit)
                in_channels = spec.tail_channels
            self.mpool2 = nn.HybridSequential(prefix="")
            self.mpool2.add(norm(spec.tail_channels, norm_kwargs), nn.Activation("relu"))
            # A 1x1 convolution instead of a dense layer keeps the shape that the files have.
            self.fc = nn.Conv2D(classes, 1, in_channels=spec.tail_channels)

    def _module(self, stage: int, norm_kwargs: Optional[dict[str, Any]]) -> AttentionModule:
        spec = self.spec
        return AttentionModule(
            spec.channels[stage - 1],
            spec.mask_depths[stage - 1],
            spec.ptr,
            wiring=spec.wiring,
            learning=spec.learning,
            attention=spec.attention,
            names=OLD_NAMES_DEPTH_2 if spec.old_names and stage == 1 else None,
            norm_kwargs=norm_kwargs,
        )

    def blocks(self) -> Iterator[tuple[str, nn.HybridBlock]]:
        """Yield (attribute name, block) from input to last feature map, in order of execution."""
        yield "conv1", self.conv1
        for stage in range(1, 4):
            yield f"residual_block{stage}", getattr(self, f"residual_block{stage}")
            for name in module_names(stage, self.spec.modules[stage - 1]):
                yield name, getattr(self, name)
        for index in range(4, 7):
            yield f"residual_block{index}", getattr(self, f"residual_block{index}")
        yield "mpool2", self.mpool2

    def hybrid_forward(self, F: Any, image: Any) -> Any:
        y = image
        for _, block in self.blocks():
            y = block(y)

        # Global pooling as a mean: the backward pass of GlobalAvgPool2D makes oneDNN choose a
        # layout in which the batch normalisations of the last stage run ten times slower.
        y = F.mean(y, axis=(2, 3), keepdims=True)  # (N, C, 1, 1)
        return F.Flatten(self.fc(y))  # (N, classes)


def module_names(stage: int, count: int) -> tuple[str, ...]:
    """Return the names of a stage's modules: attention_module2, attention_module2_2, ..."""
    return tuple(
        f"attention_module{stage}" + (f"_{index}" if index > 1 else "")
        for index in range(1, count + 1)
    )


def build(
    spec: AttentionSpec, classes: int, *, norm_kwargs: Optional[dict[str, Any]] = None
) -> ResidualAttentionNetwork:
    """Return the network of `spec`; `norm_kwargs` go to every batch normalisation."""
    return ResidualAttentionNetwork(spec, classes, norm_kwargs)


# What `model.registry` reads.
FAMILY = {name: (spec, build) for name, spec in SPECS.items()}


def ResidualAttentionModel_32input(
    classes: int = 10, additional_stage: bool = False, **kwargs: Any
) -> ResidualAttentionNetwork:
    """Return Attention-56, or Attention-92 when `additional_stage`, with PistonY's HEAD names."""
    spec = AttentionSpec(MODULES_92 if additional_stage else MODULES_56)
    return ResidualAttentionNetwork(spec, classes, **kwargs)


def ResidualAttentionModel_92_32input_update(
    **kwargs: Any,
) -> ResidualAttentionNetwork:
    """Return Attention-92 for 10 classes with the attribute names from before 2018-10-15.

    It computes what ``ResidualAttentionModel_32input(additional_stage=True)`` computes; only the
    names in stage 1 differ.
    """
    return ResidualAttentionNetwork(AttentionSpec(MODULES_92, old_names=True), **kwargs)
