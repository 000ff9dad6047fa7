"""Serve the predictions of an exported classifier, with onnxruntime, NumPy and Pillow alone.

    pip install onnxruntime numpy pillow
    python serve_onnx.py MODEL.onnx cat.jpg dog.png          print the five best classes
    python serve_onnx.py MODEL.onnx --port 8000              serve on this machine
    curl --data-binary @cat.jpg http://127.0.0.1:8000/       the same as JSON

MODEL.onnx comes from ``python export_model.py FILE --to onnx``; how its images are to be normalized
is in its metadata. The server answers this machine only, one picture at a time, of at most 10 MB
and 50 megapixels. Put a real web server before it if others are to reach it.
"""

from __future__ import annotations

import argparse
import io
import json
import socket
import sys
import warnings
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, NamedTuple, Optional

import numpy as np
import onnxruntime
from PIL import Image, ImageOps, UnidentifiedImageError

HOST = "127.0.0.1"
MAX_BYTES = 10_000_000
MAX_PIXELS = 50_000_000
TIMEOUT_SEC = 10  # for a request to arrive
TOP = 5
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")


class ServeError(Exception):
    """A picture or model cannot be used; the message says why."""


def _as_rgb(picture: Any) -> Any:
    if picture.mode.startswith("I"):  # 16 bit grey, which convert() would clip
        pixels = (np.asarray(picture) // 256).clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(pixels)
    elif "transparency" in picture.info or "A" in picture.getbands():
        picture = picture.convert("RGBA")  # over white, as browsers show it
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")


def _unreadable(content: bytes) -> str:
    if content.startswith(b"--"):  # the boundary between the parts of a form
        return "this is a form: send the picture alone, by curl --data-binary @cat.jpg, not -F"
    return f"not a picture that can be read: it is none of {', '.join(FORMATS)}"


class Answer(NamedTuple):
    """A class and its probability."""

    name: str
    probability: float


class Classifier:
    """An exported network with what it expects of an image."""

    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's classes have no base of their own
            raise ServeError(f"{path} cannot be loaded: {error}") from error
        about = self.session.get_modelmeta().custom_metadata_map
        if "preprocessing" not in about:
            raise ServeError(
                f"{path} does not say how its images are normalized: export it with "
                "python export_model.py FILE --to onnx"
            )
        known = json.loads(about["preprocessing"])
        self.size, self.crop = int(known["size"]), float(known.get("crop", 1))
        self.names = list(known["class_names"])
        shape = (1, 3, 1, 1)
        self.mean = np.array(known["mean"], np.float32).reshape(shape)
        self.std = np.array(known["std"], np.float32).reshape(shape)

    def read(self, content: bytes) -> np.ndarray:
        """Return a picture as input (1, 3, size, size): its central square, resized."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                picture = Image.open(io.BytesIO(content), formats=FORMATS)
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise ServeError(f"{width}x{height} pixels are more than {MAX_PIXELS}")
                picture.draft("RGB", (2 * self.size, 2 * self.size))
                picture = _as_rgb(ImageOps.exif_transpose(picture))
        except ServeError:
            raise
        except UnidentifiedImageError:
            raise ServeError(_unreadable(content)) from None
        except Exception as error:  # Pillow's decoders raise many kinds
            raise ServeError(f"not a picture that can be read: {error}") from error
        width, height = picture.size  # turned, and smaller where a JPEG allows that
        side = self.crop * min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        resized = picture.resize(
            (self.size, self.size),
            Image.Resampling.BICUBIC,
            box=(left, top, left + side, top + side),
        )
        pixels = np.asarray(resized, np.float32).transpose(2, 0, 1)[None] / 255
        return (pixels - self.mean) / self.std

    def classify(self, content: bytes) -> list[Answer]:
        """Return the most probable classes of an encoded picture, best first."""
        logits = self.session.run(["logits"], {"image": self.read(content)})[0][0]
        if not np.isfinite(logits).all():
            raise ServeError("the network's outputs for this picture are not finite numbers")
        powers = np.exp(logits.astype(np.float64) - logits.max())
        shares = powers / powers.sum()
        best = np.argsort(-shares, kind="stable")[:TOP]
        return [Answer(self.name_of(int(label)), float(shares[label])) for label in best]

    def name_of(self, label: int) -> str:
        """Return the name of a class, or its number."""
        return self.names[label] if label < len(self.names) else f"class {label}"


def make_server(classifier: Classifier, port: int) -> HTTPServer:
    """Return a server on this machine's own address; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        timeout = TIMEOUT_SEC

        def do_POST(self) -> None:
            """Answer a picture in the body with JSON."""
            length = self.headers.get("Content-Length", "")
            if not (length.isascii() and length.isdigit()):
                self.answer(411, {"error": "send the picture as body, with its Content-Length"})
            elif int(length) > MAX_BYTES:
                self.answer(413, {"error": f"at most {MAX_BYTES} bytes"})
            else:
                self.predict(int(length))

        def do_GET(self) -> None:
            """Say how to ask."""
            self.answer(405, {"error": "POST a picture: curl --data-binary @cat.jpg URL"})

        def predict(self, length: int) -> None:
            """Read the picture and answer."""
            try:
                content = self.rfile.read(length)
            except (socket.timeout, OSError):
                self.close_connection = True
                return
            try:
                answers = classifier.classify(content)
            except ServeError as error:
                self.answer(400, {"error": str(error)})
                return
            self.answer(200, {"classes": [answer._asdict() for answer in answers]})

        def answer(self, status: int, content: dict[str, Any]) -> None:
            """Send JSON and close the connection: an unread body is not taken for a request."""
            body = json.dumps(content).encode() + b"\n"
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            """Keep quiet."""

    return HTTPServer((HOST, port), Handler)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return 0, or 2 after printing what is wrong."""
    parser = argparse.ArgumentParser(description="Serve an exported classifier.")
    parser.add_argument("model", metavar="MODEL.onnx")
    parser.add_argument("pictures", nargs="*", help="pictures to classify")
    parser.add_argument("--port", type=int, help="serve on this port of 127.0.0.1")
    args = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of classes may be what it cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    if bool(args.pictures) == (args.port is not None):
        print("error: name pictures, or give --port", file=sys.stderr)
        return 2
    try:
        classifier = Classifier(args.model)
        if args.port is not None:
            with make_server(classifier, args.port) as server:
                print(f"serving on http://{HOST}:{server.server_port}/", flush=True)
                server.serve_forever()
        for name in args.pictures:
            with open(name, "rb") as file:
                content = file.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise ServeError(f"{name} has more than {MAX_BYTES} bytes")
            print(name)
            for answer in classifier.classify(content):
                print(f"  {answer.probability:8.2%}  {answer.name}")
    except KeyboardInterrupt:
        return 0
    except (ServeError, OSError, ValueError, OverflowError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
