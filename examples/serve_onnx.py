"""Serve the predictions of an exported classifier, with onnxruntime, NumPy and Pillow alone.

    pip install onnxruntime numpy pillow
    python serve_onnx.py MODEL.onnx cat.jpg dog.png          print the five best classes
    python serve_onnx.py MODEL.onnx --port 8000              serve on this machine
    curl --data-binary @cat.jpg http://127.0.0.1:8000/       the same as JSON
    python serve_onnx.py THEIRS.onnx cat.jpg --classes cat,dog --size 224 --normalization imagenet

MODEL.onnx comes from ``python export_model.py FILE --to onnx``: how its images are to be normalized
and what its classes are called is in its metadata. For a file of others, and a network of unknown
origin, flags say it. The server answers this machine only, one picture at a time, of at most 10 MB
and 50 megapixels. Put a real web server before it if others are to reach it.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import socket
import sys
import warnings
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, NamedTuple, Optional

try:
    import numpy as np
    import onnxruntime
    from PIL import Image, ImageOps, UnidentifiedImageError
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(
        f"error: {sys.executable} has no {missing.name}: pip install onnxruntime numpy pillow",
        file=sys.stderr,
    )
    sys.exit(2)

HOST = "127.0.0.1"
MAX_BYTES = 10_000_000
MAX_PIXELS = 50_000_000
TIMEOUT_SEC = 10  # for more of a request to arrive
TOP = 5
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_SIZE = 4096
FIGURES = {  # mean and standard deviation of red, green and blue, of pixels from 0 to 1
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


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


class Expected(NamedTuple):
    """What a network expects of an image, and the names of its classes."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    names: tuple[str, ...] = ()
    crop: float = 1.0


def _sound(known: Expected) -> bool:
    numbers = (*known.mean, *known.std, known.crop)
    return (
        1 <= known.size <= MAX_SIZE
        and len(known.mean) == len(known.std) == 3
        and all(map(math.isfinite, numbers))
        and min(known.std) > 0
        and 0 < known.crop <= 1
    )


def _recorded(path: str, about: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of `Expected` that the metadata have, and the names of the classes.

    The card comes before what the export wrote: ``python -m model.weights.card`` corrects it.
    """
    try:
        card, written = (json.loads(about.get(key, "{}")) for key in ("card", "preprocessing"))
        image = card.get("image", {})
        found = {**written, "size": written.get("size", image.get("height"))}
        for ours, theirs in (("size", "height"), ("mean", "mean"), ("std", "deviation")):
            found[ours] = image.get(theirs, found.get(ours))
        found["crop"] = image.get("crop", written.get("crop", 1))
        names = [str(name) for name in card.get("classes") or written.get("class_names", [])]
        kept: dict[str, Any] = {"crop": float(found["crop"])}
        if found["size"] is not None:
            kept["size"] = int(found["size"])
        if found["mean"] is not None and found["std"] is not None:
            kept.update({n: tuple(float(v) for v in found[n]) for n in ("mean", "std")})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ServeError(
            f"{path}: its metadata about images cannot be read: {error}; export it again"
        ) from error
    return kept, names


def _figures(words: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if words in FIGURES:
        return FIGURES[words]
    try:
        mean, std = (tuple(map(float, part.split(","))) for part in words.split("/"))
        if _sound(Expected(1, mean, std)):
            return mean, std
    except ValueError:
        pass
    raise ServeError(
        f"--normalization {words}: give {', '.join(FIGURES)}, or mean and standard deviation of "
        "red, green and blue as 0.5,0.5,0.5/0.2,0.2,0.2"
    )


def _names(words: str) -> list[str]:
    if not words.startswith("@"):
        names = words.split(",")
    else:
        try:
            with open(words[1:], encoding="utf-8") as file:
                names = file.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ServeError(f"--classes {words}: cannot be read: {error}") from error
    if "" in names or len(set(names)) != len(names):
        raise ServeError(f"--classes {words}: give different names, none of them empty")
    return names


def expected_of(path: str, about: Mapping[str, str], given: Mapping[str, Any]) -> Expected:
    """Return what a network expects: as its file says, and where that is silent, as the flags do.

    Raises
    ------
    ServeError
        When neither says all, or a flag is impossible or contradicts the names in the file.
    """
    known, names = _recorded(path, about)
    told = {name: given[name] for name in ("size", "crop") if given.get(name) is not None}
    if given.get("normalization"):
        told["mean"], told["std"] = _figures(given["normalization"])
    other = [name for name in told if known.get(name, told[name]) != told[name]]
    silent = "size" not in known
    known.update(told)
    if given.get("classes"):
        named = _names(given["classes"])
        if names and named != names:
            raise ServeError(
                f"--classes {given['classes']}: {path} names {', '.join(names[:TOP])}; leave "
                "--classes out, or correct the file: python -m model.weights.card"
            )
        names = named
    missing = [
        flag
        for field, flag in (("mean", "--normalization"), ("size", "--size"))
        if field not in known
    ]
    if missing:
        raise ServeError(
            f"{path} does not say what its images are like: give {' and '.join(missing)} (--help "
            "says how), or export it with python export_model.py FILE --to onnx"
        )
    expected = Expected(**known, names=tuple(names))
    if not _sound(expected):
        raise ServeError(
            f"{path}: images of {expected.size} pixels, mean {expected.mean}, deviation "
            f"{expected.std}, crop {expected.crop:g} cannot be; the size is 1 to {MAX_SIZE}, the "
            "deviation of three colours above 0, the crop above 0 and at most 1"
        )
    if other and not silent:
        print(f"note: {path} has another {', '.join(other)} than the flags say", file=sys.stderr)
    return expected


class Classifier:
    """An exported network with what it expects of an image.

    Parameters
    ----------
    path
        The ONNX file.
    given
        Flags of the command line, for what the file does not say; see `expected_of`.
    """

    def __init__(self, path: str, given: Optional[Mapping[str, Any]] = None) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's classes have no base of their own
            raise ServeError(f"{path} cannot be loaded (is it ONNX?): {error}") from error
        self.input, self.output, classes = self._ends(path)
        about = self.session.get_modelmeta().custom_metadata_map
        known = expected_of(path, about, given or {})
        if isinstance(classes, int) and len(known.names) > classes:
            raise ServeError(
                f"{path} has {classes} classes, {len(known.names)} names were given: "
                f"{', '.join(known.names[:TOP])}"
            )
        self.size, self.crop, self.names = known.size, known.crop, known.names
        shape = (1, 3, 1, 1)
        self.mean = np.array(known.mean, np.float32).reshape(shape)
        self.std = np.array(known.std, np.float32).reshape(shape)

    def _ends(self, path: str) -> tuple[str, str, Any]:
        """Return the names of input and output, and the number of classes where it is known."""
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4 or len(outputs[0].shape) != 2:
            raise ServeError(
                f"{path} has inputs {', '.join(i.name for i in inputs)} and outputs "
                f"{', '.join(o.name for o in outputs)}; expected a classifier of whole images: one "
                "input (N, 3, H, W), and logits (N, classes) first"
            )
        return inputs[0].name, outputs[0].name, outputs[0].shape[1]

    def read(self, content: bytes) -> np.ndarray:
        """Return a picture as input (1, 3, size, size): its central square, resized."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                picture = Image.open(io.BytesIO(content), formats=FORMATS)
                width, height = picture.size
                if width * height > MAX_PIXELS:
                    raise ServeError(f"{width}x{height} pixels are more than {MAX_PIXELS}")
                edge = 2 * round(self.size / self.crop)  # at least twice what is shown
                picture.draft("RGB", (edge, edge))
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
        image = self.read(content)
        try:
            logits = self.session.run([self.output], {self.input: image})[0][0]
        except Exception as error:  # onnxruntime's classes have no base of their own
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ServeError(
                f"the network takes no images of {self.size}x{self.size}: {lines[0]}; name the "
                "size that it was made for with --size"
            ) from error
        if not np.isfinite(logits).all():
            raise ServeError("the network's outputs for this picture are not finite numbers")
        powers = np.exp(logits.astype(np.float64) - logits.max())
        shares = powers / powers.sum()
        best = np.argsort(-shares, kind="stable")[:TOP]
        return [Answer(self.name_of(int(label)), float(shares[label])) for label in best]

    def name_of(self, label: int) -> str:
        """Return the name of a class, printable, or its number."""
        name = self.names[label] if label < len(self.names) else f"class {label}"
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)


def make_server(classifier: Classifier, port: int) -> HTTPServer:
    """Return a server on this machine's own address; port 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        timeout = TIMEOUT_SEC

        def do_POST(self) -> None:
            """Answer a picture in the body with JSON."""
            length = self.headers.get("Content-Length", "")
            if not (length.isascii() and length.isdigit()):
                self.answer(411, {"error": "send the picture as body, with its Content-Length"})
            elif len(length) > 12 or int(length) > MAX_BYTES:
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
    told = parser.add_argument_group("what the file does not say, or says wrongly")
    told.add_argument("--classes", help="names, cat,dog or @FILE with one in each line")
    told.add_argument(
        "--normalization",
        metavar="NAME|MEAN/STD",
        help="imagenet, none, or numbers as 0.5,0.5,0.5/0.2,0.2,0.2",
    )
    told.add_argument("--size", type=int, metavar="N", help="edge of the input in pixels")
    crop = "edge of the central square, as a part of the shorter side (default: 1)"
    told.add_argument("--crop", type=float, metavar="X", help=crop)
    args = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of classes may be what it cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    if bool(args.pictures) == (args.port is not None):
        print("error: name pictures, or give --port", file=sys.stderr)
        return 2
    try:
        classifier = Classifier(args.model, vars(args))
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
        text = str(error)
        if isinstance(error, OSError) and error.filename:
            text = f"{error.filename}: {error.strerror}; check the path"
        print(f"error: {text}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
