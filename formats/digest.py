"""The digest beside a parameter file: ``X.param.sha256``, as ``sha256sum`` writes and checks it."""

from __future__ import annotations

import hashlib
import os
import re
from typing import Optional

from formats.atomic import PathLike, write_together
from formats.param_reader import ParamFileError

# A digest file has a line of some hundred bytes; more is another file with that name.
MAX_DIGEST_BYTES = 65536
_LINE = re.compile(r"(?P<escaped>\\?)(?P<digest>[0-9a-fA-F]{64})(?:[ ][ *](?P<name>.+))?")


def digest_path(path: PathLike) -> str:
    """Return the name of the digest file that belongs to ``path``."""
    return os.fspath(path) + ".sha256"


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 of ``data``, hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_line(path: PathLike, hexdigest: str) -> bytes:
    """Return the content of the digest file: ``<hex>  <basename>`` and a line feed."""
    name = os.path.basename(os.fspath(path))
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    # sha256sum marks a line whose name it had to escape with a leading backslash.
    mark = "\\" if escaped != name else ""
    return os.fsencode(f"{mark}{hexdigest}  {escaped}\n")


def verify_digest(path: PathLike) -> bool:
    """Compare a file with the digest beside it.

    Parameters
    ----------
    path
        The parameter file; its digest is in ``PATH.sha256``.

    Returns
    -------
    bool
        True when the digest is there and matches, False when there is no digest file.

    Raises
    ------
    ParamFileError
        When the digest does not match, or one of the two files cannot be read.
    """
    side = digest_path(path)
    try:
        expected = _read_digest(path, side)
        if expected is None:
            return False
        found = _hash_file(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ParamFileError(
            f"{getattr(error, 'filename', None) or os.fspath(path)}: cannot be read: {reason}. "
            "Expected a readable file. Check the path, its permissions and the disk."
        ) from error
    if found != expected:
        raise ParamFileError(
            f"{os.fspath(path)}: its SHA-256 is {found}. Expected {expected}, as {side} says. The "
            "file was changed or damaged after it was saved: get a sound copy; delete the .sha256 "
            "file only if you changed it on purpose."
        )
    return True


def write_with_digest(path: PathLike, data: bytes, digest: bool = True) -> str:
    """Write a file and the digest beside it, both or neither; return its SHA-256.

    Without `digest` one that is left from an older file is removed. ParamFileError when that fails;
    the file that was there is then unchanged.
    """
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


def _read_digest(path: PathLike, side: str) -> Optional[str]:
    """Return the digest recorded for ``path``, or None when there is no digest file."""
    if not os.path.lexists(side):
        return None
    with open(side, "rb") as stream:
        text = os.fsdecode(stream.read(MAX_DIGEST_BYTES + 1))
    lines = [line.rstrip("\r") for line in text.split("\n") if line.strip()]
    matches = [_LINE.fullmatch(line) for line in lines]
    own = _LINE.fullmatch(os.fsdecode(digest_line(path, "0" * 64))[:-1])
    digests = [m["digest"].lower() for m in matches if m]
    named = [m["digest"].lower() for m in matches if m and own and m["name"] == own["name"]]
    if len(text) <= MAX_DIGEST_BYTES and len(digests) == len(lines):
        if len(named) == 1:
            return named[0]
        # The only line counts under any name: both files may have been renamed.
        if len(digests) == 1:
            return digests[0]
    raise ParamFileError(
        f"{side}: has no single line for {os.path.basename(os.fspath(path))}. Expected one line "
        "'<64 hexadecimal digits>  <file name>', as sha256sum writes it. Write it anew with "
        "sha256sum if you trust the parameter file, or delete it."
    )


def _hash_file(path: PathLike) -> str:
    checksum = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()
