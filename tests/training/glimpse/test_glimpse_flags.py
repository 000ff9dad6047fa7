"""The seed repository's command line, flag by flag."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import pytest

from formats.errors import UserError
from training.glimpse.flags import note_on_seed_flags, translate_seed_flags
from training.settings.config import parse
from training.settings.fields import option


@pytest.mark.parametrize("equals", [True, False])
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("patch_size", "8", ["--patch-size=8"]),
        ("glimpse_scale", "2", ["--glimpse-scale=2"]),
        ("num_patches", "3", ["--num-patches=3"]),
        ("loc_hidden", "64", ["--loc-hidden=64"]),
        ("glimpse_hidden", "64", ["--glimpse-hidden=64"]),
        ("num_glimpses", "6", ["--num-glimpses=6"]),
        ("hidden_size", "256", ["--hidden-size=256"]),
        ("M", "10", ["--rollouts-eval=10"]),
        ("M", "10.0", ["--rollouts-eval=10"]),
        ("M", "2.5", ["--rollouts-eval=2.5"]),
        ("M", "x.0", ["--rollouts-eval=x.0"]),
        ("valid_size", "0.1", ["--valid-fraction=0.1"]),
        ("batch_size", "32", ["--batch-size=32"]),
        ("num_workers", "4", []),
        ("shuffle", "True", []),
        ("show_sample", "False", []),
        ("is_train", "True", ["--is-train=True"]),
        ("is_train", "FALSE", ["--is-train=False"]),
        ("momentum", "0.5", []),
        ("init_lr", "3e-4", ["--lr=3e-4"]),
        ("lr_patience", "20", ["--lr-patience=20", "--schedule=plateau"]),
        ("train_patience", "50", ["--early-stopping=50"]),
        ("use_gpu", "true", []),
        ("use_gpu", "false", ["--gpus=cpu"]),
        ("random_seed", "1", ["--seed=1"]),
        ("data_dir", "./data", ["--data-dir=./data"]),
        ("ckpt_dir", "./a=b", ["--checkpoint-dir=./a=b"]),
        ("logs_dir", "./logs/", ["--log-dir=./logs/"]),
        ("use_tensorboard", "True", ["--tensorboard"]),
        ("use_tensorboard", "0", ["--no-tensorboard"]),
        ("resume", "True", ["--resume=auto"]),
        ("resume", "false", []),
        ("print_freq", "10", []),
        ("plot_freq", "1", ["--plot-freq=1"]),
        ("valid_size", "-1", ["--valid-fraction=-1"]),
    ],
)
def test_a_flag_of_the_seed(name: str, value: str, expected: list[str], equals: bool) -> None:
    words = [f"--{name}={value}"] if equals else [f"--{name}", value]
    assert translate_seed_flags(words) == expected
    # Nothing leaks into the words around it.
    around = translate_seed_flags(["--dataset", "mnist", *words, "--lr", "1"])
    assert around[:2] == ["--dataset", "mnist"]
    assert sorted(around) == sorted(["--dataset", "mnist", *expected, "--lr", "1"])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--std=0.05", "--epochs", "200", "--best", "True", "--best=False"],  # the same in both
        ["--patch-size", "8", "--rollouts-eval=10", "--is-train=false", "--no-tensorboard"],
        ["--resume", "runs/mnist-1", "-b", "32", "--lr-patience", "3", "--lr_steps", "1", "2"],
        ["--resume=runs/True", "--optimizer", "nag", "--momentum", "0.9", "--momentum", "0"],
        ["--optimizer=sgd", "--momentum=0.9"],
        ["--unknown_flag=3", "--typo", "word", "--patch_sizes=3", "--m", "3", "M", "shuffle"],
        ["--resume"],  # the parser asks for the folder
    ],
)
def test_our_own_and_unknown_words_pass_untouched(words: list[str]) -> None:
    assert translate_seed_flags(words) == words
    assert note_on_seed_flags(words) == ""


def test_the_last_of_a_repeated_flag_counts() -> None:
    assert translate_seed_flags(["--use_gpu=False", "--use_gpu", "True"]) == []
    assert translate_seed_flags(["--resume=True", "--M=1", "--resume=False", "--M=2"]) == [
        "--rollouts-eval=2"
    ]
    assert translate_seed_flags(["--shuffle=False", "--shuffle=True"]) == []
    own = ["--epochs", "1", "--epochs", "1"]
    assert translate_seed_flags(own) == own


def test_flags_without_a_value() -> None:
    assert translate_seed_flags(["--use_tensorboard", "--is_train"]) == [
        "--tensorboard",
        "--is-train=True",
    ]
    # The parser says that a value is missing, and does not take the next flag for it.
    assert translate_seed_flags(["--init_lr", "--M", "--patch_size=8"]) == [
        "--lr",
        "--rollouts-eval",
        "--patch-size=8",
    ]


def test_a_schedule_that_is_given_stays() -> None:
    words = ["--schedule", "constant", "--lr_patience=5"]
    assert translate_seed_flags(words) == ["--schedule", "constant", "--lr-patience=5"]


def test_one_note_names_what_has_no_effect() -> None:
    argv = ["--num_workers=4", "--M=1", "--print_freq", "10", "--momentum=0.5", "--shuffle=True"]
    note = note_on_seed_flags([*argv, "--show_sample", "False", "--num_workers=2"])
    assert "\n" not in note
    assert note.startswith("note: without effect here: ")
    for name in ("--num_workers (", "--print_freq (", "--momentum (", "--shuffle (", "--show_s"):
        assert note.count(name) == 1
    assert "--M" not in note
    assert note_on_seed_flags(["--patch_size=8", "--use_gpu", "True"]) == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shuffle=False"], "--shuffle False: training in a fixed order is not supported"),
        (["--show_sample", "true"], "no window .* training.glimpse.sheet"),
        (["--use_gpu=maybe"], "--use_gpu maybe: must be True or False"),
        (["--is_train", ""], "must be True or False"),
    ],
)
def test_what_cannot_be_done_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        translate_seed_flags(words)


def test_the_result_is_what_the_parser_reads() -> None:
    @dataclass(frozen=True)
    class Config:
        patch_size: int = option(8, "")
        rollouts_eval: int = option(1, "")
        tensorboard: bool = option(True, "")
        is_train: bool = option(True, "")
        best: bool = option(True, "")
        gpus: Optional[str] = option(None, "")
        resume: Optional[str] = option(None, "")

    argv = ["--patch_size=12", "--M", "10", "--use_tensorboard=False", "--is_train=False"]
    argv += ["--best", "False", "--use_gpu=False", "--resume=True", "--num_workers=0"]
    config = parse(Config, translate_seed_flags(argv))
    assert config == Config(12, 10, False, False, False, "cpu", "auto")
