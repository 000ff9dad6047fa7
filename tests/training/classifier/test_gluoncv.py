"""A network of gluoncv goes through the whole pipeline: train, resume, score, finetune, export."""

from __future__ import annotations

import json
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

import export_model
import train_cifar
from training.data.image_folder import list_image_folder
from training.records.metrics import read_metrics

NAME = "gluoncv:cifar_resnet20_v1"
FLAGS = (
    "--recipe quick -b 16 --warmup-epochs 0 --lr 0.02 --precision float32 --normalization dataset"
)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of red and blue squares."""
    for index in range(60):
        pixels = np.zeros((32, 32, 3), np.uint8)
        pixels[..., 2 * (index % 2)] = 150 + index
        path = tmp_path / "pictures" / ("blue" if index % 2 else "red") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / "pictures"


@pytest.mark.filterwarnings("ignore:Cannot decide type:UserWarning")  # SymbolBlock's own
def test_a_network_of_gluoncv_does_all_that_ours_do(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(words: str) -> str:
        assert train_cifar.main(words.split()) == 0
        return capsys.readouterr().out

    data, first = f"--dataset folder:{pictures}", tmp_path / "first"
    said = run(f"--model {NAME} {data} {FLAGS} --epochs 2 --run-dir {first}")
    assert "MXNet's own operators" in said
    assert json.loads((first / "config.json").read_text())["model"] == NAME
    file = first / "last.param"
    last, tests = read_metrics(first)[-1], len(list_image_folder(str(pictures)).test.paths)
    scored = f"test loss {last['test_loss']:.4f}, test accuracy {last['test_acc']:.5f}"
    assert f"{scored} ({tests} images)" in run(f"--test {file} {data}")
    predicted = run(f"--predict {file} {pictures / 'red' / '0.png'}")
    assert {"red", "blue"} <= set(predicted.split())
    second = f"--finetune {file} --freeze trunk --epochs 1 --run-dir {tmp_path / 'second'}"
    assert f"finetuning model {NAME}" in run(f"{data} {FLAGS} {second}")
    trunk = [mx.nd.load(str(path / "last.param")) for path in (first, tmp_path / "second")]
    changed = [n for n in trunk[0] if (trunk[0][n].asnumpy() != trunk[1][n].asnumpy()).any()]
    assert sorted(changed) == ["output.bias", "output.weight"]
    assert export_model.main([str(file), "--to", "symbol", "--output", str(tmp_path / "net")]) == 0
    loaded = mx.gluon.SymbolBlock.imports(
        str(tmp_path / "net-symbol.json"), ["image"], str(tmp_path / "net-0000.params")
    )
    assert loaded(mx.nd.zeros((1, 3, 32, 32))).shape == (1, 2)


def test_a_flag_of_our_networks_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = f"--model {NAME} --wiring paper --dataset shapes --epochs 10"
    assert train_cifar.main(words.split()) == 2
    assert "networks of gluoncv take no wiring" in capsys.readouterr().err


def test_a_network_for_larger_images_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    words = f"--model gluoncv:vgg11 --dataset shapes {FLAGS} --epochs 1"
    assert train_cifar.main(words.split()) == 2
    said = capsys.readouterr().err
    assert "gluoncv:vgg11 takes images of 224x224, not of 32x32; choose another network" in said
