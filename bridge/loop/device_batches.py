"""Images in device memory, and training batches made of them there.

The random numbers are those of `training.batches.in_memory.TrainBatches`, drawn by the same
generator in the same order, so a batch here has the pixels that ``train_cifar.py`` trains on with
the same seed: exactly, but for the rounding of colour jitter on another processor. Crop, shift and
flip move pixels along one axis each; they become one index per row and per column, and one gather.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]

from training.augmentation.augment import check_crop
from training.augmentation.draws import Jitter, Rectangles
from training.augmentation.photo_augment import GREY
from training.batches.in_memory import EvalBatches, Plan, TrainBatches, prefetched

Tensor = Any
PLANS_AHEAD = 4


class DeviceBatches:
    """Training batches as `source` describes them, made on a device.

    Parameters
    ----------
    source
        Data, batch size, augmentation, normalization, classes and seed.
    device
        Where images (uint8, N x H x W x C) and batches are kept.
    channels_last
        Leave the batches' images in the order N, H, W, C in memory.
    """

    def __init__(
        self, source: TrainBatches, device: torch.device, channels_last: bool = True
    ) -> None:
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        chosen, images = source.augmentation, source.data.images
        self.source, self.device = source, device
        self.images = torch.from_numpy(np.ascontiguousarray(images)).to(device)
        self.labels = torch.from_numpy(source.data.labels.astype(np.int64)).to(device)
        self.normalizer = Normalizer(source.mean, source.std, device)
        self.height, self.width = images.shape[1:3]
        check_crop(chosen.crop_size, chosen.pad, (self.height, self.width), chosen.pad_mode)
        size = (chosen.crop_size,) * 2 if chosen.crop_size else (self.height, self.width)
        self.rows, self.columns = size
        colour = np.rint(np.asarray(source.mean) * 255).astype(np.float32)
        self.mean_colour = torch.from_numpy(colour).to(device)

    def __len__(self) -> int:
        return len(self.source)

    def plans(self, epoch: int, mixup: bool, start: int) -> Generator[Plan, None, None]:
        """Plans of the batches of an epoch, from batch `start`, drawn ahead by a thread."""
        return prefetched(self.source.plans(epoch, mixup, start), PLANS_AHEAD)

    def make(self, plan: Plan) -> tuple[Tensor, Tensor]:
        """Return float32 images (N, C, H, W) and soft labels (N, classes)."""
        draws, index = plan.draws, self._send(plan.rows)
        pixels = self._moved(plan, index).float()
        if draws.jitter is not None:
            pixels = self._jittered(pixels, draws.jitter)
        if draws.cutout is not None:
            pixels = self._cut(pixels, draws.cutout)
        image = self.normalizer(pixels)
        label = self._soft_labels(index)
        if draws.mix is not None:
            partner = self._send(draws.mix.partner)
            rest = float(1 - draws.mix.lam)
            image, label = (blend(values, partner, rest) for values in (image, label))
        return image.permute(0, 3, 1, 2).contiguous(memory_format=self.layout), label

    def _send(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device, non_blocking=True)

    def _moved(self, plan: Plan, index: Tensor) -> Tensor:
        """Crop, shift and flip: uint8 (N, rows, columns, C)."""
        draws, chosen = plan.draws, self.source.augmentation
        row = torch.arange(self.rows, device=self.device).expand(len(index), -1)
        column = torch.arange(self.columns, device=self.device).expand(len(index), -1)
        if draws.flip is not None:
            flip = self._send(draws.flip)[:, None]
            column = torch.where(flip, self.columns - 1 - column, column)
        if draws.shift is not None:
            top, left = (self._send(place)[:, None] for place in draws.shift)
            reach = int(chosen.shift * self.rows), int(chosen.shift * self.columns)
            row = (row + top - reach[0]).clamp(0, self.rows - 1)
            column = (column + left - reach[1]).clamp(0, self.columns - 1)
        if draws.crop is None:
            return self.images[index[:, None, None], row[:, :, None], column[:, None, :]]
        top, left = (self._send(place)[:, None] for place in draws.crop)
        row, column = row + top - chosen.pad, column + left - chosen.pad
        if chosen.pad_mode == "reflect":
            row, column = reflected(row, self.height), reflected(column, self.width)
        inside_row = (row >= 0) & (row < self.height)
        inside_column = (column >= 0) & (column < self.width)
        row, column = row.clamp(0, self.height - 1), column.clamp(0, self.width - 1)
        pixels = self.images[index[:, None, None], row[:, :, None], column[:, None, :]]
        return pixels * (inside_row[:, :, None] & inside_column[:, None, :])[..., None]

    def _jittered(self, pixels: Tensor, jitter: Jitter) -> Tensor:
        factors = self._send(jitter.factors)
        channels = pixels.shape[3]
        weights = GREY if channels == 3 else np.full(channels, 1 / channels, np.float32)
        weight = torch.tensor([float(value) for value in weights], device=self.device)
        for kind in jitter.order.tolist():
            factor = factors[kind][:, None, None, None]
            if kind == 0:
                pixels = pixels * factor
                continue
            grey = (pixels * weight).sum(dim=3, keepdim=True)
            towards = grey.mean(dim=(1, 2, 3), keepdim=True) if kind == 1 else grey
            pixels = (pixels - towards) * factor + towards
        return pixels.round().clamp(0, 255)

    def _cut(self, pixels: Tensor, cutout: Rectangles) -> Tensor:
        top, left, rows, columns = self._send(cutout.box)[:, :, None]
        row = torch.arange(self.rows, device=self.device)[None]
        column = torch.arange(self.columns, device=self.device)[None]
        inside_row = (row >= top) & (row < top + rows) & self._send(cutout.chosen)[:, None]
        inside_column = (column >= left) & (column < left + columns)
        inside = (inside_row[:, :, None] & inside_column[:, None, :])[..., None]
        if cutout.grey is None:
            return torch.where(inside, self.mean_colour, pixels)
        return torch.where(inside, self._send(cutout.grey).float()[:, None, None, None], pixels)

    def _soft_labels(self, index: Tensor) -> Tensor:
        epsilon, classes = self.source.augmentation.label_smoothing, self.source.classes
        soft = torch.full((len(index), classes), epsilon / classes, device=self.device)
        one = torch.full((len(index), 1), 1 - epsilon, device=self.device)
        return soft.scatter_add_(1, self.labels[index][:, None], one)


def reflected(place: Tensor, size: int) -> Tensor:
    """Return places less than `size` outside of 0 to `size` - 1, mirrored at the nearer end."""
    return size - 1 - (size - 1 - place.abs()).abs()


class Normalizer:
    """``(image / 255 - mean) / std`` as `training.augmentation.augment.normalize` computes it, in
    N, H, W, C.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        deviation = np.asarray(std, np.float64)
        scale, offset = 1 / (255 * deviation), np.asarray(mean, np.float64) / deviation
        self.scale = torch.from_numpy(scale.astype(np.float32)).to(device)
        self.offset = torch.from_numpy(offset.astype(np.float32)).to(device)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return float32, of the shape of `pixels`."""
        return pixels.float() * self.scale - self.offset


def blend(values: Tensor, partner: Tensor, rest: float) -> Tensor:
    """Return ``values + rest * (values[partner] - values)``, as
    `training.augmentation.augment.mixup` does.
    """
    return (values[partner] - values) * rest + values


class DeviceImages:
    """Images of an evaluation in device memory; every image once, in order."""

    def __init__(self, source: EvalBatches, device: torch.device) -> None:
        self.images = torch.from_numpy(np.ascontiguousarray(source.data.images)).to(device)
        self.labels = torch.from_numpy(source.data.labels.astype(np.int64)).to(device)
        self.normalizer = Normalizer(source.mean, source.std, device)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Return float32 images (N, C, H, W) and labels (N,)."""
        return self.normalizer(self.images[start:stop]).permute(0, 3, 1, 2), self.labels[start:stop]
