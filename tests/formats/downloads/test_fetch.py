"""Downloads from a server on the loopback interface: whole, cut off, wrong, too large."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import numpy as np
import pytest

from formats.downloads import http_transfer
from formats.downloads.fetch import DownloadFailed, fetch
from formats.downloads.file_digest import FileDigest
from formats.errors import UserError
from training.data import cifar
from training.downloads import mirrors
from training.downloads.cifar_files import FORMATS
from training.downloads.digests import TABLE

NAME = "cifar-10-binary.tar.gz"
CONTENT = np.random.Generator(np.random.PCG64(0)).bytes(300_000)


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``; ``cut`` breaks every answer after so many bytes, ``ranges`` may be off."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.statuses: list[int] = []  # sent for the next requests, before anything works
        self.requests: list[tuple[str, Optional[str]]] = []
        self.cut: Optional[int] = None
        self.ranges = True
        self.announce_length = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        if self.server.statuses:
            self.send_error(self.server.statuses.pop(0))
        elif self.path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[self.path])
            self.end_headers()
        elif self.path not in self.server.files:
            self.send_error(404)
        else:
            self.send_file(self.server.files[self.path], wanted)

    def send_file(self, content: bytes, wanted: Optional[str]) -> None:
        total, start = len(content), 0
        if wanted and self.server.ranges:
            start = int(wanted[len("bytes=") : -1])
            if start >= total:
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        # Some servers say this of .gz files; the bytes must be kept as they are all the same.
        self.send_header("Content-Encoding", "x-gzip")
        if self.server.announce_length:
            self.send_header("Content-Length", str(total - start))
        self.end_headers()
        self.wfile.write(content[start:][: self.server.cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(http_transfer, "PAUSE_SECONDS", 0.0)
    instance = Server()
    thread = threading.Thread(target=instance.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield instance
    instance.shutdown()
    thread.join()
    instance.server_close()


def digest(content: bytes) -> FileDigest:
    return FileDigest(len(content), sha256=hashlib.sha256(content).hexdigest())


def get(server: Server, folder: Path, path: str = "/file") -> bytes:
    target = fetch(NAME, [server.url + path], [digest(CONTENT)], str(folder))
    assert target == str(folder / NAME)
    assert os.listdir(folder) == [NAME]  # no partial file left
    return Path(target).read_bytes()


def part_of(url: str, folder: Path) -> Path:
    return folder / f"{NAME}.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part"


@pytest.mark.parametrize("announce_length", [True, False])
def test_whole_file(server: Server, tmp_path: Path, announce_length: bool) -> None:
    server.files["/file"] = CONTENT
    server.announce_length = announce_length
    assert get(server, tmp_path) == CONTENT


def test_continues_a_partial_file(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = CONTENT
    part_of(server.url + "/file", tmp_path).write_bytes(CONTENT[:1000])
    assert get(server, tmp_path) == CONTENT
    assert server.requests == [("/file", "bytes=1000-")]


def test_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = CONTENT
    server.ranges = False
    part_of(server.url + "/file", tmp_path).write_bytes(CONTENT[:1000])
    assert get(server, tmp_path) == CONTENT


@pytest.mark.parametrize("length", [1000, len(CONTENT), len(CONTENT) + 5])
def test_foreign_partial_file_is_dropped(server: Server, tmp_path: Path, length: int) -> None:
    server.files["/file"] = CONTENT
    part_of(server.url + "/file", tmp_path).write_bytes(bytes(length))
    assert get(server, tmp_path) == CONTENT


def test_cut_off_connection_is_continued(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = CONTENT
    server.cut = 70_000
    assert get(server, tmp_path) == CONTENT
    starts = [wanted for _, wanted in server.requests]
    assert starts == [None, *(f"bytes={n}-" for n in (70_000, 140_000, 210_000, 280_000))]


def test_cut_off_for_good_keeps_the_part_for_the_next_run(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = CONTENT
    part_of(server.url + "/file", tmp_path).write_bytes(CONTENT[:1000])
    server.cut = 0
    with pytest.raises(DownloadFailed, match=r"connection broken|cut off") as caught:
        get(server, tmp_path)
    assert len(server.requests) == http_transfer.TRIES
    assert "(tried 4 times)" in str(caught.value)
    assert part_of(server.url + "/file", tmp_path).read_bytes() == CONTENT[:1000]
    server.cut = None
    assert get(server, tmp_path) == CONTENT
    assert server.requests[-1] == ("/file", "bytes=1000-")


def test_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = CONTENT
    server.statuses = [503, 429, 500]
    assert get(server, tmp_path) == CONTENT


def test_redirect_is_followed(server: Server, tmp_path: Path) -> None:
    server.files["/new"] = CONTENT
    server.redirects["/file"] = "/new"
    assert get(server, tmp_path) == CONTENT
    server.redirects.update({"/loop": "/loop", "/out": "file:///nowhere"})
    for path, reason in (("/loop", "too many redirects"), ("/out", "not http")):
        with pytest.raises(DownloadFailed, match=reason):
            fetch(NAME, [server.url + path], [digest(CONTENT)], str(tmp_path))


def test_wrong_digest_leaves_nothing_and_keeps_the_old_file(server: Server, tmp_path: Path) -> None:
    server.files["/file"] = CONTENT[:-1] + b"?"
    (tmp_path / NAME).write_bytes(b"old")
    with pytest.raises(DownloadFailed, match=r"wrong content: sha256 [0-9a-f]{64}, expected"):
        get(server, tmp_path)
    assert os.listdir(tmp_path) == [NAME]
    assert (tmp_path / NAME).read_bytes() == b"old"


@pytest.mark.parametrize("announce_length", [True, False])
def test_too_large_file_is_refused_early(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, announce_length: bool
) -> None:
    monkeypatch.setattr(http_transfer, "MAX_BYTES", 100_000)
    server.files["/file"] = CONTENT
    server.announce_length = announce_length
    unknown_size = FileDigest(None, sha256=digest(CONTENT).sha256)
    for accepted, limit in ((unknown_size, "100,000"), (digest(CONTENT[:200_000]), "200,000")):
        with pytest.raises(DownloadFailed, match=f"larger than {limit} bytes"):
            fetch(NAME, [server.url + "/file"], [accepted], str(tmp_path))
        assert not os.listdir(tmp_path)


def test_an_archive_of_known_size_may_be_larger_than_the_limit_for_others(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_transfer, "MAX_BYTES", 100_000)  # as STL-10 is larger than 256 MB
    server.files["/file"] = CONTENT
    assert get(server, tmp_path) == CONTENT


def test_second_place_after_the_first_and_every_reason_listed(
    server: Server, tmp_path: Path
) -> None:
    server.files.update({"/file": CONTENT, "/page": b"<html>sign in</html>"})
    closed = Server()
    closed.server_close()
    bad = [f"{closed.url}/x", f"{server.url}/missing", f"{server.url}/page", "/no/such/file"]
    accepted = [digest(b"another version"), digest(CONTENT)]
    with pytest.raises(DownloadFailed) as caught:
        fetch(NAME, bad, accepted, str(tmp_path))
    assert [place for place, _ in caught.value.attempts] == bad
    reasons = [reason for _, reason in caught.value.attempts]
    assert reasons[:2] == ["connection refused", "HTTP 404 Not Found"]
    assert reasons[2].startswith("wrong content: 20 bytes, expected 15; or 20 bytes")
    assert reasons[3] == "no such file"
    part_of("http://127.0.0.1/elsewhere", tmp_path).write_bytes(b"begun in an earlier run")
    fetch(NAME, [*bad, f"{server.url}/file"], accepted, str(tmp_path))
    assert os.listdir(tmp_path) == [NAME]
    assert (tmp_path / NAME).read_bytes() == CONTENT


@pytest.fixture
def tiny_archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bytes:
    """A CIFAR-10 archive of six images, the digest table to match, and a home in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MXNET_HOME", str(tmp_path / "home"))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for label, file in enumerate(FORMATS["cifar10"].files):
            record = bytes([label]) + bytes(range(256)) * 12
            monkeypatch.setitem(TABLE, f"cifar10/{file}", (digest(record),))
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{file}")
            member.size = len(record)
            archive.addfile(member, io.BytesIO(record))
    monkeypatch.setitem(TABLE, f"cifar10/{NAME}", (digest(packed.getvalue()),))
    return packed.getvalue()


def test_cifar10_is_downloaded_once_into_gluons_folder(
    server: Server, tiny_archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files[f"/gluon/dataset/cifar10/{NAME}"] = tiny_archive
    monkeypatch.setattr(mirrors, "AUTHORS_URL", server.url)
    monkeypatch.setenv("MXNET_GLUON_REPO", server.url)
    for _ in range(2):
        dataset = cifar.load_cifar("cifar10")
        np.testing.assert_array_equal(dataset.train.labels, range(5))
        np.testing.assert_array_equal(dataset.test.labels, [5])
    assert [path for path, _ in server.requests] == [f"/{NAME}", f"/gluon/dataset/cifar10/{NAME}"]
    stored = sorted(os.listdir(tmp_path / "home/datasets/cifar10"))
    assert stored == sorted(FORMATS["cifar10"].files)


def test_cifar10_from_a_local_mirror_into_the_data_folder(
    tiny_archive: bytes, tmp_path: Path
) -> None:
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / NAME).write_bytes(tiny_archive)
    (tmp_path / "own").mkdir()
    dataset = cifar.load_cifar("cifar10", "own", mirror="mirror")
    assert len(dataset.train) == 5
    assert sorted(os.listdir("own")) == sorted(FORMATS["cifar10"].files)
    assert os.listdir("mirror") == [NAME]
    assert not (tmp_path / "home").exists()


def test_offline_is_one_error_that_lists_everything(
    server: Server, tiny_archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "AUTHORS_URL", f"{server.url}/authors")
    monkeypatch.setenv("MXNET_GLUON_REPO", f"{server.url}/gluon-repository")
    with pytest.raises(UserError) as caught:
        cifar.load_cifar("cifar10", mirror=f"{server.url}/mirror")
    message = str(caught.value)
    places = ("mirror", "authors", "gluon-repository/gluon/dataset/cifar10")
    for expected in (
        *(f"{server.url}/{place}/{NAME}: HTTP 404 Not Found" for place in places),
        "  data: no such folder",
        str(tmp_path / "home/datasets/cifar10"),
        "data_batch_1.bin",
        "cifar-10-python.tar.gz",
        "--data-dir",
        "--dataset shapes",
    ):
        assert expected in message


def test_folder_that_cannot_be_written_is_a_user_error(
    tiny_archive: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("a file where a folder is needed")
    with pytest.raises(UserError, match="cannot store CIFAR-10 in"):
        cifar.load_cifar("cifar10", mirror=str(tmp_path))
