"""MXNet's parameter files (.param, .params) without MXNet: NumPy and the standard library only.

Every number in a file is checked against the bytes that are left before memory is allocated, and
whatever is wrong becomes a `ParamFileError`. The format (see `formats.param_reader`) has no
checksum: flipped bits in the elements can only be found with the digest beside the file,
``PATH.sha256``.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping

import numpy as np

from formats.atomic import PathLike, write_together
from formats.digest import digest_line, digest_path, sha256_hex
from formats.param_reader import (
    ARRAY_V2,
    CPU,
    ELEMENT_TYPES,
    LIST_MAGIC,
    TYPE_FLAGS,
    Entry,
    ParamFileError,
    ParamReader,
)

__all__ = ["read_params", "read_shapes", "write_params"]


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
    return {name: entry.array for name, entry in _read(path, load=True).items()}  # type: ignore[misc]


def read_shapes(path: PathLike) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Read the names, shapes and element types of a parameter file, but not the elements.

    Takes and raises the same as `read_params`; returns name to ``(shape, dtype)``.
    """
    return {name: (e.shape, e.dtype) for name, e in _read(path, load=False).items()}


def write_params(path: PathLike, params: Mapping[str, np.ndarray], digest: bool = True) -> str:
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

    Returns
    -------
    str
        SHA-256 of the file, hexadecimal.

    Raises
    ------
    ParamFileError
        When an array or a name cannot be stored, or the file cannot be written. The file that was
        there is then unchanged.
    """
    data = b"".join(_encode(path, params))
    hexdigest = sha256_hex(data)
    try:
        side = digest_line(path, hexdigest) if digest else None
        write_together([(path, data), (digest_path(path), side)])
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ParamFileError(
            f"{os.fspath(path)}: cannot be written: {reason}. Expected a writable folder with "
            f"{len(data):,} bytes free. The old file, if any, is unchanged; make room or choose "
            "another folder."
        ) from error
    return hexdigest


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


def _read(path: PathLike, load: bool) -> dict[str, Entry]:
    """Open the file, read it, and turn whatever the system reports into a ParamFileError."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
            raise ParamFileError(
                f"{os.fspath(path)}: this is {kind}. Expected an MXNet parameter file. Give the "
                "path of the file itself."
            )
        with open(path, "rb") as stream:
            return ParamReader(path, stream).read_list(load)
    except FileNotFoundError as error:
        raise ParamFileError(
            f"{os.fspath(path)}: no such file. Expected an MXNet parameter file. Check the path "
            "and the current folder."
        ) from error
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise ParamFileError(
            f"{os.fspath(path)}: cannot be read: {reason}. Expected a readable MXNet parameter "
            "file. Check the path, its permissions and the disk."
        ) from error
