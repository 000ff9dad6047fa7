"""The moving average of the weights, the limit of the gradients and the plateau schedule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn

from formats.errors import UserError
from formats.param_file import read_params
from training.batches.in_memory import Batch
from training.batches.scores import Scores
from training.classifier.config import TrainConfig
from training.classifier.loaders import build_loaders
from training.compute.optimizer import build_trainer
from training.data.dataset import Dataset, ImageData
from training.loop import fit
from training.loop.averaging import WeightAverage
from training.loop.checkpoint import restore
from training.loop.engine import Updater
from training.loop.evaluation import evaluate
from training.loop.task import ClassificationTask
from training.records.metrics import read_metrics
from training.records.run import Run
from training.records.run_progress import Progress
from training.records.state_file import load_state
from training.settings.config import to_dict
from training.settings.run_config import EVERY

CONFIG = TrainConfig(
    epochs=6,
    batch_size=4,
    micro_batch=2,
    optimizer="adam",
    lr=0.05,
    warmup_epochs=0,
    schedule="plateau",
    lr_patience=1,
    valid_count=6,
    clip_gradient=0.3,
    ema=0.9,
    mixup_off_epochs=0,
    histogram_every=0,
    checkpoint_minutes=0,
    pad=0,
)


def network(devices: int = 1) -> Any:
    net = nn.HybridSequential()
    net.add(nn.Conv2D(3, 3, in_channels=3), nn.BatchNorm(in_channels=3))
    net.add(nn.GlobalAvgPool2D(), nn.Flatten(), nn.Dense(3, in_units=3))
    net.initialize(mx.init.Xavier(), ctx=[mx.cpu(i) for i in range(devices)])
    return net


def values(net: Any, device: int = 0) -> dict[str, np.ndarray]:
    parameters = net._collect_params_with_prefix().items()
    return {name: p.list_data()[device].asnumpy() for name, p in parameters}


def change(net: Any, number: int) -> None:
    rng = np.random.default_rng(number)
    for parameter in net.collect_params().values():
        parameter.set_data(mx.nd.array(rng.standard_normal(parameter.shape)))


# ------------------------------------------------------------------------------- the moving average


def test_the_recurrence() -> None:
    net = network()
    average = WeightAverage(net, 0.95)
    expected = {name: value.astype(np.float64) for name, value in values(net).items()}
    keeps = []
    for step in range(1, 20 * EVERY + 1):
        change(net, step)
        average.update(step)
        if step % EVERY == 0:
            n = step // EVERY
            keeps.append(min(0.95**EVERY, (1 + n) / (10 + n)))
            for name, value in values(net).items():
                expected[name] = keeps[-1] * expected[name] + (1 - keeps[-1]) * value
    assert keeps[0] == 2 / 11  # it soon forgets the first values
    assert keeps[-1] == 0.95**EVERY
    found = average.arrays()
    assert set(found) == set(expected)
    assert "1.running_mean" in found
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)


def test_the_network_has_the_average_for_a_while() -> None:
    net = network(devices=2)
    average = WeightAverage(net, 0.9)
    change(net, 1)
    average.update(EVERY)
    own = [values(net, device) for device in (0, 1)]
    # Running statistics differ between devices, and each gets its own back.
    net[1].running_mean.list_data()[1][:] = 7
    own[1]["1.running_mean"][:] = 7

    def assert_own() -> None:
        for device in (0, 1):
            for name, value in values(net, device).items():
                assert np.array_equal(value, own[device][name]), name

    with average.applied():
        for device in (0, 1):
            for name, value in average.arrays().items():
                assert np.array_equal(values(net, device)[name], value)
                assert name.endswith(("gamma", "beta")) or not np.array_equal(
                    value, own[device][name]
                )
    assert_own()
    with pytest.raises(ZeroDivisionError), average.applied():
        raise ZeroDivisionError
    assert_own()


def test_before_its_first_step_there_is_no_average() -> None:
    net = network()
    average = WeightAverage(net, 0.9)
    saved = {f"average:{name}": value for name, value in average.arrays().items()}
    for step in range(1, EVERY):
        change(net, step)
        average.update(step)
    own, resumed = values(net), WeightAverage(net, 0.9)
    resumed.load(saved, 1, EVERY - 1)
    for one in (average, resumed):
        with one.applied():
            assert all(np.array_equal(value, own[name]) for name, value in values(net).items())
        one.update(EVERY)
        with one.applied():
            assert not np.array_equal(values(net)["4.weight"], own["4.weight"])
    assert all(np.array_equal(v, resumed.arrays()[k]) for k, v in average.arrays().items())


def test_a_saved_average_goes_on_or_is_refused() -> None:
    net = network()
    average, other = WeightAverage(net, 0.9), WeightAverage(net, 0.9)
    change(net, 3)
    average.update(EVERY)
    saved = {f"average:{name}": value for name, value in average.arrays().items()}
    other.load(saved, 1, 8)
    assert all(np.array_equal(v, other.arrays()[k]) for k, v in average.arrays().items())
    saved["average:4.weight"] = np.zeros((2, 3), np.float32)
    with pytest.raises(UserError, match=r"no average of 4\.weight"):
        other.load(saved, 1, 8)
    with pytest.raises(UserError, match="no average of"):
        other.load({}, 1, 8)


# --------------------------------------------------------------------------- the gradients' limit


@pytest.mark.parametrize("limit", [0.0, 1e-2, 1e3])
@pytest.mark.parametrize("micro_batch", [0, 2])
def test_the_norm_of_the_mean_gradient_is_limited(limit: float, micro_batch: int) -> None:
    net, plain = network(), network()
    for one, other in zip(net.collect_params().values(), plain.collect_params().values()):
        other.set_data(one.data())
    rng = np.random.default_rng(0)
    batch = Batch(
        rng.standard_normal((6, 3, 8, 8)).astype(np.float32), np.arange(6, dtype=np.int32) % 3
    )
    before = values(net)
    steps = []
    for one, clip in ((net, limit), (plain, 0.0)):
        config = replace(CONFIG, optimizer="sgd", lr=1.0, momentum=0, wd=0)
        trainer = build_trainer(one, config)
        trainer.set_learning_rate(1.0)
        Updater(ClassificationTask(one, trainer, [mx.cpu()]), micro_batch, clip).step(batch)
        steps.append(
            {n: before[n] - v for n, v in values(one).items() if "running" not in n}
        )  # the gradient, as the rate is 1
    norm = np.sqrt(sum((step**2).sum() for step in steps[1].values()))
    assert 1e-2 < norm < 1e3
    factor = min(1, limit / norm) if limit else 1
    for name, step in steps[1].items():
        np.testing.assert_allclose(steps[0][name], step * factor, rtol=1e-3, atol=2e-7)


# -------------------------------------------------------------------------------------- whole runs


def images_of(count: int, seed: int) -> ImageData:
    labels = (np.arange(count) % 3).astype(np.int32)
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3)) // 3
    return ImageData((images + labels[:, None, None, None] * 40).astype(np.uint8), labels)


DATA = Dataset("tiny", images_of(30, 1), images_of(11, 2), ("a", "b", "c"), (0.5,) * 3, (0.2,) * 3)


def finish(folder: Path, config: TrainConfig = CONFIG, resume: bool = False) -> fit.Result:
    np.random.seed(0)
    mx.random.seed(0)
    net = network()
    trainer, progress = build_trainer(net, config), Progress()
    if resume:
        progress, arrays, meta = load_state(folder)
        restore(net, trainer, arrays, meta)
        run = Run.resume(folder, progress.epoch)
    else:
        run = Run.create(folder, to_dict(config), ["test"])
    task = ClassificationTask(net, trainer, [mx.cpu()], build_loaders(config, DATA, 3))
    with run:
        return fit.Fit(task, config, run, progress).run_epochs()


def test_the_averaged_weights_are_tested_and_saved(tmp_path: Path) -> None:
    finish(tmp_path)
    net = network()
    net.load_parameters(str(tmp_path / "last.param"))
    loaders, row = build_loaders(CONFIG, DATA, 3), read_metrics(tmp_path)[-1]
    assert evaluate(net, loaders.test, [mx.cpu()]).loss == row["test_loss"]
    assert loaders.valid is not None
    assert evaluate(net, loaders.valid, [mx.cpu()]).loss == row["valid_loss"]
    # What goes on after a resume are the network's own weights.
    state, last = load_state(tmp_path)[1], read_params(tmp_path / "last.param")
    for name, value in last.items():
        assert np.array_equal(state[f"average:{name}"], value)
    assert not np.array_equal(state["param:4.weight"], last["4.weight"])


class Crash(BaseException):
    """Ends the run without a chance to save, as SIGKILL would."""


def after(number: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return `call` with a crash in place of its `number`-th call."""
    left: Iterator[int] = iter(range(number - 1, -1, -1))

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if not next(left):
            raise Crash
        return call(*arguments, **named)

    return wrapped


@pytest.mark.parametrize("place", ["step", "write_state"])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    whole = finish(tmp_path / "whole")
    assert whole.progress.drops > 0  # the plateau is part of what is compared
    holder: Any = Updater if place == "step" else fit
    with monkeypatch.context() as patch:
        patch.setattr(holder, place, after(23 if place == "step" else 5, getattr(holder, place)))
        with pytest.raises(Crash):
            finish(tmp_path / "killed")
    assert 0 < load_state(tmp_path / "killed")[0].epoch < CONFIG.epochs
    again = finish(tmp_path / "killed", resume=True)
    assert replace(again.progress, wall_sec=0) == replace(whole.progress, wall_sec=0)
    for name in ("last.param", "best.param"):
        one, other = ((tmp_path / run / name).read_bytes() for run in ("whole", "killed"))
        assert one == other
    rows = [read_metrics(tmp_path / run) for run in ("whole", "killed")]
    assert [row["lr"] for row in rows[0]] == [row["lr"] for row in rows[1]]


def test_the_rate_falls_when_accuracy_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PyTorch's ReduceLROnPlateau: after more than `patience` of them without a better one."""
    held_out = iter([0.5, 0.5, 0.4, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6])
    monkeypatch.setattr(
        fit.Fit,
        "_evaluate",
        lambda self, name, _: Scores(1.0, next(held_out) if name == "held-out" else 0.9, 10),
    )
    finish(tmp_path, replace(CONFIG, epochs=10, lr_patience=2, lr=0.08, lr_factor=0.5, ema=0.0))
    rates = [row["lr"] / 0.08 for row in read_metrics(tmp_path)]
    # Best in epoch 1; 2, 3 and 4 are no better. Best in 5; 6, 7 and 8 are no better.
    assert rates == pytest.approx([1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25])
    progress = load_state(tmp_path)[0]
    assert (progress.drops, progress.waited, progress.best_epoch) == (2, 2, 5)
