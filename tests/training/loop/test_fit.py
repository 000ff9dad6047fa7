"""Whole runs in this process: what is recorded, and that an interruption leaves no trace."""

from __future__ import annotations

import json
import re
import signal
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn

from formats.errors import UserError
from formats.images.preprocessing import IMAGENET_MEAN
from formats.param_file import read_params
from training.augmentation.augment import Augmentation
from training.batches.in_memory import TrainBatches
from training.batches.scores import Scores
from training.classifier.config import TrainConfig
from training.classifier.loaders import build_loaders
from training.compute.optimizer import build_trainer
from training.data.dataset import Dataset, ImageData
from training.loop import fit, task
from training.loop.announce import report
from training.loop.checkpoint import restore
from training.loop.engine import Updater
from training.loop.evaluation import evaluate
from training.loop.task import ClassificationTask
from training.records import epochs
from training.records.interruption import Interruption
from training.records.metrics import read_metrics
from training.records.run import Run
from training.records.run_folder import STATE_FILE
from training.records.run_progress import Progress
from training.records.state_file import load_state
from training.settings.config import to_dict
from training.settings.schedules import schedule_of

KEYS = [
    "epoch",
    "step",
    "lr",
    "train_loss",
    "train_acc",
    "test_loss",
    "test_acc",
    "images_per_sec",
    "wall_sec",
]
TIMES = ("images_per_sec", "wall_sec")
STEPS = 3  # of an epoch
CONFIG = TrainConfig(
    epochs=4,
    batch_size=8,
    micro_batch=4,
    lr=0.5,
    warmup_epochs=1,
    pad=1,
    mixup_off_epochs=1,
    histogram_every=2,
    checkpoint_minutes=0,
)


def images_of(count: int, seed: int) -> ImageData:
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 3).astype(np.int32)
    images = rng.integers(0, 256, (count, 8, 8, 3)) // 3 + labels[:, None, None, None] * 40
    return ImageData(images.astype(np.uint8), labels)


DATA = Dataset("tiny", images_of(30, 1), images_of(11, 2), ("a", "b", "c"), (0.5,) * 3, (0.2,) * 3)


def start(
    folder: Path,
    config: TrainConfig = CONFIG,
    resume: bool = False,
    devices: int = 1,
    dropout: float = 0.0,
) -> fit.Fit:
    """A run of a small network with batch normalisation, made as train_cifar.py makes it."""
    contexts = [mx.cpu(i) for i in range(devices)]
    np.random.seed(config.seed)
    mx.random.seed(config.seed)
    net = nn.HybridSequential()
    net.add(nn.Conv2D(4, 3, in_channels=3), nn.BatchNorm(in_channels=4), nn.Activation("relu"))
    net.add(*([nn.Dropout(dropout)] if dropout else []))
    net.add(nn.GlobalAvgPool2D(), nn.Flatten(), nn.Dense(3, in_units=4))
    net.initialize(mx.init.Xavier(), ctx=contexts)
    net.hybridize(static_alloc=True, static_shape=True)
    trainer, progress = build_trainer(net, config), Progress()
    if resume:
        progress, arrays, meta = load_state(folder)
        restore(net, trainer, arrays, meta)
        run = Run.resume(folder, progress.epoch)
    else:
        run = Run.create(folder, to_dict(config), ["test"])
    loaders = build_loaders(config, DATA, 3)
    settings = config if dropout else None
    of_run = ClassificationTask(net, trainer, contexts, loaders, {}, settings)
    return fit.Fit(of_run, config, run, progress)


def finish(
    folder: Path,
    config: TrainConfig = CONFIG,
    resume: bool = False,
    devices: int = 1,
    dropout: float = 0.0,
) -> fit.Result:
    run = start(folder, config, resume, devices, dropout)
    with run.run:
        return run.run_epochs()


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that a run leaves but times, comparable bit for bit."""
    progress, arrays, meta = load_state(folder)
    rows = read_metrics(folder)
    return {
        "progress": replace(progress, wall_sec=0.0),
        "arrays": {name: (value.dtype, value.tobytes()) for name, value in arrays.items()},
        "counts": (meta["counts"], meta["num_update"]),
        "rows": [{k: v for k, v in row.items() if k not in TIMES} for row in rows],
        "last": (folder / "last.param").read_bytes(),
        "best": (folder / "best.param").read_bytes(),
    }


# -------------------------------------------------------------------------------------- the record


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = finish(folder)
    assert result.signal is None
    assert result.progress.epoch == CONFIG.epochs
    return folder


def test_one_line_per_epoch(whole: Path) -> None:
    rows = read_metrics(whole)
    assert [list(row) for row in rows] == [KEYS] * 4
    assert [(row["epoch"], row["step"]) for row in rows] == [(1, 3), (2, 6), (3, 9), (4, 12)]
    schedule = schedule_of(CONFIG, STEPS)
    assert [row["lr"] for row in rows] == [schedule(n) for n in (3, 6, 9, 12)]
    for row in rows:
        assert 0 < row["train_loss"] < 5
        assert 0 <= row["train_acc"] <= 1
        assert row["images_per_sec"] > 0
    assert np.all(np.diff([row["wall_sec"] for row in rows]) > 0)


def test_the_files_hold_what_was_scored(whole: Path, tmp_path: Path) -> None:
    rows, other = read_metrics(whole), start(tmp_path)
    best = max(rows, key=lambda row: (row["test_acc"], -row["epoch"]))
    for name, row in (("last", rows[-1]), ("best", best)):
        other.net.load_parameters(str(whole / f"{name}.param"))
        scores = evaluate(other.net, other.loaders.test, other.task.contexts)
        assert scores == (row["test_loss"], row["test_acc"], 11)
    other.run.close()
    progress = load_state(whole)[0]
    assert (progress.best_acc, progress.best_epoch) == (best["test_acc"], best["epoch"])
    assert not list(whole.glob(".*.tmp"))


def test_several_devices_are_scored_as_the_one_that_is_saved(tmp_path: Path) -> None:
    finish(tmp_path / "two", replace(CONFIG, epochs=2), devices=2)
    row, one = read_metrics(tmp_path / "two")[-1], start(tmp_path / "one")
    one.net.load_parameters(str(tmp_path / "two/last.param"))
    scores = evaluate(one.net, one.loaders.test, one.task.contexts)
    one.run.close()
    assert scores.loss == pytest.approx(row["test_loss"], rel=1e-5)


def test_every_update_has_its_rate_and_the_last_epochs_no_mixup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates, soft = [], []
    step = Updater.step

    def spy(self: Updater, batch: Any, number: int) -> Any:
        rates.append(self.trainer.learning_rate)
        soft.append(batch.soft_label is not None)
        return step(self, batch, number)

    monkeypatch.setattr(Updater, "step", spy)
    finish(tmp_path, replace(CONFIG, epochs=3))
    schedule = schedule_of(replace(CONFIG, epochs=3), STEPS)
    assert rates == [schedule(n) for n in range(1, 10)]
    assert rates[0] == 0.5 / 2  # a warm-up of 3 updates from 0, which would be update 0
    assert soft == [True] * 6 + [False] * 3


def recorded(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Run, name, lambda self, *values: calls.append(values))
    return calls


def test_histograms_images_and_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    histograms, pictures, graphs = (
        recorded(monkeypatch, name) for name in ("histograms", "images", "graph")
    )
    finish(tmp_path)
    assert [epoch for epoch, _ in histograms] == [1, 3, 4]  # every other, and the last
    names = "0.weight 0.bias 1.gamma 1.beta 5.weight 5.bias"
    assert " ".join(histograms[0][1]) == names
    assert len(graphs) == 1
    ((tag, epoch, images),) = pictures
    assert (tag, epoch, images.shape, images.dtype) == ("augmented", 0, (8, 8, 8, 3), np.uint8)
    expected = next(iter(build_loaders(CONFIG, DATA, 3).train.epoch(0))).image * 0.2 + 0.5
    np.testing.assert_allclose(images.transpose(0, 3, 1, 2), expected * 255, atol=0.51)


def scripted(monkeypatch: pytest.MonkeyPatch, **accuracies: list[float]) -> None:
    """Let held-out ("valid") and test images score these, one after the other."""
    left = {name: iter(values) for name, values in accuracies.items()}

    def score(self: fit.Fit, name: str, _: Any) -> Scores:
        return Scores(1.0, next(left["valid" if name == "held-out" else name]), 10)

    monkeypatch.setattr(fit.Fit, "_evaluate", score)


def test_evaluation_every_other_epoch_and_the_last(tmp_path: Path) -> None:
    finish(tmp_path, replace(CONFIG, epochs=3, eval_every=2))
    rows = read_metrics(tmp_path)
    assert ["test_acc" in row for row in rows] == [False, True, True]


def test_held_out_images_choose_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, valid_count=6, epochs=3)
    scripted(monkeypatch, valid=[0.5, 0.7, 0.6], test=[0.9, 0.1, 0.8])
    finish(tmp_path, config)
    rows = read_metrics(tmp_path)
    assert list(rows[0]) == [*KEYS[:5], "valid_loss", "valid_acc", *KEYS[5:]]
    progress = load_state(tmp_path)[0]
    assert (progress.best_acc, progress.best_epoch) == (0.7, 2)
    assert (tmp_path / "best.param").read_bytes() != (tmp_path / "last.param").read_bytes()


def test_early_stopping_and_that_a_resume_respects_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(CONFIG, valid_count=6, epochs=9, early_stopping=2)
    scripted(monkeypatch, valid=[0.5, 0.6, 0.6, 0.59, 0.9], test=[0.1] * 5)
    result = finish(tmp_path, config)
    assert (result.progress.epoch, result.progress.best_epoch) == (4, 2)
    assert "stopped early: no better held-out accuracy since epoch 2" in capsys.readouterr().out
    assert finish(tmp_path, config, resume=True).progress.epoch == 4
    assert len(read_metrics(tmp_path)) == 4


def test_patience_counts_evaluations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not epochs, of which three pass here before the first evaluation: nothing was best then."""
    config = replace(CONFIG, valid_count=6, epochs=20, eval_every=3, early_stopping=2)
    scripted(monkeypatch, valid=[0.5, 0.6, 0.6, 0.59, 0.9], test=[0.1] * 5)
    result = finish(tmp_path, config)
    assert (result.progress.epoch, result.progress.best_epoch) == (12, 6)
    report(result, tmp_path, tmp_path / "curves.png", held_out=True)
    said = capsys.readouterr().out
    assert "best held-out accuracy 0.60000 at epoch 6" in said
    assert f"wrote {tmp_path}/last.param, {tmp_path}/best.param, " in said


def test_what_was_not_evaluated_and_not_written_is_not_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "last.param").write_bytes(b"")
    report(fit.Result(Progress(), None), tmp_path, tmp_path / "curves.png", held_out=True)
    said = capsys.readouterr().out
    assert said == (
        "no evaluation yet, so no best held-out accuracy\n"
        f"wrote {tmp_path}/last.param, {tmp_path}/curves.png\n"
    )


def test_a_diverged_network_ends_the_run_with_its_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([Scores(1.0, 0.5, 11), Scores(float("nan"), 0.9, 11)])
    monkeypatch.setattr(task, "evaluate", lambda *_: next(scores))
    with pytest.raises(UserError, match=r"the test loss after epoch 2 is nan, step 6, .* rate 0"):
        finish(tmp_path)
    assert load_state(tmp_path)[0].epoch == 1


def test_the_time_left_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fit.DurationNote, "SECONDS", 0.0)
    finish(tmp_path, replace(CONFIG, epochs=2))
    error = capsys.readouterr().err
    told = re.findall(r"images/s: about (\d+) s for the training that is left \(2 epochs", error)
    assert len(told) == 1
    assert int(told[0]) < 60


def test_the_time_left_counts_larger_images_of_later_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []
    monkeypatch.setattr(fit.DurationNote, "tell", lambda *given: left.append(given[-1]()))
    finish(tmp_path, replace(CONFIG, small_size=4, small_epochs=2))
    whole = 4  # steps on 4x4 pixels for one on 8x8
    assert left == [5 - step + 6 * whole for step in range(6)] + [5 - step for step in range(6)]


def test_an_evaluation_is_followed_by_the_plain_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next update could work on a copy; see `plain_layout`."""
    called: list[str] = []

    def noting(word: str, action: Any) -> Callable[..., Any]:
        def wrapped(*given: Any) -> Any:
            called.append(word)
            return action(*given)

        return wrapped

    monkeypatch.setattr(fit, "plain_layout", noting("plain", fit.plain_layout))
    monkeypatch.setattr(task, "evaluate", noting("test", task.evaluate))
    finish(tmp_path, replace(CONFIG, epochs=3, eval_every=2))
    assert called == ["plain", "test", "plain", "test", "plain"]


def test_a_border_as_wide_as_the_images_is_refused() -> None:
    build_loaders(replace(CONFIG, pad=7), DATA, 3)
    build_loaders(replace(CONFIG, pad=9, crop_size=10), DATA, 3)
    for crop, edge in ((0, 8), (4, 4)):
        with pytest.raises(UserError, match=rf"--pad {edge}: crops .* at most {edge - 1}$"):
            build_loaders(replace(CONFIG, pad=edge, crop_size=crop), DATA, 3)


def test_pixels_are_those_of_the_images_that_are_trained_on() -> None:
    config = replace(CONFIG, small_size=4, small_epochs=2)
    for crop, pixels in ((0, 8 * 8), (6, 6 * 6)):
        train = build_loaders(replace(config, crop_size=crop), DATA, 3).train
        assert [train.pixels(epoch) for epoch in range(3)] == [16, 16, pixels]
        assert [next(train.epoch(epoch)).image[0, 0].size for epoch in (1, 2)] == [16, pixels]


# --------------------------------------------------------------------------------- the interruption


class Crash(BaseException):
    """Ends the run without a chance to save, as SIGKILL would."""


def crash() -> None:
    raise Crash


def terminate() -> None:
    signal.raise_signal(signal.SIGTERM)


def at_call(
    monkeypatch: pytest.MonkeyPatch, place: Any, name: str, number: int, act: Callable[[], None]
) -> None:
    """Call `act` before the `number`-th call of ``place.name``, and never again."""
    original, calls = getattr(place, name), iter(range(1, 10**6))

    def wrapped(*arguments: Any, **named: Any) -> Any:
        if next(calls) == number:
            act()
        return original(*arguments, **named)

    monkeypatch.setattr(place, name, wrapped)


def assert_same_as(whole: Path, folder: Path) -> None:
    one, other = outcome(whole), outcome(folder)
    for name, expected in one.items():
        assert other[name] == expected, name


PLACES = {
    "first step": (Updater, "step", 1),
    "middle of an epoch": (Updater, "step", 5),
    "last step of an epoch": (Updater, "step", 6),
    "without mixup": (Updater, "step", 11),
    "very last step": (Updater, "step", 12),
    "evaluation": (task, "evaluate", 2),
    "last evaluation": (task, "evaluate", 4),
    "end of an epoch": (Run, "scalars", 2),
    "best file": (fit, "save_parameters", 3),
    "state": (fit, "write_state", 3),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_signal_leaves_no_trace(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    with monkeypatch.context() as patch:
        at_call(patch, *PLACES[place], terminate)
        result = finish(tmp_path)
    assert result.signal == signal.SIGTERM
    assert result.progress == load_state(tmp_path)[0]
    assert result.progress.step > 0
    assert read_params(tmp_path / "last.param")
    finish(tmp_path, resume=True)
    assert_same_as(whole, tmp_path)


@pytest.mark.parametrize("place", PLACES)
def test_a_kill_leaves_no_trace(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    often = replace(CONFIG, checkpoint_minutes=1e-9) if "step" in place else CONFIG
    with monkeypatch.context() as patch:
        at_call(patch, *PLACES[place], crash)
        with pytest.raises(Crash):
            finish(tmp_path, often)
    progress = load_state(tmp_path)[0]
    if often is not CONFIG:
        assert progress.step == PLACES[place][2] - 1
    finish(tmp_path, resume=True)
    assert_same_as(whole, tmp_path)


def assert_goes_on(
    folder: Path, patched: pytest.MonkeyPatch, config: TrainConfig, **how: Any
) -> None:
    """Compare a ``whole`` run with one that is stopped before its second step and goes on."""
    finish(folder / "whole", config, **how)
    with patched.context() as patch:
        at_call(patch, Updater, "step", 2, terminate)
        finish(folder / "cut", config, **how)
    finish(folder / "cut", config, resume=True, **how)
    assert_same_as(folder / "whole", folder / "cut")


def test_two_devices_and_adam_go_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, optimizer="adam", lr=0.01, epochs=2)
    assert_goes_on(tmp_path, monkeypatch, config, devices=2)


def test_dropout_draws_the_same_masks_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, epochs=2, histogram_every=0)
    assert_goes_on(tmp_path, monkeypatch, config, dropout=0.5)
    finish(tmp_path / "without", config)
    last = [read_params(tmp_path / name / "last.param") for name in ("whole", "without")]
    assert any((last[0][name] != last[1][name]).any() for name in last[0] if "weight" in name)


def test_a_checkpoint_is_due_once_in_so_many_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, step, write = SimpleNamespace(now=0.0), Updater.step, fit.write_state
    clock.monotonic = lambda: clock.now
    saved: list[float] = []

    def minute(self: Updater, *given: Any) -> Any:
        clock.now += 60
        return step(self, *given)

    def recorded(*given: Any) -> None:
        saved.append(clock.now / 60)
        write(*given)

    for module in (fit, epochs):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(Updater, "step", minute)
    monkeypatch.setattr(fit, "write_state", recorded)
    finish(tmp_path, replace(CONFIG, epochs=2, checkpoint_minutes=2))
    assert saved == [0, 2, 3, 5, 6]  # the first one, within epochs, and at their ends


def test_fewer_devices_go_on_with_the_mean_of_their_statistics(tmp_path: Path) -> None:
    run = start(tmp_path, devices=3)
    with run.run:
        mean = run.net[1].running_mean
        for device, data in enumerate(mean.list_data()):
            data[:] = 3 * device
        run.progress.devices = 3
        state = run._state()
    meta = json.loads(state.pop("meta").tobytes())
    older = {**meta, "progress": {**meta["progress"], "devices": None}}
    runs = ((1, [3], meta), (1, [3], older), (2, [3, 3], meta), (3, [0, 3, 6], meta))
    for devices, expected, told in runs:
        other = start(tmp_path / f"{devices} {told is older}", devices=devices)
        with other.run:
            restore(other.net, other.task.trainer, state, told, 0, devices)
        found = [data.asnumpy() for data in other.net[1].running_mean.list_data()]
        np.testing.assert_array_equal(found, np.repeat(np.array(expected)[:, None], 4, 1))


def test_a_finished_run_has_nothing_to_resume(whole: Path, tmp_path: Path) -> None:
    finish(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.glob("*.param")}
    result = finish(tmp_path, resume=True)
    assert (result.scores, result.signal) == (None, None)
    assert {file.name: file.read_bytes() for file in tmp_path.glob("*.param")} == before
    assert_same_as(whole, tmp_path)


def test_the_batches_end_with_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at_call(monkeypatch, Updater, "step", 2, crash)
    with pytest.raises(Crash):
        finish(tmp_path)
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_signals_are_given_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interruption() as interruption:
        assert not interruption.stop()
        signal.raise_signal(signal.SIGINT)
        assert interruption.stop()
        assert interruption.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_run_in_another_thread_handles_no_signals() -> None:
    found: list[bool] = []

    def body() -> None:
        with Interruption() as interruption:
            found.append(interruption.stop())

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [False]


# ------------------------------------------------------------------------- loaders and the settings


def test_what_is_trained_held_out_and_normalised() -> None:
    loaders = build_loaders(replace(CONFIG, valid_count=6, train_count=16), DATA, 3)
    assert loaders.valid is not None
    held_out, rest = loaders.valid.data, loaders.train.data
    assert [len(part.images) for part in (rest, held_out, loaders.test.data)] == [16, 6, 11]
    known = {image.tobytes() for image in held_out.images}
    assert not known & {image.tobytes() for image in rest.images}
    other = build_loaders(replace(CONFIG, valid_count=6, seed=5), DATA, 3)
    np.testing.assert_array_equal(other.valid.data.images, held_out.images)  # type: ignore[union-attr]
    assert loaders.train.mean == loaders.test.mean == (0.5,) * 3
    imagenet = build_loaders(replace(CONFIG, normalization="imagenet"), DATA, 3)
    assert imagenet.train.mean == imagenet.test.mean == IMAGENET_MEAN
    assert isinstance(loaders.train, TrainBatches)
    assert loaders.train.augmentation == CONFIG.augmentation() == Augmentation(
        pad=1, flip=True, shift=0.0, cutout="erasing", cutout_prob=0.5, cutout_size=16,
        mixup_alpha=1.0, label_smoothing=0.0,
    )  # fmt: skip


def test_more_training_images_than_there_are() -> None:
    with pytest.raises(UserError, match="--train-count 25: there are 24 images"):
        build_loaders(replace(CONFIG, valid_count=6, train_count=25), DATA, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "--epochs 0: must be 1 or more"),
        ({"lr": -1.0}, "--lr -1.0: must be a positive"),
        ({"lr": float("nan")}, "--lr nan: must be a positive"),
        ({"wd": float("nan")}, "--wd nan: must be 0 or more"),
        ({"momentum": 1.0}, "--momentum 1.0: must be 0 or more and less than 1"),
        ({"seed": -1}, "--seed -1: must be 0 or more"),
        ({"seed": 2**31}, "must be at most 2147483647"),
        ({"warmup_epochs": 4}, "a warm-up of 4 epochs does not fit into 4 epochs"),
        ({"final_lr": 0.6}, "final learning rate 0.6"),
        ({"early_stopping": 3}, "--early-stopping needs held-out images"),
        ({"schedule": "step"}, "--schedule step and --lr-steps belong together"),
        ({"lr_steps": (2,)}, "--schedule step and --lr-steps belong together"),
        ({"schedule": "step", "lr_steps": (2, 9)}, "learning rate steps at epochs 2, 9"),
        ({"mixup_alpha": -1.0}, "mixup"),
    ],
)
def test_settings_outside_their_range(change: dict[str, Any], message: str) -> None:
    CONFIG.check()
    with pytest.raises(UserError, match=message):
        replace(CONFIG, **change).check()


def parameters(frozen: bool = False, devices: int = 1) -> Any:
    net = nn.HybridSequential()
    net.add(nn.Dense(2, in_units=3), nn.BatchNorm(in_channels=2))
    net.initialize(ctx=[mx.cpu(i) for i in range(devices)])
    if frozen:
        net.collect_params().setattr("grad_req", "null")
    return net


@pytest.mark.parametrize(("decay_bias", "decayed"), [(False, [1]), (True, [1, 1, 1, 1])])
def test_what_decays(decay_bias: bool, decayed: list[int]) -> None:
    trainer = build_trainer(parameters(), replace(CONFIG, decay_bias=decay_bias))
    multipliers = {p.name.split("_")[-1]: p.wd_mult for p in trainer._params}
    assert set(multipliers) == {"weight", "bias", "gamma", "beta"}
    assert multipliers["weight"] == 1
    assert sum(multipliers.values()) == sum(decayed)
    assert (trainer._optimizer.wd, trainer._optimizer.momentum) == (1e-4, 0.9)


def test_what_cannot_be_trained() -> None:
    with pytest.raises(UserError, match="every parameter is frozen"):
        build_trainer(parameters(frozen=True), CONFIG)
    with pytest.raises(UserError, match="--batch-size 2: 3 devices need at least one image each"):
        build_trainer(parameters(devices=3), replace(CONFIG, batch_size=2))


def test_a_state_is_there_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_call(monkeypatch, Updater, "step", 1, crash)
    with pytest.raises(Crash):
        finish(tmp_path)
    assert (tmp_path / STATE_FILE).exists()
    assert load_state(tmp_path)[0] == Progress()
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 4
