"""Loss scaling for float16: small gradients would be 0 there, so the loss is made larger first.

MXNet's scaler begins at 2^16, doubles after 2,000 good updates and halves when a gradient is not
finite; that update is left out. A resumed run begins at 2^16 again.

Source: Micikevicius et al. 2018, "Mixed Precision Training", arXiv 1710.03740, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mxnet import autograd


def with_loss_scaling(trainer: Any, precision: str) -> Any:
    """Return the trainer, which from now on scales losses when `precision` is float16."""
    if precision == "float16":
        from mxnet.contrib import amp

        amp.init_trainer(trainer)
    return trainer


def backward(losses: Sequence[Any], trainer: Any) -> None:
    """Compute the gradients of losses, scaled as the trainer's updates will undo it."""
    if not is_scaled(trainer):
        autograd.backward(list(losses))
        return
    from mxnet.contrib import amp

    with autograd.record(), amp.scale_loss(list(losses), trainer) as scaled:
        autograd.backward(scaled)


def is_scaled(trainer: Any) -> bool:
    """Return whether losses are scaled; the trainer then leaves out updates that overflow."""
    return getattr(trainer, "_amp_loss_scaler", None) is not None


def loss_scale(trainer: Any) -> float:
    """Return what the gradients of `backward` are too large by; 1 without scaling."""
    scaler = getattr(trainer, "_amp_loss_scaler", None)
    return 1.0 if scaler is None else float(scaler.loss_scale)
