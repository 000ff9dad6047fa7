"""What a training run is about: a network, its data, what is minimized and how it is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Optional

from training.batches.in_memory import EvalBatches, TrainBatches
from training.loop.evaluation import Scores


class Loaders(NamedTuple):
    """Batches of one run; ``valid`` is None when no training images are held out."""

    train: TrainBatches
    valid: Optional[EvalBatches]
    test: EvalBatches


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
