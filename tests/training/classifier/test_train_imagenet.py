"""``train_imagenet.py`` end to end, on a few small pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

import train_imagenet
from formats.param_file import read_params
from training.classifier.imagenet import ImageNetConfig, open_imagenet
from training.records.metrics import read_metrics
from training.records.state_file import load_state
from training.settings.schedules import schedule_of

COLOURS = ((220, 40, 40), (40, 40, 220))


def picture(label: int, rng: np.random.Generator) -> Image.Image:
    height, width = rng.integers(36, 60, 2)
    noise = rng.integers(-30, 30, (height, width, 3))
    return Image.fromarray((np.array(COLOURS[label]) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Record files of two classes, 24 and 6 images."""
    folder, rng = tmp_path_factory.mktemp("records"), np.random.default_rng(0)
    for name, count in (("train", 24), ("val", 6)):
        path = str(folder / name)
        writer = mx.recordio.MXIndexedRecordIO(f"{path}.idx", f"{path}.rec", "w")
        for index in range(count):
            stream = io.BytesIO()
            picture(index % 2, rng).save(stream, "JPEG", quality=90)
            header = mx.recordio.IRHeader(0, float(index % 2), index, 0)
            writer.write_idx(index, mx.recordio.pack(header, stream.getvalue()))
        writer.close()
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in class folders."""
    root, rng = tmp_path_factory.mktemp("folder"), np.random.default_rng(1)
    for split, count in (("train", 8), ("val", 3)):
        for label, name in enumerate(("red", "blue")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                picture(label, rng).save(root / split / name / f"{index}.JPEG")
    return root


def flags(data: Path, run: Path, epochs: int) -> list[str]:
    text = (
        f"--data-dir {data} --run-dir {run} --model attention56_small --size 32 --gpus cpu "
        f"--batch-size 8 --lr 0.02 --schedule cosine --epochs {epochs} "
        "--precision float32"
    )
    return text.split()


def test_record_files(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    assert train_imagenet.main([*flags(records, run, 16), "--classes", "2"]) == 0
    row = read_metrics(run)[-1]
    assert row["test_acc"] == 1.0
    assert load_state(run)[0].step == 48
    capsys.readouterr()
    argv = ["--test", str(run / "last.param"), "--data-dir", str(records), "--size", "32"]
    assert train_imagenet.main([*argv, "--gpus", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert f"test loss {row['test_loss']:.4f}, test accuracy 1.00000 (6 images)" in shown


def test_record_files_have_as_many_classes_as_is_said(
    records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for classes, said in ((0, True), (2, False)):
        config = ImageNetConfig(data_dir=str(records), classes=classes)
        assert open_imagenet(config).classes == (classes or 1000)
        shown = capsys.readouterr().out
        assert ("record files name no classes: 1000 assumed, or --classes N" in shown) == said


def test_nothing_is_told_that_was_not_given(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Photographs come from the folder whatever they are called; a schedule has no steps."""
    words = ["--dataset", "shapes-photos", "--data-dir", str(folder / "none")]
    assert train_imagenet.main(words) == 2
    shown = capsys.readouterr()
    assert "would do nothing" not in shown.out
    assert "there is no such folder" in shown.err
    assert train_imagenet.main(["--resume", "x", "--schedule", "cosine"]) == 2
    assert "; --schedule cannot be changed" in capsys.readouterr().err


def test_folders_and_a_resume(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train_imagenet.main(flags(folder, whole, 3)) == 0
    # A run that ended early: what it has, as after an interruption, is taken up again.
    assert train_imagenet.main([*flags(folder, run, 3), "--valid-count", "4", "-b", "4"]) == 0
    assert json.loads((run / "preprocessing.json").read_text())["class_names"] == ["blue", "red"]
    assert "12 images to train, 4 held out, 6 to test" in capsys.readouterr().out
    config = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps({**config, "epochs": 4}))
    assert train_imagenet.main(["--resume", str(whole)]) == 0
    assert [row["epoch"] for row in read_metrics(whole)] == [1, 2, 3, 4]
    assert "python train_imagenet.py" not in capsys.readouterr().err
    image = tmp_path / "x.png"
    Image.new("RGB", (99, 77), COLOURS[1]).save(image)
    assert train_imagenet.main(["--predict", str(whole / "last.param"), str(image)]) == 0
    assert {line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]} == {"blue", "red"}
    assert len(read_params(whole / "last.param")["fc.weight"]) == 2


def test_the_default_recipe_is_the_papers() -> None:
    config = ImageNetConfig()
    config.check()
    steps = 1_281_167 // config.batch_size
    rate = schedule_of(config, steps)
    for fall, before, after in ((200_000, 0.1, 0.01), (400_000, 0.01, 1e-3), (500_000, 1e-3, 1e-4)):
        assert rate(fall - steps // 2) == pytest.approx(before)
        assert rate(fall + steps // 2) == pytest.approx(after)
    assert config.epochs * steps == pytest.approx(530_000, abs=steps // 2)
    assert (config.optimizer, config.momentum, config.wd) == ("nag", 0.9, 1e-4)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("", "give the data: --data-dir FOLDER"),
        (
            "--data-dir nowhere",
            "--data-dir nowhere: there is no such folder; give one with train.rec",
        ),
        ("--size 8", "--size 8: give 16 to 1024"),
        ("--jitter 1", "--jitter 1.0: give 0 or more"),
        ("--mirror x", "ImageNet cannot be downloaded"),
        ("--model attention56_imagnet", "did you mean 'attention56_imagenet'"),
        ("--predict x.param test:0", "x.param: no such file"),
    ],
)
def test_wrong_input(
    argv: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train_imagenet.main([*argv.split(), "--gpus", "cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())
