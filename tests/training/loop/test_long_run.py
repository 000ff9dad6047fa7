"""Runs of days: memory stays flat, files stay few, signals end within a step, data may vanish."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from formats.digest import verify_digest
from formats.errors import UserError
from training.loop.engine import Updater
from training.loop.evaluation import evaluate
from training.records.interruption import Interruption
from training.records.metrics import read_metrics
from training.records.run_folder import STATE_FILE
from training.records.state_file import load_state
from training.settings.run_config import RunConfig

ROOT = Path(__file__).resolve().parents[3]
# 20 epochs of 50 steps with evaluation, checkpoints, histograms and event files; memory after the
# first six epochs and at the end.
MEMORY = """
import sys
from dataclasses import replace
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests/training/loop"]
import test_fit as t
from training.loop.fit import Fit

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

class Watched(Fit):
    def _finish_epoch(self):
        result = super()._finish_epoch()
        if self.progress.epoch in (6, 20):
            print(self.progress.step, resident())
        return result

t.fit.Fit = Watched
t.DATA = replace(t.DATA, train=t.images_of(400, 1))
config = replace(t.CONFIG, epochs=20, micro_batch=0, keep=2, checkpoint_minutes=0.01, ema=0.99)
t.finish(sys.argv[2], config)
"""
ALLOWED_GROWTH = 6 * 2**20


@pytest.mark.timeout(900)
def test_memory_is_flat_over_a_thousand_steps(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(ROOT), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    rows = [line.split() for line in done.stdout.splitlines() if len(line.split()) == 2]
    (first, warm), (last, end) = [(int(a), int(b)) for a, b in rows]
    assert (first, last) == (300, 1000)
    assert end - warm < ALLOWED_GROWTH
    files = {path.name for path in (tmp_path / "run").iterdir() if path.is_file()}
    assert {f for f in files if "epoch" in f and not f.endswith("256")} == {
        "epoch-0019.param",
        "epoch-0020.param",
    }
    size = sum(path.stat().st_size for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert size < 300_000


# ------------------------------------------------------------------------------------------- --keep


def epoch_files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("epoch-*"))


def test_the_last_epochs_are_kept_with_their_digests(small_runs: Any, tmp_path: Path) -> None:
    small_runs.finish(tmp_path / "none", small_runs.CONFIG)
    assert not epoch_files(tmp_path / "none")
    small_runs.finish(tmp_path / "two", replace(small_runs.CONFIG, keep=2))
    names = ["epoch-0003.param", "epoch-0004.param"]
    assert epoch_files(tmp_path / "two") == [n + e for n in names for e in ("", ".sha256")]
    assert all(verify_digest(tmp_path / "two" / name) for name in names)
    other, row = small_runs.start(tmp_path / "other"), read_metrics(tmp_path / "two")[2]
    other.net.load_parameters(str(tmp_path / "two" / names[0]))
    scores = evaluate(other.net, other.loaders.test, other.task.contexts)
    other.run.close()
    assert scores == (row["test_loss"], row["test_acc"], 11)


def test_a_resume_leaves_the_same_epoch_files(
    small_runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(small_runs.CONFIG, keep=1)
    small_runs.finish(tmp_path / "whole", config)
    with monkeypatch.context() as patch:
        small_runs.at_call(patch, small_runs.fit, "write_state", 4, small_runs.crash)
        with pytest.raises(small_runs.Crash):
            small_runs.finish(tmp_path / "cut", config)
    assert len(epoch_files(tmp_path / "cut")) == 2
    # What a process left that was killed between the removal of a file and of its digest.
    (tmp_path / "cut/epoch-0001.param.sha256").write_text("")
    small_runs.finish(tmp_path / "cut", config, resume=True)
    for name in epoch_files(tmp_path / "whole"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert epoch_files(tmp_path / "cut") == epoch_files(tmp_path / "whole")
    assert RunConfig.keep == 0


# ------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_with_the_step_it_met(
    small_runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    small_runs.at_call(monkeypatch, Updater, "step", 5, lambda: signal.raise_signal(number))
    old = signal.signal(number, signal.SIG_DFL)  # also where the tests run under nohup
    try:
        assert small_runs.finish(tmp_path).signal == number
    finally:
        signal.signal(number, old)
    assert load_state(tmp_path)[0].step == 5


def test_nohup_is_respected() -> None:
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            signal.raise_signal(signal.SIGHUP)
            assert not interruption.stop()
    finally:
        signal.signal(signal.SIGHUP, old)


# ---------------------------------------------------------------------------------------- lost data


def lost(error: Exception) -> Any:
    def read() -> None:
        raise error

    return read


@pytest.mark.parametrize(
    ("place", "name", "call", "step"),
    [("train", "make", 7, 5), ("test", "__iter__", 2, 6)],
    ids=["training", "evaluation"],
)
@pytest.mark.parametrize(
    "error", [UserError("cannot read the image a.png"), OSError(5, "Input/output error")]
)
def test_data_that_vanishes_costs_no_step(
    small_runs: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    name: str,
    call: int,
    step: int,
    error: Exception,
) -> None:
    small_runs.finish(tmp_path / "whole", replace(small_runs.CONFIG, epochs=3))
    config = replace(small_runs.CONFIG, epochs=3)
    with monkeypatch.context() as patch:
        kind = type(getattr(small_runs.build_loaders(config, small_runs.DATA, 3), place))
        small_runs.at_call(patch, kind, name, call, lost(error))
        message = rf"{step} steps, is saved: mend the data, then go on with --resume"
        with pytest.raises(UserError, match=message):
            small_runs.finish(tmp_path / "cut", config)
    assert load_state(tmp_path / "cut")[0].step == step
    small_runs.finish(tmp_path / "cut", config, resume=True)
    small_runs.assert_same_as(tmp_path / "whole", tmp_path / "cut")


def test_what_a_killed_process_left_half_written_is_removed(
    small_runs: Any, tmp_path: Path
) -> None:
    small_runs.finish(tmp_path)
    for place in (tmp_path, tmp_path / "loss/train"):
        (place / f".{STATE_FILE}.0123456789ab.tmp").write_bytes(b"half")
        (place / ".mine.tmp").write_bytes(b"not ours")
    small_runs.finish(tmp_path, resume=True)
    assert {path.name for path in tmp_path.rglob("*.tmp")} == {".mine.tmp"}


def test_a_finished_run_gets_its_digest_back(small_runs: Any, tmp_path: Path) -> None:
    """Killed between the last state and its digest, it would stay unverified for ever."""
    small_runs.finish(tmp_path)
    state, digest = tmp_path / STATE_FILE, tmp_path / f"{STATE_FILE}.sha256"
    before = load_state(tmp_path)
    digest.unlink()
    small_runs.finish(tmp_path, resume=True)
    assert verify_digest(state)
    after = load_state(tmp_path)
    assert after[0] == before[0]
    assert {n: a.tobytes() for n, a in after[1].items()} == {
        n: a.tobytes() for n, a in before[1].items()
    }
    assert after[2] == before[2]


# ----------------------------------------------------------------------------- a limit of the disk

# A training whose files may have so many bytes: the system itself refuses the writes beyond.
LIMITED = """
import resource, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/tests/training/loop"]
import crash_harness as harness
harness.train_module.plot_runs = lambda folders, *_: Path(folders[0]) / "curves.png"
# What is written before is smaller on every machine: settings, versions, variables.
from training.loop import fit
write = fit.write_state
def limited(*given):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    write(*given)
fit.write_state = limited
code = harness.train(Path(sys.argv[2]))
fit.write_state = write
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
print(code, harness.train(Path(sys.argv[2])))
"""


def test_a_write_that_the_system_refuses_loses_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(ROOT), str(run)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.stdout.splitlines()[-1] == "2 0"
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {run}/{STATE_FILE}: cannot be written: File too large.")
    assert errors[0].endswith(f"Then go on with --resume {run}")
    assert "Traceback" not in done.stderr
    assert load_state(run)[0].epoch == 2
    assert all(verify_digest(path) for path in [run / STATE_FILE, *run.glob("*.param")])
    assert not list(run.glob(".*.tmp"))
