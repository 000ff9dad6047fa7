"""How files take their names: what is on the disk when, and what a failure leaves."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from formats.atomic import remove_leftovers, replacing, write_atomically, write_together
from training.records.board import Board
from training.records.metrics import append_metrics


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls that change the disk or flush it, with the names that they are about."""
    calls: list[str] = []
    names: dict[int, str] = {}

    def record(name: str) -> None:
        function = getattr(os, name)

        def call(*arguments: Any, **named: Any) -> Any:
            about = names.get(arguments[0]) or os.path.basename(str(arguments[-1]))
            calls.append(f"{name} {re.sub('[0-9a-f]{12}', '#', about)}")
            return function(*arguments, **named)

        monkeypatch.setattr(os, name, call)

    plain_open = os.open

    def opened(path: Any, *rest: Any, **named: Any) -> int:
        descriptor = plain_open(path, *rest, **named)
        names[descriptor] = os.path.basename(str(path))
        return descriptor

    monkeypatch.setattr(os, "open", opened)
    for name in ("fsync", "replace", "unlink"):
        record(name)
    return calls


def test_each_step_is_on_the_disk_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    files = [(folder / "main", b"x"), (folder / "side", b"y")]
    write_together(files)
    calls = recorded(monkeypatch)
    write_together(files)
    assert calls == [
        "fsync .main.#.tmp",
        "fsync .side.#.tmp",
        "unlink side",
        "fsync folder",
        "replace main",
        "fsync folder",
        "replace side",
        "fsync folder",
    ]
    calls.clear()
    write_together([(folder / "main", b"z"), (folder / "side", None)])
    assert (
        calls
        == ["fsync .main.#.tmp", "unlink side", "fsync folder", "replace main"]
        + ["fsync folder"] * 2
    )
    assert [path.name for path in folder.iterdir()] == ["main"]


def test_large_content_is_written_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"old")

    def fail_half_way() -> None:
        with replacing(path) as stream:
            stream.write(b"new")
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        fail_half_way()
    assert path.read_bytes() == b"old"
    with replacing(path) as stream:
        stream.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["large"]
    calls = recorded(monkeypatch)
    with replacing(path):
        pass
    assert calls[-2:] == ["replace large", f"fsync {tmp_path.name}"]
    assert calls[0].startswith("fsync ")


def test_only_our_own_leftovers_are_removed(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    ours = [tmp_path / ".x.param.0123456789ab.tmp", tmp_path / "below/.y.ffffffffffff.tmp"]
    others = [tmp_path / name for name in (".x.tmp", "x.0123456789ab.tmp", ".x.0123456789AB.tmp")]
    for path in [*ours, *others]:
        path.write_bytes(b"")
    remove_leftovers(tmp_path, below=False)
    assert [path.exists() for path in ours] == [False, True]
    remove_leftovers(tmp_path)
    assert not ours[1].exists()
    assert all(path.exists() for path in others)


def test_a_killed_write_leaves_what_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kill(BaseException):
        pass

    def kill(*_: Any) -> None:
        raise Kill

    monkeypatch.setattr(os, "replace", kill)
    monkeypatch.setattr(os, "unlink", kill)  # nor is there time to tidy up
    with pytest.raises(Kill):
        write_atomically(tmp_path / "x", b"content")
    monkeypatch.undo()
    assert len(list(tmp_path.iterdir())) == 1
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_logs_are_flushed_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorded(monkeypatch)
    append_metrics(tmp_path, {"epoch": 1})
    append_metrics(tmp_path, {"epoch": 2})
    assert len(calls) == 3  # with the folder's, where the file is new
    assert calls[1] == f"fsync {tmp_path.name}"
    board = Board(tmp_path)
    board.scalar("lr", 0.1, 1)
    calls.clear()
    board.flush()
    assert len(calls) == 1
    board.close()
