"""The log, file names and printed lines of the RAM-ResNet repository, from real small runs."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import train_cifar
from training.loop import fit
from training.records.metrics import read_metrics
from training.records.seed_log import (
    changed_settings,
    checkpoint_file,
    evaluation_lines,
    seed_log,
    write_seed_files,
)

HEADER = "Learning Rate\tTrain Loss\tValid Loss\tTrain Acc.\tValid Acc.\t"
EPOCHS = 4
# The rate falls before epochs 1 and 3, from 0: rows 2 and 4 of the log are the first with it.
FLAGS = (
    "--arch ram --block-name bottleneck --depth 11 --epochs 4 --schedule 1 3 --gamma 0.1 "
    "--wd 1e-4 --train-batch 8 --info tiny --precision float32"
)


def test_the_columns_are_those_of_the_published_logs() -> None:
    # The first two rows of the authors' log of depth 164 on CIFAR-100.
    rows: list[dict[str, Any]] = [
        {"lr": 0.1, "train_loss": 4.165738, "test_loss": 3.82563, "train_acc": 0.0599},
        {"lr": 0.1, "train_loss": 3.575006, "test_loss": None, "train_acc": 0.1397},
    ]
    rows[0]["test_acc"], rows[1]["test_acc"] = 0.1005, None
    assert seed_log(rows) == (
        f"{HEADER}\n"
        "0.100000\t4.165738\t3.825630\t5.990000\t10.050000\t\n"
        "0.100000\t3.575006\tnan\t13.970000\tnan\t\n"
    )
    assert evaluation_lines(1.23456789123, 0.76743) == (
        "\nEvaluation only\n Test Loss:  1.23456789, Test Acc:  76.74"
    )


def test_a_name_of_the_seed_means_our_file_when_there_is_no_other(tmp_path: Path) -> None:
    wanted = str(tmp_path / "model_best.pth.tar")
    assert checkpoint_file(wanted) == wanted
    (tmp_path / "model_best.param").write_bytes(b"")
    assert checkpoint_file(wanted) == str(tmp_path / "model_best.param")
    (tmp_path / "model_best.pth.tar").write_bytes(b"")
    assert checkpoint_file(wanted) == wanted


def test_settings_are_compared_as_the_file_holds_them() -> None:
    given = {"lr_steps": (1, 3), "epochs": 5, "lr": 0.1}
    assert changed_settings(given, {"lr_steps": [1, 3], "epochs": 4}) == {"epochs": 5, "lr": 0.1}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of images, 12 to train and 3 to test of each."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 3)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


def command(photos: Path, out: Path) -> list[str]:
    return [*FLAGS.split(), "--dataset", f"folder:{photos}", "-c", str(out), "--gpus", "cpu"]


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run by the seed's command line; ``epoch-N`` beside it are copies at its end."""
    out = tmp_path_factory.mktemp("checkpoints")
    patch = pytest.MonkeyPatch()
    save = fit.Fit._save

    def save_and_copy(self: fit.Fit, count_time: bool = True, row: Any = None) -> None:
        save(self, count_time, row)
        copy = out / f"epoch-{self.progress.epoch}"
        shutil.copytree(self.run.folder, copy, symlinks=True, dirs_exist_ok=True)

    patch.setattr(fit.Fit, "_save", save_and_copy)
    try:
        assert train_cifar.main(command(photos, out)) == 0
    finally:
        patch.undo()
    (folder,) = out.glob("**/tiny")
    return folder


def test_a_run_leaves_the_files_of_the_seed(whole: Path) -> None:
    assert whole.parent.name == "ram"
    rows = (whole / "log.txt").read_text().split("\n")
    assert rows[0] == HEADER
    assert [row.split("\t")[0] for row in rows[1:-1]] == [
        "0.100000",
        "0.010000",
        "0.010000",
        "0.001000",
    ]
    assert all(row.count("\t") == 5 and row.endswith("\t") for row in rows[:-1])
    assert rows[-1] == ""
    last = read_metrics(whole)[-1]
    assert float(rows[-2].split("\t")[4]) == pytest.approx(100 * last["test_acc"], abs=1e-6)
    for name, target in (("checkpoint.param", "last.param"), ("model_best.param", "best.param")):
        assert (whole / name).read_bytes() == (whole / target).read_bytes()


@pytest.mark.parametrize("epoch", range(1, EPOCHS))
def test_the_log_is_the_same_after_a_resume_at_any_epoch(
    whole: Path, photos: Path, tmp_path: Path, epoch: int
) -> None:
    run = tmp_path / "run"
    shutil.copytree(_copy_of(whole, epoch), run, symlinks=True)
    argv = [*command(photos, tmp_path), "--resume", str(run / "checkpoint.pth.tar")]
    assert train_cifar.main(argv) == 0
    assert (run / "log.txt").read_bytes() == (whole / "log.txt").read_bytes()
    assert (run / "last.param").read_bytes() == (whole / "last.param").read_bytes()


def _copy_of(whole: Path, epoch: int) -> Path:
    return next(above / f"epoch-{epoch}" for above in whole.parents if (above / "epoch-1").exists())


def test_a_resume_with_other_settings_is_refused(
    whole: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*command(photos, whole), "--resume", str(whole / "checkpoint.pth.tar"), "--epochs", "9"]
    assert train_cifar.main(argv) == 2
    assert "--resume keeps the settings of the run; --epochs cannot" in capsys.readouterr().err


def test_testing_prints_the_lines_of_the_seed(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = f"--arch ram --depth 11 --block-name bottleneck --resume {whole}/model_best.pth.tar --e"
    assert train_cifar.main([*argv.split(), "--gpus", "cpu"]) == 0
    best = max(read_metrics(whole), key=lambda row: row["test_acc"])
    shown = capsys.readouterr().out
    title, line = shown.split("\n")[-3:-1]
    assert title == "Evaluation only"
    found = re.fullmatch(r" Test Loss:  (\d+\.\d{8}), Test Acc:  (\d+\.\d\d)", line)
    assert found
    assert float(found[1]) == pytest.approx(best["test_loss"], rel=1e-5)
    assert float(found[2]) == pytest.approx(100 * best["test_acc"], abs=0.01)


def test_links_that_are_there_stay(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "model_best.param").write_text("mine")
    write_seed_files(tmp_path)
    write_seed_files(tmp_path)
    assert (tmp_path / "model_best.param").read_text() == "mine"
    assert (tmp_path / "checkpoint.param").is_symlink()
    assert (tmp_path / "log.txt").read_text() == HEADER + "\n"
