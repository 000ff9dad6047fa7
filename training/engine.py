"""The training loop: one epoch, one evaluation, a whole run. It knows no particular network.

A network is any HybridBlock from images (N, C, H, W) to logits (N, classes), initialized on the
contexts that are given here.
"""

from __future__ import annotations

import math
import time
from typing import Any, Callable, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from training.batches import Batch
from training.checkpoint import Progress
from training.errors import UserError


class Scores(NamedTuple):
    """Mean cross-entropy per image in nats, accuracy in 0 to 1, and the images they are over."""

    loss: float
    acc: float
    images: int


def evaluate(
    net: Any,
    batches: Iterable[Any],
    contexts: Sequence[Any],
    advance: Optional[Callable[[int], None]] = None,
) -> Scores:
    """Score a network over exactly all images of `batches`.

    Parameters
    ----------
    net
        Network, with parameters on `contexts`.
    batches
        `Batch` objects, or (image, label) pairs of NDArrays or arrays as a gluon ``DataLoader``
        yields them. The last may be short.
    contexts
        MXNet contexts; each batch is split over them.
    advance
        Called with the number of images of each batch when it is done.

    Raises
    ------
    UserError
        When there are no images, or images and labels do not belong together.
    """
    loss_sum, correct, images, full = 0.0, 0, 0, 0
    for image, label in map(_image_and_label, batches):
        count = len(image)
        full = max(full, count)
        logits = np.concatenate([_forward(net, part, full) for part in _shares(image, contexts)])
        loss_sum += float(_cross_entropy(logits, label).sum())
        correct += int((logits.argmax(axis=1) == label).sum())
        images += count
        if advance:
            advance(count)
    if not images:
        raise UserError("there is nothing to evaluate: the loader gave no images")
    return Scores(loss_sum / images, correct / images, images)


def _image_and_label(batch: Any) -> Tuple[np.ndarray, np.ndarray]:
    image, label = (_array(part) for part in (batch[0], batch[1]))
    if image.ndim != 4 or label.shape not in ((len(image),), (len(image), 1)):
        raise UserError(
            f"a batch has images {image.shape} and labels {label.shape}; "
            "needed are (N, C, H, W) and (N,)"
        )
    return image.astype(np.float32, copy=False), label.reshape(-1).astype(np.int64)


def _array(value: Any) -> np.ndarray:
    return value.asnumpy() if hasattr(value, "asnumpy") else np.asarray(value)


def _shares(array: np.ndarray, contexts: Sequence[Any]) -> Iterator[Tuple[np.ndarray, Any]]:
    """Split a batch over the contexts as evenly as possible; an empty share is left out."""
    for part, context in zip(np.array_split(array, len(contexts)), contexts):
        if len(part):
            yield part, context


def _forward(net: Any, share: Tuple[np.ndarray, Any], full: int) -> np.ndarray:
    """Return the logits of one share as float32.

    A short last batch is filled up to the others' size: a hybridized graph with static shapes
    would otherwise be built anew for it. What the filling gives is thrown away.
    """
    import mxnet as mx

    image, context = share
    count = len(image)
    if count < full:
        image = np.concatenate([image, np.repeat(image[-1:], full - count, axis=0)])
    logits = net(mx.nd.array(image, ctx=context)).astype("float32")
    result: np.ndarray = logits.asnumpy()[:count]
    return result


def _cross_entropy(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return the cross-entropy (N,) in nats in float64."""
    classes = logits.shape[1]
    if label.min() < 0 or label.max() >= classes:
        raise UserError(
            f"labels from {label.min()} to {label.max()} for a network of {classes} classes"
        )
    logits = logits.astype(np.float64)
    top = logits.max(axis=1)
    log_sum = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top
    result: np.ndarray = log_sum - logits[np.arange(len(label)), label]
    return result


class Updater:
    """One optimizer step from one batch, on one or several devices, in parts that fit the memory.

    Parameters
    ----------
    net, trainer
        Network and ``gluon.Trainer`` (made with ``update_on_kvstore=False``) on `contexts`.
    contexts
        Each batch is split evenly over these.
    micro_batch
        At most so many images at once on a device, also for the statistics of batch
        normalisation; gradients add up over the parts. 0: the whole share.
    """

    def __init__(
        self, net: Any, trainer: Any, contexts: Sequence[Any], micro_batch: int = 0
    ) -> None:
        from mxnet import gluon

        self.net, self.trainer, self.contexts = net, trainer, list(contexts)
        self.micro_batch = micro_batch
        self._hard = gluon.loss.SoftmaxCrossEntropyLoss()
        self._soft = gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)
        self._trained = [p for p in trainer._params if p.grad_req != "null"]

    def step(self, batch: Batch) -> List[Tuple[Any, Any, np.ndarray]]:
        """Update the parameters; return what `measure` needs, not yet computed.

        The device works on while Python prepares the next batch.
        """
        from mxnet import autograd

        share = math.ceil(len(batch.image) / len(self.contexts))
        count = math.ceil(share / self.micro_batch) if self.micro_batch else 1
        rounds = list(zip(*[self._parts(batch, i, count) for i in range(len(self.contexts))]))
        self._accumulate(len(rounds) > 1)
        results = []
        for parts in rounds:
            losses = []
            with autograd.record():
                for image, target, label in parts:
                    logits = self.net(image).astype("float32")
                    loss_function = self._soft if target.ndim == 2 else self._hard
                    losses.append(loss_function(logits, target))
                    results.append((losses[-1], logits, label))
            autograd.backward(losses)
        self.trainer.step(len(batch.image))
        return results

    def _parts(self, batch: Batch, device: int, count: int) -> List[Tuple[Any, Any, np.ndarray]]:
        """Return this device's (image, target on the device, target) in `count` parts."""
        import mxnet as mx

        context, devices = self.contexts[device], len(self.contexts)
        label = batch.label if batch.soft_label is None else batch.soft_label
        image, label = (np.array_split(a, devices)[device] for a in (batch.image, label))
        return [
            (mx.nd.array(a, ctx=context), mx.nd.array(b, ctx=context, dtype="float32"), b)
            for a, b in zip(np.array_split(image, count), np.array_split(label, count))
        ]

    def _accumulate(self, several: bool) -> None:
        wanted = "add" if several else "write"
        for parameter in self._trained:
            if parameter.grad_req != wanted:
                parameter.grad_req = wanted
        if several:
            for parameter in self._trained:
                parameter.zero_grad()


def measure(results: List[Tuple[Any, Any, np.ndarray]]) -> Tuple[float, float, int]:
    """Wait for a step and return (loss sum, correct images, images).

    With soft labels an image counts as the share of its label that the network's choice has.
    """
    loss_sum, correct, images = 0.0, 0.0, 0
    for losses, logits, label in results:
        choice = logits.asnumpy().argmax(axis=1)
        rows = np.arange(len(label))
        correct += float(label[rows, choice].sum() if label.ndim == 2 else (choice == label).sum())
        loss_sum += float(losses.asnumpy().astype(np.float64).sum())
        images += len(label)
    return loss_sum, correct, images


class EpochHooks(NamedTuple):
    """What the loop calls: after every measured step, and to ask whether to stop."""

    after_step: Callable[[Progress, int], None]
    stop: Callable[[], bool]


def train_one_epoch(
    updater: Updater,
    batches: Iterator[Batch],
    schedule: Callable[[int], float],
    progress: Progress,
    hooks: EpochHooks,
) -> bool:
    """Train from ``progress.batch`` to the end of an epoch, keeping `progress` up to date.

    Returns False when ``hooks.stop`` asked to stop before the end.

    Raises
    ------
    UserError
        When the loss is not finite: the message gives epoch, step and learning rate.
    """
    begin = time.monotonic()
    for batch in batches:
        lr = schedule(progress.step)
        updater.trainer.set_learning_rate(lr)
        loss_sum, correct, images = measure(updater.step(batch))
        if not math.isfinite(loss_sum):
            raise UserError(
                f"the loss became {loss_sum} in epoch {progress.epoch + 1} at step "
                f"{progress.step + 1}, learning rate {lr:.4g}; the last checkpoint is kept. "
                "Lower --lr or lengthen --warmup-epochs, and start anew or use --resume"
            )
        progress.step += 1
        progress.batch += 1
        progress.loss_sum += loss_sum
        progress.correct_sum += correct
        progress.images += images
        now = time.monotonic()
        progress.epoch_sec += now - begin
        begin = now
        hooks.after_step(progress, images)
        if hooks.stop():
            return False
    return True
