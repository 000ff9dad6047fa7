"""The serving example: the same classes as the project's own prediction, and bounded requests."""

from __future__ import annotations

import http.client
import importlib.util
import io
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

from formats.images.preprocessing import Preprocessing
from model.export.onnx_graph import to_onnx
from model.export.tracing import trace
from tests.model.export.exported import tiny_attention, tiny_glimpse
from training.apply.predict import probabilities, read_pictures

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "serve_onnx.py"
NAMES = tuple(f"name {i}" for i in range(9))  # the tenth class has none
WANTED = Preprocessing(32, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), NAMES, 0.875)


FLAGS = ("--normalization", "0.5,0.4,0.3/0.2,0.25,0.3", "--size", "32", "--crop", "0.875")


@pytest.fixture(scope="module")
def serve() -> Any:
    spec = importlib.util.spec_from_file_location("serve_onnx", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["serve_onnx"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("model") / "x.onnx"
    metadata = {"preprocessing": WANTED.to_json().decode()}
    path.write_bytes(to_onnx(trace(tiny_attention()), metadata).SerializeToString())
    return path


@pytest.fixture(scope="module")
def classifier(serve: Any, model: Path) -> Any:
    return serve.Classifier(str(model))


def picture(kind: str = "PNG", size: tuple[int, int] = (50, 37), **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(stream, kind, **options)
    return stream.getvalue()


def turned() -> bytes:
    """A JPEG that a camera held sideways, several times larger than the network's input."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture("JPEG", (400, 300), exif=exif)


def icon(mode: str) -> bytes:
    """Black on transparent, which would be black all over without a background."""
    image = Image.new("RGBA", (48, 48))
    image.paste((0, 0, 0, 200), (12, 12, 30, 36))
    stream = io.BytesIO()
    image.convert(mode).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        picture(),
        turned(),
        picture("JPEG", (160, 140)),  # half of it is larger than 64, smaller than 2 * 32 / 0.875
        icon("RGBA"),
        icon("LA"),
        icon("P"),
    ],
    ids=["png", "turned jpeg", "jpeg", "transparent", "transparent grey", "transparent palette"],
)
def test_the_classes_are_those_of_the_project(
    classifier: Any, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "x.picture"
    path.write_bytes(content)
    pictures = read_pictures([str(path)], WANTED, lambda: np.empty(0))
    (shares,) = probabilities(tiny_attention(), mx.cpu(), pictures, WANTED)
    answers = classifier.classify(content)
    assert len(answers) == 5
    assert shares.std() > 1e-3  # it prefers some
    order = np.argsort(-shares, kind="stable")
    assert [answer.name for answer in answers] == [WANTED.name_of(int(i)) for i in order[:5]]
    np.testing.assert_allclose(
        [answer.probability for answer in answers], shares[order[:5]], rtol=1e-4
    )


@pytest.fixture
def address(serve: Any, classifier: Any) -> Iterator[tuple[str, int]]:
    with serve.make_server(classifier, 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address
        server.shutdown()
        thread.join()


def ask(
    address: tuple[str, int], method: str, body: Any = None, headers: Any = None
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(*address, timeout=60)
    try:
        connection.request(method, "/", body, headers or {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_the_server_answers_this_machine_with_json(
    address: tuple[str, int], classifier: Any
) -> None:
    assert address[0] == "127.0.0.1"
    status, answer = ask(address, "POST", picture())
    assert status == 200
    expected = classifier.classify(picture())
    assert [one["name"] for one in answer["classes"]] == [one.name for one in expected]
    assert ask(address, "POST", picture())[0] == 200  # and again


def test_requests_are_bounded(address: tuple[str, int], serve: Any) -> None:
    too_long = {"Content-Length": str(serve.MAX_BYTES + 1)}
    assert ask(address, "POST", None, too_long)[0] == 413  # before any of it was sent
    assert ask(address, "POST", None, {"Content-Length": "9" * 5000})[0] == 413
    assert ask(address, "POST", iter([b"a"]), {"Transfer-Encoding": "chunked"})[0] == 411
    assert ask(address, "POST", None, {"Content-Length": "-5"})[0] == 411
    assert ask(address, "GET")[0] == 405
    assert ask(address, "POST", picture())[0] == 200


def test_names_are_printable(classifier: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier, "names", ("d\u00f6g", "\x1b[2Jcat", "\udce9"))
    found = [classifier.name_of(label) for label in range(4)]
    assert found == ["d\u00f6g", "\\x1b[2Jcat", "\\udce9", "class 3"]


def bomb(width: int) -> bytes:
    """A PNG header of a huge picture."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        whole = kind + data
        return struct.pack(">I", len(data)) + whole + struct.pack(">I", zlib.crc32(whole))

    header = struct.pack(">IIBBBBB", width, width, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("content", [b"", b"no picture", picture()[:200], bomb(8000), bomb(60000)])
def test_bad_pictures_are_refused(address: tuple[str, int], content: bytes) -> None:
    status, answer = ask(address, "POST", content)
    assert status == 400
    assert "picture" in answer["error"] or "pixels" in answer["error"]
    assert ask(address, "POST", picture())[0] == 200


def test_a_form_and_other_formats_are_named(address: tuple[str, int]) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc\r\n--x--\r\n'
    assert "--data-binary @cat.jpg, not -F" in ask(address, "POST", form)[1]["error"]
    gif = io.BytesIO()
    Image.new("P", (9, 9)).save(gif, "GIF")
    error = ask(address, "POST", gif.getvalue())[1]["error"]
    assert error == "not a picture that can be read: it is none of PNG, JPEG, WEBP, BMP"


def test_the_command_line_needs_no_framework(model: Path, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(picture())
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "for name in ('mxnet', 'onnx', 'model', 'training'): sys.modules[name] = None\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(SCRIPT), str(model), "cat.png"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "cat.png"
    assert len(lines) == 6
    assert "%  name " in lines[1]


def _saved(path: Path, metadata: dict[str, str], net: Any = None) -> Path:
    path.write_bytes(to_onnx(trace(net or tiny_attention()), metadata).SerializeToString())
    return path


def test_flags_say_what_a_file_of_others_does_not(
    serve: Any, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cat.png").write_bytes(picture())
    bare = _saved(tmp_path / "bare.onnx", {})
    (tmp_path / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    shown = []
    for words in (
        [str(model)],
        [str(bare), *FLAGS, "--classes", ",".join(NAMES)],
        [str(bare), *FLAGS, "--classes", f"@{tmp_path}/names.txt"],
        [str(bare), *FLAGS],
    ):
        assert serve.main([words[0], str(tmp_path / "cat.png"), *words[1:]]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] == shown[2]
    assert shown[3] == shown[0].replace("name ", "class ")
    assert serve.main([str(model), str(tmp_path / "cat.png"), *FLAGS[:2], "--size", "40"]) == 0
    assert capsys.readouterr().err == f"note: {model} has another size than the flags say\n"


def test_the_card_comes_before_what_the_export_wrote(serve: Any, tmp_path: Path) -> None:
    """It is what `python -m model.weights.card --set` corrects."""
    image = {"height": 40, "width": 40, "mean": [0.5] * 3, "deviation": [0.25] * 3, "crop": 0.5}
    metadata = {
        "preprocessing": WANTED.to_json().decode(),
        "card": json.dumps({"card": 1, "classes": ["cat", "dog"], "image": image}),
    }
    classifier = serve.Classifier(str(_saved(tmp_path / "x.onnx", metadata)))
    assert (classifier.size, classifier.crop, classifier.names) == (40, 0.5, ("cat", "dog"))
    assert classifier.mean.ravel().tolist() == [0.5] * 3
    assert classifier.std.ravel().tolist() == [0.25] * 3
    card = {"card": json.dumps({"card": 1, "classes": ["cat"], "image": {"height": 32}})}
    alone = str(_saved(tmp_path / "alone.onnx", card))
    classifier = serve.Classifier(alone, {"normalization": "imagenet"})
    assert (classifier.size, classifier.names) == (32, ("cat",))
    for content in ("[]", "{", '{"image": 3}', '{"image": {"mean": "x", "deviation": "x"}}'):
        with pytest.raises(serve.ServeError, match="metadata about images cannot be read"):
            serve.Classifier(str(_saved(tmp_path / "bad.onnx", {"card": content})))


def test_other_networks_are_named(serve: Any, tmp_path: Path) -> None:
    glimpses = _saved(tmp_path / "glimpse.onnx", {}, tiny_glimpse())
    with pytest.raises(serve.ServeError, match=r"inputs image, first_location, noise.*expected"):
        serve.Classifier(str(glimpses), {"normalization": "none", "size": 32})


def test_mistakes_end_with_one_line(
    serve: Any, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare.onnx"
    bare.write_bytes(to_onnx(trace(tiny_attention()), {}).SerializeToString())
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"\0" * 50)
    for words, message in (
        ([str(model)], "name pictures, or give --port"),
        ([str(model), "a.png", "--port", "0"], "name pictures, or give --port"),
        (
            [str(model), str(tmp_path / "none.png")],
            "none.png: No such file or directory; check the path",
        ),
        ([str(model), str(damaged)], "not a picture"),
        ([str(tmp_path / "none.onnx"), "a.png"], "cannot be loaded"),
        ([str(damaged), "a.png"], "cannot be loaded"),
        ([str(bare), "a.png"], "python export_model.py FILE --to onnx"),
        ([str(bare), "a.png"], "give --normalization and --size"),
        ([str(bare), "a.png", "--normalization", "none"], "give --size"),
        ([str(bare), "a.png", "--normalization", "gray", "--size", "32"], "0.5,0.5,0.5/0.2"),
        ([str(bare), "a.png", "--normalization", "0,0,0/1,0,1", "--size", "32"], "0.5,0.5,0.5/0.2"),
        ([str(bare), "a.png", "--normalization", "none", "--size", "0"], "1 to 4096"),
        ([str(model), "a.png", "--crop", "1.5"], "crop 1.5 cannot be"),
        ([str(model), "a.png", "--classes", "cat,dog"], "names name 0, name 1"),
        ([str(bare), "a.png", *FLAGS, "--classes", "cat,cat"], "give different names"),
        ([str(bare), "a.png", *FLAGS, "--classes", f"@{tmp_path}/no"], "cannot be read"),
        ([str(bare), "a.png", *FLAGS, "--classes", ",".join("abcdefghijk")], "has 10 classes, 11"),
        ([str(model), "--port", "99999"], "port"),
    ):
        assert serve.main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1
