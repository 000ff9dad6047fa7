"""Safetensors files: what PyTorch and most other frameworks read without running code.

The format is parsed by the `safetensors` package, its reference implementation in Rust: it checks
the length of the header, the types, every offset (no gap, no overlap, nothing beyond the file) and
every overflow before it touches an element. A well-kept library beats own code here; what is added
is what it leaves to its caller: a smaller bound for the header, one entry per name, a fixed order,
bfloat16 (which NumPy lacks), one kind of error, and atomic writing. It needs neither PyTorch nor
MXNet, and is imported only when such a file is read or written.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from typing import Any, Optional

import numpy as np

from formats.atomic import PathLike
from formats.digest import verify_digest, write_with_digest
from formats.param_reader import DAMAGED, ParamFileError, opened

LENGTH_BYTES = 8  # the header's length, before the header
MAX_HEADER = 16 << 20  # the names and shapes of 100,000 arrays fit
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",  # widened after reading
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


def is_safetensors(head: bytes) -> bool:
    """Tell from a file's first bytes: a length, then a JSON object."""
    return head[LENGTH_BYTES : LENGTH_BYTES + 1] == b"{" and head[4:8] == bytes(4)


def read_safetensors(path: PathLike) -> dict[str, np.ndarray]:
    """Read a safetensors file.

    Parameters
    ----------
    path
        File that any implementation of the format wrote.

    Returns
    -------
    dict
        Name to array, sorted by name (the format keeps no other order); bfloat16 is widened to
        float32, which loses nothing.

    Raises
    ------
    ParamFileError
        When the file cannot be read, is damaged, or holds element types that NumPy lacks.
    """
    from safetensors import SafetensorError, deserialize

    with opened(path, "a safetensors file") as stream:
        data = stream.read()
    _check_header(path, data)
    try:
        entries = deserialize(data)
    except SafetensorError as error:
        raise _problem(
            path, f"broken: {str(error)[:200]}", "a sound safetensors file", DAMAGED
        ) from error
    del data
    return {name: _array(path, name, entry) for name, entry in sorted(entries)}


def read_metadata(path: PathLike) -> dict[str, str]:
    """Return the texts in the header of a safetensors file; ParamFileError as `read_safetensors`.

    No array is read.
    """
    try:
        with open(path, "rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(LENGTH_BYTES))
            data = stream.read(min(length, MAX_HEADER))
    except (OSError, ValueError, struct.error) as error:
        raise _problem(path, f"cannot be read: {error}", "a safetensors file", DAMAGED) from error
    header = _check_header(path, struct.pack("<Q", length) + data)
    found = header.get("__metadata__", {})
    sound = isinstance(found, dict) and all(isinstance(text, str) for text in found.values())
    if not sound:
        raise _problem(path, "its metadata is damaged", "texts by name", DAMAGED)
    return dict(found)


def write_metadata(path: PathLike, metadata: Mapping[str, str]) -> None:
    """Give a safetensors file other texts in its header; the arrays stay bit for bit.

    The digest beside the file, where there is one, follows. Raises as `write_safetensors`.
    """
    known = verify_digest(path)
    with opened(path, "a safetensors file") as stream:
        data = stream.read()
    header = _check_header(path, data)
    (length,) = struct.unpack("<Q", data[:LENGTH_BYTES])
    header["__metadata__"] = dict(metadata)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)  # arrays begin where numbers of 8 bytes may lie
    content = struct.pack("<Q", len(text)) + text + data[LENGTH_BYTES + length :]
    write_with_digest(path, content, known)


def write_safetensors(
    path: PathLike, arrays: Mapping[str, np.ndarray], metadata: Optional[dict[str, str]] = None
) -> str:
    """Write a safetensors file and its digest, ``PATH.sha256``, both or neither.

    Parameters
    ----------
    path
        File to create or replace.
    arrays
        Name to array, of any type in `DTYPES` (but bfloat16); the bits are kept.
    metadata
        Texts for the header.

    Returns
    -------
    str
        SHA-256 of the file, hexadecimal.

    Raises
    ------
    ParamFileError
        When an array cannot be stored or the file cannot be written; the file that was there is
        then unchanged.
    """
    from safetensors.numpy import save

    storable = [np.dtype(stored) for kind, stored in DTYPES.items() if kind != "BF16"]
    stored = {}
    for name, array in arrays.items():
        if array.dtype.newbyteorder("<") not in storable:
            known = ", ".join(dtype.name for dtype in storable)
            raise _problem(
                path,
                f"array {name!r} has element type {array.dtype}, which safetensors cannot store",
                f"one of {known}",
                "Convert it with .astype() first.",
            )
        # The library stores the memory as it lies there: rows first, lowest byte first.
        stored[name] = array.astype(array.dtype.newbyteorder("<"), order="C", copy=False)
    return write_with_digest(path, save(stored, metadata))


def _check_header(path: PathLike, data: bytes) -> dict[str, Any]:
    if len(data) < LENGTH_BYTES:
        raise _problem(path, f"the file has {len(data)} bytes", "8 or more", DAMAGED)
    (length,) = struct.unpack("<Q", data[:LENGTH_BYTES])
    if length > min(MAX_HEADER, len(data) - LENGTH_BYTES):
        raise _problem(
            path,
            f"the header announces {length:,} bytes, {len(data) - LENGTH_BYTES:,} follow",
            f"a header of at most {MAX_HEADER:,} bytes within the file",
            DAMAGED,
        )

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise _problem(path, f"{name[:80]!r} occurs twice", "different names", DAMAGED)
            found[name] = value
        return found

    # The library would take the last of two entries with one name without a word.
    try:
        header = json.loads(data[LENGTH_BYTES : LENGTH_BYTES + length], object_pairs_hook=unique)
        return dict(header)
    except (ValueError, TypeError, RecursionError) as error:
        raise _problem(path, "its header is no JSON", "a safetensors file", DAMAGED) from error


def _array(path: PathLike, name: str, entry: Mapping[str, Any]) -> np.ndarray:
    kind = entry["dtype"]
    if kind not in DTYPES:
        raise _problem(
            path,
            f"array {name[:80]!r} has element type {kind}",
            f"one of {', '.join(DTYPES)}",
            "Convert it where it was made.",
        )
    try:
        stored = np.frombuffer(entry["data"], DTYPES[kind]).reshape(entry["shape"])
    except ValueError as error:
        # The format's own limits are wider: an empty array can have any product of dimensions.
        shape = str(list(entry["shape"]))[:80]
        raise _problem(
            path, f"array {name[:80]!r} has shape {shape}", "one that NumPy can hold", DAMAGED
        ) from error
    if kind == "BF16":
        return (stored.astype(np.uint32) << 16).view(np.float32)
    if kind == "BOOL" and np.any(stored.view(np.uint8) > 1):
        raise _problem(
            path, f"array {name[:80]!r} is bool but has other bytes than 0 and 1", "0 or 1", DAMAGED
        )
    return stored


def _problem(path: PathLike, found: str, expected: str, remedy: str) -> ParamFileError:
    return ParamFileError(f"{os.fspath(path)}: {found}. Expected {expected}. {remedy}")
