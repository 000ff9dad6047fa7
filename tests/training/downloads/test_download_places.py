"""Where downloads are looked for, and the lock that lets one process at a time download."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from formats.downloads.fetch import exclusive, shown
from formats.errors import UserError
from training.downloads import mirrors
from training.downloads.mirrors import candidates

NAME = "cifar-10-binary.tar.gz"


def test_places_and_mirrors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MXNET_GLUON_REPO", raising=False)
    usual = candidates("cifar10", NAME)
    assert usual == [
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        f"{mirrors.GLUON_URL}/gluon/dataset/cifar10/cifar-10-binary.tar.gz",
    ]
    monkeypatch.setenv("MXNET_GLUON_REPO", "http://own.example/")
    assert candidates("cifar10", NAME)[1] == f"http://own.example/gluon/dataset/cifar10/{NAME}"
    for mirror, first in (
        ("http://m.example/a/", f"http://m.example/a/{NAME}"),
        (f"http://m.example/a/{NAME}", f"http://m.example/a/{NAME}"),
        (str(tmp_path), str(tmp_path / NAME)),
        (tmp_path.as_uri(), str(tmp_path / NAME)),
    ):
        assert candidates("cifar10", NAME, mirror)[0] == first
        assert len(candidates("cifar10", NAME, mirror)) == 3
    for mirror in ("ftp://m.example", str(tmp_path / "none"), "http://", "http://[x"):
        with pytest.raises(UserError, match="mirror"):
            candidates("cifar10", NAME, mirror)
    assert shown("https://user:secret@m.example/a?token=1") == "https://m.example/a"


def test_lock_is_released(tmp_path: Path) -> None:
    entered = []

    def enter() -> None:
        with exclusive(str(tmp_path)):
            entered.append(True)

    with exclusive(str(tmp_path)):
        thread = threading.Thread(target=enter, daemon=True)
        thread.start()
        thread.join(0.2)
        assert not entered
    thread.join(5)
    assert entered
