"""Workers that train together: Horovod where it is installed, MXNet's parameter server everywhere.

The workers run ``worker_script.py`` once, two of them; the tests look at what each has written.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mxnet as mx
import numpy as np
import pytest

from formats.errors import UserError
from training.classifier import graph_choice
from training.classifier.config import TrainConfig
from training.classifier.graph_choice import choose_graph
from training.compute.devices import check_kvstore, choose_contexts, norm_arguments
from training.distributed.group import ALONE, Group, open_group
from training.distributed.shared_run import agree, own_devices, scaled, together
from training.loop.nonfinite import SkipGuard

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("worker_script.py")
ONE = [mx.cpu(0)]
Found = list[dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def script() -> Any:
    """The module that the workers run."""
    spec = importlib.util.spec_from_file_location("worker_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["worker_script"] = module
    spec.loader.exec_module(module)
    return module


def start_command(engine: str, script: Path) -> list[str]:
    """The start of a command of two workers, which their arguments follow."""
    if engine == "dist_sync":
        return [sys.executable, "-m", "training.launch", "-n", "2", "--script", str(script), "--"]
    launcher = Path(sys.executable).with_name("horovodrun")
    if not launcher.exists():
        pytest.skip("Horovod is not installed here: make test-distributed builds it")
    hosts = ["-np", "2", "-H", "localhost:2"]
    return [sys.executable, str(launcher), *hosts, sys.executable, str(script)]


@pytest.fixture(scope="module", params=["dist_sync", "horovod"])
def found(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Found:
    """What the two workers have written."""
    folder = tmp_path_factory.mktemp(request.param)
    command = [*start_command(request.param, SCRIPT), str(folder)]
    if request.param == "horovod":
        command += ["--distributed", "horovod"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [dict(np.load(folder / f"{rank}.npz", allow_pickle=False)) for rank in range(2)]


def part(results: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """What is below `name` of one worker's results."""
    return {k[len(name) + 1 :]: v for k, v in results.items() if k.startswith(f"{name}:")}


def assert_close(
    one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], limit: float
) -> None:
    assert set(one) == set(other)
    for name, value in one.items():
        np.testing.assert_allclose(value, other[name], rtol=0, atol=limit, err_msg=name)


# ------------------------------------------------------------------------------- the sums and words


def test_every_worker_gets_the_same_sums_and_words(found: Found) -> None:
    for results in found:
        np.testing.assert_array_equal(results["sum"], [[0.1 + 0.2], [np.nan]])
        np.testing.assert_array_equal(results["gather"], [[0, 1 / 3], [1, 1 / 3]])
        assert results["any"].tolist() == [False, True]
        assert results["broadcast"].tobytes() == bytes(range(256)) * 3
        # Two devices of the first worker, then two of the second.
        assert results["statistics"].tolist() == [0, 1, 10, 11]


def test_the_others_hear_that_one_has_failed(found: Found) -> None:
    assert [str(results["failing"]) for results in found] == ["OtherWorkerFailed", "RuntimeError"]


# --------------------------------------------------------------------------------------- the update


@pytest.mark.parametrize("name", ["one", "two"])
def test_workers_make_the_update_of_one_process(found: Found, script: Any, name: str) -> None:
    clip, micro = (0.5, 1) if name == "two" else (0.0, 0)
    alone = script.steps(ONE, micro_batch=micro, clip=clip)
    first, second = (part(results, name) for results in found)
    assert_close(first, second, 0.0)
    assert_close(first, alone, 1e-5)
    start = script.parameters(script.build(ONE, frozen=True)[0])
    moved = {k: np.abs(v - start[k]).max() for k, v in alone.items() if "running" not in k}
    assert min(moved.values()) > 1e-3  # every parameter: else equality would say little


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(("micro", "clip"), [(0, 0.0), (1, 0.5), (2, 0.0)])
def test_several_devices_make_the_update_of_one(
    script: Any, count: int, micro: int, clip: float
) -> None:
    several = script.steps([mx.cpu(i) for i in range(count)], micro_batch=micro, clip=clip)
    assert_close(several, script.steps(ONE, clip=clip), 1e-5)


# -------------------------------------------------------------------------------- whole small runs


def test_every_test_image_counts_once(found: Found, script: Any) -> None:
    for name, images in (("all images", script.TEST_IMAGES), ("one image", 1)):
        expected = script.scored(ALONE, ONE, images)
        assert expected[2] == images
        for results in found:
            assert results[name][1:].tolist() == expected[1:]
            assert results[name][0] == pytest.approx(expected[0], rel=1e-6)


def test_all_workers_end_a_training_with_the_same_network(found: Found) -> None:
    first, second = (part(results, "straight") for results in found)
    assert_close(first, second, 0.0)
    assert first["step"] == 8
    assert first["test"][2] == 10
    assert first["signal"] == 0


def test_a_signal_to_one_worker_stops_all_and_the_run_goes_on(found: Found) -> None:
    for results in found:
        stopped, again, straight = (part(results, k) for k in ("stopped", "again", "straight"))
        assert stopped["step"] == 3  # the signal came at the end of step 2
        assert stopped["signal"] == 15
        assert_close(again, straight, 0.0)


def test_an_update_that_one_worker_leaves_out_is_left_out_by_all(script: Any) -> None:
    net, _ = script.build(ONE, frozen=False)
    for other_skips in (False, True):
        group = Pretended(other=lambda mine, skips=other_skips: mine + skips)
        guard = SkipGuard(net, 3, group.any)
        guard.keep()
        assert guard.allows([mx.nd.ones(2)], [mx.nd.ones(2)]) is not other_skips


# ------------------------------------------------------------------------------ what can be wrong


@dataclass(frozen=True)
class Pretended(Group):
    """Two workers of which the other one answers as told."""

    rank: int = 0
    size: int = 2
    local_rank: int = 0
    local_size: int = 2
    other: Any = None

    def gather(self, values: Any) -> np.ndarray:
        mine = np.asarray(values, np.float64)
        return np.stack([mine, mine if self.other is None else self.other(mine)])


def task(train: int = 8, test: int = 4, devices: int = 1, digest: str = "") -> Any:
    loaders = SimpleNamespace(
        train=SimpleNamespace(data=range(train)),
        test=SimpleNamespace(data=range(test)),
        identity=SimpleNamespace(digest=digest),
    )
    return SimpleNamespace(loaders=loaders, contexts=ONE * devices)


def test_workers_of_the_same_command_agree() -> None:
    agree(Pretended(), TrainConfig(), task())
    agree(ALONE, TrainConfig(batch_size=1), task(devices=2))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (0, "worker 1 has 9 training images, worker 0 has 8: start all workers with the same"),
        (1, "worker 1 has 5 test images, worker 0 has 4"),
        (2, "worker 1 has 2 devices, worker 0 has 1"),
        (3, r"worker 1 has \d+ settings \(digest\), worker 0 has \d+"),
        (4, r"worker 1 has \d+ images \(digest\), worker 0 has \d+"),
    ],
)
def test_workers_that_differ(place: int, message: str) -> None:
    group = Pretended(other=lambda mine: mine + np.eye(5)[place])
    with pytest.raises(UserError, match=message):
        agree(group, TrainConfig(), task())


def test_other_images_have_another_digest() -> None:
    rows: list[np.ndarray] = []

    def other(mine: np.ndarray) -> np.ndarray:
        rows.append(mine)
        return mine

    for digest in ("abc", "abd"):
        agree(Pretended(other=other), TrainConfig(), task(digest=digest))
    assert [*np.flatnonzero(rows[0] != rows[1])] == [4]


def test_a_batch_that_is_too_small_for_all() -> None:
    with pytest.raises(UserError, match=r"--batch-size 3: 2 workers with 2 device.* at least 4"):
        agree(Pretended(), TrainConfig(batch_size=3), task(devices=2))


def test_folders_may_differ_between_machines() -> None:
    seen: list[np.ndarray] = []
    for config in (TrainConfig(run_dir="a", data_dir="b"), TrainConfig(), TrainConfig(seed=1)):

        def note(mine: np.ndarray) -> np.ndarray:
            seen.append(mine)
            return mine

        agree(Pretended(other=note), config, task())
    assert seen[0][3] == seen[1][3] != seen[2][3]


def test_the_first_worker_that_fails_says_why() -> None:
    def fail() -> None:
        raise UserError("no such file")

    with pytest.raises(UserError, match="no such file"):
        together(Pretended(other=lambda mine: mine), fail)
    with pytest.raises(UserError, match="no such file"):
        together(ALONE, fail)
    assert together(ALONE, lambda: 3) == 3


def test_scaling_multiplies_batch_and_rates() -> None:
    config = TrainConfig(batch_size=64, lr=0.1, final_lr=0.01, scale_batch=True)
    two = scaled(config, Pretended())
    assert (two.batch_size, two.lr, two.final_lr) == (128, 0.2, 0.02)
    assert not two.scale_batch  # a resume must not scale again
    assert scaled(two, Pretended()) == two
    assert scaled(config, ALONE).batch_size == 64
    with pytest.raises(UserError, match="add --warmup-epochs"):
        scaled(TrainConfig(scale_batch=True, warmup_epochs=0), Pretended())


@pytest.mark.parametrize(
    ("gpus", "rank", "expected"), [("0,1", 0, "0"), ("0,1,2,3", 1, "1,3"), ("cpu", 1, "cpu")]
)
def test_gpus_are_dealt_out(gpus: str, rank: int, expected: str) -> None:
    assert own_devices(TrainConfig(gpus=gpus), Pretended(local_rank=rank)).gpus == expected


def test_gpus_that_cannot_be_dealt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"3 GPU\(s\) cannot be dealt out to 2 workers"):
        own_devices(TrainConfig(gpus="0,1,2"), Pretended())
    monkeypatch.setattr(mx.context, "num_gpus", lambda: 0)
    assert own_devices(TrainConfig(), Pretended()).gpus is None
    assert own_devices(TrainConfig(gpus="0,1,2"), ALONE).gpus == "0,1,2"


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name in ("HOROVOD_RANK", "HOROVOD_SIZE", "DMLC_ROLE", "ATTENTION_RANK"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch  # type: ignore[return-value]


def test_a_process_that_nobody_has_started_as_a_worker(no_launcher: Any) -> None:
    assert open_group("none") is ALONE
    with pytest.raises(UserError, match=r"python -m training\.launch -n 2 -- ARGS"):
        open_group("dist_sync")
    wanted = "make horovod builds it|horovodrun -np 2 python"
    with pytest.raises(UserError, match=wanted):
        open_group("horovod")


def test_a_worker_that_was_not_told(no_launcher: Any) -> None:
    no_launcher.setenv("HOROVOD_RANK", "0")
    no_launcher.setenv("HOROVOD_SIZE", "2")
    with pytest.raises(UserError, match="add --distributed horovod"):
        open_group("none")


def test_fused_operators_are_left_out_beside_horovod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_choice, "build_classifier", lambda *_: None)
    monkeypatch.setattr(graph_choice, "fuse", lambda net: "fused operators")
    monkeypatch.setattr(graph_choice, "difference_of", lambda net: 0.0)
    settings = TrainConfig(precision="float32")
    for engine in ("none", "dist_sync"):
        choice = choose_graph(replace(settings, distributed=engine), ONE, 10)
        assert choice.fused == "fused operators"
    choice = choose_graph(replace(settings, distributed="horovod"), ONE, 10)
    assert choice.fused is None
    assert choice.reason.startswith("they crash beside Horovod")
    with pytest.raises(UserError, match="--fused on: they crash beside Horovod"):
        choose_graph(replace(settings, distributed="horovod", fused="on"), ONE, 10)


def test_contexts_on_the_cpu() -> None:
    assert choose_contexts("cpu") == ONE
    assert choose_contexts("cpu:3") == [mx.cpu(0), mx.cpu(1), mx.cpu(2)]
    for wrong in ("cpu:0", "cpu:x", "cpu:"):
        with pytest.raises(UserError, match="give numbers such as 0"):
            choose_contexts(wrong)


def test_synchronized_batch_norm_is_refused_on_a_cpu() -> None:
    assert norm_arguments(False, ONE) == {}
    with pytest.raises(UserError, match="--sync-batch-norm is for GPUs: on several CPU contexts"):
        norm_arguments(True, [mx.cpu(0), mx.cpu(1)])
    found = norm_arguments(True, [mx.gpu(0), mx.gpu(1)])
    layer = found["norm_layer"](in_channels=4, **found["norm_kwargs"])
    assert layer._kwargs["ndev"] == 2


def test_nccl_is_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    check_kvstore("device", ONE)
    with pytest.raises(UserError, match=r"--kvstore nccl adds up gradients of GPUs.*cpu\(0\)"):
        check_kvstore("nccl", ONE)
    features = SimpleNamespace(is_enabled=lambda name: False)
    monkeypatch.setattr(mx.runtime, "Features", lambda: features)
    with pytest.raises(UserError, match="built without NCCL"):
        check_kvstore("nccl", [mx.gpu(0)])
