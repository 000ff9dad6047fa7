"""Cut TensorBoard event files back to a step.

A resumed run repeats the epochs after its checkpoint. Their events are taken out first: two values
of one tag at one step would be drawn twice, and TensorBoard throws away what it takes for the rest
of a crashed run when it meets a smaller step.

An event file is a sequence of TFRecords: length (uint64, little endian), masked CRC-32C of these
eight bytes (uint32), the serialized ``Event``, masked CRC-32C of it (uint32).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Union

from formats.atomic import replacing

MAX_RECORD_BYTES = 1 << 26
# A killed process or a power cut damages the end of a file. MXBoard's CRC is pure Python (about
# 10 MB/s), so the payload is only checked there; the headers of all records are checked.
CHECKED_TAIL_BYTES = 1 << 22
_HEADER_BYTES = 12
_FOOTER_BYTES = 4
_COPY_BYTES = 1 << 20


class _Record(NamedTuple):
    start: int
    end: int
    step: int


def cut_back(path: Union[str, os.PathLike], last_step: int) -> int:
    """Remove the events after a step from one event file.

    The first damaged or incomplete record and all that follows it are dropped too: that is what a
    killed process leaves behind. A file that needs no change is not touched.

    Parameters
    ----------
    path : str or os.PathLike
        An event file; replaced atomically.
    last_step : int
        The largest step to keep.

    Returns
    -------
    int
        Number of bytes removed.
    """
    path = Path(path)
    with open(path, "rb") as source:
        size = os.fstat(source.fileno()).st_size
        kept = [record for record in _records(source, size) if record.step <= last_step]
        kept_bytes = sum(record.end - record.start for record in kept)
        if kept_bytes < size:
            _rewrite(path, source, kept)
    return size - kept_bytes


def cut_back_folder(folder: Union[str, os.PathLike], last_step: int) -> int:
    """Apply `cut_back` to every ``events.out.tfevents*`` file in and below a folder.

    Returns
    -------
    int
        Number of bytes removed in all files together.
    """
    paths = sorted(Path(folder).rglob("events.out.tfevents*"))
    return sum(cut_back(path, last_step) for path in paths if path.is_file())


def _records(source: BinaryIO, size: int) -> Iterator[_Record]:
    # Imported here: mxboard imports mxnet, which takes seconds.
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from mxboard.proto.event_pb2 import Event
    from mxboard.record_writer import masked_crc32c

    start = 0
    while start + _HEADER_BYTES + _FOOTER_BYTES <= size:
        header = source.read(_HEADER_BYTES)
        length, length_crc = struct.unpack("<QI", header)
        end = start + _HEADER_BYTES + length + _FOOTER_BYTES
        if length > MAX_RECORD_BYTES or end > size or masked_crc32c(header[:8]) != length_crc:
            return
        data = source.read(length)
        (data_crc,) = struct.unpack("<I", source.read(_FOOTER_BYTES))
        if end > size - CHECKED_TAIL_BYTES and masked_crc32c(data) != data_crc:
            return
        try:
            step = Event.FromString(data).step
        except DecodeError:
            return
        yield _Record(start, end, step)
        start = end


def _rewrite(path: Path, source: BinaryIO, kept: list[_Record]) -> None:
    """Copy the kept records into a new file of the same name, without loading them all."""
    # Its temporary name does not match events.out.tfevents*, or TensorBoard would read it.
    with replacing(path) as target:
        for record in kept:
            source.seek(record.start)
            _copy(source.read, target.write, record.end - record.start)


def _copy(read: Callable[[int], bytes], write: Callable[[bytes], int], count: int) -> None:
    while count > 0:
        chunk = read(min(count, _COPY_BYTES))
        if not chunk:
            raise OSError("the event file became shorter while it was read")
        write(chunk)
        count -= len(chunk)
