"""A file in pieces of a bounded size, for ways that carry only small files.

``NAME.piece-02-of-07.0123abcd`` begins with one line of JSON that says what the piece is part of:
name, serial number, index, count, size and SHA-256 of the whole, SHA-256 of the piece. The rest are
its bytes. The pieces of a newer version have other names, so that the older set stays whole until
the newer one is complete; reading takes the complete set with the highest serial number. Nothing is
believed before its digest is right. Python's standard library suffices.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, Optional

from formats.atomic import PathLike, write_atomically

MAGIC = "attention-piece"
MAX_HEADER, MAX_PIECES, MAX_BYTES = 4096, 999, 2**32
MB = 1_000_000
_NAME = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)\.piece-(?P<index>\d{2,3})-of-(?P<count>\d{2,3})\.[0-9a-f]{8}"
)


class PieceError(ValueError):
    """The pieces of a file cannot be written, found or believed; the message says what to do."""


class Header(NamedTuple):
    """The first line of a piece."""

    name: str
    serial: int
    number: int  # from 0
    total: int
    size: int
    sha256: str
    piece_sha256: str


def write_pieces(
    folder: PathLike, name: str, data: bytes, max_bytes: int, serial: int = 0
) -> list[Path]:
    """Write `data` as pieces of at most `max_bytes` each, then remove the older ones of `name`.

    Parameters
    ----------
    folder
        Existing folder.
    name
        Letters, digits, dots, underscores and hyphens.
    data
        The whole content.
    max_bytes
        Size of a file, its header included.
    serial
        Larger for newer content.

    Raises
    ------
    PieceError
        When the name, the size or the folder cannot be used.
    """
    room = max_bytes - MAX_HEADER
    count = max(1, -(-len(data) // room)) if room > 0 else MAX_PIECES + 1
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name) or count > MAX_PIECES:
        raise PieceError(
            f"{name}: {len(data):,} bytes in pieces of {max_bytes:,}. Expected a plain name, "
            f"pieces of more than {MAX_HEADER} bytes, at most {MAX_PIECES}. Use larger pieces."
        )
    whole, written = hashlib.sha256(data).hexdigest(), []
    length = -(-len(data) // count)  # all about as large
    try:
        for index in range(count):
            part = data[index * length : (index + 1) * length]
            header = Header(
                name, serial, index, count, len(data), whole, hashlib.sha256(part).hexdigest()
            )
            path = Path(folder) / _file_name(header)
            line = json.dumps([MAGIC, *header]).encode() + b"\n"
            write_atomically(path, line + part)
            written.append(path)
    except OSError as error:
        raise PieceError(
            f"{folder}: cannot be written: {error.strerror}. Expected a writable folder with "
            f"{len(data):,} bytes free. The older pieces, if any, are unchanged."
        ) from error
    remove_pieces(folder, name, keep=written)
    return written


def remove_pieces(folder: PathLike, name: str, keep: Iterable[Path] = ()) -> None:
    """Remove the pieces of `name` but for those to keep."""
    kept = {path.name for path in keep}
    for path in _found(folder, name):
        if path.name not in kept:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def piece_names(folder: PathLike) -> list[str]:
    """Return the names of the files that have pieces in `folder`, sorted."""
    matches = (_NAME.fullmatch(path.name) for path in Path(folder).glob("*.piece-*"))
    return sorted({match["name"] for match in matches if match})


def read_pieces(folder: PathLike, name: str) -> Optional[bytes]:
    """Return the newest complete content of `name`, or None when it has no pieces here.

    Raises
    ------
    PieceError
        When no set is complete, or a digest is wrong.
    """
    sets: dict[tuple[int, str, int], dict[int, tuple[Path, Header]]] = {}
    for path in _found(folder, name):
        header = _read_header(path)
        key = (header.serial, header.sha256, header.total)
        sets.setdefault(key, {})[header.number] = (path, header)
    if not sets:
        return None
    complete = [key for key, pieces in sets.items() if len(pieces) == key[2]]
    if not complete:
        newest = max(sets)
        lacking = sorted(set(range(newest[2])) - set(sets[newest]))
        raise PieceError(
            f"{Path(folder) / name}: {len(lacking)} of {newest[2]} pieces are missing, the first "
            f"is number {lacking[0] + 1}. Expected all. Copy the missing ones into {folder}."
        )
    pieces = sets[max(complete)]
    data = b"".join(_read_part(*pieces[index]) for index in range(len(pieces)))
    header = pieces[0][1]
    if len(data) != header.size or hashlib.sha256(data).hexdigest() != header.sha256:
        raise PieceError(
            f"{Path(folder) / name}: the pieces do not make the whole. Copy them again."
        )
    return data


def _file_name(header: Header) -> str:
    number, count = f"{header.number + 1:02d}", f"{header.total:02d}"
    return f"{header.name}.piece-{number}-of-{count}.{header.sha256[:8]}"


def _found(folder: PathLike, name: str) -> list[Path]:
    matches = ((path, _NAME.fullmatch(path.name)) for path in Path(folder).glob("*.piece-*"))
    return sorted(path for path, match in matches if match and match["name"] == name)


def _read_header(path: Path) -> Header:
    try:
        with open(path, "rb") as stream:
            line = stream.readline(MAX_HEADER)
        magic, *values = json.loads(line)
        header = Header(*values)
        numbers = (header.serial, header.number, header.total, header.size)
        sound = magic == MAGIC and all(type(number) is int and number >= 0 for number in numbers)
        texts = (header.name, header.sha256, header.piece_sha256)
        sound = sound and all(isinstance(text, str) for text in texts)
        if not sound or not header.number < header.total <= MAX_PIECES or header.size > MAX_BYTES:
            raise ValueError("impossible values")
        if _file_name(header) != path.name:
            raise ValueError("it is of another file")
    except (OSError, ValueError, TypeError) as error:
        raise PieceError(f"{path}: no piece of a file: {error}. Copy it again.") from error
    return header


def _read_part(path: Path, header: Header) -> bytes:
    limit = header.size + MAX_HEADER
    with open(path, "rb") as stream:
        stream.readline(MAX_HEADER)
        part = stream.read(limit)
    if hashlib.sha256(part).hexdigest() != header.piece_sha256:
        raise PieceError(
            f"{path}: its SHA-256 is not that of its header: {os.path.getsize(path):,} bytes, "
            "damaged on the way. Copy it again."
        )
    return part
