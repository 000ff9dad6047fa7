"""What is carried to another machine arrives as it was, or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge.carry import pack
from bridge.carry.image_codec import pack_images, unpack_images
from bridge.carry.pieces import write_pieces
from formats.digest import verify_digest
from formats.param_file import read_params, write_params
from training.downloads.cifar_files import CIFAR100, Source


def pictures(count: int) -> np.ndarray:
    """Smooth pictures with some noise, and extreme ones: uint8 (N, 3, 32, 32)."""
    rng = np.random.default_rng(0)
    slope = np.arange(32)[:, None] * 3 + np.arange(32)
    images = (slope + rng.integers(0, 9, (count, 3, 32, 32))).astype(np.uint8)
    images[0], images[1] = 0, 255
    images[2] = rng.integers(0, 256, (3, 32, 32))
    return images


def test_coded_images_come_back_and_are_smaller() -> None:
    images = pictures(20)
    data = pack_images(images)
    assert len(data) < 0.6 * images.size
    assert np.array_equal(unpack_images(data, (20, 3, 32, 32)), images)
    assert not np.array_equal(images[3], images[4])


def test_wrong_coded_images_are_refused() -> None:
    images = pictures(4)
    data = pack_images(images)
    for content, shape in (
        (data[:-9], (4, 3, 32, 32)),
        (data, (3, 3, 32, 32)),
        (data, (5, 3, 32, 32)),
        (b"BZh9" + data[9:], (4, 3, 32, 32)),
    ):
        with pytest.raises(ValueError, match=r"bytes of images|damaged"):
            unpack_images(content, shape)


@pytest.fixture
def small_format(monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """A data set of two files that `pack` takes for CIFAR-100; its records by file."""
    form = dataclasses.replace(CIFAR100, train_files=("train.bin",), test_files=("test.bin",))
    records = {
        name: np.concatenate(
            [np.full((count, 2), 3, np.uint8), pictures(count).reshape(count, -1)], axis=1
        )
        for name, count in (("train.bin", 11), ("test.bin", 5))
    }
    monkeypatch.setattr(pack, "FORMATS", {"cifar100": form})
    monkeypatch.setattr(pack, "BLOCK", 4)
    monkeypatch.setattr(pack, "search_places", lambda name, folder: ["here"])
    monkeypatch.setattr(pack, "find_source", lambda form, place: (Source("bin", place), ""))
    monkeypatch.setattr(pack, "read_source", lambda form, source: records)
    return records


def run_pack(*words: Any) -> int:
    return pack.main([str(word) for word in words])


def test_a_data_set_travels_in_pieces(
    small_format: dict[str, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    carried, there = tmp_path / "carried", tmp_path / "there"
    size = ("--max-file-mb", "0.012")
    assert run_pack("data", "cifar100", "--output", carried, *size) == 0
    pieces = sorted(carried.iterdir())
    assert len(pieces) > 1
    assert max(piece.stat().st_size for piece in pieces) <= 12_000
    assert run_pack("unpack", carried, "--output", there) == 0
    for name, records in small_format.items():
        assert (there / "cifar100" / name).read_bytes() == records.tobytes()
    pieces[0].unlink()
    capsys.readouterr()
    assert run_pack("unpack", carried, "--output", there) == 2
    assert "pieces are missing" in capsys.readouterr().err


def test_data_that_is_not_what_it_was_is_refused(
    small_format: dict[str, np.ndarray], tmp_path: Path
) -> None:
    files = dict(pack._members("x", pack.pack_data("cifar100", None)))
    meta = json.loads(files["packed.json"])
    meta["files"]["test.bin"]["sha256"] = "0" * 64
    for wrong in (
        {**files, "packed.json": json.dumps(meta).encode()},
        {**files, "packed.json": b"{}"},
        {**files, "train.bin.labels": b""},
        {name: data for name, data in files.items() if not name.startswith("train.bin.images.02")},
    ):
        with pytest.raises(pack.UserError, match="the packed data is damaged"):
            pack.unpack_data(wrong, tmp_path)
    assert not list(tmp_path.iterdir())


def make_run(folder: Path) -> np.ndarray:
    weights = np.random.default_rng(0).normal(size=9_000).astype(np.float32)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "metrics.jsonl").write_text("")
    write_params(folder / "last.param", {"w": weights})
    return weights


@pytest.mark.parametrize("in_pieces", [False, True])
def test_a_run_comes_back_with_its_digest(tmp_path: Path, in_pieces: bool) -> None:
    run, back, home = tmp_path / "my-run.1", tmp_path / "back", tmp_path / "home"
    make_run(run)
    content = (run / "last.param").read_bytes()
    if in_pieces:  # as the training with --max-file-mb leaves it
        write_pieces(run, "last.param", content, 15_000)
        (run / "last.param").unlink()
        (run / "last.param.sha256").unlink()
    assert run_pack("run", run, "--output", back, "--max-file-mb", "0.01") == 0
    assert len(list(back.iterdir())) > 3
    assert run_pack("unpack", back, "--output", home) == 0
    there = home / "my-run.1"
    assert (there / "last.param").read_bytes() == content
    assert verify_digest(there / "last.param")
    assert (there / "config.json").read_text() == "{}"


def test_what_cannot_be_packed_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    make_run(run)
    for words, message in (
        (("run", run, "--what", "state", "--output", tmp_path / "a"), "no resume.state"),
        (("run", tmp_path / "none", "--output", tmp_path / "a"), "no config.json"),
        (("unpack", run, "--output", tmp_path / "a"), "has no pieces"),
        (("data", "cifar10", "--data-dir", run, "--output", tmp_path / "a"), "was not found"),
        (("code", "--output", run / "config.json"), "config.json"),
    ):
        assert run_pack(*words) == 2
        text = capsys.readouterr().err
        assert text.startswith("error: ")
        assert message in text


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/b", ".hidden"])
def test_a_zip_cannot_write_elsewhere(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pieces(tmp_path, "x.weights.run.zip", pack._zip({name: b"evil"}), 50_000)
    assert run_pack("unpack", tmp_path, "--output", tmp_path / "out") == 2
    assert "no plain file name" in capsys.readouterr().err


def test_a_damaged_zip_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pieces(tmp_path, "x.weights.run.zip", b"PK no zip", 50_000)
    assert run_pack("unpack", tmp_path, "--output", tmp_path / "out") == 2
    assert "cannot be unpacked" in capsys.readouterr().err


def test_the_code_runs_where_its_zip_is_unpacked(tmp_path: Path) -> None:
    assert run_pack("code", "--output", tmp_path) == 0
    path = tmp_path / "code.zip"
    assert path.stat().st_size < 2_000_000
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "code")
        commit = json.loads(archive.read("bridge/packed_from.json"))
    assert (tmp_path / "code/bridge/train.py").exists()
    assert commit is None or len(commit["commit"]) == 40
    code = "import bridge.carry.pack, training.data.digits as d; print(len(d.load_digits().test))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "code",
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "500", done.stderr


@pytest.mark.data
@pytest.mark.slow
def test_cifar10_arrives_byte_for_byte(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test images alone: the training images are five such files."""
    form = dataclasses.replace(pack.FORMATS["cifar10"], train_files=())
    monkeypatch.setattr(pack, "FORMATS", {"cifar10": form})
    content = pack.pack_data("cifar10", str(data_dir))
    assert len(content) < 18_500_000  # of 30,730,000
    files = dict(pack._members("x", content))
    about = json.loads(files["packed.json"])["files"]["test_batch.bin"]
    data = pack._records(form, "test_batch.bin", about, files)
    assert hashlib.sha256(data).hexdigest() == about["sha256"]


def test_first_weights_are_halved_in_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "net.param"
    values = np.array([1 / 3, 1e5], np.float32)
    write_params(path, {"w": values[:1]})
    assert run_pack("half", path) == 0
    assert read_params(path)["w"].dtype == np.float16
    assert read_params(path)["w"][0] == np.float16(1 / 3)
    assert verify_digest(path)
    write_params(path, {"w": values})
    before = path.read_bytes()
    assert run_pack("half", path) == 2
    assert "w has values beyond" in capsys.readouterr().err
    assert path.read_bytes() == before
