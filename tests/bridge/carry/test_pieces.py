"""Files in pieces: whole again or an error, whatever is missing, damaged or older."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bridge.carry.pieces import PieceError, piece_names, read_pieces, remove_pieces, write_pieces

DATA = np.random.default_rng(0).bytes(20_000)


def test_pieces_make_the_whole_again_and_keep_the_limit(tmp_path: Path) -> None:
    paths = write_pieces(tmp_path, "resume.state", DATA, 9_000)
    assert len(paths) == 5
    assert max(path.stat().st_size for path in paths) <= 9_000
    assert read_pieces(tmp_path, "resume.state") == DATA
    assert piece_names(tmp_path) == ["resume.state"]
    assert read_pieces(tmp_path, "last.param") is None
    remove_pieces(tmp_path, "resume.state")
    assert not list(tmp_path.iterdir())


def test_a_small_or_empty_file_is_one_piece(tmp_path: Path) -> None:
    for content in (b"", b"x"):
        assert len(write_pieces(tmp_path, "a", content, 5_000)) == 1
        assert read_pieces(tmp_path, "a") == content


def test_newer_pieces_replace_older_ones(tmp_path: Path) -> None:
    write_pieces(tmp_path, "a", DATA, 9_000, serial=1)
    paths = write_pieces(tmp_path, "a", DATA[::-1], 9_000, serial=2)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert read_pieces(tmp_path, "a") == DATA[::-1]


def test_the_newest_complete_set_counts(tmp_path: Path) -> None:
    old = {path: path.read_bytes() for path in write_pieces(tmp_path, "a", DATA, 9_000, serial=9)}
    new = write_pieces(tmp_path, "a", DATA[1:], 9_000, serial=10)
    for path, content in old.items():
        path.write_bytes(content)
    assert read_pieces(tmp_path, "a") == DATA[1:]
    new[0].unlink()  # as when a process was killed while it wrote the newer set
    assert read_pieces(tmp_path, "a") == DATA
    next(iter(old)).unlink()
    with pytest.raises(PieceError, match="1 of 5 pieces are missing, the first is number 1"):
        read_pieces(tmp_path, "a")


def test_damage_is_found(tmp_path: Path) -> None:
    path = write_pieces(tmp_path, "a", DATA, 9_000)[1]
    sound = path.read_bytes()
    wrong = {
        "SHA-256": sound[:-1] + bytes([sound[-1] ^ 1]),
        "SHA-256 is not": sound[:-100],
        "no piece of a file": b"[]\n" + sound,
        "another file": sound.replace(b'"a"', b'"b"', 1),
        "impossible": sound.replace(b"attention-piece", b"attention-pizza", 1),
    }
    for message, content in wrong.items():
        path.write_bytes(content)
        with pytest.raises(PieceError, match=message):
            read_pieces(tmp_path, "a")


@pytest.mark.parametrize(("name", "size"), [("../a", 9_000), ("a b", 9_000), ("a", 4_096)])
def test_impossible_pieces_are_refused(tmp_path: Path, name: str, size: int) -> None:
    with pytest.raises(PieceError, match="Expected a plain name"):
        write_pieces(tmp_path, name, DATA, size)
    with pytest.raises(PieceError, match="cannot be written"):
        write_pieces(tmp_path / "missing", "a", DATA, 9_000)
