"""What early stopping and a plateau count, and where a training stands with other data."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest

from training.records.run_progress import Progress
from training.settings.run_config import _waits_out


def settings(**given: object) -> SimpleNamespace:
    usual = {"schedule": "constant", "lr_patience": 20, "early_stopping": 0, "eval_every": 1}
    return SimpleNamespace(**{**usual, **given})


def judged(config: SimpleNamespace, accuracies: list[float]) -> list[tuple[int, bool]]:
    """Return after each epoch how often the rate has fallen, and whether it is the last."""
    progress, found = Progress(), []
    for accuracy in accuracies:
        progress.finish_epoch()
        progress.judge(accuracy, config)
        found.append((progress.drops, progress.stops_early(config)))
    return found


def test_epochs_of_small_images_do_not_count() -> None:
    """They are judged by whole ones, at a size that the network has not seen."""
    scores = [0.5, 0.6, 0.4, 0.4, 0.4, 0.4, 0.4]
    config = settings(early_stopping=2)
    assert [end for _, end in judged(config, scores)].index(True) == 3
    config = settings(early_stopping=2, small_epochs=4)
    assert [end for _, end in judged(config, scores)].index(True) == 5
    config = settings(schedule="plateau", lr_patience=1)
    assert [falls for falls, _ in judged(config, scores)] == [0, 0, 0, 1, 1, 2, 2]
    config = settings(schedule="plateau", lr_patience=1, small_epochs=4)
    assert [falls for falls, _ in judged(config, scores)] == [0, 0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("small", [0, 3])
def test_a_patience_that_a_training_never_ends_is_known(small: int) -> None:
    """The worst training: the first evaluation is the best."""
    for epochs, every, patience in itertools.product(range(4, 14), (1, 2, 3), (1, 2, 5)):
        named = {"epochs": epochs, "eval_every": every, "small_epochs": small}
        config = settings(
            **named, schedule="plateau", lr_patience=patience, early_stopping=patience
        )
        progress, stops, falls = Progress(), False, False
        for epoch in range(1, epochs):  # after the last epoch neither would do anything
            progress.finish_epoch()
            if epoch % every == 0:
                progress.judge(0.5, config)
            stops, falls = stops or progress.stops_early(config), progress.drops > 0
        assert _waits_out(config, patience) != stops, config
        assert _waits_out(config, patience + 1) != falls, config


def test_other_data_leaves_a_training_at_its_place() -> None:
    progress = Progress(epoch=3, batch=4, step=34, best_acc=0.7, best_epoch=2, waited=1)
    progress.take_other_data(20, 4)
    assert (progress.epoch, progress.batch, progress.step) == (3, 4, 64)
    assert (progress.best_acc, progress.best_epoch, progress.waited) == (-1.0, 3, 0)
    progress.take_other_data(3, 4)
    assert (progress.batch, progress.step) == (3, 12)
    progress.take_other_data(20, 3)
    assert progress.step == 12
