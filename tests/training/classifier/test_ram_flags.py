"""The command line of the RAM-ResNet repository, flag by flag."""

from __future__ import annotations

import pytest

import train_cifar
from formats.errors import UserError
from model import list_models
from training.classifier.flags import (
    NAMED_DEPTHS,
    is_ram_command,
    note_on_ram_flags,
    translate_ram_flags,
)
from training.classifier.recipes import with_recipe
from training.settings.config import parse
from training.settings.schedules import schedule_of

# Both as its README has them.
DOCUMENTED_TRAINING = (
    "--arch ram --dataset cifar100 --block-name bottleneck --depth 164 --epochs 164 "
    "--schedule 81 122 --gamma 0.1 --wd 1e-4 --info depth164"
)
DOCUMENTED_TEST = (
    "--arch ram --dataset cifar100 --block-name bottleneck --depth 164 "
    "--resume checkpoints/cifar100/ram/depth164/model_best.pth.tar --e"
)
TRAIN, TEST = DOCUMENTED_TRAINING.split(), DOCUMENTED_TEST.split()


def settings(argv: list[str]) -> train_cifar.CifarConfig:
    """The settings that the script makes of a command line of the seed."""
    given = train_cifar.parse_overrides(
        train_cifar.CifarConfig, translate_ram_flags(argv), "train_cifar.py"
    )
    config = train_cifar.CifarConfig(**with_recipe(given.get("recipe", ""), given))
    config.check()
    return config


def test_the_documented_training() -> None:
    assert translate_ram_flags(TRAIN) == [
        "--recipe=ram",
        "--seed-format",
        "--run-dir=checkpoints/cifar100/ram/depth164",
        "--model=resnet164_ram",
        "--dataset=cifar100",
        "--epochs=164",
        "--lr-factor=0.1",
        "--wd=1e-4",
        "--schedule=step",
        "--lr-steps=81,122",
    ]
    config = settings(TRAIN)
    assert (config.optimizer, config.lr, config.momentum, config.wd) == ("sgd", 0.1, 0.9, 1e-4)
    assert (config.batch_size, config.micro_batch, config.pad, config.crop_size) == (128, 0, 4, 0)
    assert (config.decay_bias, config.mixup_alpha, config.cutout) == (True, 0.0, "none")
    assert (config.normalization, config.warmup_epochs) == ("ram", 0)


def test_the_documented_test() -> None:
    assert translate_ram_flags(TEST) == [
        "--test=checkpoints/cifar100/ram/depth164/model_best.pth.tar",
        "--seed-format",
        "--model=resnet164_ram",
        "--dataset=cifar100",
    ]
    short = translate_ram_flags(["--resume=a/model_best.pth.tar", "--evaluate", "--gpus", "cpu"])
    assert short == ["--test=a/model_best.pth.tar", "--seed-format", "--gpus", "cpu"]
    with pytest.raises(UserError, match="--e scores a file: add --resume FILE"):
        translate_ram_flags(["--e"])


def test_the_rate_falls_in_rows_82_and_123() -> None:
    steps = 390
    rate = schedule_of(settings(TRAIN), steps)
    for row, wanted in ((1, 0.1), (81, 0.1), (82, 0.01), (122, 0.01), (123, 0.001), (164, 0.001)):
        for step in ((row - 1) * steps + 1, row * steps):
            assert rate(step) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--train-batch 64", ["--batch-size=64"]),
        ("--learning-rate 0.2", ["--lr=0.2"]),
        ("--lr 0.2", ["--lr=0.2"]),
        ("--momentum 0.8", ["--momentum=0.8"]),
        ("--gamma 0.5", ["--lr-factor=0.5"]),
        ("--weight-decay 1e-3", ["--wd=1e-3"]),
        ("--wd=1e-3", ["--wd=1e-3"]),
        ("--manualSeed 7", ["--seed=7"]),
        ("-d cifar100", ["--dataset=cifar100", "--run-dir=checkpoints/cifar100/ram/normal"]),
        ("-d stl10", ["--dataset=stl10", "--recipe=ram-stl10-released"]),
        ("-c out --info x", ["--run-dir=out/cifar10/ram/x"]),
        ("--schedule 9 --epochs 20", ["--epochs=20", "--schedule=step", "--lr-steps=9"]),
        ("--epochs 200", ["--epochs=200", "--lr-steps=150"]),
        ("--epochs 20", ["--epochs=20", "--schedule=constant"]),
        ("-j 4 --test-batch 9 --drop 0 --gpu-id 0,1 --start-epoch 3 --length 8", []),
        ("--cardinality 8 --widen-factor 4 --growthRate 12 --compressionRate 2", []),
        ("--gpus cpu --data-dir /x", ["--gpus", "cpu", "--data-dir", "/x"]),
    ],
)
def test_a_flag_of_the_seed(words: str, expected: list[str]) -> None:
    usual = translate_ram_flags(["--arch", "ram"])
    given = translate_ram_flags(["--arch", "ram", *words.split()])
    assert set(expected) <= set(given)
    changed = {word.partition("=")[0] for word in expected} | {"--lr-steps", "--run-dir"}
    assert {w for w in given if w.partition("=")[0] not in changed} <= set(usual)


def test_what_is_not_given_is_the_seeds_default() -> None:
    config = settings(["--arch", "ram"])
    assert (config.model, config.dataset, config.epochs) == ("resnet29_ram", "cifar10", 300)
    assert (config.lr_steps, config.lr_factor, config.wd) == ((150, 225), 0.1, 5e-4)
    own = translate_ram_flags(["--arch", "ram", "--depth", "164", "--recipe", "ram-strong"])
    assert own[-2:] == ["--recipe", "ram-strong"]
    assert not [word for word in own if word.startswith(("--epochs", "--wd", "--lr-steps"))]
    cosine = translate_ram_flags(["--arch", "ram", "--schedule", "cosine"])
    assert "--schedule=cosine" in cosine


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("--arch ram --depth 164", "resnet164_ram"),
        ("--arch ram --depth 56 --block-name BasicBlock", "resnet56_basic_ram"),
        ("--arch ram --depth 56", "resnet56_ram_or_basic"),
        ("--arch resnet --depth 110 --block-name basicblock", "resnet110_basic"),
        ("--arch preresnet --depth 164 --block-name Bottleneck", "preresnet164"),
        ("--arch preresnet_se --depth 164", "preresnet164_se"),
        ("--arch resnet_dia --depth 20", "resnet20_dia"),
        ("-a ie --depth 245", "resnet245_ie"),
    ],
)
def test_the_network_has_a_name(words: str, name: str) -> None:
    # 54 is a multiple of 9 as well as of 6.
    name = "resnet164_ram" if name == "resnet56_ram_or_basic" else name
    words_of = translate_ram_flags(words.split())
    assert f"--model={name}" in words_of
    assert name in list_models()
    assert ("--depth=56" in words_of) == (words == "--arch ram --depth 56")


def test_every_named_depth_is_a_network() -> None:
    names = {
        f"resnet{depth}{unit}_ram"
        for block, unit in (("bottleneck", ""), ("basic", "_basic"))
        for depth in NAMED_DEPTHS[block]
    }
    assert names <= set(list_models())


def test_impossible_networks_are_refused() -> None:
    for words in ("--depth 30", "--depth 2", "--depth 29 --block-name BasicBlock"):
        with pytest.raises(UserError, match=r"--depth \d+: bottlenecks make depths 9n\+2"):
            translate_ram_flags(["--arch", "ram", *words.split()])
    with pytest.raises(UserError, match="--depth x: give a whole number"):
        translate_ram_flags(["--arch", "ram", "--depth", "x"])
    with pytest.raises(UserError, match="--block-name wide: must be"):
        translate_ram_flags(["--arch", "ram", "--block-name", "wide"])
    with pytest.raises(UserError, match="--arch"):
        translate_ram_flags(["--arch"])


def test_a_resume_names_the_folder_and_what_was_given() -> None:
    path = "checkpoints/cifar100/ram/depth164/checkpoint.pth.tar"
    assert translate_ram_flags(["--resume", path]) == ["--resume=checkpoints/cifar100/ram/depth164"]
    assert translate_ram_flags([*TRAIN, "--resume", path]) == [
        "--resume=checkpoints/cifar100/ram/depth164",
        "--model=resnet164_ram",
        "--dataset=cifar100",
        "--epochs=164",
        "--lr-factor=0.1",
        "--wd=1e-4",
        "--schedule=step",
        "--lr-steps=81,122",
    ]
    assert translate_ram_flags(["--info", "x", "--resume", "runs/y"]) == ["--resume=runs/y"]
    assert translate_ram_flags(["--resume", "checkpoint.pth.tar"]) == ["--resume=."]


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--model resnet164_ram --recipe ram --epochs 3",
        "--schedule step --lr-steps 2 3 --lr 0.1 --momentum 0.9 --wd 1e-4 --dataset cifar100",
        "--resume runs/x",
        "--test a.param",
    ],
)
def test_our_own_command_lines_stay_as_they_are(words: str) -> None:
    assert not is_ram_command(words.split())
    assert translate_ram_flags(words.split()) == words.split()
    assert note_on_ram_flags(words.split()) == ""


def test_flags_without_effect_are_named() -> None:
    note = note_on_ram_flags([*TRAIN, "-j", "4", "--gpu-id", "0"])
    assert note == (
        "note: without effect here: -j, --workers (batches are made in the training process), "
        "--gpu-id (the seed ignores it; choose with --gpus)"
    )
    assert note_on_ram_flags(TRAIN) == ""


def test_parse_is_what_the_script_uses() -> None:
    assert parse(train_cifar.CifarConfig, ["--seed-format"]).seed_format
