"""What README.md and cifar_param/index.csv say about trained files is so."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.param_file import read_shapes, verify_digest
from model.loading import find_model
from training.config import parse_overrides
from training.recipes import RECIPES
from training.results import INDEX, find_result, read_index
from training.results_table import results_table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = read_index()
FILES = [row["file"] for row in ROWS]


def legacy_snippet() -> str:
    """Return the README's first Python block: the old snippet."""
    found = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert found
    return found[1]


def legacy_file() -> str:
    found = re.search(r"""load_parameters\(['"]cifar_param/([^'"]+)['"]\)""", legacy_snippet())
    assert found
    return found[1]


def test_index_names_every_file_once() -> None:
    assert ROWS
    assert sorted(FILES) == sorted(path.name for path in INDEX.parent.glob("*.param"))


@pytest.mark.parametrize("row", ROWS, ids=FILES)
def test_rows_describe_their_files(row: dict[str, str]) -> None:
    path = INDEX.parent / row["file"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"]
    assert verify_digest(path)
    assert find_result(path) == row
    shapes = {name: shape for name, (shape, _) in read_shapes(path).items()}
    assert find_model(shapes) == (row["model"], int(row["classes"]))
    assert re.fullmatch(r"[0-9a-f]{7,40}", row["commit"])
    size_limit = 50e6 if row["file"] == legacy_file() else 10e6
    assert path.stat().st_size < size_limit


@pytest.mark.parametrize("row", ROWS, ids=FILES)
def test_commands_are_understood_today(row: dict[str, str]) -> None:
    from train_cifar import CifarConfig

    words = shlex.split(row["command"])
    assert words[:2] == ["python", "train_cifar.py"]
    given = parse_overrides(CifarConfig, words[2:])
    config = CifarConfig(**{**RECIPES[given.get("recipe", "pistony")], **given})
    config.check()
    assert config.model == row["model"]
    assert config.dataset == row["dataset"]
    assert config.normalization == row["normalization"]
    assert config.epochs == int(row["epochs"])
    assert config.seed == int(row["seed"])


def test_readme_shows_the_index() -> None:
    assert results_table() in README


def test_readme_names_files_that_exist() -> None:
    linked = re.findall(r"\]\(([^)#:]+)\)", README)
    assert "docs/curves.png" in linked
    for name in linked:
        assert (ROOT / name).exists(), name


def test_only_a_file_of_the_same_content_is_found(tmp_path: Path) -> None:
    copy = tmp_path / "renamed.param"
    copy.write_bytes((INDEX.parent / FILES[0]).read_bytes())
    assert find_result(copy) == ROWS[0]
    copy.write_bytes(copy.read_bytes() + b"x")
    assert find_result(copy) is None
    assert find_result(tmp_path / "missing.param") is None
    assert read_index(tmp_path / "index.csv") == []


@pytest.mark.data
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("row", [row for row in ROWS if row["file"] != legacy_file()])
def test_files_score_what_the_index_says(row: dict[str, str], data_dir: Path) -> None:
    """All test images through the command line; the next test scores the old names' file."""
    command = [
        "train_cifar.py",
        "--test",
        f"cifar_param/{row['file']}",
        "--data-dir",
        str(data_dir),
    ]
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert row["model"] in done.stdout
    _assert_score(done.stdout, row)


@pytest.mark.data
@pytest.mark.timeout(1500)
def test_legacy_snippet_runs_as_it_stands(data_dir: Path, tmp_path: Path) -> None:
    """The text of the README, with Gluon's data set finding the files where it keeps them."""
    home = tmp_path / "home"
    (home / "datasets").mkdir(parents=True)
    (home / "datasets" / "cifar10").symlink_to(data_dir / "cifar10")
    before = sorted(path.name for path in (ROOT / "cifar_param").iterdir())
    done = subprocess.run(
        [sys.executable, "-c", legacy_snippet()],
        cwd=ROOT,
        env={**os.environ, "MXNET_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    row = next(row for row in ROWS if row["file"] == legacy_file())
    _assert_score(done.stdout, row)
    assert sorted(path.name for path in (ROOT / "cifar_param").iterdir()) == before


def _assert_score(output: str, row: dict[str, str]) -> None:
    images = 2000 if row["dataset"] == "shapes" else 10000
    pattern = rf"test loss ([0-9.]+), test accuracy ([0-9.]+) \({images} images\)"
    found = re.search(pattern, output)
    assert found, output
    # One image may turn between kinds of processor.
    assert abs(float(found[2]) - float(row["test_acc"])) < 1.5 / images
    assert abs(float(found[1]) - float(row["test_loss"])) < 1e-3
