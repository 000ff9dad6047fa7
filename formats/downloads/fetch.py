"""Download one file: several places in order, resumable, checked, atomic.

A partial file is kept as ``NAME.<place>.part``, one for each place because the same name may hold
differently packed archives, and is continued by an HTTP range request, in this or a later run.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Optional
from urllib.parse import urlsplit, urlunsplit

from formats.atomic import sync_folder
from formats.downloads.file_digest import FileDigest, mismatch
from formats.downloads.http_transfer import BLOCK, Unavailable, flush, transfer


class DownloadFailed(Exception):
    """No place gave the file; ``attempts`` lists each place with its reason."""

    def __init__(self, file_name: str, attempts: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{place}: {reason}" for place, reason in attempts))
        self.file_name, self.attempts = file_name, tuple(attempts)


def fetch(
    file_name: str, places: Sequence[str], accepted: Sequence[FileDigest], folder: str
) -> str:
    """Get ``file_name`` from the first place that has it, into ``folder``.

    Parameters
    ----------
    file_name : str
        Name of the file in ``folder``; it appears there complete and checked, or not at all.
    places : sequence of str
        URLs or local paths of the file, tried in order.
    accepted : sequence of FileDigest
        Versions of the file that may be used.
    folder : str
        Existing folder.

    Returns
    -------
    str
        Path of the file.

    Raises
    ------
    DownloadFailed
        No place gave an accepted file.
    OSError
        ``folder`` cannot be written.
    """
    target = os.path.join(folder, file_name)
    attempts = []
    for place in places:
        mark = hashlib.sha256(place.encode()).hexdigest()[:8]
        part = f"{target}.{mark}.part"
        try:
            if place.startswith(("http://", "https://")):
                _download_checked(place, part, accepted)
            else:
                _copy_checked(place, part, accepted)
        except Unavailable as error:
            attempts.append((shown(place), str(error)))
            continue
        os.replace(part, target)
        sync_folder(folder)
        for leftover in glob.glob(f"{glob.escape(target)}.????????.part"):
            os.remove(leftover)
        return target
    raise DownloadFailed(file_name, attempts)


@contextlib.contextmanager
def exclusive(folder: str) -> Iterator[None]:
    """Let one process at a time download into ``folder``; the others wait.

    File systems without locks go without: every file is written atomically anyway.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process that downloads into {folder}", file=sys.stderr)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def shown(place: str) -> str:
    """``place`` without a user name, password or query, fit for a message."""
    if "://" not in place:
        return place
    parts = urlsplit(place)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _download_checked(url: str, part: str, accepted: Sequence[FileDigest]) -> None:
    limit = _largest(accepted)
    continued = transfer(url, part, limit)
    difference = _difference(part, accepted)
    if difference and continued:
        # The file may have changed between the two halves: once more from the start.
        os.remove(part)
        transfer(url, part, limit)
        difference = _difference(part, accepted)
    if difference:
        os.remove(part)
        raise Unavailable(f"wrong content: {difference}")


def _copy_checked(path: str, part: str, accepted: Sequence[FileDigest]) -> None:
    if not os.path.isfile(path):
        raise Unavailable("no such file")
    limit = _largest(accepted)
    if limit is not None and os.path.getsize(path) > limit:
        raise Unavailable(f"larger than {limit:,} bytes, which the file is not")
    with open(path, "rb") as source, open(part, "wb") as stream:
        shutil.copyfileobj(source, stream, BLOCK)
        flush(stream)
    difference = _difference(part, accepted)
    if difference:
        os.remove(part)
        raise Unavailable(f"wrong content: {difference}")


def _largest(accepted: Sequence[FileDigest]) -> Optional[int]:
    """Bytes of the largest accepted version, or None when the size of one is not known."""
    sizes = [version.size for version in accepted]
    return None if None in sizes else max(filter(None, sizes), default=None)


def _difference(path: str, accepted: Sequence[FileDigest]) -> Optional[str]:
    with open(path, "rb") as stream:
        return mismatch(iter(lambda: stream.read(2**20), b""), accepted)
