"""``resume.state``: an exact round trip, and one clear error for everything that does not fit."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet import gluon
from mxnet.gluon import nn

from formats.errors import UserError
from formats.param_file import read_params, write_params
from training.batches.in_memory import Batch
from training.loop.checkpoint import collect_state, parameter_arrays, restore, save_parameters
from training.loop.engine import Updater, measure
from training.loop.task import ClassificationTask
from training.records.run_folder import STATE_FILE
from training.records.run_progress import Progress
from training.records.state_file import load_state, write_state

OPTIMIZERS = {
    "nag": ("nag", {"learning_rate": 0.1, "momentum": 0.9, "wd": 1e-3}),
    "sgd": ("sgd", {"learning_rate": 0.1}),
    "adam": ("adam", {"learning_rate": 0.05}),
}
ONE, TWO = [mx.cpu(0)], [mx.cpu(0), mx.cpu(1)]


class Training:
    """A network with batch normalisation and its optimizer, always from other first values."""

    def __init__(
        self,
        optimizer: str = "nag",
        contexts: Sequence[mx.Context] = ONE,
        width: int = 4,
        frozen: str = "",
    ) -> None:
        self.net = nn.HybridSequential()
        self.net.add(nn.Conv2D(width, 3, in_channels=3), nn.BatchNorm(in_channels=width))
        self.net.add(nn.Activation("relu"), nn.GlobalAvgPool2D(), nn.Dense(3, in_units=width))
        self.net.initialize(mx.init.Normal(0.5), ctx=list(contexts))
        if frozen:
            self.net.collect_params(frozen).setattr("grad_req", "null")
        trained = {k: p for k, p in self.net.collect_params().items() if p.grad_req != "null"}
        name, arguments = OPTIMIZERS[optimizer]
        self.trainer = gluon.Trainer(trained, name, dict(arguments), update_on_kvstore=False)
        self.updater = Updater(ClassificationTask(self.net, self.trainer, contexts))

    def step(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        image = rng.normal(size=(6, 3, 5, 5)).astype(np.float32)
        measure(self.updater.step(Batch(image, rng.integers(0, 3, 6).astype(np.int32))))

    def on_all_devices(self) -> list[np.ndarray]:
        parameters = self.net._collect_params_with_prefix().values()
        return [data.asnumpy() for parameter in parameters for data in parameter.list_data()]


def assert_equal_bits(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> None:
    assert len(one) == len(other)
    for left, right in zip(one, other):
        assert left.tobytes() == right.tobytes()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("contexts", [ONE, TWO, [mx.cpu(1)]], ids=["one", "two", "only the second"])
def test_going_on_equals_never_having_stopped(
    tmp_path: Path, optimizer: str, contexts: list[mx.Context]
) -> None:
    first = Training(optimizer, contexts)
    for seed in range(3):
        first.step(seed)
    progress = Progress(1, 2, 3, 18, 1.25, 7.5, 0.1, 9.75, 0.5, 1, 2, {"reward": 2.5}, 1, 3)
    write_state(tmp_path, collect_state(first.net, first.trainer, progress))
    second = Training(optimizer, contexts)
    loaded, arrays, meta = load_state(tmp_path)
    assert loaded == progress
    restore(second.net, second.trainer, arrays, meta)
    assert_equal_bits(first.on_all_devices(), second.on_all_devices())
    assert second.trainer._optimizer.num_update == first.trainer._optimizer.num_update == 3
    for seed in range(3, 6):
        first.step(seed)
        second.step(seed)
    assert_equal_bits(first.on_all_devices(), second.on_all_devices())
    other = tmp_path / "other"
    other.mkdir()
    write_state(tmp_path, collect_state(first.net, first.trainer, progress))
    write_state(other, collect_state(second.net, second.trainer, progress))
    assert (tmp_path / STATE_FILE).read_bytes() == (other / STATE_FILE).read_bytes()


def test_the_state_holds_what_each_optimizer_keeps(tmp_path: Path) -> None:
    kept = {}
    for optimizer in OPTIMIZERS:
        training = Training(optimizer)
        training.step(0)
        write_state(tmp_path, collect_state(training.net, training.trainer, Progress()))
        names = load_state(tmp_path)[1]
        kept[optimizer] = {name[:7] for name in names if name.startswith("state:")}
    assert kept == {"nag": {"state:0"}, "sgd": set(), "adam": {"state:0", "state:1"}}


def test_a_state_before_the_first_step(tmp_path: Path) -> None:
    first, second = Training("adam"), Training("adam")
    write_state(tmp_path, collect_state(first.net, first.trainer, Progress()))
    progress, arrays, meta = load_state(tmp_path)
    restore(second.net, second.trainer, arrays, meta)
    for training in (first, second):
        training.step(0)
    assert progress == Progress()
    assert_equal_bits(first.on_all_devices(), second.on_all_devices())


def test_frozen_parameters_are_kept_as_they_are(tmp_path: Path) -> None:
    first, second = Training(frozen=".*conv.*"), Training(frozen=".*conv.*")
    before = first.on_all_devices()[0]
    first.step(0)
    write_state(tmp_path, collect_state(first.net, first.trainer, Progress()))
    restore(second.net, second.trainer, *load_state(tmp_path)[1:])
    np.testing.assert_array_equal(second.on_all_devices()[0], before)
    second.step(1)
    first.step(1)
    assert_equal_bits(first.on_all_devices(), second.on_all_devices())


def saved(folder: Path, optimizer: str = "nag") -> Path:
    training = Training(optimizer)
    training.step(0)
    write_state(folder, collect_state(training.net, training.trainer, Progress(step=1)))
    return folder / STATE_FILE


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: Training(width=5), "another network: 0.weight differs"),
        (lambda: Training("adam"), "another optimizer than Adam"),
        (lambda: Training("sgd"), "another optimizer than SGD"),
        (lambda: Training(frozen=".*conv.*"), "another optimizer than NAG .* frozen"),
    ],
)
def test_a_state_of_something_else_changes_nothing(
    tmp_path: Path, other: Any, message: str
) -> None:
    saved(tmp_path)
    training = other()
    before = training.on_all_devices()
    with pytest.raises(UserError, match=message):
        restore(training.net, training.trainer, *load_state(tmp_path)[1:])
    assert_equal_bits(before, training.on_all_devices())


def test_a_network_with_other_names_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    training = Training()
    training.net.add(nn.BatchNorm(in_channels=3))
    training.net[-1].initialize()
    with pytest.raises(UserError, match=r"another network: 5\.beta differs"):
        restore(training.net, training.trainer, *load_state(tmp_path)[1:])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def with_meta(path: Path, **changes: Any) -> None:
    arrays = read_params(path)
    meta = {**json.loads(arrays["meta"].tobytes()), **changes}
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    write_params(path, arrays)


DAMAGE = {
    "missing": (Path.unlink, "no resume.state to continue from"),
    "empty": (lambda path: path.write_bytes(b""), "cannot continue"),
    "garbage": (lambda path: path.write_bytes(b"\x12\x34" * 999), "cannot continue"),
    "truncated": (cut, "cannot continue"),
    "bit": (flip_a_bit, "SHA-256"),
    "not a state": (
        lambda path: write_params(path, {"a": np.zeros(2, np.float32)}),
        r"resume.state is damaged \('meta'\)",
    ),
    "no meta": (lambda path: with_meta(path, progress=None), "is damaged"),
    "no counts": (lambda path: with_meta(path, counts={"a": "b"}), "a counter is 'b'"),
    "negative": (lambda path: with_meta(path, progress={"step": -1}), "a counter is -1"),
    "newer format": (lambda path: with_meta(path, format=99), "format 99, this version reads 1"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("digest", [True, False], ids=["digest", "no digest"])
def test_a_damaged_state_is_one_error(tmp_path: Path, kind: str, digest: bool) -> None:
    damage, message = DAMAGE[kind]
    path = saved(tmp_path)
    damage(path)
    if not digest:
        Path(f"{path}.sha256").unlink()
        if kind == "bit":
            return  # without the digest nothing can tell
    with pytest.raises(UserError, match=message) as caught:
        load_state(tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_failed_save_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    training = Training()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Exception, match="No space left"):
        write_state(tmp_path, collect_state(training.net, training.trainer, Progress(step=2)))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert load_state(tmp_path)[0].step == 1
    assert path.exists()


@pytest.mark.parametrize("name", ["0.weight", "1.running_var", "momentum"])
def test_a_diverged_network_is_not_saved(tmp_path: Path, name: str) -> None:
    saved(tmp_path)
    training = Training()
    training.step(0)
    if name == "momentum":
        training.trainer._updaters[0].states[0][:] = np.inf
    else:
        parameter = training.net._collect_params_with_prefix()[name]
        parameter.set_data(mx.nd.full(parameter.shape, np.nan))
    where = r"diverged: .* after step 2 in epoch 3, learning rate 0.1; the last checkpoint is kept"
    with pytest.raises(UserError, match=where):
        write_state(
            tmp_path,
            collect_state(training.net, training.trainer, Progress(epoch=2, batch=1, step=2)),
        )
    assert load_state(tmp_path)[0].step == 1


def test_a_parameter_file_is_gluons_with_a_digest(tmp_path: Path) -> None:
    training, other = Training(), Training()
    path = tmp_path / "x.param"
    digest = save_parameters(training.net, path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (tmp_path / "x.param.sha256").read_text() == f"{digest}  x.param\n"
    other.net.load_parameters(str(path))
    assert_equal_bits(training.on_all_devices(), other.on_all_devices())
    assert list(parameter_arrays(training.net)) == list(read_params(path))


def test_a_moved_run_folder_can_be_continued(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    saved(tmp_path / "a")
    shutil.move(str(tmp_path / "a"), str(tmp_path / "b"))
    assert load_state(tmp_path / "b")[0].step == 1
