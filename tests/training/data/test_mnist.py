"""MNIST in every place and state, downloaded or not, and the embedded digits."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Callable, Optional

import numpy as np
import pytest

from formats.downloads.file_digest import FileDigest
from formats.errors import UserError
from training.data import mnist
from training.data.catalogue import load_dataset
from training.data.dataset import channel_statistics
from training.data.digits import enlarge, load_digits
from training.data.mnist import FILES, load_mnist
from training.downloads.digests import TABLE
from training.downloads.mirrors import MNIST_URLS, candidates

COUNTS = (7, 7, 3, 3)


def idx_files() -> dict[str, bytes]:
    """The four files with 7 and 3 images; label i is i."""
    generator = np.random.Generator(np.random.PCG64(0))
    files = {}
    for name, count in zip(FILES, COUNTS):
        if "images" in name:
            header = np.array([2051, count, 28, 28], ">u4").tobytes()
            files[name] = header + generator.bytes(count * 784)
        else:
            files[name] = np.array([2049, count], ">u4").tobytes() + bytes(range(count))
    return files


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, bytes]:
    """Content of four tiny files, which the digest table takes for the published ones."""
    monkeypatch.setenv("MXNET_HOME", str(tmp_path / "mxnet-home"))
    monkeypatch.chdir(tmp_path)
    files = idx_files()
    for name, content in files.items():
        for key, data in ((name, content), (f"{name}.gz", gzip.compress(content, mtime=0))):
            digest = FileDigest(len(data), sha256=hashlib.sha256(data).hexdigest())
            monkeypatch.setitem(TABLE, f"mnist/{key}", (digest,))
    return files


def write(folder: Path, files: dict[str, bytes], kinds: str = "pppp") -> Path:
    """Write the four files, p plain or z compressed."""
    folder.mkdir(parents=True, exist_ok=True)
    for (name, content), kind in zip(files.items(), kinds):
        if kind == "z":
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, mtime=0))
        else:
            (folder / name).write_bytes(content)
    return folder


def check(files: dict[str, bytes], data_dir: Optional[Path]) -> None:
    data = load_mnist(str(data_dir) if data_dir else None, download=False)
    for split, images, labels in ((data.train, *FILES[:2]), (data.test, *FILES[2:])):
        np.testing.assert_array_equal(split.labels, np.arange(len(files[labels]) - 8))
        assert split.images.shape == (len(split), 28, 28, 1)
        assert split.images.tobytes() == files[images][16:]
    assert data.class_names == tuple("0123456789")


@pytest.mark.parametrize("kinds", ["pppp", "zzzz", "pzzp"])
@pytest.mark.parametrize("where", ["", "mnist", "MNIST/raw", "datasets/mnist"])
def test_reads_files_in_every_place(
    tiny: dict[str, bytes], tmp_path: Path, kinds: str, where: str
) -> None:
    write(tmp_path / "root" / where, tiny, kinds)
    check(tiny, tmp_path / "root")


@pytest.mark.parametrize("where", ["data", "data/mnist", "mxnet-home/datasets/mnist"])
def test_looks_in_the_usual_places(tiny: dict[str, bytes], tmp_path: Path, where: str) -> None:
    write(tmp_path / where, tiny, "zzzz")
    check(tiny, None)


def test_compressed_again_is_the_same(tiny: dict[str, bytes], tmp_path: Path) -> None:
    folder = write(tmp_path, tiny)
    (folder / FILES[0]).unlink()
    (folder / f"{FILES[0]}.gz").write_bytes(gzip.compress(tiny[FILES[0]], compresslevel=1))
    check(tiny, folder)


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("kind", "damage", "said"),
    [
        ("p", lambda content: content[:-1], "expected 5,504"),
        ("p", lambda content: content + b"0", "more than 5,504 bytes"),
        ("p", flipped, "sha256"),
        ("p", lambda content: b"", "0 bytes"),
        ("z", lambda content: gzip.compress(content)[:-20], "end-of-stream"),
        ("z", lambda content: flipped(gzip.compress(content)), "Incorrect length"),
        ("z", lambda content: gzip.compress(content + bytes(10**7)), "more than 5,504 bytes"),
        ("z", lambda content: b"<html>", "Not a gzipped file"),
        ("z", lambda content: gzip.compress(content)[:10] + b"\xff" * 99, "invalid block"),
    ],
)
def test_damaged_file_is_one_clear_error(
    tiny: dict[str, bytes], tmp_path: Path, kind: str, damage: Callable[[bytes], bytes], said: str
) -> None:
    folder = write(tmp_path, tiny)
    name = FILES[0] + (".gz" if kind == "z" else "")
    (folder / FILES[0]).unlink()
    (folder / name).write_bytes(damage(tiny[FILES[0]]))
    with pytest.raises(UserError, match=said) as caught:
        load_mnist(str(folder))
    message = str(caught.value)
    assert message.startswith(f"{folder / name} is damaged or not MNIST: ")
    assert message.endswith("--dataset digits")
    assert "\n" not in message


def test_mirror_fills_what_is_missing(tiny: dict[str, bytes], tmp_path: Path) -> None:
    mirror = write(tmp_path / "mirror", tiny, "zzzz")
    own = tmp_path / "own"
    own.mkdir()
    (own / FILES[1]).write_bytes(tiny[FILES[1]])
    load_dataset("mnist", str(own), mirror=str(mirror))
    assert sorted(path.name for path in own.iterdir()) == sorted(
        [FILES[1], *(f"{name}.gz" for name in FILES if name != FILES[1])]
    )
    check(tiny, own)
    load_dataset("mnist", mirror=str(mirror))
    assert len(list((tmp_path / "mxnet-home/datasets/mnist").iterdir())) == 4


def test_wrong_mirror_leaves_nothing(
    tiny: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def local_only(dataset: str, name: str, mirror: Optional[str] = None) -> list[str]:
        return candidates(dataset, name, mirror)[:1]

    monkeypatch.setattr(mnist, "candidates", local_only)
    mirror = write(tmp_path / "mirror", {name: content + b"0" for name, content in tiny.items()})
    (mirror / f"{FILES[0]}.gz").write_bytes(b"wrong")
    own = tmp_path / "own"
    own.mkdir()
    with pytest.raises(UserError) as caught:
        load_mnist(str(own), mirror=str(mirror))
    message = str(caught.value)
    for part in (
        f"{own}/MNIST/raw: no such folder",
        f"{own}: no MNIST files",
        f"{mirror}/{FILES[0]}.gz: wrong content: 5 bytes",
        *FILES,
        f"into {own}",
        "--mirror URL",
        "--dataset digits",
    ):
        assert part in message
    assert not list(own.iterdir())


def test_missing_and_incomplete_folders(tiny: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist.*MNIST/raw"):
        load_mnist(str(tmp_path / "nowhere"))
    write(tmp_path / "part", {FILES[2]: tiny[FILES[2]]})
    with pytest.raises(UserError, match=f"incomplete: {FILES[0]}, {FILES[1]}, {FILES[3]}") as found:
        load_mnist(str(tmp_path / "part"), download=False)
    assert "Downloading is switched off" in str(found.value)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="is not a folder"):
        load_mnist(str(tmp_path / "file"))


def test_places_of_the_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MXNET_GLUON_REPO", raising=False)
    places = candidates("mnist", "x.gz", "http://m.example")
    assert places[:3] == ["http://m.example/x.gz", *(f"{url}/x.gz" for url in MNIST_URLS)]
    assert places[3].endswith("/gluon/dataset/mnist/x.gz")


def test_every_file_has_all_digests() -> None:
    for name in FILES:
        for key in (name, f"{name}.gz"):
            (digest,) = TABLE[f"mnist/{key}"]
            assert digest.size
            assert list(digest.hashes()) == ["sha256", "sha1", "md5"]


@pytest.mark.data
def test_real_mnist(data_dir: Path) -> None:
    data = load_mnist(str(data_dir), download=False)
    np.testing.assert_array_equal(
        np.bincount(data.train.labels),
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    )
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    mean, std = channel_statistics(data.train.images)
    np.testing.assert_array_equal(np.round([*mean, *std], 4), [*data.mean, *data.std])


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits as original

    source = original()
    images = enlarge(source.images.astype(np.uint8))
    data = load_digits()
    known = {image.tobytes(): label for image, label in zip(images, source.target)}
    together = np.concatenate([data.train.images, data.test.images])
    labels = np.concatenate([data.train.labels, data.test.labels])
    assert sorted(image.tobytes() for image in together) == sorted(
        image.tobytes() for image in images
    )
    assert [known[image.tobytes()] for image in together] == labels.tolist()


def test_digits_split() -> None:
    data = load_dataset("digits")
    assert data.train.images.shape == (1297, 28, 28, 1)
    assert data.test.images.shape == (500, 28, 28, 1)
    assert set(np.bincount(data.test.labels)) <= {48, 49, 50, 51, 52}
    mean, std = channel_statistics(data.train.images)
    assert (data.mean, data.std) == (mean, std)
    pixels = hashlib.sha256(data.train.images.tobytes() + data.test.images.tobytes())
    assert pixels.hexdigest() == "420845021a12b021f2001aeb2fbd2ba11b409e99c3cb21670db1d94242ebb80d"


def test_one_glimpse_does_not_show_a_digit() -> None:
    images = load_digits().train.images[..., 0].astype(np.int64)
    ink = images > 64
    height = 28 - ink.any(axis=2).argmax(axis=1) - ink.any(axis=2)[:, ::-1].argmax(axis=1)
    assert height.min() >= 20
    sums = np.pad(images.cumsum(axis=1).cumsum(axis=2), ((0, 0), (1, 0), (1, 0)))
    glimpses = sums[:, 8:, 8:] - sums[:, :-8, 8:] - sums[:, 8:, :-8] + sums[:, :-8, :-8]
    share = glimpses.max(axis=(1, 2)) / sums[:, -1, -1]
    assert share.max() < 0.5
    assert np.median(share) < 0.3


def test_enlarging_keeps_plain_areas_and_interpolates() -> None:
    flat = enlarge(np.full((1, 8, 8), 8, np.uint8))[0]
    assert (flat[6:-6, 6:-6] == round(8 * 255 / 16)).all()
    # A ramp comes out as a ramp (cubic convolution is exact for straight lines), 3.5 times finer.
    ramp = enlarge(np.tile(np.arange(8, dtype=np.uint8) * 2, (8, 1))[None])[0, 14, 7:-7]
    places = (np.arange(7, 21) + 0.5) / 3.5 - 0.5
    np.testing.assert_array_equal(ramp, np.rint(places * 2 * 255 / 16))
    up_down = np.random.default_rng(0).integers(0, 17, (2, 8, 8)).astype(np.uint8)
    np.testing.assert_array_equal(enlarge(up_down[:, ::-1]), enlarge(up_down)[:, ::-1])
    np.testing.assert_array_equal(
        enlarge(up_down.transpose(0, 2, 1)), enlarge(up_down).transpose(0, 2, 1)
    )
