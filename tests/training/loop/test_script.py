"""A training from its start to its end as every script runs it: folders, locks, what goes wrong."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, TextIO

import numpy as np
import pytest

from formats.errors import UserError
from training.classifier.config import TrainConfig
from training.loop.task import ClassificationTask
from training.loop.train import train as train_script
from training.records.interruption import lasting_streams
from training.records.progress import ProgressBar
from training.records.run_folder import STATE_FILE, hold
from training.records.state_file import load_state
from training.settings.exit_code import exit_code

ROOT = Path(__file__).resolve().parents[3]
Train = Callable[..., int]


@pytest.fixture
def train(small_runs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """A script that trains the small network; ``train.prepared`` has the settings of each start."""
    monkeypatch.setattr("training.loop.train.plot_runs", lambda folders, *_: Path(folders[0]))
    count = iter(range(100))
    prepared = []

    def prepare(config: TrainConfig) -> ClassificationTask:
        prepared.append(config)
        fit = small_runs.start(tmp_path / f"unused {next(count)}")
        fit.run.close()
        fit.task.files["x"] = b"a file"
        return fit.task

    def run(**given: Any) -> int:
        config = replace(small_runs.CONFIG, epochs=2, gpus="cpu", model="tiny", **given)
        return train_script("train_tiny.py", config, given, (), prepare)

    run.prepared = prepared  # type: ignore[attr-defined]
    return run


def test_a_run_that_never_began_begins_again(
    small_runs: Any, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(run_dir=str(tmp_path / "whole"))
    for again in ("resume", "run_dir"):
        run = tmp_path / again
        with monkeypatch.context() as patch:
            small_runs.at_call(patch, small_runs.fit, "write_state", 1, small_runs.crash)
            with pytest.raises(small_runs.Crash):
                train(run_dir=str(run))
        assert (run / "config.json").exists()
        assert not (run / STATE_FILE).exists()
        (run / "x").unlink()
        (run / ".x.0123456789ab.tmp").write_bytes(b"")
        assert train(**{again: str(run)}) == 0
        small_runs.assert_same_as(tmp_path / "whole", run)
        assert (run / "x").read_bytes() == b"a file"
        assert not list(run.glob(".*.tmp"))
    before = len(train.prepared)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"already holds a run, .*--resume"):
        train(run_dir=str(run))
    assert len(train.prepared) == before  # type: ignore[attr-defined]


def test_a_state_that_is_lost_is_not_a_run_that_never_began(train: Train, tmp_path: Path) -> None:
    train(run_dir=str(tmp_path / "run"))
    (tmp_path / "run" / STATE_FILE).unlink()
    with pytest.raises(UserError, match=r"has no resume.state to continue from"):
        train(resume=str(tmp_path / "run"))


def test_a_run_in_use_is_refused_before_anything_is_read(train: Train, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run_dir=str(run))
    with hold(run), pytest.raises(UserError, match="another process has the run"):
        train(resume=str(run))
    assert len(train.prepared) == 1  # type: ignore[attr-defined]
    assert train(resume=str(run)) == 0


def test_a_folder_that_cannot_be_written(train: Train, tmp_path: Path) -> None:
    train(run_dir=str(tmp_path / "run"))
    (tmp_path / "run/.lock").unlink()
    (tmp_path / "run/.lock").mkdir()  # root may write where others may not, but no folder
    with pytest.raises(UserError, match=r"cannot write to the run folder .*Make it writable"):
        train(resume=str(tmp_path / "run"))
    (tmp_path / "new/.lock").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write to the run folder .*--run-dir"):
        train(run_dir=str(tmp_path / "new"))


def test_a_full_disk_says_how_to_go_on(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("formats.digest.write_together", full)
    message = r"resume.state: cannot be written: No space left .* Then go on with --resume .*run$"
    with pytest.raises(UserError, match=message):
        train(run_dir=str(tmp_path / "run"))
    monkeypatch.undo()
    monkeypatch.setattr("training.loop.train.plot_runs", lambda folders, *_: Path(folders[0]))
    assert train(resume=str(tmp_path / "run")) == 0


def test_a_state_without_a_digest_is_called_unverified(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(run_dir=str(run))
    train(resume=str(run))
    assert "unverified" not in capsys.readouterr().err
    (run / f"{STATE_FILE}.sha256").unlink()
    train(resume=str(run))
    assert f"warning: {run}/{STATE_FILE} is unverified" in capsys.readouterr().err


def test_settings_that_a_resume_takes(train: Train, tmp_path: Path) -> None:
    run = str(tmp_path / "run")
    train(run_dir=run)
    train(resume=run, on_nonfinite="skip", nonfinite_limit=3, keep=2)
    config = train.prepared[-1]  # type: ignore[attr-defined]
    assert (config.on_nonfinite, config.nonfinite_limit, config.keep) == ("skip", 3, 2)


def test_what_the_system_refuses_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> int:
        raise OSError(28, "No space left on device", "runs/x/curves.png")

    assert exit_code(full) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: runs/x/curves.png: No space left on device. Check the path, ")
    assert error.count("\n") == 1


def test_too_little_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: np.zeros(2**56, np.uint8).size) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"error: there is not enough memory \(Unable to .*\n", error)


def test_a_reader_that_has_gone_is_no_error() -> None:
    code = (
        "import sys; from training.settings.exit_code import exit_code\n"
        "sys.exit(exit_code(lambda: print('x' * 10**6, flush=True) or 0))"
    )
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    os.close(read)
    assert process.communicate()[1] == b""
    assert process.returncode == 2


def close_quietly(stream: TextIO) -> None:
    with contextlib.suppress(OSError):
        stream.close()


@contextlib.contextmanager
def unread() -> Iterator[None]:
    """Standard output and error are pipes whose reader has gone."""
    with contextlib.ExitStack() as held:
        for redirect in (contextlib.redirect_stdout, contextlib.redirect_stderr):
            read, write = os.pipe()
            os.close(read)
            stream = os.fdopen(write, "w")
            held.callback(close_quietly, stream)
            held.enter_context(redirect(stream))
        yield


def test_a_training_outlives_its_readers(
    small_runs: Any, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.records.progress.SECONDS_BETWEEN_LINES", 0.0)
    with unread():
        assert train(run_dir=str(tmp_path / "whole")) == 0
    run = tmp_path / "run"
    with unread(), monkeypatch.context() as patch:
        interrupt = partial(signal.raise_signal, signal.SIGINT)
        small_runs.at_call(patch, ProgressBar, "advance", 2, interrupt)
        assert train(run_dir=str(run)) == 130  # Ctrl-C ends `tee` too
    assert 0 < load_state(run)[0].step < load_state(tmp_path / "whole")[0].step
    with unread():
        assert train(resume=str(run)) == 0
    assert (run / "last.param").read_bytes() == (tmp_path / "whole/last.param").read_bytes()


def test_a_training_may_be_started_without_streams(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by some daemons, or by ``>&-``."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert train(run_dir=str(tmp_path / "run")) == 0
    assert (tmp_path / "run" / "last.param").is_file()


def test_what_is_left_to_write_does_not_change_the_exit_code() -> None:
    code = (
        "import sys; from training.records.interruption import lasting_streams\n"
        "with lasting_streams(): print('saved')\n"
        "sys.exit(130)"
    )
    read, write = os.pipe()
    os.close(read)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=buffered, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert process.communicate()[1] == b""
    assert process.returncode == 130


def test_what_is_no_reader_s_absence_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with lasting_streams(), pytest.raises(OSError, match="No space left"):
            print("a line", flush=True)
        with contextlib.suppress(OSError):
            full.close()


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("mxnet", "import numpy; numpy.bool_of_old"),
        ("mxboard", "raise TypeError('Descriptors cannot be created directly.\\n1. Downgrade')"),
        ("gluoncv", "import distutils_of_old"),
    ],
)
def test_an_environment_that_needs_patches_gets_one_line(
    package: str, source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = compile(source, "a file", "exec")

    def run_as(module: str) -> int:
        exec(code, {"__name__": module})
        return 0

    assert exit_code(lambda: run_as(f"{package}.module")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {package} cannot be imported in this environment: ")
    assert "python -m compat --install" in line
    with pytest.raises((AttributeError, TypeError, ImportError)):
        exit_code(lambda: run_as("train_cifar"))
