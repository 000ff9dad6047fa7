"""A resumed run that is computed otherwise than before: what may change, and what is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import train_cifar
from training.loop.announce import warn_of_changes
from training.records.metrics import read_metrics
from training.records.run_progress import Progress

SETTINGS = "--recipe quick --dataset shapes --model resnet20_basic --depth 8 --train-count 64"


def test_a_resume_may_have_another_precision(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    words = [*SETTINGS.split(), "--epochs", "1", "--precision", "float32", "--run-dir", run]
    assert train_cifar.main(words) == 0
    path = Path(run, "env.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "precision": "bfloat16: faster"}))
    config = Path(run, "config.json")
    config.write_text(json.dumps({**json.loads(config.read_text()), "epochs": 2}))
    capsys.readouterr()
    assert train_cifar.main(["--resume", run, "--precision", "float32"]) == 0
    assert "made by bfloat16 and goes on by float32" in capsys.readouterr().err
    assert len(read_metrics(run)) == 2


@pytest.mark.parametrize(
    ("before", "now", "warned"),
    [
        ({"training_steps": "operators in C++ (units, oneDNN 3.1)"}, "operators in C++", []),
        ({"training_steps": "operators in C++ (units)"}, "MXNet's own (no compiler)", ["C++"]),
        ({}, "operators in C++", []),
        ({"precision": "bfloat16: faster", "training_steps": "operators"}, "operators", ["bfl"]),
    ],
)
def test_what_is_computed_otherwise_is_told(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    before: dict[str, str],
    now: str,
    warned: list[str],
) -> None:
    (tmp_path / "env.json").write_text(json.dumps(before))
    facts = {"training_steps": now, "precision": "float32", "threads": {"effective": 2}}
    warn_of_changes(tmp_path, Progress(threads=2, workers=1), facts, 1)
    lines = capsys.readouterr().err.splitlines()
    assert [name for name, line in zip(warned, lines) if name in line] == warned
    assert len(lines) == len(warned)


def test_threads_and_workers_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_changes(tmp_path, Progress(threads=2, workers=1), {"threads": {"effective": 1}}, 3)
    lines = capsys.readouterr().err.splitlines()
    assert "2 CPU threads and goes on with 1" in lines[0]
    assert "1 worker(s) and goes on with 3" in lines[1]
