"""A resumed run that is computed otherwise than before: what may change, and what is said."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import numpy as np
import pytest
from PIL import Image

import train_cifar
from formats.images.preprocessing import read_preprocessing
from formats.param_file import read_params, write_params
from formats.weight_file import read_card
from training.data.identity import identity_of
from training.data.image_folder import load_image_folder
from training.loop.announce import restart_command, started_as, warn_of_changes
from training.loop.engine import Updater
from training.records.metrics import read_metrics
from training.records.run_progress import Progress
from training.records.state_file import load_state

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
    warn_of_changes(tmp_path, Progress(threads=2, workers=1), facts, 1, 1)
    lines = capsys.readouterr().err.splitlines()
    assert [name for name, line in zip(warned, lines) if name in line] == warned
    assert len(lines) == len(warned)


def test_threads_and_workers_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    warn_of_changes(tmp_path, Progress(threads=2, workers=1), {"threads": {"effective": 1}}, 3, 3)
    lines = capsys.readouterr().err.splitlines()
    assert "2 CPU threads and goes on with 1" in lines[0]
    assert "1 worker(s) and goes on with 3" in lines[1]


@pytest.mark.parametrize(("before", "told"), [(None, False), (1, False), (2, True)])
def test_devices_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: Optional[int], told: bool
) -> None:
    warn_of_changes(tmp_path, Progress(devices=before), {"threads": {"effective": 1}}, 1, 1)
    said = capsys.readouterr().err
    assert ("was made on 2 device(s) and goes on on 1" in said) == told


@pytest.mark.parametrize("engine", ["none", "horovod", "dist_sync"])
def test_the_command_that_goes_on_can_be_pasted(engine: str) -> None:
    config = SimpleNamespace(distributed=engine)
    group: Any = SimpleNamespace(size=2)
    run = Path("runs/it's my run; x")
    command = restart_command("train_cifar.py", config, group, run, {})
    assert shlex.split(command)[-2:] == ["--resume", "runs/it's my run; x"]
    told = {"data_dir": "my data", "download": False, "threads": None, "on_nonfinite": "skip"}
    command = restart_command("train_cifar.py", config, group, run, told)
    words = ["--data-dir", "my data", "--no-download", "--on-nonfinite", "skip"]
    assert shlex.split(command)[-6:] == ["runs/it's my run; x", *words]


def test_a_script_elsewhere_is_told_with_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for word, told in (
        ("/my place/train_cifar.py", ["/my place/train_cifar.py"]),
        ("/usr/bin/pytest", ["train_cifar.py"]),
    ):
        monkeypatch.setattr(sys, "argv", [word])
        assert shlex.split(started_as("train_cifar.py"))[1:] == told


def test_what_a_resume_was_told_is_told_again(
    begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = moved_files(begun, tmp_path)
    step = Updater.step

    def stopping(self: Updater, *given: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return step(self, *given)

    monkeypatch.setattr(Updater, "step", stopping)
    assert train_cifar.main(["--resume", str(run), "--on-nonfinite", "skip"]) == 0
    (said,) = [line for line in capsys.readouterr().out.splitlines() if "go on with" in line]
    assert said.endswith("--on-nonfinite skip")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``data`` of two classes, 8 and 4 images, and ``run``, an epoch of two."""
    root, rng = tmp_path_factory.mktemp("begun"), np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for name in ("circle", "square"):
            (root / "data" / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / "data" / split / name / f"{index}.png")
    words = (
        f"--recipe quick --dataset folder:{root}/data --model resnet20_basic --depth 8 --epochs 1 "
        f"-b 4 --precision float32 --fused off --gpus cpu --run-dir {root}/run"
    )
    assert train_cifar.main(words.split()) == 0
    config = root / "run" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "epochs": 2}))
    return root


def renamed(data: Path) -> None:
    for split in ("train", "test"):
        (data / split / "circle").rename(data / split / "zircle")


def added(data: Path) -> None:
    for split in ("train", "test"):
        shutil.copytree(data / split / "circle", data / split / "arrow")


def doubled(data: Path) -> None:
    for path in list((data / "train").rglob("*.png")):
        shutil.copy(path, path.with_name(f"b{path.name}"))


def fewer_tests(data: Path) -> None:
    (data / "test" / "square" / "0.png").unlink()


def swapped(data: Path) -> None:
    first, second = data / "train" / "circle" / "0.png", data / "train" / "square" / "0.png"
    content = first.read_bytes()
    shutil.copy(second, first)
    second.write_bytes(content)


def moved_files(begun: Path, folder: Path) -> tuple[Path, Path]:
    """Copies of run and data, the run's settings naming the data's new place."""
    shutil.copytree(begun, folder / "all")
    run, data = folder / "all" / "run", folder / "all" / "data"
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "dataset": f"folder:{data}"}))
    return run, data


@pytest.mark.parametrize(
    ("change", "named", "agreeable"),
    [
        (renamed, "class circle is gone; class zircle is new", False),
        (added, "class arrow is new", False),
        (doubled, "8 training images then, 16 now", True),
        (fewer_tests, "4 test images then, 3 now", True),
        (swapped, "other pixels or labels", True),
    ],
)
def test_a_run_knows_its_data(
    begun: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
    named: str,
    agreeable: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, data = moved_files(begun, tmp_path)
    change(data)
    before = (run / "resume.state").read_bytes()
    assert train_cifar.main(["--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1
    assert ("--data-changed" in error) is agreeable
    assert train_cifar.main(["--resume", str(run), "--data-changed"]) == (0 if agreeable else 2)
    said = capsys.readouterr().err
    assert named in said
    if not agreeable:
        assert "--finetune RUN/last.param" in said
        assert (run / "resume.state").read_bytes() == before
        assert len(read_metrics(run)) == 1
        return
    assert len(read_metrics(run)) == 2
    resumes = json.loads((run / "env.json").read_text())["resumes"]
    assert named in resumes[-1]["data_changed"]
    # The rate falls to its end; what was best on other images is not compared with these.
    progress, images = load_state(run)[0], len([*(data / "train").rglob("*.png")])
    assert (progress.step, progress.best_epoch) == (2 * (images // 4), 2)
    assert read_metrics(run)[-1]["lr"] == 0
    # What it was trained on last is what it is compared with from now on.
    now = identity_of(load_image_folder(str(data)))
    assert load_state(run)[0].data == json.loads(json.dumps(now.to_dict()))
    assert train_cifar.main(["--resume", str(run)]) == 0


def darker(data: Path) -> None:
    for path in (data / "train").rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)) // 3).save(path)


def test_weights_keep_the_figures_that_their_images_are_normalized_by(
    begun: Path, tmp_path: Path
) -> None:
    run, data = moved_files(begun, tmp_path)
    before = read_card(run / "last.param")
    darker(data)
    for _ in range(2):  # a later resume keeps them too
        assert train_cifar.main(["--resume", str(run), "--data-changed"]) == 0
        after = read_card(run / "last.param")
        assert before is not None
        assert after is not None
        assert after["image"] == before["image"]
        assert after["image"]["mean"] == list(read_preprocessing(run).mean)
        assert after["data"] != before["data"]
        config = json.loads((run / "config.json").read_text())
        assert config["normalization"] == "dataset"
        (run / "config.json").write_text(json.dumps({**config, "epochs": config["epochs"] + 1}))


def test_fewer_images_than_the_epoch_has_had_end_it(begun: Path, tmp_path: Path) -> None:
    """A run that was stopped after the second batch of an epoch that now has one."""
    run, data = moved_files(begun, tmp_path)
    step = Updater.step

    def stopping(self: Updater, *given: Any) -> Any:
        if given[1] == 4:  # the second of the second epoch; saved before it ends
            signal.raise_signal(signal.SIGTERM)
        return step(self, *given)

    for name in ("circle", "square"):  # a third batch, so that the second is not the last
        for index in range(2):
            shutil.copy(data / "train" / name / "0.png", data / "train" / name / f"c{index}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Updater, "step", stopping)
        assert train_cifar.main(["--resume", str(run), "--data-changed"]) == 0
    state = load_state(run)[0]
    assert (state.epoch, state.batch) == (1, 2)
    for path in [*(data / "train").rglob("[123c]*.png")]:
        if path.name != "1.png":
            path.unlink()
    assert train_cifar.main(["--resume", str(run), "--data-changed"]) == 0
    assert [row["epoch"] for row in read_metrics(run)] == [1, 2]
    assert load_state(run)[0].step == 2  # of two epochs of one update


def test_a_moved_folder_is_the_same_data(
    begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = moved_files(begun, tmp_path)
    assert train_cifar.main(["--resume", str(run), "--data-changed"]) == 0
    said = capsys.readouterr()
    assert "--data-changed: the data is what it was" in said.out
    assert "data has changed" not in said.err
    assert len(read_metrics(run)) == 2


def test_a_run_of_before_is_not_compared(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = moved_files(begun, tmp_path)
    doubled(data)
    load = load_state

    def without(folder: Path) -> object:
        progress, arrays, meta = load(folder)
        progress.data = None
        return progress, arrays, meta

    monkeypatch.setattr("training.loop.train.load_state", without)
    assert train_cifar.main(["--resume", str(run)]) == 0
    assert "no record of its data" in capsys.readouterr().out


@pytest.mark.parametrize("data", [{}, {"name": 3}, [], "x"])
def test_a_damaged_record_of_the_data_is_refused(
    begun: Path, tmp_path: Path, data: object, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = moved_files(begun, tmp_path)
    arrays = dict(read_params(run / "resume.state"))
    meta = json.loads(arrays["meta"].tobytes())
    meta["progress"]["data"] = data
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    write_params(run / "resume.state", arrays)
    assert train_cifar.main(["--resume", str(run)]) == 2
    assert "damaged" in capsys.readouterr().err
