"""The wheel is whole: built here, installed elsewhere, it trains, scores and exports by itself."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"
LOCK = ROOT / "requirements" / f"cpu-py{VERSION.replace('.', '')}.txt"
PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input", "-q")
# Beside mxnet in site-packages, where any script finds it.
PRELOAD = ("gpu_preload.py", "gpu_preload.pth")
RENAMED = {f"training/compute/{name}": f"attention_{name}" for name in PRELOAD}

pytestmark = [pytest.mark.wheel, pytest.mark.timeout(900)]


def run(*command: object, folder: Path, code: int = 0) -> str:
    """Run a command as a user of the wheel does, far from the checkout; return what it prints."""
    unset = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name not in unset},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    said = done.stdout + done.stderr
    assert done.returncode == code, f"{command}: {said}"
    return said


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel as pip does, its builder in an environment of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    index = [sys.executable, *PIP, "download", "--no-deps", "-d", str(folder), "hatchling"]
    found = subprocess.run(index, capture_output=True, text=True, check=False)
    assert "No module named pip" not in found.stderr, "this environment has no pip"
    if found.returncode:
        reason = (found.stderr.strip().splitlines() or ["no message"])[-1]
        pytest.skip(f"no package index can be reached: {reason}")
    run(sys.executable, *PIP, "wheel", "--no-deps", "-w", folder / "dist", ROOT, folder=folder)
    (built,) = (folder / "dist").glob("attention_networks_gluon-*.whl")
    return built


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel with MXNet for the CPU into a fresh environment; return its commands."""
    place = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", place / "env", folder=place)
    pip = [place / "env" / "bin" / "python", *PIP, "install", "--no-compile"]
    if VERSION == "3.13":  # which pip refuses to resolve: docs/compatibility.md
        run(*pip, "--no-deps", "--require-hashes", "-r", LOCK, folder=place)
        run(*pip, "--no-deps", wheel, folder=place)
    else:
        versions = place / "versions.txt"
        versions.write_text("\n".join(re.findall(r"^\S+==\S+", LOCK.read_text(), re.MULTILINE)))
        run(*pip, "-c", versions, f"{wheel}[cpu]", folder=place)
    return place / "env" / "bin"


def test_wheel_has_every_source(wheel: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "formats", "machine", "model", "training", "bridge", "demo", "*.py"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    left_out = ("tests/", "benchmarks/", "examples/", "compat/", ".")
    wanted = {name for name in listed.stdout.split() if not name.startswith(left_out)}
    assert {f"model/native/units/{name}" for name in ("operators.cc", "unit.h")} < wanted
    assert {"training/data/digits.npz", "train_imagenet.py"} < wanted
    places = {name: RENAMED.get(name, name) for name in wanted}
    with zipfile.ZipFile(wheel) as packed:
        assert set(places.values()) <= set(packed.namelist())
        for name, place in places.items():
            assert packed.read(place) == (ROOT / name).read_bytes()
        assert "attention_compat/table.py" in packed.namelist()
        built = [name for name in packed.namelist() if name.endswith((".so", ".param", ".pyc"))]
    assert built == []


def test_installed_wheel_trains_scores_and_exports(commands: Path, tmp_path: Path) -> None:
    for index in range(60):  # red and blue squares, in changing shades
        kind, shade = index % 2, 150 + index
        pixels = np.zeros((32, 32, 3), np.uint8)
        pixels[..., 2 * kind] = shade
        path = tmp_path / "pictures" / ("blue" if kind else "red") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    settings = "--recipe quick --model resnet20_basic --dataset folder:pictures -b 16 --epochs 3"
    small = "--precision float32 --fused off --warmup-epochs 0 --run-dir run"
    run(commands / "attention-train", *settings.split(), *small.split(), folder=tmp_path)
    scored = run(
        commands / "attention-train", "--test", "run/last.param", "--dataset", "folder:pictures",
        folder=tmp_path,
    )  # fmt: skip
    assert re.search(r"test accuracy 1\.00000 \(\d+ images\)", scored)
    said = run(
        commands / "attention-train", "--predict", "run/last.param", "pictures/red/0.png",
        folder=tmp_path,
    )  # fmt: skip
    assert "red" in said
    run(commands / "attention-export", "run/last.param", "--to", "symbol", folder=tmp_path)
    assert (tmp_path / "run" / "last-symbol.json").is_file()


def test_installed_wheel_trains_glimpses_on_its_own_digits(commands: Path, tmp_path: Path) -> None:
    said = run(
        commands / "attention-glimpse", "--dataset", "digits", "--epochs", "1", "--run-dir", "run",
        folder=tmp_path,
    )  # fmt: skip
    assert "operators in C++ (glimpse" in said or shutil.which("g++") is None
    assert "test loss" in said
    assert (tmp_path / "run" / "last.param").is_file()


def test_command_for_photographs_explains_itself_and_refuses(
    commands: Path, tmp_path: Path
) -> None:
    assert "--data-dir" in run(commands / "attention-imagenet", "--help", folder=tmp_path)
    said = run(commands / "attention-imagenet", "--no-such-flag", folder=tmp_path, code=2)
    assert said.startswith("error: unknown option --no-such-flag")


def test_the_page_says_what_it_needs(commands: Path, tmp_path: Path) -> None:
    said = run(commands / "attention-demo", folder=tmp_path, code=2)
    assert said.startswith("error: starlette and uvicorn cannot be imported")
    assert len(said.splitlines()) == 1
