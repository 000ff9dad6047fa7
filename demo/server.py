"""The page's addresses, and what bounds the requests to them.

One thread computes, because MXNet's networks are not made for several; requests wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Optional

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from demo.encode import png_url
from demo.glimpses import GlimpseModel, read_drawing, test_digit
from demo.masks import MaskedClassifier
from formats.errors import UserError
from formats.param_reader import ParamFileError
from model.registry import ModelError
from model.weights.file_match import LoadError
from training.data.dataset import ImageData

PAGE = Path(__file__).resolve().parent / "page"
# As in examples/serve_onnx.py; the bound on pixels is in formats/images/decode.py.
MAX_BYTES = 10_000_000
TIMEOUT_SEC = 10.0
MAX_SEED = 2**31
THUMBNAILS = 12
POLICY = "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'"
UNUSABLE = (UserError, ParamFileError, ModelError, LoadError)


class TooLarge(Exception):
    """A request's body has more than `MAX_BYTES`."""


class Demo:
    """The networks behind the page, opened when they are first asked for.

    Parameters
    ----------
    glimpses
        Glimpse models by the name that the page calls them.
    classifiers
        Networks with soft masks, in the same way; the first is shown first.
    digits
        Test digits, and what clutter is cut from; ``digits_name`` says which.
    data_dir
        Where the classifiers' data sets are.
    """

    def __init__(
        self,
        glimpses: Mapping[str, Path],
        classifiers: Mapping[str, Path],
        digits: ImageData,
        digits_name: str,
        data_dir: Optional[str] = None,
    ) -> None:
        self.glimpses, self.classifiers = dict(glimpses), dict(classifiers)
        self.digits, self.digits_name, self.data_dir = digits, digits_name, data_dir
        self._opened: dict[str, Any] = {}

    def glimpse(self, name: str) -> GlimpseModel:
        """Return a glimpse model; UserError when there is none of this name."""
        path = _choose(name, self.glimpses)
        return self._open(f"glimpse {name}", lambda: GlimpseModel(path, self.digits))

    def classifier(self, name: str) -> MaskedClassifier:
        """Return a network with soft masks; UserError when there is none of this name."""
        path = _choose(name, self.classifiers)
        return self._open(f"masks {name}", lambda: MaskedClassifier(path, self.data_dir))

    def _open(self, key: str, opening: Callable[[], Any]) -> Any:
        if key not in self._opened:
            self._opened[key] = opening()
        return self._opened[key]

    # What the addresses answer; all of it runs in the one thread.

    def about(self) -> dict[str, Any]:
        """Return the names of the networks and of the digits."""
        return {
            "glimpses": list(self.glimpses),
            "classifiers": list(self.classifiers),
            "digits": {"name": self.digits_name, "count": len(self.digits)},
            "most": MAX_BYTES,
        }

    def see_digit(self, query: Mapping[str, str], drawing: bytes) -> dict[str, Any]:
        """Answer for a drawing, or for test image ``test``."""
        model = self.glimpse(query.get("model", ""))
        label = None
        if "test" in query:
            digit, label = test_digit(self.digits, _whole(query, "test", len(self.digits)))
        else:
            digit = read_drawing(drawing)
        place = (_fraction(query, "x"), _fraction(query, "y"))
        seen = model.see(digit, _whole(query, "seed", MAX_SEED), *place)
        placed = model.canvas is not None
        return {**seen, "placed": placed, "label": label, "card": model.card}

    def see_picture(self, query: Mapping[str, str], picture: bytes) -> dict[str, Any]:
        """Answer for an uploaded picture, or for test image ``test``."""
        network, label = self.classifier(query.get("model", "")), None
        if "test" in query:
            image, label = network.test_image(_whole(query, "test", MAX_SEED))
        else:
            image = network.read(picture)
        return {**network.see(image), "label": label, "card": network.card}

    def thumbnails(self, query: Mapping[str, str], _: bytes) -> dict[str, Any]:
        """Return the first test images of a classifier's data set; none where it is not here."""
        tests = self.classifier(query.get("model", "")).tests()
        return {"images": [png_url(image) for image in tests.images[:THUMBNAILS]] if tests else []}


def _choose(name: str, paths: Mapping[str, Path]) -> Path:
    if name not in paths:
        raise UserError(f"there is no network {name!r:.80}; there are {', '.join(paths)}")
    return paths[name]


def _whole(query: Mapping[str, str], name: str, end: int) -> int:
    text = query.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) < 11 and int(text) < end):
        raise UserError(f"{name}={text:.40}: give a whole number of 0 to {end - 1}")
    return int(text)


def _fraction(query: Mapping[str, str], name: str) -> float:
    text = query.get(name, "0")
    try:
        value = float(text)
    except ValueError:
        value = 2.0
    if not -1 <= value <= 1:
        raise UserError(f"{name}={text:.40}: give a number of -1 to 1")
    return value


async def _body(request: Request) -> bytes:
    """Return the body, of which never more than `MAX_BYTES` is held."""
    content = bytearray()
    async for part in request.stream():
        content += part
        if len(content) > MAX_BYTES:
            raise TooLarge
    return bytes(content)


def build_app(demo: Demo, hosts: tuple[str, ...]) -> Starlette:
    """Return the application; it answers requests that name one of `hosts` ("*": any)."""
    thread = ThreadPoolExecutor(1, "mxnet")

    def answering(answer: Callable[..., Mapping[str, Any]]) -> Callable[[Request], Any]:
        async def respond(request: Request) -> Response:
            try:
                body = await asyncio.wait_for(_body(request), TIMEOUT_SEC)
                query = dict(request.query_params)
                loop = asyncio.get_running_loop()
                return _json(await loop.run_in_executor(thread, answer, query, body))
            except UNUSABLE as error:
                return _json({"error": str(error)}, 400)
            except ClientDisconnect:
                return Response(status_code=400)
            except TooLarge:
                return _json({"error": f"at most {MAX_BYTES:,} bytes; make it smaller"}, 413)
            except asyncio.TimeoutError:
                return _json({"error": f"it did not arrive within {TIMEOUT_SEC:.0f} seconds"}, 408)

        return respond

    async def page(_: Request) -> Response:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": POLICY})

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> Any:
        yield
        thread.shutdown(cancel_futures=True)

    routes = [
        Route("/", page),
        Route("/about", answering(lambda *_: demo.about())),
        Route("/digit", answering(demo.see_digit), methods=["POST"]),
        Route("/picture", answering(demo.see_picture), methods=["POST"]),
        Route("/thumbnails", answering(demo.thumbnails)),
        Mount("/page", StaticFiles(directory=PAGE)),
    ]
    trusted = Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return Starlette(routes=routes, middleware=[trusted], lifespan=lifespan)


def _json(content: Mapping[str, Any], status: int = 200) -> Response:
    return JSONResponse(content, status, headers={"X-Content-Type-Options": "nosniff"})
