"""The retina of the recurrent attention model: patches of several scales around a location.

Source: Mnih et al. 2014, "Recurrent Models of Visual Attention", arXiv 1406.6247, section 3.1 (the
glimpse sensor); conventions of kevinzakka/recurrent-visual-attention (MIT), whose weights load.

A location is (x, y) in [-1, 1]: (-1, -1) is the top left corner. With ``L`` the length of an axis,
the centre is pixel ``trunc((l + 1) / 2 * L)``, and the patch of scale ``i`` has ``size = patch_size
* scale**i`` pixels on each side, from ``centre - size // 2`` on. What lies outside of the image is
``pad_value``. Every patch but the smallest is averaged down to ``patch_size``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Retina:
    """Cuts patches out of a batch of images, for graphs: no parameters, no loop over images.

    Averaging comes first: the mean over every window of ``scale**i`` pixels is computed once per
    image, and a glimpse of that scale is then a regular pick of these means. All glimpses and
    rollouts of an image share this *pyramid*, so that a glimpse costs one gather of as many numbers
    as the network sees.

    Parameters
    ----------
    height, width, channels
        Of the images.
    patch_size
        Edge of the smallest patch, and of all patches as the network sees them; odd or even.
    num_patches
        Number of scales.
    scale
        Factor between the edges of successive scales, 1 or more.
    pad_value
        What surrounds the image, in the units of the image.

    Raises
    ------
    ValueError
        When a number is out of range, or an edge ``int(patch_size * scale**i)`` is not a multiple
        of `patch_size`, so that it has no exact average.
    """

    height: int
    width: int
    channels: int = 1
    patch_size: int = 8
    num_patches: int = 1
    scale: float = 1
    pad_value: float = 0.0

    def __post_init__(self) -> None:
        for name in ("height", "width", "channels", "patch_size", "num_patches", "scale"):
            if not 1 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not math.isfinite(self.pad_value):
            raise ValueError(f"pad_value must be a finite number, got {self.pad_value}")
        for size in self.sizes:
            if size % self.patch_size:
                raise ValueError(
                    f"scale {self.scale} gives a patch of {size} pixels, which cannot be averaged "
                    f"down to {self.patch_size}: every edge must be a multiple of patch_size, as "
                    "with scale 2"
                )

    @property
    def sizes(self) -> tuple[int, ...]:
        """Edges of the patches in pixels of the image."""
        return tuple(int(self.patch_size * self.scale**i) for i in range(self.num_patches))

    @property
    def values(self) -> int:
        """Numbers in one glimpse, over all scales and channels."""
        return self.num_patches * self.channels * self.patch_size**2

    def _windows(self) -> list[int]:
        """Edges in pixels of what one value of each scale is the mean of."""
        return [size // self.patch_size for size in self.sizes]

    def pyramid(self, F: Any, image: Any) -> Any:
        """Return the means of all windows that touch an image: (N, C, H, W) to (N, P).

        A level with windows of ``w`` pixels is (C, H + w + 1, W + w + 1): its first and last rows
        and columns are windows next to the image, which see only padding.
        """
        # MXNet crashes in an eager backward pass to a padding whose own gradient is blocked.
        image = F.BlockGrad(image)
        levels = []
        for window in self._windows():
            level = F.pad(
                image,
                mode="constant",
                pad_width=(0, 0, 0, 0, *(window,) * 4),
                constant_value=self.pad_value,
            )
            if window > 1:
                level = _window_sums(F, level, 2, self.height + 2 * window, window)
                level = _window_sums(F, level, 3, self.width + 2 * window, window)
                level = level * (1 / window**2)
            levels.append(F.Flatten(level))
        return levels[0] if len(levels) == 1 else F.concat(*levels, dim=1)

    def glimpses(self, F: Any, pyramid: Any, image_index: Any, location: Any) -> Any:
        """Return what is seen at some locations.

        Parameters
        ----------
        F
            ``mxnet.nd`` or ``mxnet.sym``.
        pyramid
            Of N images, (N, P).
        image_index
            int32 (M,): the image that each location looks at.
        location
            (M, 2), (x, y) in [-1, 1]. What is outside is moved to the border.

        Returns
        -------
        (M, V)
            Ordered by scale, channel, row and column. No gradient flows through it.
        """
        x, y = (
            F.floor(F.clip((axis + 1) * (0.5 * length), 0, length))
            for axis, length in zip(
                F.split(F.BlockGrad(location), num_outputs=2, axis=1), (self.width, self.height)
            )
        )  # (M, 1) each: the centre's column and row
        sizes = [
            self.channels * (self.height + window + 1) * (self.width + window + 1)
            for window in self._windows()
        ]
        start = F.reshape(image_index, shape=(-1, 1, 1, 1)) * sum(sizes)
        indices, offset = [], 0
        for size, window, values in zip(self.sizes, self._windows(), sizes):
            rows = self._line(F, y, size, window, self.height)  # (M, G)
            columns = self._line(F, x, size, window, self.width)
            width = self.width + window + 1
            plane = F.broadcast_add(
                F.expand_dims(rows * width, axis=2), F.expand_dims(columns, axis=1)
            )
            channel = F.arange(self.channels, dtype="int32") * (values // self.channels) + offset
            index = F.broadcast_add(
                F.expand_dims(plane, axis=1), F.reshape(channel, shape=(1, -1, 1, 1))
            )  # (M, C, G, G)
            indices.append(F.Flatten(F.broadcast_add(index, start)))
            offset += values
        index = indices[0] if len(indices) == 1 else F.concat(*indices, dim=1)
        return F.BlockGrad(F.take(F.reshape(pyramid, shape=(-1,)), index))

    def _line(self, F: Any, centre: Any, size: int, window: int, length: int) -> Any:
        """Return where the values of a patch are along one axis of its level, int32 (M, G)."""
        steps = F.arange(self.patch_size) * window + (window - size // 2)
        places = F.broadcast_add(centre, F.expand_dims(steps, axis=0))
        # Windows further outside see the same padding as the first and the last.
        return F.cast(F.clip(places, 0, length + window), dtype="int32")


def _window_sums(F: Any, x: Any, axis: int, length: int, window: int) -> Any:
    """Return the sums of `window` neighbours along an axis of `length` entries."""
    if window == 1:
        return x
    # Adding two halves takes fewer passes over memory than adding one neighbour at a time.
    part = window // 2 if window % 2 == 0 else window - 1
    sums = _window_sums(F, x, axis, length, part)
    other = sums if window % 2 == 0 else x
    end = length - window + 1
    return F.slice_axis(sums, axis=axis, begin=0, end=end) + F.slice_axis(
        other, axis=axis, begin=part, end=part + end
    )
