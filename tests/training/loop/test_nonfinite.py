"""--on-nonfinite skip: an update that would spoil the network leaves no trace, at a resume too."""

from __future__ import annotations

import signal
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest

from formats.errors import UserError
from training.loop.checkpoint import parameter_arrays
from training.loop.engine import Updater
from training.loop.nonfinite import SkipGuard
from training.loop.task import Measured
from training.records.metrics import read_metrics
from training.records.state_file import load_state
from training.settings.run_config import RunConfig


def spoil(monkeypatch: pytest.MonkeyPatch, updates: Collection[int]) -> None:
    """Give the updates of these numbers images and, where they are soft, labels of NaN.

    Images alone leave the loss of this network finite: ReLU makes 0 of NaN. Its gradients are not.
    """
    step = Updater.step

    def spoiled(self: Updater, batch: Any, number: int = 0) -> Any:
        if number in updates:
            batch = batch._replace(image=np.full_like(batch.image, np.nan))
            if batch.soft_label is not None:
                batch = batch._replace(soft_label=np.full_like(batch.soft_label, np.nan))
        return step(self, batch, number)

    monkeypatch.setattr(Updater, "step", spoiled)


def skipping(small_runs: Any, **settings: Any) -> Any:
    return replace(small_runs.CONFIG, on_nonfinite="skip", **settings)


def test_nothing_changes_while_all_is_finite(small_runs: Any, tmp_path: Path) -> None:
    small_runs.finish(tmp_path / "stop", replace(small_runs.CONFIG, epochs=2))
    small_runs.finish(tmp_path / "skip", skipping(small_runs, epochs=2))
    stop, skip = (small_runs.outcome(tmp_path / name) for name in ("stop", "skip"))
    assert [row.pop("skipped") for row in skip["rows"]] == [0, 0]
    assert skip == stop


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("optimizer", ["nag", "adam"])
def test_a_left_out_update_changes_nothing(
    small_runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: int, optimizer: str
) -> None:
    spoil(monkeypatch, {1})
    config = skipping(small_runs, optimizer=optimizer)
    fit = small_runs.start(tmp_path, config, devices=devices)
    batches = list(fit.loaders.train.epoch(0))
    states = []
    for number in (0, 1, 2):
        fit.updater.step(batches[number], number)
        tensors: list[Any] = [parameter_arrays(fit.net)]
        for updater in fit.task.trainer._updaters:
            parts = updater.states.values()
            tensors.append({str(i): _numbers(part) for i, part in enumerate(parts)})
        states.append((tensors, dict(fit.task.trainer._optimizer._index_update_count)))
    fit.run.close()
    np.testing.assert_equal(states[1], states[0])
    assert states[2][1] != states[1][1]  # the next update is made
    assert all(np.isfinite(value).all() for value in states[2][0][0].values())


def _numbers(state: Any) -> list[np.ndarray]:
    parts = state if isinstance(state, (tuple, list)) else (state,)
    return [part.asnumpy() for part in parts if part is not None]


def test_left_out_updates_are_counted_said_and_exact_at_a_resume(
    small_runs: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(monkeypatch, {4, 5, 9})  # of epochs 2 and 4, each of three updates
    config = skipping(small_runs)
    assert small_runs.finish(tmp_path / "whole", config).progress.step == 12
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert [line.split("warning: ")[1] for line in warnings] == [
        f"{what}: the update is left out (number {number} in a row, 10 stop the training)"
        for what, number in (
            ("the loss is nan in epoch 2, step 5", 1),
            ("the loss is nan in epoch 2, step 6", 2),
            ("a gradient is not finite in epoch 4, step 10", 1),  # an epoch without mixup
        )
    ]
    rows = read_metrics(tmp_path / "whole")
    assert [row["skipped"] for row in rows] == [0, 2, 0, 1]
    assert all(0 < row["train_loss"] < 5 for row in rows)
    with monkeypatch.context() as patch:  # once between the two, once right after the last
        small_runs.at_call(patch, Updater, "step", 5, small_runs.terminate)
        assert small_runs.finish(tmp_path / "cut", config).signal == signal.SIGTERM
    progress = load_state(tmp_path / "cut")[0]
    assert (progress.step, progress.skipped, progress.skipped_in_row) == (5, 1, 1)
    with monkeypatch.context() as patch:
        small_runs.at_call(patch, Updater, "step", 5, small_runs.terminate)
        small_runs.finish(tmp_path / "cut", config, resume=True)
    small_runs.finish(tmp_path / "cut", config, resume=True)
    small_runs.assert_same_as(tmp_path / "whole", tmp_path / "cut")


def test_too_many_in_a_row_stop_the_training(
    small_runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {1, 4, 5, 6})
    config = skipping(small_runs, nonfinite_limit=3)
    with pytest.raises(UserError, match=r"loss is nan in epoch 3, step 7, .*the last of 3 updates"):
        small_runs.finish(tmp_path, config)
    assert load_state(tmp_path)[0].epoch == 2
    with pytest.raises(UserError, match="the last of 3 updates"):  # counted on at a resume
        small_runs.finish(tmp_path, config, resume=True)


def test_an_epoch_without_any_update_has_no_loss(
    small_runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {3, 4, 5})
    small_runs.finish(tmp_path, skipping(small_runs, epochs=3))
    rows = read_metrics(tmp_path)
    assert [row["train_loss"] is None for row in rows] == [False, True, False]
    assert rows[1]["skipped"] == 3


def test_a_finite_loss_with_an_infinite_gradient_is_found(small_runs: Any, tmp_path: Path) -> None:
    fit = small_runs.start(tmp_path, skipping(small_runs))
    fit.run.close()

    def root_of_zero(part: Any, key: tuple[int, ...]) -> Measured:
        logits = fit.net(part[0])
        return Measured(mx.nd.sqrt((logits * 0).sum(axis=1)), len(part[2]), dict)

    fit.updater.objective = root_of_zero
    before = parameter_arrays(fit.net)
    results = fit.updater.step(next(iter(fit.loaders.train.epoch(0))))
    assert all(np.isfinite(result.losses.asnumpy()).all() for result in results)
    assert fit.updater.guard.skipped
    np.testing.assert_equal(parameter_arrays(fit.net), before)


def test_frozen_weights_are_not_copied(small_runs: Any, tmp_path: Path) -> None:
    fit = small_runs.start(tmp_path, small_runs.CONFIG)
    fit.run.close()
    fit.net.collect_params().setattr("grad_req", "null")
    guard = SkipGuard(fit.net, 1)
    assert [p.name.split("_", 1)[1] for p in guard._statistics] == ["running_mean", "running_var"]


def test_settings() -> None:
    assert RunConfig.on_nonfinite == "stop"
    with pytest.raises(UserError, match="--nonfinite-limit 0: must be 1 or more"):
        RunConfig(nonfinite_limit=0, warmup_epochs=0).check()


def test_no_file_is_replaced_by_a_network_that_is_not_finite(
    small_runs: Any, tmp_path: Path
) -> None:
    fit = small_runs.start(tmp_path, replace(small_runs.CONFIG, epochs=2))
    with fit.run:
        fit.run_epochs()
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
        parameter = next(iter(fit.net.collect_params().values()))
        parameter.set_data(parameter.data() * np.nan)
        with pytest.raises(UserError, match=r"after step 6 in epoch 2, learning rate .* is kept"):
            fit._save()
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
