"""``--model NAME --pretrained`` in place of a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import train_cifar
import train_imagenet
import train_mnist_glimpse
from formats.errors import UserError
from model.pretrained.store import weights_path
from training.apply.pretrained import with_weights

ROOT = Path(__file__).resolve().parents[3]
ACTIONS = ("--test", "--predict", "--finetune")


def test_without_the_flag_nothing_changes() -> None:
    words = ["--test", "x.param", "--model", "attention92"]
    assert with_weights(words, ACTIONS) == words


@pytest.mark.parametrize(
    ("line", "dataset", "expected"),
    [
        ("--model attention56_small --pretrained --test", "cifar10", "--test={}"),
        ("-m attention56_small --test --pretrained=shapes", "shapes", "--test={}"),
        ("--test --pretrained --model=attention56_small --dataset shapes", "shapes", "--test={}"),
        ("--pretrained --model attention56_small --predict a.png", "cifar10", "--predict={} a.png"),
        # The data set of a finetuning is the new one.
        (
            "--finetune --pretrained --model attention56_small --dataset shapes",
            "cifar10",
            "--finetune={}",
        ),
    ],
)
def test_the_file_takes_its_place(line: str, dataset: str, expected: str) -> None:
    words = with_weights(line.split(), ACTIONS)
    path = weights_path("attention56_small", dataset)
    assert expected.format(path) in " ".join(words)
    assert not [word for word in words if word.startswith("--pretrained")]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("--pretrained --test", "add --model NAME"),
        ("--pretrained --model attention92", "give one of --test"),
        ("--pretrained --model attention92 --test=x.param", "and no path"),
        ("--pretrained --model attention92 --test --predict a.png", "give one of"),
        ("--pretrained --model resnet20 --test", "no weights are published"),
        ("--pretrained=mnist --model attention92 --test", "no weights of attention92"),
    ],
)
def test_what_cannot_be_is_refused(line: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        with_weights(line.split(), ACTIONS)


def test_a_path_beside_it_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = "--model attention92 --pretrained --test x.param"
    assert train_cifar.main(line.split()) == 2
    assert "x.param" in capsys.readouterr().err


def test_the_flag_is_known_before_mxnet_is_loaded(tmp_path: Path) -> None:
    """A script looks at its flags twice; the first time nothing of MXNet is there."""
    (tmp_path / "mxnet.py").write_text("raise SystemExit('MXNet was loaded')")
    for script, name in (
        ("train_cifar.py", "attention56_small"),
        ("train_imagenet.py", "attention56_small"),
        ("train_mnist_glimpse.py", "glimpse_mnist"),
    ):
        done = subprocess.run(
            [sys.executable, script, "--model", name, "--pretrained", "--test", "--wrong"],
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert "--wrong" in done.stderr
        assert "--pretrained" not in done.stderr


def test_photographs_start_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    line = "--model attention56_small --pretrained --finetune --data-dir no/such"
    assert train_imagenet.main(line.split()) == 2
    shown = capsys.readouterr()
    assert "finetuning size 32" in shown.out
    assert "the image folder 'no/such' does not exist" in shown.err


def test_scripts_score_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    line = "--model attention56_small --pretrained --dataset shapes --test --gpus cpu"
    assert train_cifar.main(line.split()) == 0
    assert "0.99300" in capsys.readouterr().out


def test_the_glimpse_script_says_what_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_mnist_glimpse.main(["--model", "glimpse_tiny", "--pretrained", "--test"]) == 2
    assert "glimpse_mnist" in capsys.readouterr().err
