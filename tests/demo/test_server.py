"""The program behind the page: what it answers, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import socket
import struct
import zlib
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("starlette", reason="needs starlette: make test-demo has it")
pytest.importorskip("uvicorn", reason="needs uvicorn: make test-demo has it")

from demo import __main__ as program
from demo.__main__ import main
from demo.glimpses import GlimpseModel, read_drawing
from formats.errors import UserError
from formats.weight_file import read_card, write_card
from model.pretrained.store import weights_path
from training.data.dataset import ImageData
from training.data.mnist import FILES

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "cifar_param" / "attention56_small_shapes_0.9930_315e1841.param"
pytestmark = pytest.mark.timeout(600)
GATES = "resnet56_basic_ram_cifar10_0.9277_56b16fbd.param"  # beside it; has no masks


class Site(NamedTuple):
    """A running page."""

    port: int

    def ask(self, path: str, body: Any = None, host: str = "") -> tuple[int, dict[str, Any]]:
        """Return status and JSON; a body is sent by POST."""
        method = "GET" if body is None else "POST"
        headers = {"Host": host} if host else {}
        with contextlib.closing(HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            text = answer.read()
        try:
            return answer.status, json.loads(text)
        except ValueError:
            return answer.status, {"text": text.decode()}


@pytest.fixture(scope="module")
def site(address: str) -> Site:
    return Site(int(address.split(":")[2].split("/")[0]))


def drawing(*points: tuple[int, int], size: int = 280) -> Image.Image:
    image = Image.new("RGB", (size, size))
    ImageDraw.Draw(image).line(points, fill="white", width=size // 13, joint="curve")
    return image


def as_png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


SEVEN = ((80, 60), (200, 60), (130, 230))


def test_damaged_digits_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.test_digits(str(tmp_path))[1] == "the embedded digits"
    assert "MNIST was not found" in capsys.readouterr().err
    for name in FILES:
        (tmp_path / f"{name}.gz").write_bytes(b"no images")
    assert program.test_digits(str(tmp_path))[1] == "the embedded digits"
    assert "is damaged or not MNIST" in capsys.readouterr().err


def test_a_drawing_becomes_a_digit_as_mnist_has_them() -> None:
    image = read_drawing(as_png(drawing(*SEVEN)))
    small = read_drawing(as_png(drawing(*((x // 4 + 150, y // 4) for x, y in SEVEN))))
    assert image.shape == (28, 28)
    rows, columns = (np.flatnonzero(image.any(axis=axis)) for axis in (1, 0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    for grey in (image, small):  # wherever it was drawn, and however large
        mass = grey / grey.sum()
        for axis in (0, 1):
            assert abs((mass.sum(axis=1 - axis) * np.arange(28)).sum() - 13.5) <= 0.75


def test_an_empty_drawing_is_refused() -> None:
    with pytest.raises(UserError, match="nothing is drawn"):
        read_drawing(as_png(drawing((0, 0), size=28)))


def test_a_drawing_is_seen(site: Site) -> None:
    status, seen = site.ask("/digit?model=one%20digit&x=0.5&y=-0.5", as_png(drawing(*SEVEN)))
    assert status == 200
    assert len(seen["looks"]) == 6
    last = seen["looks"][-1]["probabilities"]
    assert last.index(max(last)) == 7
    left, top, right, bottom = seen["looks"][0]["boxes"][0]
    assert ((left + right) / 2, (top + bottom) / 2) == (21, 7)
    assert "glimpse_mnist" in seen["card"]["file"]


def test_clutter_follows_the_seed(site: Site) -> None:
    images = [
        site.ask(f"/digit?model=cluttered&test=3&seed={seed}", b"")[1]["image"]
        for seed in (0, 0, 1)
    ]
    assert images[0] == images[1] != images[2]


def test_canvases_are_those_of_the_tasks(tmp_path: Path) -> None:
    digits = ImageData(np.zeros((2, 28, 28, 1), np.uint8), np.array([1, 2], np.int32))
    source = weights_path("glimpse_translated", "translated")
    for dataset, size in (("digits-translated", 60), ("translated", 60)):
        path = tmp_path / f"{dataset}.param"
        shutil.copy(source, path)
        card = read_card(path) or {}
        write_card(path, {**card, "data": {**card.get("data", {}), "name": dataset}})
        model = GlimpseModel(path, digits)
        assert model.canvas is not None
        assert model.see(digits.images[0, :, :, 0], 0, 0.0, 0.0)["size"] == size
    write_card(path, {**card, "data": {**card.get("data", {}), "name": "folder:mine"}})
    with pytest.raises(UserError, match="its images are those of folder:mine, not digits"):
        GlimpseModel(path, digits)


def test_maps_are_those_of_the_network(site: Site) -> None:
    status, seen = site.ask(f"/picture?model={FILE.name}&test=0", b"")
    assert status == 200
    assert seen["classes"][0]["name"] == seen["label"]
    assert len(seen["classes"]) == 5
    for module in seen["modules"]:
        mask, factor, change = (np.array(module["maps"][name]) for name in ("M", "1 + M", "change"))
        np.testing.assert_allclose(factor, 1 + mask, atol=2e-4)
        assert 0 <= mask.min() < mask.max() <= 1
        assert change.max() > 0
    assert [len(module["maps"]["M"]) for module in seen["modules"]] == [32, 16, 8]


def bomb() -> bytes:
    """Return a PNG of 1 kB that says it has 30000x30000 pixels."""

    def part(name: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    head = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", pixels) + part(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is none of"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>", "it is none of"),
        (b"GIF89a" + bytes(100), "it is none of"),
        (as_png(drawing(*SEVEN))[:200], "cannot read"),
        (bomb(), "50,000,000 pixels"),
    ],
)
def test_what_is_no_picture_gets_one_sentence(site: Site, content: bytes, said: str) -> None:
    status, answer = site.ask(f"/picture?model={FILE.name}", content)
    assert status == 400
    assert said in answer["error"]
    assert "\n" not in answer["error"]
    assert "object at" not in answer["error"]


def test_too_much_is_refused_before_it_is_held(site: Site) -> None:
    status, answer = site.ask(f"/picture?model={FILE.name}", bytes(10_000_001))
    assert (status, answer["error"]) == (413, "at most 10,000,000 bytes; make it smaller")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/digit?model=other", "there is no network 'other'"),
        ("/digit?model=one%20digit&test=-1", "test=-1: give a whole number of 0 to"),
        ("/digit?model=one%20digit&test=99999999999", "give a whole number"),
        ("/digit?model=one%20digit&test=1&x=nan", "x=nan: give a number of -1 to 1"),
        ("/digit?model=one%20digit&test=1&seed=x", "seed=x"),
        (f"/picture?model={FILE.name}&test=2000", "there is no 2000"),
        ("/picture?model=../../etc/passwd", "there is no network"),
    ],
)
def test_wrong_questions_get_one_sentence(site: Site, path: str, said: str) -> None:
    status, answer = site.ask(path, b"")
    assert status == 400
    assert said in answer["error"]


def test_pages_of_other_names_are_not_answered(site: Site) -> None:
    """Another site's name that is made to lead to this machine (DNS rebinding) gets nothing."""
    assert site.ask("/about", host="evil.example")[0] == 400
    assert site.ask("/about", host=f"localhost:{site.port}")[0] == 200


@pytest.mark.parametrize("path", ["/page/../server.py", "/page/%2e%2e/server.py", "/nothing"])
def test_files_beside_the_page_are_not_given(site: Site, path: str) -> None:
    assert site.ask(path)[0] == 404


def test_a_request_that_never_ends_keeps_nobody_waiting(site: Site) -> None:
    with socket.create_connection(("127.0.0.1", site.port)) as slow:
        head = f"POST /picture?model={FILE.name} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        slow.sendall(f"{head}Content-Length: 1000\r\n\r\nabc".encode())
        assert site.ask("/about")[0] == 200
        slow.settimeout(20)
        assert b" 408 " in slow.recv(100)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--port 70000", "--port must be 0 to 65535"),
        ("--port {taken}", "cannot answer at 127.0.0.1 port {taken}"),
        ("--classifier none.param", "--classifier none.param: there is no such file"),
        ("--data-dir missing", "--data-dir missing: there is no such folder"),
        ("--port 0 --classifier {masks}", "resnet56_basic_ram has no soft masks"),
    ],
)
def test_a_start_that_cannot_be_gets_one_sentence(
    site: Site, capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    places = {"taken": site.port, "masks": FILE.parent / GATES}
    try:
        code: Any = main(words.format(**places).split())
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert said.format(**places) in error
