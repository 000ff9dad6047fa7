"""The mean of the weights of the last epochs, and batch-norm statistics that belong to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest

from bridge.loop.settings import BridgeConfig
from formats.errors import UserError
from formats.images.preprocessing import normalize
from formats.param_file import read_params
from model.execution.fused_training import fuse
from model.registry import create_model
from tests.training.loop.test_averaging import DATA, Crash, after, change, finish, network, values
from training.augmentation.augment import augment
from training.augmentation.draws import draw_first_flips
from training.batches.in_memory import Batch
from training.classifier.config import TrainConfig
from training.classifier.loaders import build_loaders
from training.compute.optimizer import build_trainer, freeze_except
from training.loop import fit, fresh_statistics
from training.loop.averaging import EpochAverage
from training.loop.engine import Updater
from training.loop.evaluation import evaluate
from training.loop.fresh_statistics import measure_statistics, statistics_batches
from training.loop.task import ClassificationTask
from training.records.interruption import Interrupted
from training.records.metrics import read_metrics
from training.records.state_file import load_state

CONFIG = TrainConfig(
    epochs=5,
    batch_size=4,
    micro_batch=2,
    lr=0.05,
    warmup_epochs=0,
    valid_count=6,
    average_last=3,
    flip_mode="alternating",
    mixup_off_epochs=0,
    histogram_every=0,
    checkpoint_minutes=0,
    pad=1,
    precision="float32",
)
STATISTICS = ("running_mean", "running_var")


def updater_of(net: Any, devices: int = 1, micro_batch: int = 0) -> Updater:
    contexts = [mx.cpu(i) for i in range(devices)]
    return Updater(ClassificationTask(net, build_trainer(net, CONFIG), contexts), micro_batch)


def batch_of(seed: int, images: int = 6) -> Batch:
    rng = np.random.default_rng(seed)
    pixels = rng.standard_normal((images, 3, 8, 8)).astype(np.float32) * (seed + 1) + seed
    return Batch(pixels, np.arange(images, dtype=np.int32) % 3)


# ------------------------------------------------------------------------------------- the average


def test_weights_have_the_mean_and_statistics_what_was_measured() -> None:
    net = network()
    average = EpochAverage(net, first=2)
    seen: list[dict[str, np.ndarray]] = []
    mean: dict[str, np.ndarray] = {}

    def measure() -> None:
        assert np.array_equal(values(net)["4.weight"], mean["4.weight"])
        net[1].running_mean.set_data(mx.nd.ones(3) * len(seen))

    for epoch in (1, 2, 3, 4):
        change(net, epoch)
        own = values(net)
        seen.append(own)
        mean.update({k: average_of(seen[1:] or seen, k) for k in own})
        for _ in range(2):  # a test that was stopped begins again
            average.end_epoch(epoch, measure if epoch != 3 else None)
        with average.applied():
            for name, value in values(net).items():
                measured = name == "1.running_mean" and epoch in (2, 4)
                expected = np.full(3, epoch) if measured else own[name]
                if epoch > 1 and not name.endswith(STATISTICS):
                    expected = mean[name]
                np.testing.assert_allclose(value, expected, rtol=1e-6, err_msg=name)
        assert all(np.array_equal(value, own[name]) for name, value in values(net).items())
        before = average.arrays()
        average.finish_epoch()
        assert bool(average.arrays()) == (epoch > 1)
        assert set(before) == (set(own) if epoch > 2 else set())


def test_a_test_that_is_stopped_leaves_the_average_as_it_was() -> None:
    net = network()
    average = EpochAverage(net, first=1)
    average.end_epoch(1, lambda: None)
    average.finish_epoch()
    before = average.arrays()
    change(net, 2)

    def stopped() -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        average.end_epoch(2, stopped)
    with average.applied():
        assert all(np.array_equal(value, before[name]) for name, value in values(net).items())


def average_of(taken: list[dict[str, np.ndarray]], name: str) -> np.ndarray:
    """Return the mean by the recurrence's roundings."""
    mean = taken[0][name]
    for count, value in enumerate(taken[1:], 2):
        mean = mean + (value[name] - mean) / np.float32(count)
    return mean


def test_a_saved_mean_goes_on_or_is_refused() -> None:
    net = network()
    average, other = EpochAverage(net, 1), EpochAverage(net, 1)
    average.end_epoch(1, None)
    average.finish_epoch()
    saved = {f"average:{name}": value for name, value in average.arrays().items()}
    change(net, 3)
    other.load(saved, 1, 8)
    for one in (average, other):
        one.end_epoch(2, None)
        one.finish_epoch()
    assert all(np.array_equal(v, other.arrays()[k]) for k, v in average.arrays().items())
    EpochAverage(net, 2).load({}, 1, 8)  # nothing is averaged yet
    with pytest.raises(UserError, match="no average of"):
        EpochAverage(net, 1).load({}, 1, 8)


# ---------------------------------------------------------------------------------- the statistics


@pytest.mark.parametrize(("devices", "micro_batch"), [(1, 0), (1, 3), (2, 0)])
def test_statistics_are_the_mean_over_batches(devices: int, micro_batch: int) -> None:
    net = network(devices)
    before, batches = values(net), [batch_of(seed) for seed in range(4)]
    measure_statistics(updater_of(net, devices, micro_batch), batches)
    parts = 2 if micro_batch else 1
    for device in range(devices):
        shares = [np.array_split(b.image, devices)[device] for b in batches]
        images = [part for share in shares for part in np.array_split(share, parts)]
        outputs = [net[0](mx.nd.array(part, ctx=mx.cpu(device))).asnumpy() for part in images]
        found = values(net, device)
        mean = np.mean([output.mean(axis=(0, 2, 3)) for output in outputs], axis=0)
        var = np.mean([output.var(axis=(0, 2, 3)) for output in outputs], axis=0)
        np.testing.assert_allclose(found["1.running_mean"], mean, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["1.running_var"], var, rtol=1e-2)  # n or n - 1
        for name, value in before.items():
            assert name.endswith(STATISTICS) or np.array_equal(found[name], value), name


def test_frozen_statistics_stay() -> None:
    net = network()
    change(net, 1)
    freeze_except(net, "4.")
    before = values(net)
    measure_statistics(updater_of(net), [batch_of(0)])
    assert all(np.array_equal(value, before[name]) for name, value in values(net).items())


@pytest.mark.usefixtures("unit_operators")
@pytest.mark.parametrize("name", ["resnet20_ram", "preresnet20"])
def test_the_operators_measure_what_the_network_does(name: str) -> None:
    found = []
    for fused in (False, True):
        mx.random.seed(0)
        np.random.seed(0)
        net = create_model(name, 3, **({"w_init": 0.1} if name.endswith("ram") else {}))
        net.initialize(mx.init.MSRAPrelu())
        if fused:
            fuse(net)
        measure_statistics(updater_of(net), [batch_of(0), batch_of(1)])
        found.append({k: v for k, v in values(net).items() if k.endswith(STATISTICS)})
    for key, value in found[0].items():
        np.testing.assert_allclose(found[1][key], value, rtol=2e-3, atol=1e-4, err_msg=key)
        assert np.ptp(value) > 0, key


def test_they_are_measured_on_training_images_as_in_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = build_loaders(CONFIG, DATA, 3).train
    whole = statistics_batches(train, 4, mixup=False)
    assert sorted(whole.rows) == list(range(len(train.data.images)))
    monkeypatch.setattr(fresh_statistics, "IMAGES", 10)
    some = statistics_batches(train, 4, mixup=False)
    first, again = list(some), list(some)
    assert [len(batch.image) for batch in first] == [4, 4] == [4] * len(some)
    assert len(set(some.rows)) == 8
    for batch, same, rows in zip(first, again, (some.rows[:4], some.rows[4:])):
        assert np.array_equal(batch.image, same.image)
        assert np.array_equal(batch.label, train.data.labels[rows])
    # As an epoch would make them of these images, by draws of their own.
    words = np.random.SeedSequence([CONFIG.seed, 0, 2], spawn_key=(1,))
    rng = np.random.Generator(np.random.PCG64(words))
    images, rows = train.data.images, some.rows[4:]
    mirrored = draw_first_flips(len(images), CONFIG.seed)[rows]
    pixels = augment(images[rows], train.augmentation, train.mean, rng, mirrored)
    assert np.array_equal(first[1].image, normalize(pixels, train.mean, train.std))
    monkeypatch.setattr(fresh_statistics, "IMAGES", 3)
    assert len(statistics_batches(train, 4, mixup=False).rows) == 4


def test_images_of_statistics_are_mixed_where_training_mixes_and_never_small() -> None:
    config = replace(CONFIG, mixup_alpha=1.0, small_size=4, small_epochs=2)
    train = build_loaders(config, DATA, 3).train
    assert next(iter(train.epoch(0))).image.shape[2:] == (4, 4)
    plain, mixed = (next(iter(statistics_batches(train, 4, mix))) for mix in (False, True))
    assert plain.image.shape == mixed.image.shape == (4, 3, *train.data.images.shape[1:3])
    assert plain.soft_label is None
    assert mixed.soft_label is not None
    assert not np.array_equal(plain.image, mixed.image)


# -------------------------------------------------------------------------------------- whole runs


def test_the_mean_is_tested_and_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own: dict[int, dict[str, np.ndarray]] = {}
    write = fit.write_state

    def watch(folder: Any, state: Any, card: Any) -> None:
        epoch = load_state(folder)[0].epoch + 1 if (folder / "resume.state").exists() else 0
        own[epoch] = {k[6:]: v for k, v in state.items() if k.startswith("param:")}
        assert any(k.startswith("average:") for k in state) == (epoch > 2)
        write(folder, state, card)

    monkeypatch.setattr(fit, "write_state", watch)
    finish(tmp_path, CONFIG)
    last = read_params(tmp_path / "last.param")
    for name, value in last.items():
        if not name.endswith(STATISTICS):
            mean = np.mean([own[epoch][name] for epoch in (3, 4, 5)], axis=0, dtype=np.float64)
            np.testing.assert_allclose(value, mean, rtol=1e-5, atol=1e-7)
    assert not np.allclose(last["4.weight"], own[5]["4.weight"], rtol=1e-3)
    # The network's own statistics are of other weights; these are of the mean.
    net = network()
    net.load_parameters(str(tmp_path / "last.param"))
    loaders, row = build_loaders(CONFIG, DATA, 3), read_metrics(tmp_path)[-1]
    assert evaluate(net, loaders.test, [mx.cpu()]).loss == row["test_loss"]
    measure_statistics(
        updater_of(net, micro_batch=2), statistics_batches(loaders.train, 4, mixup=True)
    )
    for name in STATISTICS:
        np.testing.assert_allclose(values(net)[f"1.{name}"], last[f"1.{name}"], rtol=1e-5)
        assert not np.allclose(last[f"1.{name}"], own[5][f"1.{name}"], rtol=1e-3)


def test_training_itself_stays_what_it_is(tmp_path: Path) -> None:
    finish(tmp_path / "averaged", CONFIG)
    finish(tmp_path / "plain", replace(CONFIG, average_last=0))
    averaged, plain = (load_state(tmp_path / run)[1] for run in ("averaged", "plain"))
    for name, value in plain.items():
        assert np.array_equal(averaged[name], value), name


def stop_in_test(monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    calls = iter(range(100))
    evaluated = fit.Fit._evaluate

    def stopped(self: Any, name: str, batches: Any) -> Any:
        if next(calls) == 7:  # in the test of epoch 4, after its held-out images
            raise Interrupted
        return evaluated(self, name, batches)

    monkeypatch.setattr(fit.Fit, "_evaluate", stopped)
    return Interrupted


def kill_in_step(monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    monkeypatch.setattr(Updater, "step", after(27, Updater.step))
    return Crash


def kill_while_saving(monkeypatch: pytest.MonkeyPatch) -> type[BaseException]:
    monkeypatch.setattr(fit, "write_state", after(5, fit.write_state))
    return Crash


@pytest.mark.parametrize("end", [stop_in_test, kill_in_step, kill_while_saving])
def test_a_run_that_goes_on_ends_with_the_same_bits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[pytest.MonkeyPatch], type[BaseException]],
) -> None:
    finish(tmp_path / "whole", CONFIG)
    with monkeypatch.context() as patch:
        if end(patch) is Crash:
            with pytest.raises(Crash):
                finish(tmp_path / "cut", CONFIG)
        else:
            assert finish(tmp_path / "cut", CONFIG).signal is not None
    assert load_state(tmp_path / "cut")[0].epoch in (3, 4)
    finish(tmp_path / "cut", CONFIG, resume=True)
    for name in ("last.param", "best.param"):
        one, other = ((tmp_path / run / name).read_bytes() for run in ("whole", "cut"))
        assert one == other, name


# ------------------------------------------------------------------------------------ the settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"average_last": 6}, "--average-last 6: there are only --epochs 5"),
        ({"average_last": -1}, "--average-last -1: must be 0 or more"),
        ({"ema": 0.9}, "--average-last and --ema are two averages"),
        ({"early_stopping": 2}, "leave out --early-stopping"),
        ({"flip": False}, "--flip-mode alternating mirrors images, --no-flip does not"),
    ],
)
def test_what_does_not_go_together(change: dict[str, Any], message: str) -> None:
    CONFIG.check()
    with pytest.raises(UserError, match=message):
        replace(CONFIG, **change).check()


def test_pytorch_refuses_what_it_does_not_do() -> None:
    BridgeConfig(symbol="s", flip_mode="alternating").check()
    with pytest.raises(UserError, match="--average-last: not done here"):
        BridgeConfig(symbol="s", average_last=3).check()
    with pytest.raises(UserError, match="--small-epochs: not done here"):
        BridgeConfig(symbol="s", small_epochs=3, small_size=24).check()
