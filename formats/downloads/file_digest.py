"""What tells one published version of a file from others: its size and its hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional


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

    def difference(self, size: int, hashes: Mapping[str, Any]) -> Optional[str]:
        """What a file of this size and these hashes differs in; ``None`` when all is met."""
        if self.size is not None and size != self.size:
            return f"{size:,} bytes, expected {self.size:,}"
        for kind, value in self.hashes().items():
            actual = hashes[kind].hexdigest()
            if actual != value:
                return f"{kind} {actual}, expected {value}"
        return None


def mismatch(blocks: Iterable[bytes], accepted: Sequence[FileDigest]) -> Optional[str]:
    """``None`` when a content is one of the ``accepted`` versions, else what differs from them.

    Only the hashes that the versions give are computed, all in one pass over the content's blocks.
    """
    size, hashes = 0, {kind: hashlib.new(kind) for version in accepted for kind in version.hashes()}
    for block in blocks:
        size += len(block)
        for digest in hashes.values():
            digest.update(block)
    differences = [version.difference(size, hashes) for version in accepted]
    return None if None in differences else "; or ".join(filter(None, differences))
