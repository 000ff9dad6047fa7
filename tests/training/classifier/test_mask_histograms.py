"""The values of soft masks in the event files of a training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mxnet as mx
import numpy as np
import pytest

from model.registry import create_model
from training.classifier.task import MASKED_IMAGES, _for_a_batch, _masks_of
from training.loop.task import ClassificationTask


class Batches:
    """Forty images that are not trained on."""

    def __len__(self) -> int:
        return 40

    def share(self, index: int, count: int) -> list[Any]:
        assert (index, count) == (0, 40)
        return [SimpleNamespace(image=np.ones((40, 3, 32, 32), np.float32))]


class Run:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Any, str]] = []

    def histograms(self, epoch: int, arrays: Any, group: str) -> None:
        self.calls.append((epoch, arrays, group))


@pytest.mark.parametrize(
    ("every", "expected"), [(0, []), (1, [1, 2, 3, 4, 5]), (2, [1, 3, 5]), (3, [1, 4, 5])]
)
def test_masks_are_recorded_with_the_weights(every: int, expected: list[int]) -> None:
    run, masks = Run(), {"attention_module1": np.ones(3)}
    config = SimpleNamespace(histogram_every=every, epochs=5)
    task = ClassificationTask(None, None, [], config=config, masks=lambda: masks)
    for epoch in range(1, 6):
        task.after_epoch(run, epoch)
    assert run.calls == [(epoch, masks, "masks") for epoch in expected]


def test_every_module_of_a_residual_attention_network_is_there() -> None:
    net = create_model("attention56_small")
    net.initialize()
    loaders = SimpleNamespace(valid=None, test=Batches())
    masks = _for_a_batch(_masks_of(net), loaders, mx.cpu(), MASKED_IMAGES)()
    assert tuple(masks) == net.module_names()
    assert all(len(mask) == MASKED_IMAGES and mask.min() >= 0 for mask in masks.values())
    assert all(mask.max() <= 1 for mask in masks.values())


def test_a_network_without_masks_has_none() -> None:
    watch = _masks_of(create_model("resnet20_ram"))
    assert watch is None
    assert _for_a_batch(watch, None, mx.cpu())() == {}
