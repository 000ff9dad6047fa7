"""What a training run is about: a network, its data, what is minimized and how it is scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple, Optional

import mxnet as mx
import numpy as np
from mxnet import gluon

from training.augmentation.draws import dropout_seed
from training.batches.scores import Scores
from training.loop.evaluation import evaluate

SAMPLE_IMAGES = 32

# An image and its target on a device, and the target in host memory.
Part = tuple[Any, Any, np.ndarray]


def has_histograms(config: Any, epoch: int) -> bool:
    """Return whether the event files get histograms after an epoch, from 1."""
    every: int = config.histogram_every
    return bool(every) and (epoch == config.epochs or epoch % every == 1 % every)


class Measured(NamedTuple):
    """What one part of a batch gave, not yet computed.

    ``losses`` (n,); ``sums()`` waits for the rest and gives sums over the n ``images`` by name:
    ``correct``, the number of right decisions, and further terms of the loss.
    """

    losses: Any
    images: int
    sums: Callable[[], Mapping[str, float]]


@dataclass
class Task:
    """Initialized network with known shapes, its ``gluon.Trainer``, the devices of both, data.

    ``files`` go into the folder of a new run; ``config`` are the settings with what was chosen for
    those that left it open, None: nothing was. ``card`` is the start of
    `training.records.cards.Cards`: what network and data are. ``proxy`` is the task of a small
    network whose losses choose what of each batch is trained on, or None.
    """

    net: Any
    trainer: Any
    contexts: Sequence[Any]
    loaders: Any = None
    files: dict[str, bytes] = field(default_factory=dict)
    config: Any = None
    card: Mapping[str, Any] = field(default_factory=dict)
    proxy: Optional[Task] = None

    def losses(self, part: Part, key: tuple[int, ...]) -> Measured:
        """Return the losses of a part of a batch; it is called while gradients are recorded.

        `key` is (update, part): tasks that draw random numbers draw them from it.
        """
        raise NotImplementedError

    def evaluate(self, batches: Any, advance: Optional[Callable[[int], None]] = None) -> Scores:
        """Score exactly all images; `advance` gets the number of those of each batch."""
        raise NotImplementedError

    def after_epoch(self, run: Any, epoch: int) -> None:
        """Record pictures and the like; the network has the weights that were tested."""

    def statistics(self) -> Mapping[str, float]:
        """Return further numbers for the row of an epoch that is evaluated; weights as above."""
        return {}

    def sections(self, step: int) -> Mapping[str, Any]:
        """Return those sections of the card that are others after so many updates."""
        return {}

    @property
    def graph(self) -> Any:
        """The block whose graph is recorded."""
        return self.net


@dataclass
class ClassificationTask(Task):
    """Softmax cross-entropy of ``net(image)`` with hard or soft labels.

    ``watch`` gives what `statistics` returns, ``masks`` the soft masks (N, C, h, w) of some images
    by the name of the module.
    """

    watch: Callable[[], Mapping[str, float]] = dict
    masks: Callable[[], Mapping[str, np.ndarray]] = dict

    def __post_init__(self) -> None:
        self._hard = gluon.loss.SoftmaxCrossEntropyLoss()
        self._soft = gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)
        seeded = self.net is not None and self.config is not None
        self._drops_out = seeded and _drops_out(self.net)

    def losses(self, part: Part, key: tuple[int, ...]) -> Measured:
        """Return the losses of a part of a batch; see `Task.losses`."""
        image, target, label = part
        # A run that goes on draws the same masks. On a GPU cuDNN has a state of its own.
        if self._drops_out and image.context.device_type == "cpu":
            mx.random.seed(dropout_seed(self.config.seed, *key))
        logits = self.net(image).astype("float32")
        loss_function = self._soft if target.ndim == 2 else self._hard
        smoothing = getattr(self.config, "label_smoothing", 0.0)
        return Measured(
            loss_function(logits, target), len(label), lambda: count_right(logits, label, smoothing)
        )

    def evaluate(self, batches: Any, advance: Optional[Callable[[int], None]] = None) -> Scores:
        """Return the scores of the logits ``net(image)``; see `Task.evaluate`."""
        return evaluate(self.net, batches, self.contexts, advance)

    def after_epoch(self, run: Any, epoch: int) -> None:
        """Record how the values of the masks are distributed."""
        due = self.config is not None and has_histograms(self.config, epoch)
        if masks := self.masks() if due else {}:
            run.histograms(epoch, masks, "masks")

    def statistics(self) -> Mapping[str, float]:
        """Return the numbers of ``watch``; see `Task.statistics`."""
        return self.watch()


def _drops_out(net: Any) -> bool:
    """Return whether a block in a network draws masks of dropout."""
    found: list[bool] = []
    net.apply(lambda block: found.append(isinstance(block, gluon.nn.Dropout) and block._rate > 0))
    return any(found)


def count_right(logits: Any, label: np.ndarray, smoothing: float = 0.0) -> dict[str, float]:
    """Return how many images are decided rightly, as `Measured.sums` has it.

    A mixed image counts as the share that the class of the network's choice has in it. The
    `smoothing` of soft labels is taken out: it is no image's.
    """
    choice = logits.asnumpy().argmax(axis=1)
    if label.ndim == 1:
        return {"correct": float((choice == label).sum())}
    share = label[np.arange(len(label)), choice].astype(np.float64)
    share = (share - smoothing / logits.shape[1]) / (1 - smoothing)
    return {"correct": float(share.sum())}


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
