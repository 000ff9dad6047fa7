"""Which number of threads a command takes, and why: flag, resumed run, variable, physical cores.

Commands run on a made up machine of three cores with two hyper-threads each, so that no real one
gives the number by accident.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Optional

import numpy as np
import pytest
from PIL import Image

from formats.errors import UserError
from machine.cores import Cores
from training.compute import thread_choice
from training.compute.thread_choice import (
    WAIT_POLICY,
    choose_threads,
    local_workers,
    read_record,
    recorded_threads,
    set_threads,
    take_threads,
)
from training.launch import __main__ as launch
from training.loop.announce import warn_late_threads
from training.records import environment
from training.records.environment import describe_threads

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = ("train_cifar.py", "train_imagenet.py", "train_mnist_glimpse.py", "export_model.py")
MODULES = ("bridge.train", "bridge.score", "bridge.bench")
FOUR = Cores(4, "physical cores")
OURS = ("OMP_NUM_THREADS", "ATTENTION_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
# Runs a script as a program on a machine whose /sys and affinity are made up.
ON_ANOTHER_MACHINE = """
import os, runpy, sys
from pathlib import Path
from machine import cores
root, sys.argv = Path(sys.argv[1]), sys.argv[2:]
cores.physical_cores.__defaults__ = (root, frozenset(range(6)))
cores.idle_cores.__defaults__ = (root, frozenset(range(6)), 0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without what says how many threads."""
    return {**{k: v for k, v in os.environ.items() if k not in OURS}, **more}


# ---------------------------------------------------------------------------------- what is chosen


@pytest.fixture
def began(tmp_path: Path) -> Path:
    """Folder of a run that began with 3 threads."""
    record = {"threads": {"OMP_NUM_THREADS": "3", "effective": 3, "reason": "physical cores"}}
    (tmp_path / "env.json").write_text(json.dumps(record))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "environ", "text", "told"),
    [
        ("", {}, "4 threads: physical cores", ""),
        ("", {"OMP_NUM_THREADS": ""}, "4 threads: physical cores", ""),
        ("", {"OMP_NUM_THREADS": "1"}, "1 thread: OMP_NUM_THREADS", ""),
        ("", {"OMP_NUM_THREADS": "2,1"}, "2 threads: OMP_NUM_THREADS", ""),
        ("--threads 2", {}, "2 threads: --threads", ""),
        ("--threads=2 --threads 3", {}, "3 threads: --threads", ""),
        ("--threads 2", {"OMP_NUM_THREADS": "2"}, "2 threads: --threads", ""),
        ("--threads 2", {"OMP_NUM_THREADS": "1"}, "2 threads: --threads", "before OMP_NUM_THRE"),
        ("--threads 5", {}, "5 threads: --threads", "may use 4 (physical cores)"),
        ("", {"OMP_NUM_THREADS": "5"}, "5 threads: OMP_NUM_THREADS", "may use 4 (physical cores)"),
        ("--resume RUN", {}, "3 threads: as the run began", ""),
        ("--resume=RUN/last.param", {}, "3 threads: as the run began", ""),
        ("--resume RUN", {"OMP_NUM_THREADS": "1"}, "3 threads: as the run began", "is not taken"),
        ("--resume RUN --threads 1", {}, "1 thread: --threads", ""),
        ("--resume nothing", {}, "4 threads: physical cores", ""),
        # Of a parent process of this project, not of the user.
        (
            "",
            {"OMP_NUM_THREADS": "2", "ATTENTION_THREADS": "2 physical cores"},
            "2 threads: physical cores",
            "",
        ),
        (
            "--resume RUN",
            {"OMP_NUM_THREADS": "2", "ATTENTION_THREADS": "2 physical cores"},
            "3 threads: as the run began",
            "",
        ),
        # The user has changed it since.
        (
            "",
            {"OMP_NUM_THREADS": "1", "ATTENTION_THREADS": "2 physical cores"},
            "1 thread: OMP_NUM_THREADS",
            "",
        ),
        (
            "",
            {"ATTENTION_LOCAL_WORKERS": "3"},
            "1 thread: 4 physical cores shared by 3 workers",
            "",
        ),
        ("", {"HOROVOD_LOCAL_SIZE": "2"}, "2 threads: 4 physical cores shared by 2 workers", ""),
        # The run had the machine for itself.
        (
            "--resume RUN",
            {"HOROVOD_LOCAL_SIZE": "8"},
            "1 thread: 4 physical cores shared by 8 workers",
            "",
        ),
    ],
)
def test_what_goes_before_what(
    began: Path, words: str, environ: Mapping[str, str], text: str, told: str
) -> None:
    record = json.loads((began / "env.json").read_text())
    record["threads"]["local_workers"] = 1
    (began / "env.json").write_text(json.dumps(record))
    found = choose_threads(words.replace("RUN", str(began)).split(), environ, FOUR)
    assert str(found) == text
    assert len(found.notes) == bool(told)
    assert told in " ".join(found.notes)


@pytest.mark.parametrize(
    ("words", "environ", "idle", "text"),
    [
        ("", {}, None, "4 threads: physical cores"),
        ("", {}, 4, "4 threads: physical cores"),
        ("", {}, 3, "3 threads: idle ones of 4 physical cores, --threads 4 takes all"),
        ("", {}, 0, "1 thread: idle ones of 4 physical cores, --threads 4 takes all"),
        ("--threads 4", {}, 1, "4 threads: --threads"),
        ("--resume RUN", {}, 1, "3 threads: as the run began"),
        ("", {"OMP_NUM_THREADS": "4"}, 1, "4 threads: OMP_NUM_THREADS"),
        (
            "",
            {"ATTENTION_LOCAL_WORKERS": "2"},
            1,
            "2 threads: 4 physical cores shared by 2 workers",
        ),
    ],
)
def test_busy_cores_are_left_out_where_nothing_says_how_many(
    began: Path, words: str, environ: Mapping[str, str], idle: Optional[int], text: str
) -> None:
    arguments = words.replace("RUN", str(began)).split()
    found = choose_threads(arguments, environ, FOUR, lambda: idle)
    assert str(found) == text
    assert not found.notes


def test_a_program_looks_for_idle_cores_only_where_it_must(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def two() -> int:
        asked.append(True)
        return 2

    monkeypatch.setattr(thread_choice, "physical_cores", lambda: FOUR)
    monkeypatch.setattr(thread_choice, "idle_cores", two)
    monkeypatch.setattr(os, "environ", clean_environment())
    assert take_threads(["--threads", "1"]).number == 1
    assert not asked
    monkeypatch.setattr(os, "environ", clean_environment())
    assert take_threads([]).number == 2
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert asked


@pytest.mark.parametrize("value", ["0", "abc", "-1", "1.5", "", "2,1", "²"])
def test_a_flag_that_is_no_number(value: str) -> None:
    with pytest.raises(UserError, match=f"^--threads ?{value}: give a whole number"):
        choose_threads([f"--threads={value}"], {}, FOUR)


@pytest.mark.parametrize("value", ["0", "abc", "-1", ",2"])
def test_a_variable_that_is_no_number(value: str) -> None:
    with pytest.raises(UserError, match=f"^OMP_NUM_THREADS={value}: give a whole number"):
        choose_threads(["--threads=1"], {"OMP_NUM_THREADS": value}, FOUR)


@pytest.mark.parametrize(
    ("record", "number"),
    [
        ({"threads": {"effective": 3, "reason": "--threads", "OMP_NUM_THREADS": "2"}}, 3),
        ({"threads": {"effective": 1, "OMP_NUM_THREADS": "2"}, "usable_cores": 8}, 2),
        ({"threads": {"effective": 1, "OMP_NUM_THREADS": None}, "usable_cores": 8}, 4),
        ({"threads": {"effective": 1, "OMP_NUM_THREADS": None}, "usable_cores": 1}, 1),
        ({"threads": {"effective": "3", "reason": ""}}, None),
        ({"threads": {"effective": True, "reason": ""}}, None),
        ({"threads": 3}, None),
        ({}, None),
    ],
)
def test_what_a_record_says(record: Mapping[str, Any], number: Optional[int]) -> None:
    assert recorded_threads(record) == number


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_damaged_record_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "env.json").write_text(content)
    assert read_record(str(tmp_path)) == {}


# -------------------------------------------------------------------------- what is put into effect


def test_the_environment_that_is_set() -> None:
    environ: dict[str, str] = {}
    set_threads(choose_threads(["--threads", "2"], environ, FOUR), environ, {"GOMP_SPINCOUNT": "7"})
    assert environ == {
        "OMP_NUM_THREADS": "2",
        "ATTENTION_THREADS": "2 --threads",
        "GOMP_SPINCOUNT": "7",
    }
    for own in ({"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "1"}):
        environ = {"OMP_NUM_THREADS": "3,2", **own}
        set_threads(choose_threads([], environ, FOUR), environ, {"GOMP_SPINCOUNT": "7"})
        assert environ == {
            "OMP_NUM_THREADS": "3,2",
            "ATTENTION_THREADS": environ["ATTENTION_THREADS"],
            **own,
        }


def test_a_program_takes_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = {"OMP_NUM_THREADS": "2"}
    monkeypatch.setattr(os, "environ", environ)
    assert take_threads(["--threads", "1"]).number == 1
    assert capsys.readouterr().err == "note: --threads 1 goes before OMP_NUM_THREADS=2\n"
    assert environ.pop("OMP_NUM_THREADS") == "1"
    assert environ.pop("ATTENTION_THREADS") == "1 --threads"
    assert environ == WAIT_POLICY


def test_workers_get_their_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "physical_cores", lambda: Cores(5, "physical cores"))
    supervisor = launch.Supervisor(SimpleNamespace(local=2), [])  # type: ignore[arg-type]
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert supervisor._thread_variables() == {}
    monkeypatch.delenv("OMP_NUM_THREADS")
    given = supervisor._thread_variables()
    assert given["OMP_NUM_THREADS"] == "2"
    text = "2 threads: 5 physical cores shared by 2 workers"
    assert str(choose_threads([], given, FOUR)) == text


def test_the_names_of_the_launchers_variables() -> None:
    assert local_workers({launch.LOCAL_SIZE: "3"}) == 3


# --------------------------------------------------------------------------------- whole programs


@pytest.mark.parametrize("entrance", [*SCRIPTS, *MODULES])
@pytest.mark.parametrize("value", ["0", "abc"])
def test_a_bad_number_ends_a_command_before_numpy_is_there(entrance: str, value: str) -> None:
    command = [entrance] if entrance in SCRIPTS else ["-m", entrance]
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command, "--threads", value],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    words = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2
    assert len(words) == 1
    assert words[0].startswith(f"error: --threads {value}: ")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "training.compute.thread_choice" in loaded
    assert not {"numpy", "mxnet", "torch"} & loaded


def test_importing_a_script_changes_nothing() -> None:
    code = (
        "import os; before = dict(os.environ)\n"
        "import train_cifar, train_imagenet, train_mnist_glimpse, export_model, model\n"
        "import training.compute.thread_choice, training.launch, training.loop.announce\n"
        f"print([n for n in {OURS} if os.environ.get(n) != before.get(n)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
        timeout=200,
        check=True,
    )
    assert done.stdout == "[]\n"


Train = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Runs train_cifar.py as a program on the machine of three cores."""
    root = tmp_path_factory.mktemp("machine")
    for number in range(6):
        folder = root / f"sys/devices/system/cpu/cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number % 3},{number % 3 + 3}\n")

    def run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", ON_ANOTHER_MACHINE, str(root), "train_cifar.py", *words],
            cwd=ROOT,
            env=clean_environment(**environ),
            capture_output=True,
            text=True,
            timeout=280,
            check=True,
        )

    return run


@pytest.fixture(scope="module")
def nothing_set(train: Train, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and output of a small training without a word about threads."""
    photos, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (photos / name).mkdir(parents=True)
        for index in range(2):
            pixels = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(photos / name / f"{index}.png")
    run = tmp_path_factory.mktemp("run") / "run"
    words = (
        f"--dataset folder:{photos} --model resnet20 --gpus cpu --run-dir {run} --epochs 1 "
        "--batch-size 4 --micro-batch 0 --warmup-epochs 0 --precision float32 --fused off"
    )
    return run, train(*words.split()).stdout


def threads_of(run: Path) -> list[tuple[int, str]]:
    """Number and reason at the start and at each resume."""
    env = json.loads((run / "env.json").read_text())
    records = [record["threads"] for record in (env, *env["resumes"])]
    return [(record["effective"], record["reason"]) for record in records]


def test_with_nothing_set_a_training_takes_the_physical_cores(
    nothing_set: tuple[Path, str],
) -> None:
    run, output = nothing_set
    assert threads_of(run)[0] == (3, "physical cores")
    assert ", float32, 3 threads: physical cores; changed from default: " in output


def test_a_resume_keeps_the_number_of_the_run(train: Train, nothing_set: tuple[Path, str]) -> None:
    run, _ = nothing_set
    kept = train("--resume", str(run), OMP_NUM_THREADS="1")
    assert "3 threads: as the run began" in kept.stdout
    assert "OMP_NUM_THREADS=1 is not taken" in kept.stderr
    assert "CPU threads and goes on with" not in kept.stderr
    changed = train("--resume", str(run), "--threads", "2")
    assert "made with 3 CPU threads and goes on with 2" in changed.stderr
    assert threads_of(run)[-2:] == [(3, "as the run began"), (2, "--threads")]


# ------------------------------------------------------------------------------ within a process


def test_a_number_that_comes_too_late_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a notebook that calls main() with --threads."""
    monkeypatch.setattr(environment, "_effective_threads", lambda: 2)
    warn_late_threads(None)
    warn_late_threads(2)
    assert not capsys.readouterr().err
    warn_late_threads(3)
    assert capsys.readouterr().err.startswith("warning: --threads 3 came too late, this process ha")


@pytest.mark.parametrize(
    ("loaded", "setting", "effective"),
    [(8, "", 4), (1, "", 1), (8, "8", 8), (None, "3,1", 3), (None, "", 5)],
)
def test_the_number_in_effect(
    monkeypatch: pytest.MonkeyPatch, loaded: Optional[int], setting: str, effective: int
) -> None:
    """MXNet, which this process has, takes half of the processors where nothing is set."""
    monkeypatch.setattr(environment, "_loaded_threads", lambda: loaded)
    monkeypatch.setattr(environment, "usable_cores", lambda: 5)
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    monkeypatch.delenv("ATTENTION_THREADS", raising=False)
    found = describe_threads()
    assert found["effective"] == effective
    assert found["reason"] == ("OMP_NUM_THREADS" if setting else "the library's own choice")
