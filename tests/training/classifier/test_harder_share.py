"""``--harder-share`` on the command line: the proxy, its operators, an exact resume, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train_cifar
from bridge.loop.settings import BridgeConfig
from formats.errors import UserError
from formats.param_file import read_params
from machine.processor import Unavailable
from model.native.build import require_bfloat16
from tests.training.loop.test_averaging import Crash, after
from training.classifier import proxy as proxies
from training.classifier.config import CifarConfig
from training.data.dataset import Dataset, ImageData
from training.loop.checkpoint import parameter_arrays
from training.loop.harder import HarderImages
from training.records.state_file import load_state


def images_of(count: int, seed: int) -> ImageData:
    labels = (np.arange(count) % 3).astype(np.int32)
    images = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3)) // 3
    return ImageData((images + labels[:, None, None, None] * 40).astype(np.uint8), labels)


DATA = Dataset("tiny", images_of(50, 1), images_of(9, 2), ("a", "b", "c"), (0.5,) * 3, (0.2,) * 3)
WORDS = (
    "--recipe short --dataset tiny --model resnet20_basic --depth 14 -b 8 --epochs 3 "
    "--small-size 0 --gpus cpu"
)
HARDER = f"{WORDS} --harder-share 0.5 --proxy-depth 8 --proxy-every 2"


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_cifar, "open_dataset", lambda config: DATA)


def train(words: str, folder: Path) -> bytes:
    assert train_cifar.main([*words.split(), "--run-dir", str(folder)]) == 0
    return (folder / "last.param").read_bytes()


def prepared(words: str) -> Any:
    return train_cifar._prepare(CifarConfig(**train_cifar._given(words.split())))


def test_a_share_of_1_is_no_choice(tmp_path: Path) -> None:
    words = f"{WORDS} --fused off --precision float32"
    plain, one = train(words, tmp_path / "a"), train(f"{words} --harder-share 1", tmp_path / "b")
    half = train(f"{words} --harder-share 0.5", tmp_path / "c")
    assert plain == one != half
    assert not load_state(tmp_path / "b")[2].get("proxy")
    assert [load_state(tmp_path / name)[0].step for name in "abc"] == [18, 18, 9]


@pytest.mark.usefixtures("unit_operators")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("number", [5, 7])
def test_the_operators_train_both_and_go_on_exactly(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    precision: str,
    number: int,
) -> None:
    if precision == "bfloat16":
        needs_bfloat16()
    words = f"{HARDER} --fused on --precision {precision} --micro-batch 4 --checkpoint-minutes 1e-9"
    whole = train(words, tmp_path / "whole")
    said = capsys.readouterr().out
    assert "proxy resnet20_basic: operators in C++" in said
    assert f", {precision}\n" in said.split("proxy resnet20_basic: ")[1]
    with monkeypatch.context() as patch:
        patch.setattr(HarderImages, "choose", after(number, HarderImages.choose))
        with pytest.raises(Crash):
            train(words, tmp_path / "cut")
    stood = load_state(tmp_path / "cut")[0]
    assert (stood.epoch, stood.batch) == ((1, 1) if number == 5 else (2, 0))
    assert train_cifar.main(["--resume", str(tmp_path / "cut")]) == 0
    assert (tmp_path / "cut/last.param").read_bytes() == whole
    states = [read_params(tmp_path / name / "resume.state") for name in ("whole", "cut")]
    names = [name for name in states[0] if name != "meta"]
    assert "proxy:param:layer1.0.conv1.weight" in names
    assert not [n for n in names if states[0][n].tobytes() != states[1][n].tobytes()]


def needs_bfloat16() -> None:
    try:
        require_bfloat16()
    except Unavailable as error:
        pytest.skip(f"needs bfloat16: {error}")


def test_the_proxy_is_prepared_as_the_network() -> None:
    words = f"{HARDER} --fused off --precision float32 --stem-init whitened"
    words += " --proxy preresnet20_basic --model resnet20_basic_ram --w-init 3 --wd 5e-4"
    task = prepared(words)
    spec = task.proxy.net.spec
    assert (spec.version, spec.attention, spec.depth) == (2, "none", 8)
    first = [
        next(value for value in parameter_arrays(one.net).values() if value.ndim == 4)
        for one in (task, task.proxy)
    ]
    assert np.array_equal(first[0], first[1])  # both whitened
    assert task.proxy.trainer is not task.trainer
    assert type(task.proxy.trainer._optimizer).__name__ == type(task.trainer._optimizer).__name__
    assert task.proxy.trainer._optimizer.wd == 5e-4


def test_what_the_operators_do_not_know(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], unit_operators: None
) -> None:
    """A proxy that they do not know is computed by MXNet, in float32, or refused."""
    words = f"{HARDER} --precision float32".replace("--proxy-depth 8", "--proxy resnet20_narrow")
    monkeypatch.setattr(proxies, "build_classifier", narrow(proxies.build_classifier))
    from training.classifier import graph_choice, task

    monkeypatch.setattr(graph_choice, "build_classifier", narrow(graph_choice.build_classifier))
    monkeypatch.setattr(task, "build_classifier", narrow(task.build_classifier))
    own = prepared(words)
    assert own.net.fused is not None
    assert own.proxy.net.fused is None
    assert "8 channels" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--proxy resnet20_narrow: --fused on: .*8 channels"):
        prepared(f"{words} --fused on")


def narrow(build: Any) -> Any:
    def built(config: Any, classes: int, **norms: Any) -> Any:
        if config.model == "resnet20_narrow":
            config = replace(config, model="resnet20_basic", set=("channels=8,16,32",))
        return build(config, classes, **norms)

    return built


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--proxy resnet21", "--proxy resnet21: unknown model 'resnet21'"),
        ("--proxy-depth 9", "--proxy resnet20_basic: cannot build resnet20_basic: depth of a"),
        ("--proxy attention56_tf", "attention56_tf: it has one depth; leave --proxy-depth 8 out"),
        ("--proxy translated", "--proxy translated: "),
        ("--gpus cpu:2", "is not done on several devices, here cpu(0), cpu(1): name one"),
        ("--distributed dist_sync", "--harder-share 0.5 is not done with --distributed dist_sync"),
        (
            "-b 4 --harder-share 0.8 --micro-batch 2 --proxy resnet20_basic_ram",
            "--proxy resnet20_basic_ram: of the 5 images that an update draws: resnet20",
        ),
        ("--batch-size 30", "an update draws 60 images, there are 50 to train"),
        ("--harder-share 1", "--proxy-depth, --proxy-every would do nothing"),
    ],
)
def test_one_line_says_what_is_not_done(
    more: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_cifar.main([*HARDER.split(), *more.split(), "--run-dir", str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "r").exists()


def test_the_bridge_does_not_choose() -> None:
    with pytest.raises(UserError, match="--harder-share: not done here"):
        BridgeConfig(harder_share=0.5).check()
