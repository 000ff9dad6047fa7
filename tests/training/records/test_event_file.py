"""Event files after a cut: exactly the events up to the step, whatever the end looks like."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mxboard.proto import event_pb2
from mxboard.record_writer import RecordWriter, masked_crc32c

from training.records import event_file
from training.records.event_file import cut_back, cut_back_folder

NAME = "events.out.tfevents.1700000000.host.000"


def write_events(path: Path, steps: list[int]) -> list[int]:
    """Write one event per step; return the offset at which each record ends."""
    writer = RecordWriter(str(path))
    ends = []
    for step in steps:
        event = event_pb2.Event(wall_time=1.5, step=step)
        event.summary.value.add(tag=f"tag{step}", simple_value=step / 2)
        writer.write_record(event.SerializeToString())
        writer.flush()
        ends.append(path.stat().st_size)
    writer.close()
    return ends


def read_steps(path: Path) -> list[int]:
    data = path.read_bytes()
    steps = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        event, data = data[12 : 12 + length], data[16 + length :]
        steps.append(event_pb2.Event.FromString(event).step)
    return steps


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.sampled_from([0, 1, 2, 3, 127, 128, 300, 2**40, -1]), max_size=8),
    last=st.integers(-2, 400),
)
def test_keeps_the_events_up_to_the_step(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], last: int
) -> None:
    path = tmp_path_factory.mktemp("events") / NAME
    write_events(path, steps)
    cut_back(path, last)
    assert read_steps(path) == [step for step in steps if step <= last]


@settings(max_examples=40, deadline=None)
@given(fraction=st.floats(0, 1))
def test_drops_an_incomplete_end(tmp_path_factory: pytest.TempPathFactory, fraction: float) -> None:
    path = tmp_path_factory.mktemp("events") / NAME
    ends = write_events(path, [0, 1, 2, 3])
    size = int(fraction * ends[-1])
    path.write_bytes(path.read_bytes()[:size])
    cut_back(path, 100)
    assert read_steps(path) == [0, 1, 2, 3][: sum(end <= size for end in ends)]


@pytest.mark.parametrize("place", ["length", "length crc", "data", "data crc"])
def test_drops_everything_from_a_damaged_record_on(tmp_path: Path, place: str) -> None:
    path = tmp_path / NAME
    ends = write_events(path, [0, 1, 2])
    offset = {"length": 0, "length crc": 8, "data": 12, "data crc": ends[1] - ends[0] - 4}[place]
    data = bytearray(path.read_bytes())
    data[ends[0] + offset] ^= 1
    path.write_bytes(data)
    cut_back(path, 100)
    assert read_steps(path) == [0]


def test_drops_zeros_and_a_huge_length(tmp_path: Path) -> None:
    huge = struct.pack("<Q", 1 << 62)
    huge += struct.pack("<I", masked_crc32c(huge))
    for tail in (bytes(4096), huge + bytes(100)):
        path = tmp_path / NAME
        write_events(path, [0, 1])
        path.write_bytes(path.read_bytes() + tail)
        assert cut_back(path, 1) == len(tail)
        assert read_steps(path) == [0, 1]


@pytest.mark.parametrize("data", [b"\x0b", b"\x08\xff", b"\x12\x05ab", b"\x10" + b"\xff" * 11])
def test_drops_a_record_that_is_no_event(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / NAME
    write_events(path, [0, 1])
    length = struct.pack("<Q", len(data))
    record = length + struct.pack("<I", masked_crc32c(length))
    record += data + struct.pack("<I", masked_crc32c(data))
    path.write_bytes(path.read_bytes() + record)
    assert cut_back(path, 1) == len(record)


def test_leaves_a_file_alone_that_needs_no_change(tmp_path: Path) -> None:
    path = tmp_path / NAME
    write_events(path, [0, 1, 2])
    before = path.stat()
    assert cut_back(path, 2) == 0
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_a_failed_rewrite_leaves_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / NAME
    write_events(path, [0, 1, 2])
    before = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(event_file.os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        cut_back(path, 1)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [NAME]


def test_cuts_every_event_file_below_a_folder_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "loss" / "train").mkdir(parents=True)
    files = [tmp_path / NAME, tmp_path / "loss" / "train" / NAME]
    for path in files:
        write_events(path, [0, 1, 2])
    other = tmp_path / "last.param"
    other.write_bytes(b"not an event file")
    cut_back_folder(tmp_path, 1)
    assert [read_steps(path) for path in files] == [[0, 1], [0, 1]]
    assert other.read_bytes() == b"not an event file"
