"""MXNet's parameter files (.param, .params) without MXNet: NumPy and the standard library only.

Every number in a file is checked against the bytes that are left before memory is allocated, and
whatever is wrong becomes a `ParamFileError`. The format (see `formats.param_reader`) has no
checksum: flipped bits in the elements can only be found with the digest beside the file,
``PATH.sha256``.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import Any, Callable, Optional, TypeVar

import numpy as np

from formats.atomic import PathLike
from formats.card import TRAILER, CardError, block_length, decode_block, encode_block
from formats.digest import verify_digest, write_with_digest
from formats.param_reader import (
    ARRAY_V2,
    CPU,
    ELEMENT_TYPES,
    LIST_MAGIC,
    TYPE_FLAGS,
    ParamFileError,
    ParamReader,
    opened,
)

__all__ = ["read_block", "read_params", "read_shapes", "write_block", "write_params"]

T = TypeVar("T")
WHAT = "an MXNet parameter file"


def read_params(path: PathLike) -> dict[str, np.ndarray]:
    """Read a parameter file.

    Parameters
    ----------
    path
        File that MXNet or `write_params` wrote. The digest beside it is not looked at here (see
        `verify_digest`).

    Returns
    -------
    dict
        Name to array, in the order of the file, names as stored (with ``arg:`` or ``aux:`` where
        they have it). Arrays saved as a list without names are called ``"0"``, ``"1"``, ... An
        array of bfloat16, which NumPy lacks, is widened to float32, which loses nothing.

    Raises
    ------
    ParamFileError
        When the file cannot be read or is not a sound parameter file.
    """
    entries = _open(path, lambda reader: reader.read_list(load=True))
    return {name: entry.array for name, entry in entries.items()}  # type: ignore[misc]


def read_shapes(path: PathLike) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Read the names, shapes and element types of a parameter file, but not the elements.

    Takes and raises the same as `read_params`; returns name to ``(shape, dtype)``.
    """
    entries = _open(path, lambda reader: reader.read_list(load=False))
    return {name: (entry.shape, entry.dtype) for name, entry in entries.items()}


def read_block(path: PathLike) -> tuple[Optional[dict[str, Any]], int]:
    """Read the card behind the arrays of a parameter file, and nothing else of it.

    Returns
    -------
    tuple
        The card (see `formats.card`; None when there is none), and how many bytes at the end of the
        file it takes.

    Raises
    ------
    ParamFileError
        When the file cannot be read or the card is damaged.
    """
    try:
        with opened(path, WHAT) as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(size - TRAILER.size, 0))
            length = block_length(stream.read(TRAILER.size))
            if length is None:
                return None, 0
            if length > size:
                raise CardError(f"it announces {length:,} bytes, the file has {size:,}")
            stream.seek(size - length)
            return decode_block(stream.read(length)), length
    except CardError as error:
        raise ParamFileError(
            f"{os.fspath(path)}: its card is damaged: {error}. Expected a card that this project "
            "wrote. Copy or download the file again, or take the card off: "
            f"python -m model.weights.card {os.fspath(path)} --strip."
        ) from error


def write_params(
    path: PathLike,
    params: Mapping[str, np.ndarray],
    digest: bool = True,
    card: Optional[Mapping[str, Any]] = None,
) -> str:
    """Write a parameter file that MXNet loads, byte for byte as `mx.nd.save` would write it.

    Parameters
    ----------
    path
        File to create or replace, atomically.
    params
        Name to array, written in this order. Any of float32, float64, float16, uint8, int32, int8,
        int64 and bool, at least one dimension and one element.
    digest
        Also write ``PATH.sha256``, in the format of ``sha256sum``. Without it a digest left from an
        older file of this name is removed.
    card
        What the network is (see `formats.card`), for the end of the file. MXNet does not read it.

    Returns
    -------
    str
        SHA-256 of the file, hexadecimal.

    Raises
    ------
    ParamFileError
        When an array, a name or the card cannot be stored, or the file cannot be written. The file
        that was there is then unchanged.
    """
    return write_with_digest(path, b"".join([*_encode(path, params), _block(path, card)]), digest)


def write_block(path: PathLike, card: Optional[Mapping[str, Any]]) -> None:
    """Put a card behind the arrays of a parameter file in place of what is there; None: nothing.

    The arrays do not change by a bit. The digest beside the file, where there is one, follows.

    Raises
    ------
    ParamFileError
        When the file is no sound parameter file, differs from its digest, or cannot be written.
    """
    block, known = _block(path, card), verify_digest(path)

    def arrays(reader: ParamReader) -> bytes:
        reader.read_list(load=False, card=False)
        end = reader.stream.tell()
        reader.stream.seek(0)
        return reader.stream.read(end)

    write_with_digest(path, _open(path, arrays) + block, known)


def _block(path: PathLike, card: Optional[Mapping[str, Any]]) -> bytes:
    try:
        return b"" if card is None else encode_block(card)
    except CardError as error:
        raise ParamFileError(
            f"{os.fspath(path)}: its card cannot be written: {error}. Expected the fields of "
            "docs/files.md. Correct what it was made from."
        ) from error


def _encode(path: PathLike, params: Mapping[str, np.ndarray]) -> list[bytes]:
    chunks = [struct.pack("<QQQ", LIST_MAGIC, 0, len(params))]
    names = [struct.pack("<Q", len(params))]
    for name, value in params.items():
        array = np.asarray(value)
        flag = TYPE_FLAGS.get(array.dtype.newbyteorder("<"))
        if flag is None:
            known = ", ".join(dtype.name for dtype in TYPE_FLAGS)
            raise ParamFileError(
                f"{os.fspath(path)}: array {name!r} has element type {array.dtype}, which MXNet "
                f"cannot store. Expected one of {known}. Convert it with .astype() first."
            )
        if array.ndim == 0 or array.size == 0:
            raise ParamFileError(
                f"{os.fspath(path)}: array {name!r} has shape {array.shape}, which MXNet reads as "
                "'not initialized'. Expected at least one dimension and one element. Use "
                ".reshape(1) for a number and leave out an empty array."
            )
        try:
            encoded = name.encode("utf-8")
        except UnicodeEncodeError:
            encoded = b"\0"
        if b"\0" in encoded:
            raise ParamFileError(
                f"{os.fspath(path)}: {name!r} cannot be a name: it has a zero character or is not "
                "valid Unicode. Expected plain text. Rename the array."
            )
        header = struct.pack("<Iii", ARRAY_V2, 0, array.ndim)
        header += struct.pack(f"<{array.ndim}q", *array.shape) + struct.pack("<iii", CPU, 0, flag)
        chunks += [header, array.astype(ELEMENT_TYPES[flag], copy=False).tobytes()]
        names += [struct.pack("<Q", len(encoded)), encoded]
    return chunks + names


def _open(path: PathLike, read: Callable[[ParamReader], T]) -> T:
    with opened(path, WHAT) as stream:
        return read(ParamReader(path, stream))
