"""One optimizer step from one batch: micro-batches, mixed precision, clipping."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Optional

import numpy as np
import torch  # type: ignore[import-not-found]
from torch.nn import functional  # type: ignore[import-not-found]

from bridge.loop.optimizer import Optimizer, clip_norm

Tensor = Any
# MXNet's own figures of loss scaling (mxnet.contrib.amp.loss_scaler).
FIRST_SCALE, SCALE_FACTOR, SCALE_WINDOW = 2.0**16, 2.0, 2000


class StepSettings(NamedTuple):
    """How a step is computed.

    ``micro_batch`` images at most go through the network at once (0: all), also for the statistics
    of batch normalisation; gradients add up over the parts. ``half`` is the type of convolutions
    and products, None for float32. ``clip`` limits the norm of the mean gradient; 0: none.
    ``smoothing`` is that of the labels.
    """

    batch_size: int
    micro_batch: int = 0
    half: Optional[torch.dtype] = None
    clip: float = 0.0
    smoothing: float = 0.0


class Updater:
    """Runs steps of `module`; parameters, running statistics and sums change in place.

    Parameters
    ----------
    module
        From images (N, C, H, W) to logits (N, classes), on one device, in training mode.
    optimizer
        Holds the parameters to train.
    settings
        See `StepSettings`.

    Attributes
    ----------
    totals : torch.Tensor
        float64 (2,): sums of loss (nats) and of the share of right decisions since they were last
        set to zero. A mixed image counts as the share that the class of the choice has in it.
    """

    def __init__(self, module: Any, optimizer: Optimizer, settings: StepSettings) -> None:
        self.module, self.optimizer, self.settings = module, optimizer, settings
        self.forward = module
        self.device = optimizer.weights[0].device
        self.lr = torch.zeros((), device=self.device)
        self.totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.gradients = [torch.zeros_like(weight) for weight in optimizer.weights]
        for weight, gradient in zip(optimizer.weights, self.gradients):
            weight.grad = gradient
        size, micro = settings.batch_size, settings.micro_batch
        count = math.ceil(size / micro) if micro else 1
        # Parts as numpy.array_split makes them, which the training by MXNet uses.
        self.parts = [len(part) for part in np.array_split(np.arange(size), count)]
        self.scaling = settings.half == torch.float16
        self.scale, self.sound_steps = (FIRST_SCALE if self.scaling else 1.0), 0

    def set_rate(self, lr: float, step: int) -> None:
        """Set the learning rate of update `step`, which counts from 1."""
        self.lr.fill_(self.optimizer.rate(lr, step))

    def step(self, image: Tensor, label: Tensor) -> None:
        """Update the parameters from a batch; nothing here waits for the device but float16."""
        torch._foreach_zero_(self.gradients)
        for part, target in zip(image.split(self.parts), label.split(self.parts)):
            self._backward(part, target)
        sound = True
        torch._foreach_mul_(self.gradients, 1.0 / (self.scale * self.settings.batch_size))
        if self.scaling:
            norm = torch.stack(torch._foreach_norm(self.gradients)).sum()
            sound = bool(torch.isfinite(norm))
        if self.settings.clip and sound:
            clip_norm(self.gradients, self.settings.clip)
        if sound:
            with torch.no_grad():
                self.optimizer.update(self.gradients, self.lr)
        if self.scaling:
            self._rescale(sound)

    def _backward(self, image: Tensor, label: Tensor) -> None:
        half = self.settings.half
        # Nothing is kept between forward passes: a captured graph would keep an old weight.
        with torch.autocast(
            self.device.type, half or torch.bfloat16, enabled=half is not None, cache_enabled=False
        ):
            logits = self.forward(image)
        logits = logits.float()
        losses = -(functional.log_softmax(logits, dim=1) * label).sum(dim=1)
        (losses.sum() * self.scale).backward()
        with torch.no_grad():
            chosen = logits.argmax(dim=1, keepdim=True)
            smoothing = self.settings.smoothing
            share = label.gather(1, chosen).double() - smoothing / logits.shape[1]
            right = share.sum() / (1 - smoothing)
            self.totals += torch.stack([losses.double().sum(), right])

    def _rescale(self, sound: bool) -> None:
        self.sound_steps = self.sound_steps + 1 if sound else 0
        if not sound:
            self.scale = max(self.scale / SCALE_FACTOR, 1.0)
        elif self.sound_steps >= SCALE_WINDOW:
            self.scale, self.sound_steps = self.scale * SCALE_FACTOR, 0

    def tensors(self) -> list[Tensor]:
        """Return everything that steps change, for a copy before trial steps."""
        buffers = [buffer for _, buffer in self.module.named_buffers()]
        states = [tensor for part in self.optimizer.states for tensor in part]
        return [*self.optimizer.weights, *buffers, *states, self.totals, self.lr]
