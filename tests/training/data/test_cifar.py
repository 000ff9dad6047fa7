"""CIFAR-10 and CIFAR-100 in every layout, whole and damaged, in tiny files and in the real ones."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import warnings
from pathlib import Path
from typing import Any, Callable

import numpy as np
import pytest

from formats.downloads.file_digest import FileDigest
from formats.errors import UserError
from model.weights.known import Known
from training.classifier.config import TrainConfig
from training.classifier.opening import Source, expected_of
from training.data import catalogue, cifar
from training.data import dataset as datasets
from training.downloads.cifar_files import FORMATS, PIXELS
from training.downloads.digests import TABLE

IMAGES = 20
COARSE = cifar.CIFAR100_COARSE_CLASSES


def records_of(name: str, seed: int) -> np.ndarray:
    """Valid records of the binary version, uint8, (IMAGES, labels + 3072)."""
    generator = np.random.Generator(np.random.PCG64(seed))
    limits = FORMATS[name].label_limits
    labels = [generator.integers(0, limit, (IMAGES, 1)) for limit in limits]
    pixels = generator.integers(0, 256, (IMAGES, PIXELS))
    return np.concatenate([*labels, pixels], axis=1).astype(np.uint8)


def pickled(name: str, records: np.ndarray) -> bytes:
    keys = FORMATS[name].label_keys
    columns = {key: [int(v) for v in records[:, i]] for i, key in enumerate(keys)}
    batch = {b"batch_label": b"tiny", **columns, b"data": records[:, len(keys) :].copy()}
    # Protocol 3 is the first whose bytes need no helper function by name.
    return pickle.dumps(batch, protocol=3)


class TinyCifar:
    """Both data sets with 20 images a file, and a digest table that knows exactly these files."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.records: dict[str, dict[str, np.ndarray]] = {}
        self.content: dict[str, dict[str, bytes]] = {"bin": {}, "python": {}}
        for form in FORMATS.values():
            self.records[form.name] = {
                file: records_of(form.name, seed) for seed, file in enumerate(form.files)
            }
            for file, records in self.records[form.name].items():
                self.content["bin"][f"{form.name}/{file}"] = records.tobytes()
                self.content["python"][f"{form.name}/{file[:-4]}"] = pickled(form.name, records)
        for contents in self.content.values():
            for key, content in contents.items():
                digest = FileDigest(len(content), sha256=hashlib.sha256(content).hexdigest())
                monkeypatch.setitem(TABLE, key, (digest,))

    def files(self, name: str, kind: str) -> dict[str, bytes]:
        return {
            key.split("/")[1]: content
            for key, content in self.content[kind].items()
            if key.startswith(name + "/")
        }

    def write(self, folder: Path, name: str, kind: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in self.files(name, kind).items():
            (folder / file).write_bytes(content)

    def archive(self, path: Path, name: str, kind: str, prefix: str = "") -> None:
        with tarfile.open(path, "w:gz") as archive:
            for file, content in self.files(name, kind).items():
                member = tarfile.TarInfo(prefix + file)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))

    def check(self, dataset: datasets.Dataset, column: int = -1) -> None:
        """The data set holds exactly the records, in order."""
        form = FORMATS[dataset.name]
        width = len(form.label_limits)
        for split, files in ((dataset.train, form.train_files), (dataset.test, form.test_files)):
            records = np.concatenate([self.records[form.name][file] for file in files])
            labels = records[:, :width][:, column]
            np.testing.assert_array_equal(split.labels, labels)
            planes = split.images.transpose(0, 3, 1, 2).reshape(len(records), -1)
            np.testing.assert_array_equal(planes, records[:, width:])
            assert split.images.flags.c_contiguous


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TinyCifar:
    monkeypatch.setenv("MXNET_HOME", str(tmp_path / "mxnet-home"))
    monkeypatch.chdir(tmp_path)
    return TinyCifar(monkeypatch)


def load(name: str, folder: Path, **options: Any) -> datasets.Dataset:
    return cifar.load_cifar(name, str(folder), download=False, **options)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("kind", ["bin", "python"])
@pytest.mark.parametrize("where", ["", "{name}", "datasets/{name}", "{own}", "{name}/{own}"])
def test_reads_files_in_every_place(
    tiny: TinyCifar, tmp_path: Path, name: str, kind: str, where: str
) -> None:
    form = FORMATS[name]
    own = form.bin_folder if kind == "bin" else form.python_folder
    root = tmp_path / "root"
    tiny.write(root / where.format(name=name, own=own), name, kind)
    tiny.check(load(name, root))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("kind", ["bin", "python"])
@pytest.mark.parametrize("prefix", ["", "some-folder/", "../../"])
def test_reads_archives_in_memory(
    tiny: TinyCifar, tmp_path: Path, name: str, kind: str, prefix: str
) -> None:
    root = tmp_path / "a" / "b"
    root.mkdir(parents=True)
    path = root / FORMATS[name].archives[kind == "python"]
    tiny.archive(path, name, kind, prefix)
    tiny.check(load(name, root))
    left = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    assert left == [path]


def test_searches_data_then_gluon_without_a_folder(tiny: TinyCifar, tmp_path: Path) -> None:
    tiny.write(tmp_path / "mxnet-home/datasets/cifar10", "cifar10", "bin")
    tiny.check(cifar.load_cifar("cifar10", download=False))
    # A damaged copy in ./data is found first, and is an error: nothing is skipped in silence.
    tiny.write(tmp_path / "data", "cifar10", "bin")
    (tmp_path / "data/test_batch.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"data/test_batch.bin is damaged: 0 bytes, expected"):
        cifar.load_cifar("cifar10", download=False)


def test_coarse_labels_have_a_name_of_their_own(tiny: TinyCifar, tmp_path: Path) -> None:
    tiny.write(tmp_path, "cifar100", "bin")
    fine, coarse = (
        catalogue.load_dataset(name, str(tmp_path), download=False)
        for name in ("cifar100", "cifar100-coarse")
    )
    assert [(d.name, d.classes) for d in (fine, coarse)] == [
        ("cifar100", 100),
        ("cifar100-coarse", 20),
    ]
    np.testing.assert_array_equal(fine.train.images, coarse.train.images)
    np.testing.assert_array_equal(coarse.test.labels, tiny.records["cifar100"]["test.bin"][:, 0])


def test_coarse_classes_are_known_without_the_data() -> None:
    for name, classes in (("cifar100", cifar.CIFAR100_CLASSES), ("cifar100-coarse", COARSE)):
        given: dict[str, Any] = {"dataset": name, "normalization": "ram"}
        config = TrainConfig(**given, classes=len(classes))
        known = Known({}, {}, {}, "")
        expected = expected_of(Source("x.param", known, None, "", None, config, given))
        assert expected.preprocessing.class_names == classes
        assert expected.preprocessing.std == (0.2023, 0.1994, 0.2010)
        assert expected.preprocessing.size == 32


def test_coarse_labels(tiny: TinyCifar, tmp_path: Path) -> None:
    tiny.write(tmp_path, "cifar100", "bin")
    dataset = load("cifar100", tmp_path, coarse=True)
    tiny.check(dataset, column=0)
    assert dataset.classes == 20
    assert load("cifar100", tmp_path).classes == 100
    with pytest.raises(UserError, match="cifar100 only"):
        load("cifar10", tmp_path, coarse=True)


def _truncate(content: bytes) -> bytes:
    return content[:-1]


def _flip_pixel(content: bytes) -> bytes:
    return content[:100] + bytes([content[100] ^ 1]) + content[101:]


def _wrong_label(content: bytes) -> bytes:
    return bytes([200]) + content[1:]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_truncate, r"61,459 bytes, expected 61,460"),
        (_flip_pixel, r"sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"),
        (_wrong_label, r"label 200 where 0 to 9 are allowed"),
        (lambda content: b"", r"0 bytes, expected 61,460"),
    ],
)
def test_damaged_cifar10_is_one_clear_error(
    tiny: TinyCifar, tmp_path: Path, damage: Callable[[bytes], bytes], reason: str
) -> None:
    tiny.write(tmp_path, "cifar10", "bin")
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=reason) as caught:
        load("cifar10", tmp_path)
    message = str(caught.value)
    assert str(path) in message
    assert "Delete it" in message
    assert "--dataset shapes" in message


def test_damaged_python_batch_and_archive(tiny: TinyCifar, tmp_path: Path) -> None:
    tiny.write(tmp_path / "py", "cifar10", "python")
    path = tmp_path / "py/data_batch_2"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"py/data_batch_2 is damaged: .* bytes, expected"):
        load("cifar10", tmp_path / "py")
    (tmp_path / "tar").mkdir()
    path = tmp_path / "tar/cifar-10-binary.tar.gz"
    tiny.archive(path, "cifar10", "bin")
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(UserError, match=r"binary.tar.gz is damaged .* expected 170,052,171"):
        load("cifar10", tmp_path / "tar")
    path.write_bytes(b"<html>not an archive</html>")
    with pytest.raises(UserError, match=r"binary.tar.gz is damaged"):
        load("cifar10", tmp_path / "tar")


def test_archive_without_a_file(tiny: TinyCifar, tmp_path: Path) -> None:
    del tiny.content["bin"]["cifar10/data_batch_4.bin"]
    tiny.archive(tmp_path / "cifar-10-binary.tar.gz", "cifar10", "bin")
    with pytest.raises(UserError, match=r"lacks data_batch_4.bin"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("kind", ["bin", "python"])
def test_reordered_cifar100_is_read_with_one_warning(
    tiny: TinyCifar, tmp_path: Path, kind: str
) -> None:
    for file in ("train.bin", "test.bin"):
        records = tiny.records["cifar100"][file][::-1].copy()
        tiny.records["cifar100"][file] = records
        tiny.content["bin"][f"cifar100/{file}"] = records.tobytes()
        tiny.content["python"][f"cifar100/{file[:-4]}"] = pickled("cifar100", records)
    tiny.write(tmp_path, "cifar100", kind)
    with pytest.warns(UserWarning, match="not the published files of CIFAR-100") as caught:
        dataset = load("cifar100", tmp_path)
    assert len(caught) == 1
    tiny.check(dataset)


def test_cifar100_with_impossible_labels_or_size_is_an_error(
    tiny: TinyCifar, tmp_path: Path
) -> None:
    tiny.write(tmp_path, "cifar100", "bin")
    content = (tmp_path / "test.bin").read_bytes()
    (tmp_path / "test.bin").write_bytes(content[:1] + b"\x64" + content[2:])
    with pytest.raises(UserError, match="label 100 where 0 to 99 are allowed"):
        load("cifar100", tmp_path)
    (tmp_path / "test.bin").write_bytes(b"\x14" + content[1:])
    with pytest.raises(UserError, match="label 20 where 0 to 19 are allowed"):
        load("cifar100", tmp_path)
    (tmp_path / "test.bin").write_bytes(content + content[:3074])
    with pytest.raises(UserError, match="64,554 bytes, expected 61,480"):
        load("cifar100", tmp_path)


def test_python_batch_pickled_again_is_accepted(tiny: TinyCifar, tmp_path: Path) -> None:
    tiny.write(tmp_path, "cifar10", "python")
    for file, records in tiny.records["cifar10"].items():
        batch = {"labels": [int(v) for v in records[:, 0]], "data": records[:, 1:].copy()}
        (tmp_path / file[:-4]).write_bytes(pickle.dumps(batch, protocol=4))
    tiny.check(load("cifar10", tmp_path))


def test_missing_folder_and_empty_folder(tiny: TinyCifar, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no-such does not exist; expected .*data_batch_1.bin"):
        cifar.load_cifar("cifar10", str(tmp_path / "no-such"))
    assert not (tmp_path / "no-such").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is not a folder"):
        cifar.load_cifar("cifar10", str(tmp_path / "file"))
    tiny.write(tmp_path / "part", "cifar10", "bin")
    (tmp_path / "part/data_batch_5.bin").unlink()
    with pytest.raises(UserError, match=r"incomplete: data_batch_5.bin missing") as caught:
        load("cifar10", tmp_path / "part")
    assert "--dataset shapes" in str(caught.value)
    assert "switched off" in str(caught.value)


def test_full_digests_only() -> None:
    assert all(published for published in TABLE.values())
    with pytest.raises(ValueError, match="full sha256"):
        FileDigest(1, sha256="cee91656")
    with pytest.raises(ValueError, match="at least one"):
        FileDigest(1)


@pytest.mark.data
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_real_files(data_dir: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "not the published files of CIFAR-100")
        dataset = catalogue.load_dataset(name, str(data_dir), download=False)
    assert dataset.train.images.shape == (50_000, 32, 32, 3)
    assert dataset.test.images.shape == (10_000, 32, 32, 3)
    for split in (dataset.train, dataset.test):
        counts = np.bincount(split.labels, minlength=dataset.classes)
        np.testing.assert_array_equal(counts, len(split) // dataset.classes)
    mean, std = datasets.channel_statistics(dataset.train.images)
    assert tuple(round(value, 4) for value in mean) == dataset.mean
    assert tuple(round(value, 4) for value in std) == dataset.std


@pytest.mark.data
def test_real_cifar10_files_have_all_their_digests(data_dir: Path) -> None:
    for file in FORMATS["cifar10"].files:
        content = (data_dir / "cifar10" / file).read_bytes()
        (published,) = TABLE[f"cifar10/{file}"]
        assert len(content) == published.size
        assert hashlib.sha256(content).hexdigest() == published.sha256
        assert hashlib.sha1(content).hexdigest() == published.sha1
