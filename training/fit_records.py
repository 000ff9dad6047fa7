"""What a training puts on record beside its numbers, and how it says that it has diverged."""

from __future__ import annotations

from typing import Any

import numpy as np

from training.settings.errors import UserError

SAMPLE_IMAGES = 32


def sample_images(train: Any, mixup: bool) -> np.ndarray:
    """Return images of the first training batch (N, H, W, C), uint8, as the network gets them."""
    batch = next(iter(train.epoch(0, mixup=mixup)))
    mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (train.mean, train.std))
    pixels = (batch.image[:SAMPLE_IMAGES] * std + mean) * 255
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def trained_weights(net: Any, context: Any) -> dict[str, np.ndarray]:
    """Return what is trained, by structural name."""
    return {
        name: parameter.data(context).asnumpy()
        for name, parameter in net._collect_params_with_prefix().items()
        if parameter.grad_req != "null"
    }


def diverged(what: str, loss: float, step: int, rate: float) -> UserError:
    """Return the error of a loss that is not finite any more."""
    return UserError(
        f"the training diverged: the {what} is {loss}, step {step}, learning rate {rate:.4g}; the "
        "last checkpoint is kept. Start anew with a lower --lr or more --warmup-epochs"
    )
