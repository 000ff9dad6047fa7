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
from typing import Any, NamedTuple, Optional

MOST_PATCHES, LARGEST_PATCH = 32, 4096  # of the latter, pixels


class Lookup(NamedTuple):
    """Where windows are in a pyramid; see `Retina.lookup`.

    ``start`` int32 (M, 1), of the image that each location looks at; for rows and for columns the
    places, int32, and the steps (1, K * C * G).
    """

    start: Any
    rows: Any
    row_steps: Any
    columns: Any
    column_steps: Any


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
        When a number or the largest patch is out of range, or an edge ``int(patch_size *
        scale**i)`` is not a multiple of `patch_size`, so that it has no exact average.
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
        # As logarithms, which do not overflow.
        largest = math.log(self.patch_size) + (self.num_patches - 1) * math.log(self.scale)
        if self.num_patches > MOST_PATCHES or largest > math.log(LARGEST_PATCH) + 1e-9:
            raise ValueError(
                f"{self.num_patches} patches from {self.patch_size} pixels on, each {self.scale:g} "
                f"times as large; at most {MOST_PATCHES} of at most {LARGEST_PATCH} pixels"
            )
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

    def _planes(self) -> list[int]:
        """Numbers of one channel of each level."""
        return [(self.height + w) * (self.width + w) for w in self._windows()]

    def pyramid(self, F: Any, image: Any) -> Any:
        """Return the means of all windows that touch an image: (N, C, H, W) to (N, P).

        A level with windows of ``w`` pixels is (C, H + w, W + w). Its last row and column are
        windows next to the image, which see only padding; they serve for all that do.
        """
        # MXNet crashes in an eager backward pass to a padding whose own gradient is blocked.
        image = F.BlockGrad(image)
        for axis in (2, 3):  # one row and one column of padding at the end; F.pad takes longer
            border = F.zeros_like(F.slice_axis(image, axis=axis, begin=0, end=1))
            image = F.concat(image, border + self.pad_value if self.pad_value else border, dim=axis)
        levels = []
        for window, plane in zip(self._windows(), self._planes()):
            level = image if window == 1 else self._means(F, image, window)
            levels.append(F.reshape(level, shape=(-1, self.channels * plane)))
        return levels[0] if len(levels) == 1 else F.concat(*levels, dim=1)

    def _means(self, F: Any, image: Any, window: int) -> Any:
        """Return the means over windows of an image that has one more row and column."""
        # Pooling surrounds with zeros. The images take the place of the channels: one kernel works
        # on 16 channels at once, so that this is 10 times as fast as on images of one channel.
        shifted = image - self.pad_value if self.pad_value else image
        means = F.Pooling(
            F.reshape(shifted, shape=(1, -1, self.height + 1, self.width + 1)),
            kernel=(window, window),
            pad=(window - 1, window - 1),
            pool_type="avg",
            count_include_pad=True,
        )
        return means + self.pad_value if self.pad_value else means

    def lookup(self, F: Any, image_index: Any) -> Lookup:
        """Return what all glimpses of the same images share; `image_index` as in `glimpses`."""
        planes = [plane for plane in self._planes() for _ in range(self.channels)]
        windows = [window for window in self._windows() for _ in range(self.channels)]
        offsets = [sum(planes[:level]) for level in range(len(planes))]
        strides = [self.width + window for window in windows]
        start = F.reshape(image_index, shape=(-1, 1)) * sum(planes)
        rows = self._axis(F, self.height, windows, offsets, strides)
        columns = self._axis(F, self.width, windows, [0] * len(windows), [1] * len(windows))
        return Lookup(start, *rows, *columns)

    def _axis(
        self, F: Any, length: int, windows: list[int], offsets: list[int], strides: list[int]
    ) -> tuple[Any, Any]:
        """Return where the windows of one axis are in a pyramid, and what to look up there.

        Both are concatenations over scales and channels. ``places[k]``, int32, is where the lines
        are whose centre and step add up to ``k``; ``steps`` (1, K * C * G) has the steps. One
        lookup replaces clipping, products and sums of every glimpse.
        """
        places, steps, count = [], [], 0
        for window, offset, stride in zip(windows, offsets, strides):
            size, outside = self.patch_size * window, length + window - 1
            first = window - 1 - size // 2  # of a patch whose centre is 0
            last = first + length + size - window
            runs = [
                F.zeros((before,), dtype="int32") + outside
                for before in (max(-first, 0), max(last + 1 - outside, 0))
                if before
            ]
            inside = F.arange(max(first, 0), min(last + 1, outside), dtype="int32")
            runs.insert(1 if first < 0 else 0, inside)
            places.append(F.concat(*runs, dim=0) * stride + offset)
            steps.append(F.arange(self.patch_size) * window + count)
            count += last + 1 - first
        return F.concat(*places, dim=0), F.expand_dims(F.concat(*steps, dim=0), axis=0)

    def glimpses(
        self,
        F: Any,
        pyramid: Any,
        image_index: Any,
        location: Any,
        lookup: Optional[Lookup] = None,
    ) -> Any:
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
        lookup
            `lookup` of `image_index`, for several glimpses; made here when None.

        Returns
        -------
        (M, V)
            Ordered by scale, channel, row and column. No gradient flows through it.
        """
        start, rows, row_steps, columns, column_steps = lookup or self.lookup(F, image_index)
        x, y = self._centres(F, F.BlockGrad(location))
        row = F.broadcast_add(F.take(rows, F.broadcast_add(y, row_steps)), start)  # (M, K * C * G)
        column = F.take(columns, F.broadcast_add(x, column_steps))
        index = F.broadcast_add(
            F.reshape(row, shape=(0, -1, self.patch_size, 1)),
            F.reshape(column, shape=(0, -1, 1, self.patch_size)),
        )  # (M, K * C, G, G)
        return F.BlockGrad(F.take(F.reshape(pyramid, shape=(-1,)), F.Flatten(index)))

    def _centres(self, F: Any, location: Any) -> tuple[Any, Any]:
        """Return column and row of each centre as whole numbers, float32 (M, 1) each."""

        def pixel(place: Any, length: int) -> Any:
            return F.floor(F.clip((place + 1) * (0.5 * length), 0, length))

        if self.width == self.height:
            x, y = F.split(pixel(location, self.width), num_outputs=2, axis=1)
            return x, y
        x, y = F.split(location, num_outputs=2, axis=1)
        return pixel(x, self.width), pixel(y, self.height)
