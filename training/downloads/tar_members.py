"""Reading tar archives that somebody else packed, without trusting their headers.

Members are read by the last part of their name and never extracted by path, so that no name can
lead out of a folder (`training.downloads.cifar_files`, `training.data.stl10`). What is left to
bound is here.
"""

from __future__ import annotations

import tarfile
from typing import Union

# A long name, a long link, or what pax adds to a member: tarfile reads these into memory at once.
EXTENDED_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)
MAX_HEADER_BYTES = 2**20


class BoundedTarInfo(tarfile.TarInfo):
    """For ``tarfile.open(tarinfo=...)``: refuses a header that would not fit into memory."""

    @classmethod
    def frombuf(cls, buf: Union[bytes, bytearray], encoding: str, errors: str) -> BoundedTarInfo:
        """Return the member that a block of 512 bytes announces.

        Raises
        ------
        tarfile.ReadError
            When it announces more than `MAX_HEADER_BYTES` of names and attributes.
        """
        info = super().frombuf(buf, encoding, errors)
        if info.type in EXTENDED_HEADERS and info.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header announces {info.size:,} bytes")
        return info
