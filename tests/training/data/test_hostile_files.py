"""Archives and pictures from strangers: nothing leaves its folder, nothing takes all memory."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import struct
import tarfile
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from formats.downloads.file_digest import FileDigest
from formats.errors import UserError
from formats.images import decode
from formats.images.decode import decode_image, open_rgb
from formats.images.preprocessing import PREPROCESSING_FILE, Preprocessing, read_preprocessing
from formats.param_file import write_params
from model import create_model
from model.weights.file_match import LoadError
from model.weights.loading import load_parameters
from training.batches.photos import FolderSource
from training.data import stl10
from training.data.catalogue import load_dataset
from training.data.cifar import load_cifar
from training.data.image_folder import Files
from training.downloads.cifar_files import FORMATS
from training.downloads.digests import TABLE
from training.downloads.tar_members import MAX_HEADER_BYTES
from training.records.run import Run

RECORD = bytes([1]) + bytes(3072)
EVIL = ("../../evil.bin", "cifar-10-batches-bin/../../evil.bin")


def digest(content: bytes) -> FileDigest:
    return FileDigest(len(content), sha256=hashlib.sha256(content).hexdigest())


def add(archive: tarfile.TarFile, name: str, content: bytes, **attributes: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in attributes.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


def everything_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ----------------------------------------------------------------------------------------- archives


def test_cifar_archives_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "a/b"
    home.mkdir(parents=True)
    with tarfile.open(home / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for name in (*EVIL, str(tmp_path / "evil.bin")):
            add(archive, name, b"evil")
        add(archive, "link", b"", type=tarfile.SYMTYPE, linkname="/etc")
        add(archive, "link/evil.bin", b"evil")
        for name in FORMATS["cifar10"].files:
            monkeypatch.setitem(TABLE, f"cifar10/{name}", (digest(RECORD),))
            add(archive, f"../../{name}", RECORD)  # the last part of a name is what counts
    before = everything_in(tmp_path)
    assert len(load_cifar("cifar10", str(home)).train.images) == 5
    assert everything_in(tmp_path) == before


def test_stl10_archives_stay_in_their_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "a/b"
    home.mkdir(parents=True)
    with tarfile.open(home / stl10.ARCHIVE, "w:gz") as archive:
        for name in (*EVIL, str(tmp_path / "evil.bin")):
            add(archive, name, b"evil")
        for name in stl10.LABELED_FILES:
            content = bytes(stl10.IMAGE_BYTES) if name.endswith("X.bin") else b"\1"
            monkeypatch.setitem(TABLE, f"stl10/{name}", (digest(content),))
            # As a link first: nothing is written through it.
            add(archive, name, b"", type=tarfile.SYMTYPE, linkname="../../evil.bin")
            add(archive, f"../../{name}", content)
    assert len(stl10.load_stl10(str(home), download=False).train.images) == 1
    assert everything_in(tmp_path) == sorted(
        ["a", "a/b", f"a/b/{stl10.ARCHIVE}", *(f"a/b/{name}" for name in stl10.LABELED_FILES)]
    )


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("load", ["cifar10", "stl10"])
def test_a_header_that_would_fill_the_memory(tmp_path: Path, kind: bytes, load: str) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 2**32
    name = "cifar-10-binary.tar.gz" if load == "cifar10" else stl10.ARCHIVE
    with gzip.open(tmp_path / name, "wb", compresslevel=1) as packed:
        packed.write(header.tobuf())
        for _ in range(64):  # enough to see that it is not read: 64 MB here, 4 GB announced
            packed.write(bytes(2**20))
    tracemalloc.start()
    with pytest.raises(UserError, match=r"damaged \(a header announces 4,294,967,296 bytes\)"):
        load_dataset(load, str(tmp_path), download=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23
    assert MAX_HEADER_BYTES < 2**23


# ----------------------------------------------------------------------------------------- pictures


def png(width: int, height: int) -> bytes:
    """A black and white PNG of a few kilobytes that says it has this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (50_000_001, 1)])
def test_a_picture_that_unpacks_to_gigabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    (tmp_path / "bomb.png").write_bytes(png(*size))
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)  # nothing is decoded
    with pytest.raises(UserError, match=r"bomb.png has .*more than the 50,000,000"):
        decode_image(str(tmp_path / "bomb.png"), 32)
    with pytest.raises(UserError, match=r"record 7 of x.rec has .*more than the 50,000,000"):
        open_rgb("record 7 of x.rec", 32, png(*size))


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path, kind in ((tmp_path / "pipe.png", "a device or pipe"), (tmp_path, "a folder")):
        with pytest.raises(UserError, match=f"cannot read the image .*: this is {kind}"):
            decode_image(str(path), 32)
    with pytest.raises(UserError, match="a device or pipe"):
        decode_image("/dev/zero", 32)
    source = FolderSource(Files([str(tmp_path / "pipe.png")], np.zeros(1, np.int32)))
    with pytest.raises(UserError, match="a device or pipe"):
        source.read(0)


def test_a_file_of_any_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    Image.fromarray(np.zeros((4, 4, 3), "u1")).save(path)
    source = FolderSource(Files([str(path)], np.zeros(1, np.int32)))
    assert source.read(0)[2] == path.read_bytes()
    os.truncate(path, decode.MAX_FILE_BYTES + 1)  # sparse: it takes no room
    for read in (lambda: decode_image(str(path), 2), lambda: source.read(0)):
        with pytest.raises(UserError, match=r"it has 268,435,457 bytes, more than the 268,435,456"):
            read()


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"{",
        b"null",
        b'{"size": 1e300}',
        Preprocessing(10**9, (0, 0, 0), (1, 1, 1)).to_json(),
    ],
    ids=["deep", "cut", "null", "infinite", "huge"],
)
def test_a_hostile_preprocessing_or_config(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PREPROCESSING_FILE).write_bytes(content)
    with pytest.raises(UserError, match="cannot be read"):
        read_preprocessing(tmp_path)
    if content[:1] != b"{" or len(content) == 1:
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(UserError, match=r"config.json is damaged"):
            Run.resume(tmp_path, 1)


def test_a_name_from_a_file_is_quoted_short_and_printable(tmp_path: Path) -> None:
    net = create_model("resnet20_ram", classes=10)
    net.initialize()
    write_params(tmp_path / "x", {"[" * 3000: np.ones(1, "f4"), "\x1b[2J\n": np.ones(1, "f4")})
    with pytest.raises(LoadError, match=r"not in the network: ") as caught:
        load_parameters(net, tmp_path / "x")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000
