"""STL-10 in its binary layout: small synthetic files, whole and damaged, and both protocols."""

from __future__ import annotations

import hashlib
import io
import tarfile
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import train_cifar
from formats.downloads.file_digest import FileDigest
from formats.errors import UserError
from training.classifier.config import TrainConfig
from training.classifier.loaders import build_loaders
from training.classifier.recipes import with_recipe
from training.data import stl10
from training.data.catalogue import load_dataset
from training.data.dataset import Dataset
from training.downloads.digests import TABLE
from training.records.metrics import read_metrics

COUNTS = {"train": 20, "test": 10, "unlabeled": 7}


def images_of(split: str) -> np.ndarray:
    """uint8 (N, 96, 96, 3) in which every row, column, channel and image can be told apart."""
    count = COUNTS[split]
    n, y, x, c = np.ogrid[:count, :96, :96, :3]
    return ((n * 31 + y * 2 + x * 5 + c * 61 + len(split)) % 256).astype(np.uint8)


def labels_of(split: str) -> np.ndarray:
    return (np.arange(COUNTS[split]) * 3 % 10).astype(np.int32)


def stl10_files() -> dict[str, bytes]:
    """The files as they are published: channels first, each of them column by column."""
    files = {}
    for split in COUNTS:
        pixels = [
            image[:, column, channel].tobytes()
            for image in images_of(split)
            for channel in range(3)
            for column in range(96)
        ]
        files[f"{split}_X.bin"] = b"".join(pixels)
        if split != "unlabeled":
            files[f"{split}_y.bin"] = bytes(int(label) + 1 for label in labels_of(split))
    return files


def write_stl10(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in stl10_files().items():
        (folder / name).write_bytes(content)
    return folder


def write_archive(folder: Path, leave_out: str = "") -> Path:
    path = folder / stl10.ARCHIVE
    with tarfile.open(path, "w:gz") as archive:
        for name, content in stl10_files().items():
            member = tarfile.TarInfo(f"stl10_binary/{name}")
            member.size = len(content)
            if name != leave_out:
                archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MXNET_HOME", str(tmp_path / "mxnet-home"))
    monkeypatch.chdir(tmp_path)


def load(folder: Path) -> Dataset:
    with pytest.warns(UserWarning, match="not the published files of STL-10"):
        return load_dataset("stl10", str(folder), download=False)


def assert_is_all(data: Dataset) -> None:
    for split, part in (("train", data.train), ("test", data.test)):
        np.testing.assert_array_equal(part.images, images_of(split))
        np.testing.assert_array_equal(part.labels, labels_of(split))
        assert part.images.flags.c_contiguous


@pytest.mark.parametrize("below", ["", "stl10", "stl10_binary", "stl10/stl10_binary"])
def test_files_are_found_and_read(tmp_path: Path, below: str) -> None:
    write_stl10(tmp_path / "given" / below)
    data = load(tmp_path / "given")
    assert_is_all(data)
    assert (data.name, data.classes, data.class_names[0]) == ("stl10", 10, "airplane")
    np.testing.assert_allclose(data.mean, images_of("train").mean(axis=(0, 1, 2)) / 255)
    np.testing.assert_allclose(data.std, images_of("train").std(axis=(0, 1, 2)) / 255)


def test_an_archive_is_unpacked_as_far_as_needed(tmp_path: Path) -> None:
    path = write_archive(tmp_path)
    assert_is_all(load(tmp_path))
    names = {file.name for file in tmp_path.glob("*.bin")}
    assert names == set(stl10.LABELED_FILES)
    path.unlink()
    assert_is_all(load(tmp_path))


def test_the_archive_is_downloaded_from_a_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mirror").mkdir()
    content = write_archive(tmp_path / "mirror").read_bytes()
    digest = FileDigest(len(content), md5=hashlib.md5(content).hexdigest())
    monkeypatch.setitem(TABLE, f"stl10/{stl10.ARCHIVE}", (digest,))
    with pytest.warns(UserWarning, match="not the published"):
        data = load_dataset("stl10", mirror=str(tmp_path / "mirror"))
    assert_is_all(data)
    assert (tmp_path / "mxnet-home" / "datasets" / "stl10" / "train_X.bin").is_file()


def test_the_published_files_raise_no_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in stl10_files().items():
        digest = FileDigest(len(content), md5=hashlib.md5(content).hexdigest())
        monkeypatch.setitem(TABLE, f"stl10/{name}", (digest,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_dataset("stl10", str(write_stl10(tmp_path / "given")), download=False)


def _cut(folder: Path, name: str, size: int) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:size])


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "train_X.bin",
            27_648 * 20 - 1,
            "train_X.bin is damaged: 552,959 bytes, expected 138,240,0",
        ),
        ("train_X.bin", 27_648 * 19, "damaged: 19 images with 20 labels"),
        ("test_y.bin", 9, "damaged: 10 images with 9 labels"),
        ("test_y.bin", 0, "test_y.bin is damaged: 0 bytes, expected 8,000"),
    ],
)
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, size: int, message: str) -> None:
    folder = write_stl10(tmp_path / "given")
    _cut(folder, name, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=message):
            load_dataset("stl10", str(folder), download=False)


@pytest.mark.parametrize("label", [0, 11])
def test_an_impossible_label_is_refused(tmp_path: Path, label: int) -> None:
    folder = write_stl10(tmp_path / "given")
    (folder / "test_y.bin").write_bytes(bytes([1] * 9 + [label]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=f"label {label} where 1 to 10"):
            load_dataset("stl10", str(folder), download=False)


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    path = write_archive(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3])
    with pytest.raises(UserError, match=r"stl10_binary.tar.gz is damaged"):
        load_dataset("stl10", str(tmp_path))
    assert not list(tmp_path.glob("test_X.bin*"))
    write_archive(tmp_path, leave_out="test_y.bin")
    with pytest.raises(UserError, match=r"lacks test_y\.bin"):
        load_dataset("stl10", str(tmp_path))


def test_missing_files_say_where_they_were_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)Looked in:.*data.*stl10_binary.*switched off"):
        load_dataset("stl10", download=False)
    folder = write_stl10(tmp_path / "given")
    (folder / "test_X.bin").unlink()
    with pytest.raises(UserError, match=r"given: incomplete: test_X\.bin missing"):
        load_dataset("stl10", str(folder), download=False)
    with pytest.raises(UserError, match="does not exist"):
        load_dataset("stl10", str(tmp_path / "none"))


@pytest.mark.parametrize(("recipe", "size"), [("ram-stl10-released", 32), ("ram-stl10-native", 96)])
def test_both_protocols_make_their_batches(tmp_path: Path, recipe: str, size: int) -> None:
    data = load(write_stl10(tmp_path / "given"))
    settings = {k: v for k, v in with_recipe(recipe, {}).items() if k != "model"}
    config = TrainConfig(**{**settings, "batch_size": 8})
    loaders = build_loaders(config, data, 10)
    batch = next(iter(loaders.train.epoch(0)))
    assert batch.image.shape == (8, 3, size, size)
    assert next(iter(loaders.test)).image.shape == (10, 3, 96, 96)
    assert config.dataset == "stl10"


@pytest.mark.filterwarnings("ignore:not the published files of STL-10")
@pytest.mark.parametrize("protocol", ["released", "native"])
def test_both_protocols_train_and_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: str
) -> None:
    write_stl10(tmp_path / "given")
    run, data = tmp_path / "run", ["--data-dir", str(tmp_path / "given"), "--gpus", "cpu"]
    words = f"--recipe ram-stl10-{protocol} --depth 11 --epochs 1 --schedule constant -b 8"
    assert train_cifar.main([*words.split(), *data, "--run-dir", str(run)]) == 0
    row = read_metrics(run)[-1]
    capsys.readouterr()
    assert train_cifar.main(["--test", str(run / "last.param"), *data]) == 0
    shown = capsys.readouterr().out
    assert f"test loss {row['test_loss']:.4f}, test accuracy {row['test_acc']:.5f} (10 im" in shown


def test_a_crop_that_does_not_fit_is_refused_before_anything_starts(tmp_path: Path) -> None:
    data = load(write_stl10(tmp_path / "given"))
    config = replace(TrainConfig(), batch_size=4, pad=2, crop_size=101)
    with pytest.raises(UserError, match="101x101 does not fit into images of 96x96 with 2"):
        build_loaders(config, data, 10)
