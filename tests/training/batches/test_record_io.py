"""Record files against MXNet's own writer, and damaged ones."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable

import mxnet as mx
import pytest

from formats.errors import UserError
from training.batches.record_io import MAGIC, RecordFile

MAGIC_BYTES = struct.pack("<I", MAGIC)
# MXNet cuts a record at every aligned magic number in it; the header is 24 bytes.
CONTENTS = [b"abc", b"x" * 1001, MAGIC_BYTES * 3, b"1234" + MAGIC_BYTES + b"56", b"a" + MAGIC_BYTES]


def write(folder: Path, name: str = "train") -> Path:
    path = folder / f"{name}.rec"
    writer = mx.recordio.MXIndexedRecordIO(str(folder / f"{name}.idx"), str(path), "w")
    for index, content in enumerate(CONTENTS):
        label = [float(index)] if index == 3 else float(index)
        writer.write_idx(index, mx.recordio.pack(mx.recordio.IRHeader(0, label, index, 0), content))
    writer.close()
    return path


def test_mxnets_records_are_read_by_several_threads(tmp_path: Path) -> None:
    file = RecordFile(write(tmp_path))
    assert len(file) == len(CONTENTS)
    order = [index % len(CONTENTS) for index in range(200)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(file.read, order))
    assert [(label, content) for label, _, content in found] == [(i, CONTENTS[i]) for i in order]


def test_the_order_is_the_indexs(tmp_path: Path) -> None:
    path = write(tmp_path)
    index = path.with_suffix(".idx")
    index.write_text("".join(reversed(index.read_text().splitlines(keepends=True))))
    assert RecordFile(path).read(0)[0] == len(CONTENTS) - 1


def cut(data: bytes) -> bytes:
    return data[:200]


def shift(data: bytes) -> bytes:
    return b"1234" + data


def huge(data: bytes) -> bytes:
    return data[:4] + struct.pack("<I", (1 << 29) - 1) + data[8:]


@pytest.mark.parametrize(
    ("damage", "row", "message"), [(cut, 1, "cut off"), (shift, 0, "damaged"), (huge, 0, "damaged")]
)
def test_damaged_records(
    tmp_path: Path, damage: Callable[[bytes], bytes], row: int, message: str
) -> None:
    path = write(tmp_path)
    data = path.read_bytes()
    path.write_bytes(damage(data))
    if damage is cut:  # an index within the file
        lines = path.with_suffix(".idx").read_text().splitlines()[:2]
        path.with_suffix(".idx").write_text("\n".join(lines))
    with pytest.raises(UserError, match=f"record {row} of .*{message}"):
        RecordFile(path).read(row)


@pytest.mark.parametrize("text", ["", "0\t0\n1\t999999\n", "0 0\n", "0\t-4\n", "0\tx\n"])
def test_damaged_indices(tmp_path: Path, text: str) -> None:
    path = write(tmp_path)
    path.with_suffix(".idx").write_text(text)
    with pytest.raises(UserError, match=r"train\.idx is (damaged|not the index)"):
        RecordFile(path)
    path.with_suffix(".idx").unlink()
    with pytest.raises(UserError, match=r"cannot read .*train\.rec and its index train\.idx"):
        RecordFile(path)


@pytest.mark.parametrize("row", [0, 1])
def test_labels_of_several_numbers_are_refused(tmp_path: Path, row: int) -> None:
    """Those of objects with boxes, whose first number is the length of their header."""
    writer = mx.recordio.MXIndexedRecordIO(str(tmp_path / "a.idx"), str(tmp_path / "a.rec"), "w")
    for index in range(2):
        label = [2.0, 5.0, 1.0, 0.1, 0.1, 0.9, 0.9] if index == row else 1.0
        writer.write_idx(index, mx.recordio.pack(mx.recordio.IRHeader(0, label, 0, 0), b"x"))
    writer.close()
    with pytest.raises(UserError, match=rf"record {row} of .* has a label of 7 numbers"):
        RecordFile(tmp_path / "a.rec").read(row)
    if row == 0:  # before anything is trained
        with pytest.raises(UserError, match="has a label of 7 numbers"):
            RecordFile(tmp_path / "a.rec")


def test_a_label_that_is_no_class(tmp_path: Path) -> None:
    writer = mx.recordio.MXIndexedRecordIO(str(tmp_path / "a.idx"), str(tmp_path / "a.rec"), "w")
    writer.write_idx(0, mx.recordio.pack(mx.recordio.IRHeader(0, 1.5, 0, 0), b"x"))
    writer.close()
    with pytest.raises(UserError, match=r"has the label 1\.5"):
        RecordFile(tmp_path / "a.rec").read(0)
