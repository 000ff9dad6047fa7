"""What the workers of one training do together after every step and epoch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable

import numpy as np

from model.layers.basic_layer import is_statistic
from training.batches.scores import Scores
from training.distributed.group import Group


def statistics_everywhere(group: Group, net: Any) -> dict[str, np.ndarray]:
    """Return the running statistics of batch norms on all devices of all workers.

    By structural name: (devices of all workers, ...), worker by worker. What else is not trained is
    the same everywhere.
    """
    own = {
        name: np.stack([data.asnumpy() for data in parameter.list_data()])
        for name, parameter in net._collect_params_with_prefix().items()
        if is_statistic(name)
    }
    return _gathered(group, own)


def means_everywhere(group: Group, own: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the means over all workers of arrays that each of them has, by name."""
    found = _gathered(group, {name: value[None] for name, value in own.items()})
    return {
        name: values.mean(axis=0, dtype=np.float64).astype(values.dtype)
        for name, values in found.items()
    }


def _gathered(group: Group, own: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays by name, of which each worker has some rows, with the rows of all workers."""
    if group.size == 1 or not own:
        return dict(own)
    flat = group.gather(np.concatenate([values.reshape(-1) for values in own.values()]))
    found, begin = {}, 0
    for name, values in own.items():
        rows = flat[:, begin : begin + values.size]
        begin += values.size
        found[name] = rows.reshape(-1, *values.shape[1:]).astype(values.dtype)
    return found


class Agreement:
    """What the workers do after a step: they add up its sums, and stop or save all at once.

    Parameters
    ----------
    group
        All of them.
    stop
        Whether this worker was asked to stop.
    due
        Whether it is time for a checkpoint; that of worker 0 counts.
    """

    def __init__(self, group: Group, stop: Callable[[], bool], due: Callable[[], bool]) -> None:
        self.group, self._stop, self._due = group, stop, due
        self._stopped = self._saving = False

    def total(self, sums: Any) -> Any:
        """Return the sums of a step (`training.loop.engine.StepSums`) over all workers."""
        if self.group.size == 1:
            return sums
        names = sorted(sums.terms)
        due = self._due() and not self.group.rank
        values = [sums.loss, sums.correct, sums.images, self._stop(), due]
        total = self.group.sum([float(v) for v in (*values, *(sums.terms[n] for n in names))])
        self._stopped, self._saving = bool(total[3]), bool(total[4])
        terms = {name: float(value) for name, value in zip(names, total[5:])}
        return type(sums)(float(total[0]), float(total[1]), int(total[2]), terms)

    def stop(self) -> bool:
        """Return whether the run should stop after this step."""
        return self._stop() if self.group.size == 1 else self._stopped

    def due(self) -> bool:
        """Return whether a checkpoint should be written after this step."""
        return self._due() if self.group.size == 1 else self._saving


def evaluate_together(
    group: Group,
    score: Callable[[Any, Callable[[int], None]], Scores],
    batches: Any,
    advance: Callable[[int], None],
) -> Scores:
    """Return the scores over exactly all images of `batches`, of which each worker scores a share.

    `score` is the ``evaluate`` of a `training.loop.task.Task`; `batches` have the method
    `training.batches.in_memory.EvalBatches.share`.
    """
    own = batches.share(group.rank, group.size)
    mine = score(own, advance) if own else Scores(0.0, 0.0, 0)
    loss, correct, images = group.sum(
        [mine.loss * mine.images, mine.acc * mine.images, mine.images]
    )
    return Scores(loss / images, float(np.rint(correct)) / images, int(images))
