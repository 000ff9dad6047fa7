"""Reading MXNet's RecordIO image files (``.rec`` with ``.idx``) from several threads.

Format: dmlc-core, ``recordio.h``. A record is a magic number, a word with a flag (3 bits) and a
length (29 bits), that many bytes, and padding to 4 bytes. Where the content has the magic number
in it, it is cut there into parts. The content of an image record (``mx.recordio.pack``) is a
header of 24 bytes, further labels if there are any, and the encoded image.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from formats.errors import UserError

MAGIC = 0xCED7230A
LENGTH_BITS = 29
WHOLE, FIRST, MIDDLE, LAST = range(4)
IMAGE_HEADER = struct.Struct("<IfQQ")  # number of further labels, label, two ids
MAX_RECORD_BYTES = 64 * 2**20
IDENTIFYING_RECORDS = 64


class RecordFile:
    """The images of a ``.rec`` file, in the order of its ``.idx``.

    Parameters
    ----------
    path
        The ``.rec`` file; the index is beside it.

    Raises
    ------
    UserError
        When one of the two files is missing or the index is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY)
            self._size = os.fstat(self._file).st_size
            text = path.with_suffix(".idx").read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"cannot read {path} and its index {path.with_suffix('.idx').name}: {error}. "
                "MXNet's im2rec.py writes both"
            ) from error
        try:
            self._offsets = np.array([int(line.split("\t")[1]) for line in text.splitlines()])
        except (ValueError, IndexError) as error:
            raise UserError(f"{path.with_suffix('.idx')} is damaged: {error}") from error
        if (
            not len(self._offsets)
            or not 0 <= self._offsets.min() <= self._offsets.max() < self._size
        ):
            raise UserError(f"{path.with_suffix('.idx')} is not the index of {path}")
        self.read(0)  # labels of another kind are refused before a training begins

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._offsets)

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def read(self, index: int) -> tuple[int, str, bytes]:
        """Return label, name for messages, and content of an image. Threads may do so together.

        Raises
        ------
        UserError
            When the file is damaged there.
        """
        name = f"record {index} of {self.path}"
        content = self._record(int(self._offsets[index]), name)
        if len(content) < IMAGE_HEADER.size:
            raise UserError(f"{name} is damaged: no image header. Write the file again")
        further, label, _, _ = IMAGE_HEADER.unpack_from(content)
        start = IMAGE_HEADER.size + 4 * further
        if further > 1:
            raise UserError(
                f"{name} has a label of {further} numbers, as for objects with boxes; a class is "
                "one number. Write the records with one (im2rec.py without --pack-label)"
            )
        if further:
            if len(content) < start:
                raise UserError(f"{name} is damaged: no label. Write the file again")
            (label,) = struct.unpack_from("<f", content, IMAGE_HEADER.size)
        if not float(label).is_integer() or label < 0:
            raise UserError(f"{name} has the label {label}; it must be a class number")
        return int(label), name, content[start:]

    def identity(self) -> Iterator[bytes]:
        """Return what tells these images from others: size, index, and some whole records."""
        yield str(self._size).encode()
        yield self._offsets.astype("<i8").tobytes()
        for index in np.linspace(0, len(self) - 1, IDENTIFYING_RECORDS).astype(int):
            label, _, content = self.read(int(index))
            yield str(label).encode()
            yield content

    def _record(self, offset: int, name: str) -> bytes:
        parts: list[bytes] = []
        while True:
            head = os.pread(self._file, 8, offset)
            magic, word = struct.unpack("<II", head) if len(head) == 8 else (0, 0)
            flag, length = word >> LENGTH_BITS, word & (1 << LENGTH_BITS) - 1
            expected = (MIDDLE, LAST) if parts else (WHOLE, FIRST)
            total = length + sum(map(len, parts))
            if magic != MAGIC or flag not in expected or total > MAX_RECORD_BYTES:
                raise UserError(f"{name} is damaged. Write the file again with its index")
            data = os.pread(self._file, length, offset + 8)
            if len(data) != length:
                raise UserError(f"{name} is cut off. Copy or write the file again")
            parts.append(data)
            if flag in (WHOLE, LAST):
                return struct.pack("<I", MAGIC).join(parts)
            offset += 8 + (length + 3) // 4 * 4
