"""Training on the images of each batch that a small network finds hard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest

from formats.errors import UserError
from formats.param_file import read_params
from tests.training.loop.test_averaging import Crash, after, network, values
from tests.training.loop.test_fit import DATA
from training.batches.in_memory import Batch
from training.classifier.config import TrainConfig
from training.classifier.loaders import build_loaders
from training.compute.optimizer import build_trainer
from training.loop import engine, fit
from training.loop.announce import announce
from training.loop.checkpoint import parameter_arrays, restore, restore_proxy
from training.loop.engine import Updater, measure, train_one_epoch
from training.loop.harder import HarderImages, largest
from training.loop.task import ClassificationTask
from training.records.metrics import read_metrics
from training.records.progress import ProgressBar
from training.records.run import Run
from training.records.run_progress import Progress
from training.records.state_file import load_state
from training.settings.config import to_dict
from training.settings.schedules import schedule_of

CONFIG = TrainConfig(
    epochs=4,
    batch_size=4,
    micro_batch=2,
    harder_share=0.5,
    proxy_every=2,
    lr=0.05,
    warmup_epochs=1,
    valid_count=6,
    mixup_off_epochs=2,
    histogram_every=0,
    checkpoint_minutes=1e-9,
    pad=1,
    precision="float32",
)
STEPS = 3  # of an epoch: 24 images, of which 8 are drawn for each


def task_of(config: TrainConfig, seed: int = 0, proxy: bool = True) -> ClassificationTask:
    np.random.seed(seed)
    mx.random.seed(seed)
    net = network()
    loaders = build_loaders(config, DATA, 3)
    task = ClassificationTask(net, build_trainer(net, config), [mx.cpu()], loaders)
    if proxy:
        task.proxy = task_of(config, seed + 1, proxy=False)
    return task


def finish(
    folder: Path, config: TrainConfig = CONFIG, resume: bool = False, proxy: bool = True
) -> fit.Fit:
    task, progress = task_of(config, proxy=proxy), Progress()
    if resume:
        progress, arrays, meta = load_state(folder)
        restore(task.net, task.trainer, arrays, meta)
        restore_proxy(task.proxy, arrays, meta)
        run = Run.resume(folder, progress.epoch)
    else:
        run = Run.create(folder, to_dict(config), ["test"])
    with run:
        training = fit.Fit(task, config, run, progress)
        training.run_epochs()
    return training


def batch_of(images: int, soft: bool = False, seed: int = 5) -> Batch:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, images).astype(np.int32)
    mixed = rng.dirichlet((0.5,) * 3, images).astype(np.float32) if soft else None
    return Batch(rng.standard_normal((images, 3, 8, 8)).astype(np.float32), label, mixed)


def all_of(task: ClassificationTask) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in parameter_arrays(task.net).items()}


# -------------------------------------------------------------------------------------- the choice


def test_the_largest_are_found_and_of_equal_ones_the_first() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        losses = rng.integers(0, 6, 20).astype(np.float32)
        count = int(rng.integers(1, 20))
        left, expected = losses.copy(), []
        for _ in range(count):
            expected.append(int(left.argmax()))
            left[expected[-1]] = -1
        assert largest(losses, count).tolist() == sorted(expected)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("micro_batch", [0, 3])
def test_the_images_with_the_largest_loss_are_chosen(soft: bool, micro_batch: int) -> None:
    config = replace(CONFIG, micro_batch=micro_batch, proxy_every=9)
    proxy, batch = task_of(config, proxy=False), batch_of(12, soft)
    # Statistics of a training that has gone on, which are not to be judged by.
    proxy.net[1].running_mean.set_data(mx.nd.array([4, -3, 9]))
    before, chooser = all_of(proxy), HarderImages(proxy, config)
    losses = np.concatenate(
        [plain_losses(proxy.net, part, batch) for part in np.array_split(np.arange(12), 4)]
        if micro_batch
        else [plain_losses(proxy.net, np.arange(12), batch)]
    )
    np.testing.assert_allclose(chooser.judge(batch), losses, rtol=1e-4)
    chosen = chooser.choose(batch, 1)
    rows = sorted(range(12), key=lambda row: losses[row])[-4:]
    for one, other in zip(chosen, batch):
        if one is not None and other is not None:
            assert np.array_equal(one, other[sorted(rows)])
    assert (chosen.soft_label is None) == (batch.soft_label is None)
    assert all_of(proxy) == before


def plain_losses(net: Any, rows: np.ndarray, batch: Batch) -> np.ndarray:
    """Return the cross-entropy of images normalised with each other."""
    weights = values(net)
    image = mx.nd.array(batch.image[rows])
    x = net[0](image).asnumpy().astype(np.float64)
    x -= x.mean(axis=(0, 2, 3), keepdims=True)
    x /= np.sqrt(x.var(axis=(0, 2, 3), keepdims=True) + 1e-5)
    x = x.mean(axis=(2, 3)) * weights["1.gamma"] + weights["1.beta"]
    logits = x @ weights["4.weight"].T.astype(np.float64) + weights["4.bias"]
    chance = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    label = np.eye(3)[batch.label] if batch.soft_label is None else batch.soft_label
    found: np.ndarray = -(label[rows] * chance).sum(axis=1)
    return found


def test_both_networks_train_on_what_was_chosen() -> None:
    task, plain, proxy = task_of(CONFIG), task_of(CONFIG), task_of(CONFIG, 1, proxy=False)
    chooser = HarderImages(task.proxy, CONFIG)  # type: ignore[arg-type]
    updater = Updater(task, CONFIG.micro_batch, chooser=chooser)
    others = [Updater(one, CONFIG.micro_batch) for one in (plain, proxy)]
    for one in (updater, *others):
        one.set_learning_rate(0.1)
    assert chooser.updater.trainer.learning_rate == 0.1
    for number in range(4):
        batch = batch_of(8, seed=number)
        rows = largest(HarderImages(proxy, CONFIG).judge(batch), 4)
        assert measure(updater.step(batch, number)).images == 4
        others[0].step(batch.take(rows), number)
        if number in (0, 2):  # every second update
            others[1].step(batch.take(rows), number)
        assert all_of(task) == all_of(plain)
        assert all_of(task.proxy) == all_of(proxy)  # type: ignore[arg-type]


def test_to_choose_all_changes_nothing() -> None:
    chosen, plain = (task_of(CONFIG, proxy=chooses) for chooses in (True, False))
    chooser = HarderImages(chosen.proxy, replace(CONFIG, batch_size=8))  # type: ignore[arg-type]
    for number in range(3):
        batch = batch_of(8, seed=number)
        Updater(chosen, 2, chooser=chooser).step(batch, number)
        Updater(plain, 2).step(batch, number)
    assert all_of(chosen) == all_of(plain)


# -------------------------------------------------------------------------------------- whole runs


def test_updates_rates_and_images_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[tuple[int, float]] = []
    rows: list[dict[str, Any]] = []
    shown: list[int] = []
    losses: list[float] = []
    step, finish_row, advance = Updater.step, fit.Fit.finish_row, ProgressBar.advance

    def stepping(self: Updater, batch: Batch, number: int = 0) -> Any:
        rates.append((number, self.trainer.learning_rate))
        results = step(self, batch, number)
        if self.chooser:
            losses.append(float(sum(r.losses.asnumpy().sum() for r in results)))
        return results

    def finishing(self: fit.Fit, row: dict[str, Any]) -> None:
        rows.append({**row, "sec": self.progress.epoch_sec, "images": self.progress.images})
        finish_row(self, row)

    def advancing(self: ProgressBar, images: int, **values: float) -> None:
        shown.append(images if values else 0)
        advance(self, images, **values)

    monkeypatch.setattr(Updater, "step", stepping)
    monkeypatch.setattr(fit.Fit, "finish_row", finishing)
    monkeypatch.setattr(ProgressBar, "advance", advancing)
    finish(tmp_path)
    schedule = schedule_of(CONFIG, STEPS)
    updates = 4 * STEPS
    both = [n for n in range(updates) for _ in range(1 + (n % 2 == 0))]  # the proxy every second
    assert rates == [(n, schedule(n + 1)) for n in both]
    assert schedule(updates) == 0.0
    assert sum(shown) == 4 * 24
    for epoch, row in enumerate(rows):
        assert (row["step"], row["images"]) == (3 * epoch + 3, 12)
        assert row["images_per_sec"] * row["sec"] == pytest.approx(24)
        mean = sum(losses[3 * epoch : 3 * epoch + 3]) / 12
        assert row["train_loss"] == pytest.approx(mean, rel=1e-6)
    assert len(read_metrics(tmp_path)) == 4


SETTINGS = {
    "mixup": {},
    "ema": {"ema": 0.9, "mixup_alpha": 0.0, "mixup_off_epochs": 0, "micro_batch": 0},
    "average": {"average_last": 2, "flip_mode": "alternating", "label_smoothing": 0.1},
    "small": {"small_size": 6, "small_epochs": 2, "optimizer": "adam", "clip_gradient": 0.1},
}


@pytest.fixture(scope="module", params=SETTINGS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Settings, and what a run by them leaves that nothing has interrupted."""
    config = replace(CONFIG, **SETTINGS[request.param])  # type: ignore[arg-type]
    folder = tmp_path_factory.mktemp("whole")
    finish(folder, config)
    return config, outcome(folder)


@pytest.mark.parametrize(
    ("place", "name", "number", "stood"),
    [
        (HarderImages, "choose", 5, (1, 1)),
        (Batch, "take", 6, (1, 2)),
        (engine, "parts_of_batch", 8, (1, 1)),  # the proxy has made its update, the network not
        (HarderImages, "choose", 7, (2, 0)),
        (fit, "write_state", 8, (1, 2)),
    ],
)
def test_a_killed_run_goes_on_exactly(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: Any,
    place: Any,
    name: str,
    number: int,
    stood: tuple[int, int],
) -> None:
    config, expected = whole
    with monkeypatch.context() as patch:
        patch.setattr(place, name, after(number, getattr(place, name)))
        with pytest.raises(Crash):
            finish(tmp_path / "cut", config)
    progress = load_state(tmp_path / "cut")[0]
    assert (progress.epoch, progress.batch) == stood
    finish(tmp_path / "cut", config, resume=True)
    assert outcome(tmp_path / "cut") == expected


def outcome(folder: Path) -> dict[str, Any]:
    _, arrays, meta = load_state(folder)
    kept = ("step", "train_loss", "test_loss")
    rows = [{name: row[name] for name in kept} for row in read_metrics(folder)]
    state = {name: value.tobytes() for name, value in arrays.items()}
    files = {name: (folder / f"{name}.param").read_bytes() for name in ("last", "best")}
    return {"state": state, "meta": (meta["counts"], meta["proxy"]), "rows": rows, **files}


def test_the_proxy_is_in_the_state_alone(tmp_path: Path) -> None:
    training = finish(tmp_path)
    _, arrays, meta = load_state(tmp_path)
    proxy = training.task.proxy
    assert proxy
    for name, value in values(proxy.net).items():
        assert np.array_equal(arrays[f"proxy:param:{name}"], value)
    assert set(meta["proxy"]["counts"].values()) == {6}
    assert set(meta["counts"].values()) == {12}
    last = read_params(tmp_path / "last.param")
    assert {n: v.tobytes() for n, v in last.items()} == all_of(training.task)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------ what is said


def test_what_is_counted_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(CONFIG, batch_size=5, proxy="resnet20")
    loaders = build_loaders(config, DATA, 3)
    announce(config, [mx.cpu()], loaders, Path("runs/x"), Progress())
    said = capsys.readouterr().out
    assert "leaves out 4 of the images to train" in said
    assert "(--batch-size 5, --harder-share 0.5)" in said
    assert "each update draws 10 images and trains on the 5 with the largest loss in" in said
    assert "the proxy resnet20; train loss and accuracy are over these harder images" in said
    announce(replace(config, harder_share=1.0), [mx.cpu()], loaders, Path("runs/x"), Progress())
    said = capsys.readouterr().out
    assert "(--batch-size 5)" in said
    assert "each update" not in said


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ("proxy", r"the proxy's loss became nan at step 2, learning rate 0\.3; .* --lr or more"),
        ("net", r"loss became nan in epoch 1 at step 2, .* more --warmup-epochs$"),
    ],
)
def test_a_loss_that_is_not_finite_ends_the_run(spoilt: str, message: str) -> None:
    task = task_of(CONFIG)
    chooser = HarderImages(task.proxy, CONFIG)  # type: ignore[arg-type]
    steps = train_one_epoch(
        Updater(task, chooser=chooser),
        (batch_of(8, seed=seed) for seed in range(3)),
        lambda step: 0.3,
        Progress(),
    )
    assert next(steps) == 8
    owner = task if spoilt == "net" else task.proxy
    owner.net[4].bias.set_data(mx.nd.array([np.nan] * 3))  # type: ignore[union-attr]
    with pytest.raises(UserError, match=message):
        next(steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"harder_share": 0.0}, "--harder-share 0: must be above 0 and at most 1"),
        ({"harder_share": 1.5}, "--harder-share 1.5: must be above 0 and at most 1"),
        ({"harder_share": float("nan")}, "--harder-share nan: must be above 0"),
        ({"harder_share": 0.9}, "an update of --batch-size 4 would leave no image out"),
        ({"proxy_every": 0}, "--proxy-every 0: must be 1 or more"),
        ({"distributed": "dist_sync"}, "0.5 is not done with --distributed dist_sync: leave one"),
        ({"distributed": "horovod"}, "is not done with --distributed horovod: leave one"),
        ({"precision": "float16"}, "is not done with --precision float16: leave one"),
        ({"on_nonfinite": "skip"}, "is not done with --on-nonfinite skip: leave one"),
    ],
)
def test_what_cannot_be_chosen_by(change: dict[str, Any], message: str) -> None:
    CONFIG.check()
    with pytest.raises(UserError, match=message):
        replace(CONFIG, **change).check()


def test_more_images_are_drawn_than_there_are() -> None:
    with pytest.raises(UserError, match="an update draws 26 images, there are 24 to train"):
        build_loaders(replace(CONFIG, batch_size=13), DATA, 3)


@pytest.mark.parametrize(("before", "now"), [(True, False), (False, True)])
def test_a_state_with_and_one_without_a_proxy(tmp_path: Path, before: bool, now: bool) -> None:
    finish(tmp_path, replace(CONFIG, epochs=2, mixup_off_epochs=0), proxy=before)
    with pytest.raises(UserError, match=f"has {'no' if now else 'a'} proxy.*config.json that"):
        finish(tmp_path, resume=True, proxy=now)


def spoil(name: str, change: Callable[[np.ndarray], np.ndarray], folder: Path) -> None:
    from formats.param_file import write_params

    arrays = dict(read_params(folder / "resume.state"))
    arrays[name] = change(arrays[name])
    write_params(folder / "resume.state", arrays)


def test_a_damaged_proxy_is_refused(tmp_path: Path) -> None:
    finish(tmp_path, replace(CONFIG, epochs=2, mixup_off_epochs=0))
    spoil("proxy:param:4.weight", lambda value: value[:2], tmp_path)
    with pytest.raises(UserError, match=r"of another network: 4\.weight differs"):
        finish(tmp_path, resume=True)


def test_a_proxy_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    training = finish(tmp_path, replace(CONFIG, epochs=2, mixup_off_epochs=0))
    training.task.proxy.net[4].bias.set_data(mx.nd.array([np.inf] * 3))  # type: ignore[union-attr]
    with pytest.raises(UserError, match=r"diverged: the proxy's 4\.bias is no longer finite"):
        training._state()
