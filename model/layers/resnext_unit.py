"""The aggregated residual unit of ResNeXt, the other unit that attention modules are built from.

Source: Xie et al. 2017, "Aggregated Residual Transformations for Deep Neural Networks", arXiv
1611.05431, figure 3(c); as used in the AttentionNeXt-56 that Wang et al. published as a Caffe
model.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

from mxnet.gluon import nn

from model.layers.basic_layer import norm, pointwise


class ResNeXtUnit(nn.HybridBlock):
    """``y = relu(bn3(W3 relu(bn2(W2 relu(bn1(W1 x))))) + shortcut)``, W2 in `groups` groups.

    The shortcut is `x` itself or, where the shape changes, `projection`, ``bn(W x)``. The
    bottleneck has half of the output channels; the 3x3 convolution carries the stride. Unlike the
    pre-activation unit this one ends with its activation.

    Source: Xie et al. 2017, figure 3(c); authors' AttentionNeXt-56 prototxt. Differs: none.

    Parameters
    ----------
    channels
        Output channels, a multiple of twice `groups`.
    in_channels
        Input channels; `channels` when None.
    stride
        Stride of the 3x3 convolution and of the projection.
    groups
        Groups of the 3x3 convolution, the paper's cardinality.
    norm_layer, norm_kwargs
        Normalisation in place of batch normalisation, and its settings.

    Inputs
        - **x**: (N, in_channels, H, W) float32.

    Outputs
        - (N, channels, ceil(H / stride), ceil(W / stride)) float32, at least 0.

    Raises
    ------
    ValueError
        When `channels` is not a positive multiple of twice `groups`.
    """

    def __init__(
        self,
        channels: int,
        in_channels: Optional[int] = None,
        stride: int = 1,
        groups: int = 32,
        norm_layer: Optional[Callable[..., nn.HybridBlock]] = None,
        norm_kwargs: Optional[dict[str, Any]] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if groups < 1 or channels < 2 * groups or channels % (2 * groups):
            raise ValueError(
                "channels of a ResNeXt unit must be a multiple of twice its groups, got "
                f"{channels} channels and {groups} groups"
            )
        in_channels = channels if in_channels is None else in_channels
        bottleneck = channels // 2
        with self.name_scope():
            self.conv1 = pointwise(bottleneck, in_channels)
            self.bn1 = norm(bottleneck, norm_layer, norm_kwargs)
            self.conv2 = nn.Conv2D(
                bottleneck,
                3,
                stride,
                padding=1,
                groups=groups,
                use_bias=False,
                in_channels=bottleneck,
            )
            self.bn2 = norm(bottleneck, norm_layer, norm_kwargs)
            self.conv3 = pointwise(channels, bottleneck)
            self.bn3 = norm(channels, norm_layer, norm_kwargs)
            self.projection = None
            if stride != 1 or in_channels != channels:
                self.projection = nn.HybridSequential(prefix="")
                self.projection.add(
                    pointwise(channels, in_channels, stride),
                    norm(channels, norm_layer, norm_kwargs),
                )

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        shortcut = x if self.projection is None else self.projection(x)
        y = F.Activation(self.bn1(self.conv1(x)), act_type="relu")
        y = F.Activation(self.bn2(self.conv2(y)), act_type="relu")
        y = self.bn3(self.conv3(y))
        return F.Activation(y + shortcut, act_type="relu")
