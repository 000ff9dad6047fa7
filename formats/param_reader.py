"""Reading one parameter file from front to back, every number checked before it is believed.

The format is the list of arrays that `mx.nd.save` and Gluon's `save_parameters` write, all numbers
little-endian: uint64 magic 0x112, uint64 reserved (0), uint64 number of arrays, the arrays, uint64
number of names (0 or the number of arrays), the names, each a uint64 length and UTF-8 bytes. There
MXNet stops reading; a card may follow (`formats.card`), and nothing else.

One array: uint32 magic (V2, or V3 when written under NumPy shape semantics), int32 storage type (0
is dense), int32 number of dimensions, int64 dimensions, int32 device type and id, int32 element
type, the elements. V1 has no storage type. Before V1 there was no magic: the record began with the
number of dimensions, and dimensions were uint32.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from typing import NamedTuple, Optional

import numpy as np

from formats.atomic import PathLike
from formats.card import MAX_BYTES, TRAILER, CardError, decode_block
from formats.file_kinds import HEAD_BYTES, describe_kind

DAMAGED = "The file is damaged or incomplete: copy or download it again."
LIST_MAGIC = 0x112
ARRAY_V1, ARRAY_V2, ARRAY_V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
CPU = 1
MAX_DIMENSIONS = 32  # NumPy's own limit
# Smallest possible array: the oldest record, one dimension, one byte of data.
SMALLEST_ARRAY = 4 + 4 + 8 + 4 + 1
ELEMENT_TYPES: dict[int, np.dtype] = {
    0: np.dtype("<f4"),
    1: np.dtype("<f8"),
    2: np.dtype("<f2"),
    3: np.dtype("u1"),
    4: np.dtype("<i4"),
    5: np.dtype("i1"),
    6: np.dtype("<i8"),
    7: np.dtype(bool),
}
TYPE_FLAGS = {dtype: flag for flag, dtype in ELEMENT_TYPES.items()}
BFLOAT16 = 12  # NumPy has no such type: read as float32, never written


class Entry(NamedTuple):
    """One array of the file; ``array`` is None when only the headers are read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    array: Optional[np.ndarray]


class ParamReader:
    """Reads one file from front to back and knows how many bytes are left."""

    def __init__(self, path: PathLike, stream: BufferedReader) -> None:
        self.path = os.fspath(path)
        self.stream = stream
        self.left = os.fstat(stream.fileno()).st_size

    def problem(self, found: str, expected: str, remedy: str = DAMAGED) -> ParamFileError:
        return ParamFileError(f"{self.path}: {found}. Expected {expected}. {remedy}")

    def need(self, count: int, what: str) -> None:
        if count > self.left:
            raise self.problem(
                f"the file ends too early: {what} needs {count:,} bytes, {self.left:,} are left",
                "a whole file",
            )

    def take(self, count: int, what: str) -> bytes:
        self.need(count, what)
        data = self.stream.read(count)
        if len(data) != count:
            raise self.problem("the file became shorter while it was read", "a file at rest")
        self.left -= count
        return data

    def numbers(self, layout: str, what: str) -> tuple[int, ...]:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout), what))

    def read_list(self, load: bool, card: bool = True) -> dict[str, Entry]:
        """Read all; with `card` False the stream stays behind the last name, whatever follows."""
        self.check_kind()
        _, reserved, count = self.numbers("QQQ", "the file header")
        if reserved:
            raise self.problem(f"the reserved field holds {reserved:#x}", "0 there")
        if count * SMALLEST_ARRAY + 8 > self.left:
            raise self.problem(
                f"the header announces {count:,} arrays, but only {self.left:,} bytes follow",
                f"at least {SMALLEST_ARRAY} bytes per array",
            )
        entries = [self.read_array(f"array {index}", load) for index in range(count)]
        names = self.read_names(count)
        if card and self.left:
            self.read_card()
        return dict(zip(names, entries))

    def read_card(self) -> None:
        if self.left > MAX_BYTES + TRAILER.size:
            raise self.problem(
                f"{self.left:,} bytes follow the last name", "the end of the file or a card there"
            )
        block = self.take(self.left, "the card")
        try:
            decode_block(block)
        except CardError as error:
            raise self.problem(
                f"{len(block):,} bytes follow the last name that are no card: {error}",
                "the end of the file or a card there",
            ) from error

    def check_kind(self) -> None:
        head = self.stream.read(HEAD_BYTES)
        self.stream.seek(0)
        if head[:8] == struct.pack("<Q", LIST_MAGIC):
            return
        raise self.problem(
            f"this looks like {describe_kind(head)}",
            "an MXNet parameter file (mx.nd.save, save_parameters), which begins with the bytes "
            "12 01 00 00 00 00 00 00",
            "Give the path of a .param or .params file, or download it again.",
        )

    def read_array(self, what: str, load: bool) -> Entry:
        shape = self.read_shape(what)
        device, device_id, flag = self.numbers("iii", f"the device and type of {what}")
        if not (1 <= device <= 6 and 0 <= device_id < 4096):
            raise self.problem(
                f"{what} was saved on device type {device}, number {device_id}",
                "type 1 (CPU) to 6 and a number from 0 to 4095",
            )
        stored = np.dtype("<u2") if flag == BFLOAT16 else ELEMENT_TYPES.get(flag)
        if stored is None:
            known = ", ".join(f"{f} ({d.name})" for f, d in ELEMENT_TYPES.items())
            raise self.problem(
                f"{what} has element type {flag}",
                f"one of {known}, {BFLOAT16} (bfloat16)",
                "Save it from MXNet 1.x as one of these types, or get an undamaged copy.",
            )
        # Counted without the zeros: NumPy refuses a shape whose other dimensions overflow.
        if math.prod(max(size, 1) for size in shape) * stored.itemsize >= 2**63:
            raise self.problem(f"{what} has the impossible shape {shape}", "a shape that fits")
        size = math.prod(shape) * stored.itemsize
        self.need(size, f"{what} of shape {shape}")
        dtype = np.dtype(np.float32) if flag == BFLOAT16 else stored
        if load:
            return Entry(shape, dtype, self.read_elements(what, shape, stored, flag))
        self.stream.seek(size, os.SEEK_CUR)
        self.left -= size
        return Entry(shape, dtype, None)

    def read_shape(self, what: str) -> tuple[int, ...]:
        (magic,) = self.numbers("I", f"the header of {what}")
        dimension = "q"
        if magic in (ARRAY_V2, ARRAY_V3):
            (storage,) = self.numbers("i", f"the storage type of {what}")
            if storage != 0:
                sparse = {1: "row_sparse", 2: "csr"}.get(storage, f"number {storage}")
                raise self.problem(
                    f"{what} has storage type {sparse}",
                    "dense arrays",
                    "Convert it with .tostype('default') and save again.",
                )
        if magic in (ARRAY_V1, ARRAY_V2, ARRAY_V3):
            (count,) = self.numbers("i", f"the number of dimensions of {what}")
        else:
            count, dimension = magic, "I"
        smallest = 0 if magic == ARRAY_V3 else 1
        if not smallest <= count <= MAX_DIMENSIONS:
            raise self.problem(
                f"{what} has {count} dimensions",
                f"{smallest} to {MAX_DIMENSIONS} (0 and -1 mean 'not initialized' to MXNet)",
            )
        shape = self.numbers(f"{count}{dimension}", f"the shape of {what}")
        if any(size < smallest for size in shape):
            raise self.problem(f"{what} has shape {shape}", f"{smallest} or more everywhere")
        return shape

    def read_elements(
        self, what: str, shape: tuple[int, ...], stored: np.dtype, flag: int
    ) -> np.ndarray:
        array = np.empty(shape, stored)
        if array.size and self.stream.readinto(array.data.cast("B")) != array.nbytes:
            raise self.problem("the file became shorter while it was read", "a file at rest")
        self.left -= array.nbytes
        if flag == BFLOAT16:
            return (array.astype(np.uint32) << 16).view(np.float32)
        if stored == np.dtype(bool) and np.any(array.view(np.uint8) > 1):
            raise self.problem(f"{what} is bool but has other bytes than 0 and 1", "0 or 1")
        return array

    def read_names(self, count: int) -> list[str]:
        (announced,) = self.numbers("Q", "the number of names")
        if announced not in (0, count):
            raise self.problem(f"{announced:,} names for {count:,} arrays", "as many, or none")
        if not announced:
            return [str(index) for index in range(count)]
        names: dict[str, None] = {}
        for index in range(count):
            (length,) = self.numbers("Q", f"the length of name {index}")
            encoded = self.take(length, f"name {index}")
            try:
                name = encoded.decode("utf-8")
            except UnicodeDecodeError:
                name = "\0"
            if "\0" in name:
                raise self.problem(f"name {index} is {encoded[:40]!r}", "UTF-8 text")
            if name in names:
                raise self.problem(f"the name {name[:80]!r} occurs twice", "different names")
            names[name] = None
        return list(names)


class ParamFileError(Exception):
    """A parameter file cannot be read, written or trusted.

    The message says which file, what was found, what was expected and what to do.
    """


@contextmanager
def opened(path: PathLike, what: str) -> Iterator[BufferedReader]:
    """Open a file; what the system then reports, while it is read too, is a `ParamFileError`.

    `what` is expected there, such as "a safetensors file".
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            kind = "a folder" if stat.S_ISDIR(mode) else "a device or pipe"
            raise ParamFileError(
                f"{os.fspath(path)}: this is {kind}. Expected {what}. Give the path of the file "
                "itself."
            )
        with open(path, "rb") as stream:
            yield stream
    except FileNotFoundError as error:
        raise ParamFileError(
            f"{os.fspath(path)}: no such file. Expected {what}. Check the path and the current "
            "folder."
        ) from error
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise ParamFileError(
            f"{os.fspath(path)}: cannot be read: {reason}. Expected a readable "
            f"{what.partition(' ')[2]}. Check the path, its permissions and the disk."
        ) from error
