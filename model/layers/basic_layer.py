"""Building blocks of the Residual Attention Network: residual unit and bilinear upsampling.

Source: Wang et al. 2017, "Residual Attention Network for Image Classification", arXiv 1704.06904;
the unit is the pre-activation bottleneck of He et al. 2016, arXiv 1603.05027, figure 4(e).

Attribute names (``bn1``, ``conv1`` ...) are a file format: ``.param`` files have them.
"""

from __future__ import annotations

from typing import Any, Callable, Optional

from mxnet.gluon import nn


def norm(
    channels: int,
    norm_layer: Optional[Callable[..., nn.HybridBlock]] = None,
    norm_kwargs: Optional[dict[str, Any]] = None,
) -> nn.HybridBlock:
    """Return a normalisation of `channels` maps.

    `norm_layer` is ``nn.BatchNorm`` unless given; it must take ``in_channels``, as ``InstanceNorm``
    and ``gluon.contrib.nn.SyncBatchNorm`` do. `norm_kwargs` override its defaults.
    """
    return (norm_layer or nn.BatchNorm)(in_channels=channels, **(norm_kwargs or {}))


def is_statistic(name: str) -> bool:
    """Return whether a parameter is a running statistic of a normalisation, by its name."""
    return name.endswith(("running_mean", "running_var"))


def pointwise(channels: int, in_channels: int, strides: int = 1) -> nn.Conv2D:
    """Return a 1x1 convolution without bias."""
    return nn.Conv2D(channels, 1, strides, use_bias=False, in_channels=in_channels)


class ResidualBlock(nn.HybridBlock):
    """Pre-activation bottleneck: ``y = W3 relu(bn3(W2 relu(bn2(W1 relu(bn1(x)))))) + shortcut``.

    The shortcut is `x` itself, or ``W4 relu(bn1(x))`` where the shape changes: the projection reads
    the activated input, as in the authors' Caffe model. The 3x3 convolution carries the stride.

    Source: He et al. 2016, figure 4(e); PistonY ``model/basic_layer.py``. Differs: none.

    Parameters
    ----------
    channels
        Output channels, a multiple of 4 (the bottleneck has a quarter of them).
    in_channels
        Input channels; `channels` when None.
    stride
        Stride of the 3x3 convolution and of the projection.
    norm_layer, norm_kwargs
        Normalisation in place of batch normalisation, and its settings; see `norm`.

    Inputs
        - **x**: (N, in_channels, H, W) float32.

    Outputs
        - (N, channels, ceil(H / stride), ceil(W / stride)) float32.

    Raises
    ------
    ValueError
        When `channels` is not a positive multiple of 4.
    """

    def __init__(
        self,
        channels: int,
        in_channels: Optional[int] = None,
        stride: int = 1,
        norm_layer: Optional[Callable[..., nn.HybridBlock]] = None,
        norm_kwargs: Optional[dict[str, Any]] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if channels < 4 or channels % 4:
            raise ValueError(f"channels of a bottleneck must be a multiple of 4, got {channels}")
        in_channels = channels if in_channels is None else in_channels
        bottleneck = channels // 4
        with self.name_scope():
            self.bn1 = norm(in_channels, norm_layer, norm_kwargs)
            self.conv1 = pointwise(bottleneck, in_channels)
            self.bn2 = norm(bottleneck, norm_layer, norm_kwargs)
            self.conv2 = nn.Conv2D(
                bottleneck, 3, stride, padding=1, use_bias=False, in_channels=bottleneck
            )
            self.bn3 = norm(bottleneck, norm_layer, norm_kwargs)
            self.conv3 = pointwise(channels, bottleneck)
            self.conv4 = (
                pointwise(channels, in_channels, stride)
                if stride != 1 or in_channels != channels
                else None
            )

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        # Activation keeps the tensor in oneDNN's blocked layout, F.relu does not.
        activated = F.Activation(self.bn1(x), act_type="relu")
        shortcut = x if self.conv4 is None else self.conv4(activated)
        y = self.conv1(activated)
        y = self.conv2(F.Activation(self.bn2(y), act_type="relu"))
        y = self.conv3(F.Activation(self.bn3(y), act_type="relu"))
        return y + shortcut

    def trace(self, ops: Any, x: Any) -> Any:
        """Return blocked maps by fused operators; see `model.execution.fused_graph.Trace`."""
        convolutions, norms = (self.conv1, self.conv2, self.conv3), (self.bn1, self.bn2, self.bn3)
        return ops.unit(2, convolutions, norms, x, projection=(self.conv4, None))


def interpolation_matrix(F: Any, low: Any, high: Any, axis: int) -> Any:
    """Return the (n_low, n_high) weights of linear interpolation along one axis of two maps.

    Column j holds ``max(0, 1 - |i - j * (n_low - 1) / (n_high - 1)|)`` over i: corners are aligned,
    as in ``BilinearResize2D`` of MXNet and in Caffe's ``Interp``. Both lengths are read from the
    maps when the graph runs, so one graph serves every input size, also after export.
    """
    source = F.contrib.arange_like(low, axis=axis)  # (n_low,) 0 .. n_low - 1
    target = F.contrib.arange_like(high, axis=axis)  # (n_high,) 0 .. n_high - 1
    # A target of one pixel has no second corner: 0 / max(0, 1) reads the first source pixel.
    last = F.maximum(F.max(target, axis=0, keepdims=True), 1)
    position = F.broadcast_mul(target, F.broadcast_div(F.max(source, axis=0, keepdims=True), last))
    distance = F.broadcast_sub(F.expand_dims(source, axis=1), F.expand_dims(position, axis=0))
    return F.BlockGrad(F.relu(1 - F.abs(distance)))


def upsample_like(F: Any, low: Any, high: Any) -> Any:
    """Resize `low` (N, C, h, w) bilinearly to the height and width of `high` (N, C, H, W).

    Two products with constant matrices, one per axis: on a CPU several times faster, forward and
    above all backward, than ``BilinearResize2D``, and equal to it up to rounding. The rows come
    first, so that both transpositions see the smaller maps.
    `high` gives the size only; no gradient flows into it.
    """
    rows = interpolation_matrix(F, low, high, axis=2)  # (h, H)
    columns = interpolation_matrix(F, low, high, axis=3)  # (w, W)
    tall = F.dot(F.transpose(low, axes=(0, 1, 3, 2)), rows)  # (N, C, w, H)
    return F.dot(F.transpose(tall, axes=(0, 1, 3, 2)), columns)  # (N, C, H, W)
