"""What a network says of images: finite numbers, and probabilities."""

from __future__ import annotations

import numpy as np

from formats.errors import UserError


def require_finite(outputs: np.ndarray, what: str) -> None:
    """Raise UserError when an output of a network is not finite; `what` it was computed for."""
    if not np.isfinite(outputs).all():
        raise UserError(
            f"the network's outputs for {what} are not finite, so there is no score; its weights "
            "are of a training that diverged, or its file is damaged"
        )


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities (N, classes) from logits of the same shape."""
    if not logits.size:
        return logits
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return shares
