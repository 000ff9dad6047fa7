"""Training on the harder images of each batch, which a small network chooses: its proxy.

Source: Jordan 2024, https://arxiv.org/abs/2404.00498, and ``airbench96_faster.py`` in
https://github.com/KellerJordan/cifar10-airbench: of every batch that half is trained on whose loss
in a small network, of the same schedule, is the largest; that network is trained on the same
images, in every fourth batch. There it is trained to its end first and its choices are kept; its
backward pass is then of the whole batch, with the losses of the others left out. Here both networks
are trained in step, and the proxy sees the chosen images alone, which is a smaller pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mxnet import autograd

from formats.errors import UserError
from training.batches.in_memory import Batch, parts_of_batch
from training.loop.engine import Updater
from training.loop.task import Task
from training.records.epochs import START_ANEW


class HarderImages:
    """Chooses the images of a batch with the largest loss in the proxy, and trains that along.

    Parameters
    ----------
    proxy
        The small network, with a trainer of its own, on one device.
    config
        ``batch_size`` images are chosen; the proxy is trained at every ``proxy_every``-th update,
        and takes ``micro_batch`` and ``clip_gradient`` as other networks do.
    """

    def __init__(self, proxy: Task, config: Any) -> None:
        self.updater = Updater(proxy, config.micro_batch, config.clip_gradient)
        self.count, self.every = config.batch_size, config.proxy_every

    def set_learning_rate(self, rate: float) -> None:
        """Set the proxy's learning rate."""
        self.updater.set_learning_rate(rate)

    def choose(self, batch: Batch, number: int) -> Batch:
        """Return the harder images of a batch, in their order; train the proxy when it is time.

        `number` counts the updates from 0.

        Raises
        ------
        UserError
            When a loss is not finite.
        """
        losses = self.judge(batch, number)
        bad = losses[~np.isfinite(losses)]
        if len(bad):
            raise UserError(
                f"the proxy's loss became {bad[0]} at step {number + 1}, learning rate "
                f"{self.updater.trainer.learning_rate:.4g}; {START_ANEW}"
            )
        chosen = batch.take(largest(losses, self.count))
        if number % self.every == 0:
            self.updater.step(chosen, number)
        return chosen

    def judge(self, batch: Batch, number: int = 0) -> np.ndarray:
        """Return the proxy's loss of each image (N,), with batch norms as in training.

        Nothing of the proxy changes.
        """
        updater, found = self.updater, []
        count = parts_of_batch(len(batch.image), updater.devices, updater.micro_batch)
        for place, part in enumerate(updater.parts(batch, 0, count)):
            # As if for a gradient, which nobody asks for: fused operators compute only that.
            with autograd.record():
                losses = updater.objective(part, (number, place)).losses
            found.append(losses.asnumpy())
            del losses  # and what was kept for the gradient
        return np.concatenate(found)


def largest(losses: np.ndarray, count: int) -> np.ndarray:
    """Return the numbers of the `count` largest losses, rising; of equal ones the first are in."""
    order = np.argsort(-losses, kind="stable")
    rows: np.ndarray = np.sort(order[:count])
    return rows
