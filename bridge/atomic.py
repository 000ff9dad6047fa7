"""Writing a file so that readers see either the old content or the whole new one."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from typing import Union

PathLike = Union[str, "os.PathLike[str]"]


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
        When the folder is missing or read-only, the disk is full, or ``path`` is a folder. The
        temporary file is removed first and a file that was at ``path`` is unchanged.
    """
    target = os.path.realpath(os.fspath(path))
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), target)
    folder, name = os.path.split(target)
    # The name is cut because the temporary one must also fit the file system's limit.
    temporary = os.path.join(folder, f".{name[:40]}.{secrets.token_hex(6)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, os.stat(target).st_mode & 0o7777)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(folder)


def _sync_folder(folder: str) -> None:
    """Make the rename itself durable, where the system can do that for a folder."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
