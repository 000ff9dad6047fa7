"""Leaving out updates that would spoil the network: those whose loss or gradient is not finite."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, Callable

import mxnet as mx
import numpy as np

from formats.errors import UserError
from training.records.epochs import START_ANEW
from training.records.run_progress import Progress

CHUNK = 200  # arrays that one call of MXNet's looks at; it takes no more than some hundred


class SkipGuard:
    """Decides after each backward pass whether the update is made.

    A left-out update leaves parameters, optimizer and running statistics as they were. Its place in
    the epoch and in the learning rate's schedule is used up, and its images are in no average.

    Parameters
    ----------
    net
        The network; its running statistics are put back.
    limit
        After so many left-out updates in a row the training stops all the same.
    agree
        Makes of this worker's wish to leave an update out that of all workers.
    """

    def __init__(
        self, net: Any, limit: int, agree: Callable[[bool], bool] = lambda skip: skip
    ) -> None:
        self.limit, self._agree = limit, agree
        self.skipped = False
        # Gluon's mark of what a pass changes by itself; frozen weights do not have it.
        self._statistics = [p for p in net.collect_params().values() if not p._differentiable]
        self._kept: list[list[Any]] = []

    def keep(self) -> None:
        """Remember the running statistics before a step."""
        self._kept = [[data.copy() for data in p.list_data()] for p in self._statistics]

    def allows(self, losses: Sequence[Any], gradients: Sequence[Any]) -> bool:
        """Return whether all is finite; the statistics are put back where it is not.

        Parameters
        ----------
        losses, gradients
            Arrays of a step; the gradients are those of one device, summed over all.
        """
        finite = all(np.isfinite(loss.asnumpy()).all() for loss in losses)
        self.skipped = self._agree(not (finite and _are_finite(gradients)))
        if self.skipped:
            for parameter, values in zip(self._statistics, self._kept):
                for data, value in zip(parameter.list_data(), values):
                    data[:] = value
        return not self.skipped

    def count(self, progress: Progress, loss: float, rate: float) -> None:
        """Count a left-out update, and say so.

        Raises
        ------
        UserError
            When there were too many in a row.
        """
        progress.skipped += 1
        progress.skipped_in_row += 1
        what = f"the loss is {loss}" if not math.isfinite(loss) else "a gradient is not finite"
        where = f"epoch {progress.epoch + 1}, step {progress.step + 1}"
        if progress.skipped_in_row >= self.limit:
            raise UserError(
                f"{what} in {where}, learning rate {rate:.4g}, the last of {self.limit} updates in "
                f"a row that were left out; {START_ANEW}"
            )
        print(
            f"warning: {what} in {where}: the update is left out (number "
            f"{progress.skipped_in_row} in a row, {self.limit} stop the training)",
            file=sys.stderr,
        )


def _are_finite(arrays: Sequence[Any]) -> bool:
    chunks = [arrays[start : start + CHUNK] for start in range(0, len(arrays), CHUNK)]
    return all(mx.nd.multi_all_finite(*c, num_arrays=len(c)).asscalar() for c in chunks)
