"""Command line and config file of a dataclass; every kind of bad input is one line and exit 2."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import UserError
from training.settings.config import (
    diff_from_default,
    from_dict,
    parse,
    parse_overrides,
    to_dict,
)
from training.settings.fields import option


@dataclasses.dataclass(frozen=True)
class Config:
    model: str = option("attention92", "network", group="network")
    dataset: str = option("cifar10", "data set", choices=("cifar10", "cifar100", "shapes"))
    lr: float = option(0.1, "learning rate, 100 % of it", group="training")
    batch_size: int = option(128, "images per step", flags=("-b", "--batch_images"))
    lr_steps: tuple[int, ...] = option((), "epochs at which lr falls")
    scales: tuple[float, ...] = option((1.0, 0.5), "some numbers")
    tags: tuple[str, ...] = option(("a",), "words")
    flip: bool = option(True, "mirror")
    resume: Optional[str] = option(None, "run folder", metavar="RUN")
    patience: Optional[int] = option(None, "epochs without progress")

    def check(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"batch size {self.batch_size}; choose 1 or more")


CASES = [
    ("", {}),
    ("--model m", {"model": "m"}),
    ("--model=m=n_o", {"model": "m=n_o"}),
    ("--lr 3", {"lr": 3.0}),
    ("--lr=1e-3", {"lr": 1e-3}),
    ("--lr -2", {"lr": -2.0}),
    ("--batch-size 5", {"batch_size": 5}),
    ("--batch_size=5", {"batch_size": 5}),
    ("-b 5", {"batch_size": 5}),
    ("-b5", {"batch_size": 5}),
    ("--batch-images 5", {"batch_size": 5}),
    ("--batch_images 5", {"batch_size": 5}),
    ("--batch-size 5 -b 6", {"batch_size": 6}),
    ("--lr-steps 80,120", {"lr_steps": (80, 120)}),
    ("--lr-steps 80 120", {"lr_steps": (80, 120)}),
    ("--lr_steps=80,120 --lr 1", {"lr_steps": (80, 120), "lr": 1.0}),
    ("--scales none", {"scales": ()}),
    ("--scales=", {"scales": ()}),
    ("--scales .5", {"scales": (0.5,)}),
    ("--tags a,b c", {"tags": ("a", "b", "c")}),
    ("--flip", {"flip": True}),
    ("--no-flip", {"flip": False}),
    ("--no_flip", {"flip": False}),
    ("--flip=False", {"flip": False}),
    ("--flip no --lr 1", {"flip": False, "lr": 1.0}),
    ("--no-flip --flip=True", {"flip": True}),
    ("--resume runs/my_run", {"resume": "runs/my_run"}),
    ("--resume none", {"resume": None}),
    ("--patience 3", {"patience": 3}),
]


@pytest.mark.parametrize(("line", "changes"), CASES)
def test_command_line(line: str, changes: dict[str, Any]) -> None:
    config = parse(Config, line.split())
    assert config == dataclasses.replace(Config(), **changes)
    for name, value in to_dict(config).items():
        assert type(value) is type(to_dict(dataclasses.replace(Config(), **changes))[name])
    assert parse_overrides(Config, line.split()) == changes


ERRORS = [
    ("--modle x", "unknown option --modle; did you mean --model? (--help lists all)"),
    ("--modle=x", "unknown option --modle; did you mean --model? (--help lists all)"),
    ("--zzzzzz", "unknown option --zzzzzz (--help lists all)"),
    ("--mod x", "unknown option --mod; did you mean --model? (--help lists all)"),
    ("-z", "unknown option -z (--help lists all)"),
    ("resnet", "unexpected word 'resnet'; every setting is a flag (--help lists all)"),
    ("--lr 0.1 0.2", "unexpected word '0.2'; every setting is a flag (--help lists all)"),
    ("--lr fast", "--lr: 'fast' is not a number"),
    ("--lr nan", "--lr: nan is not a finite number"),
    ("--batch-size 1.5", "--batch-size/-b/--batch-images: '1.5' is not a whole number"),
    ("--lr-steps 80,x", "--lr-steps: 'x' is not a whole number"),
    ("--scales inf", "--scales: inf is not a finite number"),
    ("--flip=perhaps", "--flip/--no-flip: 'perhaps' is not true or false"),
    ("--no-flip=True", "--flip/--no-flip: --no-flip takes no value"),
    ("--patience soon", "--patience: 'soon' is not a whole number"),
    ("--lr none", "--lr: 'none' is not a number"),
    ("--lr", "--lr: expected one argument"),
    ("--lr-steps", "--lr-steps: expected at least one argument"),
    ("--batch-size 0", "batch size 0; choose 1 or more"),
    (
        "--dataset cifar1",
        "--dataset: 'cifar1' is not one of cifar10, cifar100, shapes; did you mean cifar10?",
    ),
]


@pytest.mark.parametrize(("line", "message"), ERRORS)
def test_bad_command_line_is_one_line_and_exit_2(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse(Config, line.split())
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: {message}\n"
    assert captured.out == ""


def test_a_process_exits_with_2_and_without_a_traceback() -> None:
    code = (
        "import sys, dataclasses\n"
        "from training.settings.fields import option; from training.settings.config import parse\n"
        "C = dataclasses.make_dataclass('C', [('model', str, option('x', 'm'))])\n"
        "parse(C, sys.argv[1:])"
    )
    root = os.path.dirname(
        os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--modle", "x"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert (
        done.stderr == "error: unknown option --modle; did you mean --model? (--help lists all)\n"
    )


def test_help_lists_every_flag_with_its_default_under_its_heading(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as exit_info:
        parse(Config, ["--help"], prog="train.py", description="Train a network.")
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: train.py [--flag value ...]\n\nTrain a network.\n")
    for expected in (
        "network (default: attention92)",
        "learning rate, 100 % of it (default: 0.1)",
        "(default: 1.0,0.5)",
        "(default: none)",
        "--flip, --no-flip ",
        "--resume RUN",
        "cifar10|cifar100|shapes",
        "--batch-size, -b, --batch-images N",
        "--lr-steps N [N ...]",
    ):
        assert expected in text
    order = [text.index(part) for part in ("network:", "--model", "training:", "--lr X", "--flip")]
    assert order == sorted(order)


def test_help_keeps_the_lines_of_examples(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    about = (
        "Trains. " * 9 + "\n\n    python a.py          does this\n    python a.py --b      and that"
    )
    with pytest.raises(SystemExit):
        parse(Config, ["--help"], prog="train.py", description=f"{about}\n\nThe\nend.\n")
    text = capsys.readouterr().out
    assert "Trains. Trains.\nTrains." in text
    end = about[about.index("    python") :]
    assert f"\n\n{end}\n\nThe end.\n\n" in text


configs = st.builds(
    Config,
    model=st.text("abc_-./=", min_size=1).filter(lambda text: text[0] not in "-"),
    dataset=st.sampled_from(["cifar10", "shapes"]),
    lr=st.floats(-1e6, 1e6),
    batch_size=st.integers(1, 10**12),
    lr_steps=st.lists(st.integers(-5, 500)).map(tuple),
    scales=st.lists(st.floats(-1e6, 1e6)).map(tuple),
    tags=st.lists(st.text("abc", min_size=1)).map(tuple),
    flip=st.booleans(),
    resume=st.none() | st.text("abc/_", min_size=1),
    patience=st.none() | st.integers(),
)


@settings(deadline=None, max_examples=60)
@given(config=configs)
def test_config_to_file_and_to_command_line_and_back(config: Config) -> None:
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config

    def word(value: Any) -> str:
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    argv = [f"--{f.name}={word(getattr(config, f.name))}" for f in dataclasses.fields(config)]
    assert parse(Config, argv) == config


def test_to_dict_keeps_the_order_and_json_types() -> None:
    assert list(to_dict(Config())) == [field.name for field in dataclasses.fields(Config)]
    assert to_dict(Config())["scales"] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"batchsize": 3}, r"unknown setting 'batchsize'; did you mean batch_size\?"),
        ({"lr": "0.1"}, "setting lr: '0.1' is not a number"),
        ({"lr": None}, "setting lr: None is not a number"),
        ({"lr": float("nan")}, "setting lr: nan is not a finite number"),
        ({"batch_size": True}, "setting batch_size: True is not a whole number"),
        ({"batch_size": 1.0}, "setting batch_size: 1.0 is not a whole number"),
        ({"flip": 1}, "setting flip: 1 is not true or false"),
        ({"lr_steps": 80}, "setting lr_steps: 80 is not a list"),
        ({"lr_steps": [80, "x"]}, "setting lr_steps: 'x' is not a whole number"),
        ({"dataset": "mnist"}, "setting dataset: 'mnist' is not one of cifar10"),
    ],
)
def test_a_bad_mapping_is_refused(mapping: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_dict(Config, mapping)


def test_a_mapping_may_leave_fields_out_and_whole_numbers_serve_as_floats() -> None:
    config = from_dict(Config, {"lr": 1, "lr_steps": [3]})
    assert config == Config(lr=1.0, lr_steps=(3,))
    assert isinstance(config.lr, float)


def test_difference_from_the_defaults() -> None:
    assert diff_from_default(Config()) == ""
    changed = Config(lr=0.05, lr_steps=(80, 120), flip=False, resume="r", scales=())
    assert diff_from_default(changed) == (
        "lr 0.1->0.05, lr_steps none->80,120, scales 1.0,0.5->none, flip True->False, "
        "resume none->r"
    )


@pytest.mark.parametrize("kind", [dict, Optional[dict], tuple[bool, ...], tuple[int, int]])
def test_a_field_type_that_no_flag_can_give_is_an_error_of_the_programmer(kind: Any) -> None:
    config_class = dataclasses.make_dataclass("Wrong", [("field", kind, option(None, "f"))])
    with pytest.raises(TypeError, match="cannot have the type"):
        parse(config_class, [])


SCRIPTS = ("train_cifar", "train_imagenet", "train_mnist_glimpse", "export_model")


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(("flag", "code"), [("--help", 0), ("--no-such-flag", 2)])
def test_nobody_waits_for_mxnet_to_be_told_of_flags(script: str, flag: str, code: int) -> None:
    program = (
        f"import atexit, runpy, sys; sys.argv = ['{script}.py', '{flag}']\n"
        "atexit.register(lambda: print('loaded:', 'mxnet' in sys.modules))\n"
        f"runpy.run_path('{script}.py', run_name='__main__')"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, done.stderr
    assert done.stdout.endswith("loaded: False\n")
    assert ("usage" in done.stdout) == (code == 0)
