"""Networks whose tensors do not tell everything: parts of a batch, variants, other classes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import train_cifar
import train_imagenet
from formats.errors import UserError
from formats.param_file import write_params
from model.weights.convert import convert
from model.weights.file_match import LoadError, network_shapes
from training.classifier.task import check_parts

TINY = "--recipe quick --dataset shapes --train-count 64 --epochs 1 --precision float32"


def save(path: Path, model: str, classes: int, value: float = 1.0) -> None:
    """Write parameters that are all the same."""
    shapes = network_shapes(model, classes)
    write_params(path, {n: np.full(shape or (), value, np.float32) for n, shape in shapes.items()})


@pytest.mark.parametrize(
    ("batch", "micro", "devices", "smallest"),
    [
        (32, 1, 1, 1),
        (1, 0, 1, 1),
        (3, 2, 1, 1),
        (3, 0, 2, 1),
        (4, 2, 1, 2),
        (4, 0, 2, 2),
        (7, 3, 1, 2),
    ],
)
def test_the_smallest_part_of_a_batch(batch: int, micro: int, devices: int, smallest: int) -> None:
    # As the updater splits: over devices, then each share into parts.
    share = np.array_split(np.arange(batch), devices)
    count = -(-len(share[0]) // micro) if micro else 1
    parts = [len(part) for own in share for part in np.array_split(own, count)]
    assert min(parts) == smallest
    config: Any = SimpleNamespace(model="m", batch_size=batch, micro_batch=micro)
    check_parts(config, devices, smallest)
    with pytest.raises(UserError, match=f"--batch-size {batch}.* leave {smallest}"):
        check_parts(config, devices, smallest + 1)


def test_a_gate_over_one_image_is_refused_before_a_folder_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    words = [*TINY.split(), "--model", "resnet20_basic_ram", "--run-dir", str(run)]
    assert train_cifar.main([*words, "--batch-size", "32", "--micro-batch", "1"]) == 2
    assert "normalises its gates over images" in capsys.readouterr().err
    assert not run.exists()


@pytest.fixture
def spatial_run(tmp_path: Path) -> Path:
    """A parameter file beside the settings of its run."""
    path = tmp_path / "last.param"
    save(path, "attention56_small", 10)
    config = {"model": "attention56_small", "attention": "spatial", "learning": "nal"}
    path.with_name("config.json").write_text(json.dumps(config))
    return path


def test_a_variant_that_other_code_does_not_have_is_not_converted(spatial_run: Path) -> None:
    target = spatial_run.with_name("out.param")
    for form in ("gluoncv", "pistony-old", "torch-names"):
        with pytest.raises(LoadError, match="learning nal and attention spatial, which"):
            convert(spatial_run, target, form)
    assert not target.exists()
    notes = convert(spatial_run, target, "pistony").notes
    assert any("learning='nal', attention='spatial'" in note for note in notes)
    spatial_run.with_name("config.json").write_text(json.dumps({"wiring": "paper"}))
    with pytest.raises(LoadError, match="has paper wiring"):
        convert(spatial_run, target, "gluoncv", force=True)


def test_a_start_from_another_variant_is_told(
    spatial_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*TINY.split(), "--model", "attention56_small", "--finetune", str(spatial_run)]
    words += ["--learning", "arl", "--run-dir", str(tmp_path / "run"), "--fused", "off"]
    assert train_cifar.main(words) == 0
    shown = capsys.readouterr()
    warnings = [line for line in shown.err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert "was trained with --learning nal, this network has arl" in warnings[0]
    # What is not named is the file's.
    assert "finetuning attention spatial;" in shown.out
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["attention"], config["learning"]) == ("spatial", "arl")


def test_resnets_have_no_names_of_gluoncv(tmp_path: Path) -> None:
    source = tmp_path / "net.param"
    save(source, "resnet20_ram", 10)
    with pytest.raises(LoadError, match="which gluoncv does not have"):
        convert(source, tmp_path / "out.param", "gluoncv")


def test_a_network_for_more_classes_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "net.param"
    save(source, "resnet20_basic_ram", 100, 0.01)
    assert train_cifar.main(["--test", str(source), "--dataset", "shapes"]) == 0
    assert "a network of 100 classes, shapes has 10" in capsys.readouterr().err


def test_a_torch_file_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model_best.pth.tar"
    path.write_bytes(b"PK")
    assert train_cifar.main(["--resume", str(path), "--arch", "ram", "--depth", "20"]) == 2
    shown = capsys.readouterr().err
    assert "a PyTorch checkpoint, without the run" in shown
    assert "--e added" in shown


@pytest.mark.parametrize("script", [train_cifar, train_imagenet])
def test_a_resume_is_checked_before_its_flags(
    script: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main(["--resume", "no-run", "--epochs", "5"]) == 2
    assert "--epochs cannot be changed" in capsys.readouterr().err
