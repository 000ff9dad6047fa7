"""Published files by name: which, where they are looked for, and that nothing else is taken."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from formats.digest import digest_line, sha256_hex, verify_digest
from formats.errors import UserError
from model.pretrained import store
from model.weights.published import GLIMPSE_INDEX, INDEX, read_index

NAME, DATASET = "attention56_small", "shapes"


@pytest.fixture
def published() -> Path:
    rows = [row for row in read_index(INDEX) if (row["model"], row["dataset"]) == (NAME, DATASET)]
    return INDEX.parent / rows[0]["file"]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout that has the indexes and none of the files, and an empty cache."""
    for index in (INDEX, GLIMPSE_INDEX):
        folder = tmp_path / "installed" / index.parent.name
        folder.mkdir(parents=True)
        shutil.copy(index, folder)
        name = "INDEX" if index == INDEX else "GLIMPSE_INDEX"
        monkeypatch.setattr(store, name, folder / index.name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(store.VARIABLE, raising=False)
    return tmp_path


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """The address of a server on this machine, and the folder that it serves."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}", folder
        httpd.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_every_published_network_is_named() -> None:
    names = store.published_names()
    assert names == sorted(set(names))
    assert {"attention92", "resnet56_basic_ram", "glimpse_mnist"} <= set(names)


@pytest.mark.parametrize(
    ("name", "pretrained", "dataset"),
    [
        ("attention56_small", True, "cifar10"),
        ("attention56_small", "shapes", "shapes"),
        ("resnet56_basic_ram", True, "cifar10"),
        ("resnet56_basic_ram", "cifar100", "cifar100"),
        ("glimpse_mnist", True, "mnist"),
        ("glimpse_cluttered", True, "cluttered"),  # there is one for translated, too
    ],
)
def test_the_data_set_is_chosen(name: str, pretrained: object, dataset: str) -> None:
    row = store.choose_row(name, pretrained)  # type: ignore[arg-type]
    assert (row["model"], row["dataset"]) == (name, dataset)


def test_the_best_of_several_files_is_chosen() -> None:
    errors = [
        float(row["single_error"])
        for row in store.published_rows()
        if row["model"] == "glimpse_cluttered8"
    ]
    assert len(errors) > 1
    assert float(store.choose_row("glimpse_cluttered8")["single_error"]) == min(errors)


@pytest.mark.parametrize(
    ("name", "pretrained", "words"),
    [
        ("resnet164", True, ["no weights are published for 'resnet164'", "attention92"]),
        ("attention92", "cifar100", ["data set 'cifar100'", "there are some for cifar10"]),
    ],
)
def test_what_is_not_published_is_said(name: str, pretrained: object, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        store.weights_path(name, pretrained)  # type: ignore[arg-type]
    assert not [word for word in words if word not in str(caught.value)]


def test_where_it_was_looked_for_is_listed(elsewhere: Path) -> None:
    with pytest.raises(UserError) as caught:
        store.weights_path(NAME, DATASET)
    text = str(caught.value)
    assert str(elsewhere / "installed" / "cifar_param") in text
    assert str(elsewhere / "cache" / store.CACHE) in text
    assert store.VARIABLE in text
    assert not (elsewhere / "cache").exists()


@pytest.mark.parametrize("below", ["", "cifar_param"])
def test_a_named_folder_is_looked_into(
    below: str, elsewhere: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = elsewhere / "mine" / below
    folder.mkdir(parents=True)
    shutil.copy(published, folder)
    monkeypatch.setenv(store.VARIABLE, str(elsewhere / "mine"))
    assert store.weights_path(NAME, DATASET) == folder / published.name


def test_another_file_of_that_name_is_not_taken(
    elsewhere: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / published.name).write_bytes(published.read_bytes()[:-1] + b"x")
    monkeypatch.setenv(store.VARIABLE, str(elsewhere))
    with pytest.raises(UserError, match="another file"):
        store.weights_path(NAME, DATASET)


def test_it_is_downloaded_once_and_checked(
    elsewhere: Path,
    published: Path,
    server: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address, served = server
    shutil.copy(published, served)
    monkeypatch.setenv(store.VARIABLE, address)
    path = store.weights_path(NAME, DATASET)
    assert path.parent == store.cache_folder()
    assert path.read_bytes() == published.read_bytes()
    assert verify_digest(path)
    assert address in capsys.readouterr().out
    (served / published.name).unlink()
    assert store.weights_path(NAME, DATASET) == path


def test_a_damaged_download_leaves_nothing(
    elsewhere: Path,
    published: Path,
    server: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, served = server
    (served / published.name).write_bytes(published.read_bytes()[:-1] + b"x")
    monkeypatch.setenv(store.VARIABLE, address)
    with pytest.raises(UserError, match="wrong content") as caught:
        store.weights_path(NAME, DATASET)
    assert "HTTP 404" in str(caught.value)  # of the folder below
    assert not list(store.cache_folder().iterdir())


def test_a_damaged_file_in_the_cache_is_replaced(
    elsewhere: Path,
    published: Path,
    server: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address, served = server
    shutil.copy(published, served)
    monkeypatch.setenv(store.VARIABLE, address)
    store.cache_folder().mkdir(parents=True)
    (store.cache_folder() / published.name).write_bytes(b"x")
    path = store.weights_path(NAME, DATASET)
    assert sha256_hex(path.read_bytes()) == store.choose_row(NAME, DATASET)["sha256"]


def test_a_download_that_ends_before_its_digest_is_written_is_sound(
    elsewhere: Path,
    published: Path,
    server: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Killed(BaseException):
        pass

    def killed(*given: Any) -> None:
        raise Killed

    address, served = server
    shutil.copy(published, served)
    monkeypatch.setenv(store.VARIABLE, address)
    store.cache_folder().mkdir(parents=True)
    older = store.cache_folder() / f"{published.name}.sha256"
    older.write_bytes(digest_line(published, 64 * "0"))
    with monkeypatch.context() as patch:
        patch.setattr(store, "write_atomically", killed)
        with pytest.raises(Killed):
            store.weights_path(NAME, DATASET)
    verify_digest(store.weights_path(NAME, DATASET))  # which refuses that of another file
