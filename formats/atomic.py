"""Writing files so that readers see either the old content or the whole new one."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Optional, Union

PathLike = Union[str, "os.PathLike[str]"]

_LEFTOVER = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")


def write_atomically(path: PathLike, data: bytes) -> None:
    """Write ``data`` to ``path``: a temporary file in the same folder, then one rename.

    A symbolic link is followed, so that the link stays and the file behind it is replaced. The
    permissions of an existing file are kept; a new file gets the usual ones (umask).

    Parameters
    ----------
    path
        File to create or replace. Its folder must exist.
    data
        The whole content.

    Raises
    ------
    OSError
        When the folder is missing or read-only, the disk is full, or ``path`` is a folder, a
        device or a pipe. The temporary file is removed first and a file that was at ``path`` is
        unchanged.
    """
    write_together([(path, data)])


def write_together(files: Sequence[tuple[PathLike, Optional[bytes]]]) -> None:
    """Write a file and the side files that describe it, so that they never contradict each other.

    Everything is on the disk under temporary names before the first file is replaced: a full disk
    leaves all of them as they were. The old side files (all but the first of ``files``) go before
    the first file changes: a crash in between leaves it without a side file, not with a wrong one.

    Parameters
    ----------
    files
        Pairs of path and content, the main file first. A side file with content None is removed.

    Raises
    ------
    OSError
        As for `write_atomically`.
    """
    targets = [os.path.realpath(os.fspath(path)) for path, _ in files]
    temporaries: dict[str, str] = {}
    try:
        for target, (_, data) in zip(targets, files):
            if data is not None:
                temporaries[target] = _temporary_name(target)
                _write_temporary(temporaries[target], target, data)
        old = [target for target in targets[1:] if os.path.lexists(target)]
        for target in old:
            os.unlink(target)
        # Each step is on the disk before the next: a power cut must not change their order.
        if old:
            _sync_folders(targets)
        for target, temporary in temporaries.items():
            os.replace(temporary, target)
            sync_folder(os.path.dirname(target))
    except BaseException:
        for temporary in temporaries.values():
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        raise
    if len(temporaries) < len(targets):
        _sync_folders(targets)


@contextlib.contextmanager
def replacing(path: PathLike) -> Iterator[BinaryIO]:
    """Give a stream whose content takes the place of ``path`` at the end of the block.

    For content that is too large to be held in memory. When the block or the disk fails, the file
    that was at ``path`` is unchanged and the temporary one is removed.
    """
    target = os.path.realpath(os.fspath(path))
    temporary = _temporary_name(target)
    try:
        with open(temporary, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(os.path.dirname(target))


def remove_leftovers(folder: PathLike, below: bool = True) -> None:
    """Remove the temporary files that killed processes left in a folder, and below it.

    Only for a folder that no other process writes to at that moment.
    """
    for place, folders, names in os.walk(os.fspath(folder)):
        for name in filter(_LEFTOVER.fullmatch, names):
            os.unlink(os.path.join(place, name))
        if not below:
            folders.clear()


def _temporary_name(target: str) -> str:
    folder, name = os.path.split(target)
    # The name is cut because the temporary one must also fit the file system's limit.
    return os.path.join(folder, f".{name[:40]}.{secrets.token_hex(6)}.tmp")


def _write_temporary(temporary: str, target: str, data: bytes) -> None:
    # A rename would put a file in the place of a folder's, device's or pipe's name.
    mode = os.stat(target).st_mode if os.path.exists(target) else None
    if mode is not None and stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    if mode is not None and not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file but a device, pipe or socket", target)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    if mode is not None:
        os.chmod(temporary, stat.S_IMODE(mode))


def _sync_folders(targets: Sequence[str]) -> None:
    for folder in dict.fromkeys(os.path.dirname(target) for target in targets):
        sync_folder(folder)


def sync_folder(folder: PathLike) -> None:
    """Make new, renamed and removed names durable, where the system can do that for a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(os.fspath(folder) or ".", os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
