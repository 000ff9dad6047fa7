"""What a training run is about: a network, its data, what is minimized and how it is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Optional

import numpy as np

from training.batches.in_memory import Loaders
from training.batches.scores import Scores
from training.settings.errors import UserError

SAMPLE_IMAGES = 32


@dataclass(frozen=True)
class Method:
    """How a network is trained and judged; the default is a classifier of whole images.

    Parameters
    ----------
    objective
        See `training.loop.engine.Updater`.
    evaluate
        ``evaluate(net, batches, contexts, advance)`` returns `Scores`; None: of logits
        ``net(image)``.
    after_epoch
        ``after_epoch(run, epoch)`` for pictures and further records; the network has the weights
        that were tested.
    graph
        The block whose graph is recorded; None: the network.
    statistics
        Further numbers for the row of an epoch that is evaluated, by name; the network has the
        weights that were tested.
    """

    objective: Optional[Callable[..., Any]] = None
    evaluate: Optional[Callable[..., Scores]] = None
    after_epoch: Callable[[Any, int], None] = lambda run, epoch: None
    graph: Any = None
    statistics: Callable[[], Mapping[str, float]] = dict


class Task(NamedTuple):
    """Initialized network with known shapes, its ``gluon.Trainer``, the devices of both, data."""

    net: Any
    trainer: Any
    contexts: list[Any]
    loaders: Loaders
    method: Method = Method()


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
