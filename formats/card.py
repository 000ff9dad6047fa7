"""The card of a file of weights: what the network in it is, as a JSON object behind the arrays.

MXNet stops reading a parameter file after the last name, so what follows travels with every copy,
is covered by the digest beside the file, and is invisible to MXNet. It is found from the end:

==========  ============================================================
N bytes     the object, JSON in ASCII
8 bytes     N, little-endian
32 bytes    SHA-256 of the N bytes
8 bytes     `MAGIC`
==========  ============================================================

Safetensors and ONNX files carry the same text in their metadata, under `METADATA_KEY`. The fields
are those of `SCHEMA`, all but ``card`` may be left out; docs/files.md says what they mean. A field
more is another version. Needs the standard library alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from typing import Any, Callable, Optional

VERSION = 1
MAGIC = b"\0ATTCARD"
METADATA_KEY = "card"
MAX_BYTES = 4 << 20  # the names of 20,000 classes fit
MAX_DEPTH = 6
MAX_DIGITS = 25  # of a number; JSON sets no limit
MAX_SIZE = 4096  # of an input, in pixels; no network here takes as much
MAX_TEXT = 2000
MAX_CLASSES = 1_000_000
TRAILER = struct.Struct("<Q32s8s")


class CardError(Exception):
    """A card is damaged, or says what cannot be; the message says what is wrong."""


# ------------------------------------------------------------------------------------ the fields


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _number(least: float, most: float = math.inf, above: bool = False) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        real = isinstance(value, (int, float)) and not isinstance(value, bool)
        return real and (least < value if above else least <= value) and value <= most

    return check


def _whole(least: int, most: int = 2**53) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _several(check: Callable[[Any], bool], most: int) -> Callable[[Any], bool]:
    return lambda values: (
        isinstance(values, list) and len(values) <= most and all(map(check, values))
    )


def _named(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda values: isinstance(values, dict) and all(map(check, values.values()))


def _setting(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, list)) or _text(value)


SCHEMA: dict[str, Any] = {
    "card": _whole(1),
    "network": {"model": _text, "classes": _whole(1, MAX_CLASSES), "settings": _named(_setting)},
    "classes": _several(lambda name: _text(name) and bool(name), MAX_CLASSES),
    "image": {
        "height": _whole(1, MAX_SIZE),
        "width": _whole(1, MAX_SIZE),
        "mean": _several(_number(-1e6, 1e6), 4),
        "deviation": _several(_number(0, 1e6, above=True), 4),
        "crop": _number(0, 1, above=True),
    },
    "data": {
        "name": _text,
        **dict.fromkeys(("train", "valid", "test"), _whole(0)),
        "digest": _text,
    },
    "training": {
        "recipe": _text,
        "epochs": _whole(0),
        "seed": _whole(0),
        "precision": _text,
        "commit": _text,
        "command": _text,
    },
    "glimpse": {"deviation": _number(0, 1), "first_radius": _number(0, 1)},
    "scores": _named(_number(-math.inf)),
    "licence": _text,
}


def check_card(card: Any) -> dict[str, Any]:
    """Return a card after looking at every field.

    One of a later version is returned as it is: only its version is known here (`is_newer`).

    Raises
    ------
    CardError
        When a field is unknown or has a value that it cannot have.
    """
    if not isinstance(card, dict) or not SCHEMA["card"](card.get("card")):
        raise CardError('it is no JSON object with the version as "card"')
    if is_newer(card):
        return card
    for name, value in card.items():
        fields = SCHEMA.get(name)
        if fields is None:
            raise CardError(f"it has no field {name[:80]!r}; it has {', '.join(SCHEMA)}")
        if callable(fields):
            _check_value(name, value, fields)
            continue
        if not isinstance(value, dict):
            raise CardError(f"{name} is {_shown(value)}, expected an object")
        for key, inner in value.items():
            if key not in fields:
                raise CardError(f"{name} has no field {key[:80]!r}; it has {', '.join(fields)}")
            _check_value(f"{name}.{key}", inner, fields[key])
    _check_together(card)
    return card


def _check_value(name: str, value: Any, check: Callable[[Any], bool]) -> None:
    if not check(value):
        raise CardError(f"{name} cannot be {_shown(value)}")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _check_together(card: Mapping[str, Any]) -> None:
    names, image = card.get("classes", []), card.get("image", {})
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise CardError(f"the class {twice[:80]!r} occurs twice")
    classes = card.get("network", {}).get("classes", len(names))
    if len(names) > classes:
        raise CardError(f"it names {len(names)} classes, the network has {classes}")
    figures = len(image.get("mean", [])), len(image.get("deviation", []))
    if figures not in ((1, 1), (3, 3)) and ("mean" in image or "deviation" in image):
        raise CardError(
            "image.mean and image.deviation belong together, one number for each of 1 or 3 channels"
        )
    size = {image[name] for name in ("height", "width") if name in image}
    if len(size) > 1 and "glimpse" not in card:
        raise CardError("image.height and image.width differ; a classifier's images are square")
    if named := {"name", "classes"} & {*card.get("network", {}).get("settings", {})}:
        raise CardError(
            f"network.settings.{min(named)} is no setting; there are network.model and "
            "network.classes"
        )


def is_newer(card: Mapping[str, Any]) -> bool:
    """Tell whether a card is of a later version than this code knows."""
    return int(card["card"]) > VERSION


# ---------------------------------------------------------------------------------------- the text


def card_text(card: Mapping[str, Any]) -> str:
    """Return a card as JSON in ASCII; CardError when it is not as `SCHEMA` says."""
    try:
        text = json.dumps(check_card(dict(card)), allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise CardError(f"it is no JSON: {error}") from error
    parse_card(text)  # whatever is written can be read
    return text


def parse_card(text: str) -> dict[str, Any]:
    """Return the card that `card_text` gave.

    Raises
    ------
    CardError
        When the text is too long or too deep, no such object, or names a field twice.
    """
    if len(text) > MAX_BYTES:
        raise CardError(f"it has {len(text):,} bytes, at most {MAX_BYTES:,} are allowed")
    try:
        card = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_bounded(int),
            parse_float=_bounded(float),
        )
    except (ValueError, RecursionError) as error:
        raise CardError(f"it is no JSON: {str(error)[:200]}") from error
    _check_depth(card)
    return check_card(card)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _bounded(read: Callable[[str], Any]) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        if len(text) > MAX_DIGITS or not math.isfinite(read(text)):
            raise ValueError(f"the number {text[:MAX_DIGITS]}... is out of range")
        return read(text)

    return number


def _check_depth(card: Any) -> None:
    level, depth = [card], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise CardError(f"it is nested deeper than {MAX_DEPTH} levels")
        inner = [value.values() if isinstance(value, dict) else value for value in level]
        level = [v for values in inner for v in values if isinstance(v, (dict, list))]


# --------------------------------------------------------------------------- behind the arrays


def encode_block(card: Mapping[str, Any]) -> bytes:
    """Return the bytes that follow the last array's name; CardError as `card_text`."""
    text = card_text(card).encode("ascii")
    return text + TRAILER.pack(len(text), hashlib.sha256(text).digest(), MAGIC)


def block_length(tail: bytes) -> Optional[int]:
    """Return how many bytes at the end of a file are its card's, from its last `TRAILER` bytes.

    None: it has no card.

    Raises
    ------
    CardError
        When there is a card of an impossible length.
    """
    if len(tail) < TRAILER.size or not tail.endswith(MAGIC):
        return None
    length, _, _ = TRAILER.unpack(tail[-TRAILER.size :])
    if length > MAX_BYTES:
        raise CardError(f"it announces {length:,} bytes, at most {MAX_BYTES:,} are allowed")
    return int(length) + TRAILER.size


def without_block(content: bytes) -> bytes:
    """Return the content of a parameter file without its card; CardError as `block_length`."""
    length = block_length(content[-TRAILER.size :])
    return content[: len(content) - length] if length else content


def decode_block(block: bytes) -> dict[str, Any]:
    """Return the card in exactly these bytes, which `encode_block` gave.

    Raises
    ------
    CardError
        When they are damaged or something else.
    """
    if block_length(block) != len(block):
        raise CardError("there is none, or it has another length than it says")
    text = block[: -TRAILER.size]
    _, digest, _ = TRAILER.unpack(block[-TRAILER.size :])
    if hashlib.sha256(text).digest() != digest:
        raise CardError("its SHA-256 is another than it says")
    try:
        return parse_card(text.decode("ascii"))
    except UnicodeDecodeError as error:
        raise CardError("it is no ASCII") from error
