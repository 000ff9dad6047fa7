"""What tells one published version of a file from others: its size and its hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class FileDigest:
    """What one published version of a file looks like; ``None`` where its publisher does not say.

    Parameters
    ----------
    size : int, optional
        Bytes.
    sha256, sha1, md5 : str, optional
        Lower-case hexadecimal, full length. At least one is given; all given ones must match.
    """

    size: Optional[int]
    sha256: Optional[str] = None
    sha1: Optional[str] = None
    md5: Optional[str] = None

    def __post_init__(self) -> None:
        if not self.hashes():
            raise ValueError("a FileDigest needs at least one hash")
        for kind, value in self.hashes().items():
            if len(value) != 2 * hashlib.new(kind).digest_size or value.strip("0123456789abcdef"):
                raise ValueError(f"not a full {kind}: {value!r}")

    def hashes(self) -> dict[str, str]:
        """The given hashes, strongest first: algorithm -> hexadecimal."""
        pairs = (("sha256", self.sha256), ("sha1", self.sha1), ("md5", self.md5))
        return {kind: value for kind, value in pairs if value is not None}


class Hasher:
    """Size and all three hashes of a stream of blocks, in one pass."""

    def __init__(self) -> None:
        self.size = 0
        self._hashes = {kind: hashlib.new(kind) for kind in ("sha256", "sha1", "md5")}

    def update(self, block: bytes) -> None:
        """Add ``block``."""
        self.size += len(block)
        for digest in self._hashes.values():
            digest.update(block)

    def mismatch(self, expected: FileDigest) -> Optional[str]:
        """``None`` when everything that ``expected`` gives is met, else what differs."""
        if expected.size is not None and self.size != expected.size:
            return f"{self.size:,} bytes, expected {expected.size:,}"
        for kind, value in expected.hashes().items():
            actual = self._hashes[kind].hexdigest()
            if actual != value:
                return f"{kind} {actual}, expected {value}"
        return None


def mismatch(content: bytes, accepted: Iterable[FileDigest]) -> Optional[str]:
    """``None`` when ``content`` is one of the ``accepted`` versions, else what differs from them.

    Only the hashes that a version gives are computed.
    """
    differences = []
    for expected in accepted:
        if expected.size is not None and len(content) != expected.size:
            differences.append(f"{len(content):,} bytes, expected {expected.size:,}")
            continue
        for kind, value in expected.hashes().items():
            actual = hashlib.new(kind, content).hexdigest()
            if actual != value:
                differences.append(f"{kind} {actual}, expected {value}")
                break
        else:
            return None
    return "; or ".join(differences)
