"""Print, correct, add or take off the card of a file: ``python -m model.weights.card FILE``.

    python -m model.weights.card FILE                  print it, as JSON
    python -m model.weights.card FILE --add            write what is known of a file without one
    python -m model.weights.card FILE --set image.mean=0.5,0.5,0.5 --set classes=cat,dog
    python -m model.weights.card FILE --unset scores   without this section or field
    python -m model.weights.card FILE --strip          without any card

Arrays never change by a bit, and the digest beside the file follows. docs/files.md says what the
fields mean.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from formats.atomic import write_atomically
from formats.card import METADATA_KEY, SCHEMA, VERSION, CardError, card_text, check_card, parse_card
from formats.param_reader import ParamFileError
from formats.weight_file import read_card, read_weight_shapes, write_card
from model.layers.gluoncv_zoo import PREFIX as GLUONCV
from model.registry import FAMILIES, ModelError
from model.weights.dialects import IMAGES, detect_dialect, fits
from model.weights.file_match import LoadError, count_classes, find_model
from model.weights.known import known_of
from model.weights.network_card import network_from

ONNX = ".onnx"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; returns 0, or 2 after printing what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m model.weights.card",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="MXNet, safetensors or ONNX file")
    change = parser.add_argument_group("changes, one kind at a time")
    change.add_argument(
        "--set", dest="sets", action="append", default=[], metavar="FIELD=VALUE", help="correct it"
    )
    change.add_argument(
        "--unset", action="append", default=[], metavar="FIELD", help="leave it out"
    )
    change.add_argument("--add", action="store_true", help="write what is known of the file")
    change.add_argument("--strip", action="store_true", help="take the card off")
    args = parser.parse_args(argv)
    try:
        run(args.file, args.sets, args.unset, args.add, args.strip)
    except (CardError, LoadError, ModelError, ParamFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def run(
    path: str, sets: Sequence[str], unset: Sequence[str], add: bool, strip: bool
) -> dict[str, Any]:
    """Do what the command line says, print the card that the file has then, and return it.

    Raises
    ------
    CardError, LoadError, ModelError, ParamFileError
        When the file or its card is damaged, or the new card cannot be; nothing is written then.
    """
    if strip and (sets or unset or add):
        raise CardError("--strip takes the whole card off: leave --set, --unset and --add out")
    if strip:
        _write(path, None)
        print(f"{path}: it has no card", file=sys.stderr)
        return {}
    card = _read(path)
    if card and int(card["card"]) > VERSION and (sets or unset or add):
        raise CardError(
            f"{path}: its card is of version {card['card']}, this project writes {VERSION}. Get a "
            "later version of the project"
        )
    new = copy.deepcopy({**collected(path), **card} if add else card)
    for field in unset:
        _remove(new, field)
    for word in sets:
        _put(new, word)
    if new and new != card:
        try:
            new = check_card({"card": VERSION, **new})
        except CardError as error:
            raise CardError(f"{path}: the card would be impossible: {error}") from error
        _check_network(path, new)
        _write(path, new)
    if not new:
        hint = "" if path.endswith(ONNX) else "; --add writes what is known of the file"
        print(f"{path}: it has no card{hint}", file=sys.stderr)
    else:
        print(json.dumps(new, indent=1))
    return new


def collected(path: str) -> dict[str, Any]:
    """Return what index, run folder, tensors and their names tell of a file, as a card."""
    known, shapes = known_of(path), read_weight_shapes(path)
    card = dict(known.card)
    if not card.get("network", {}).get("model"):
        model, classes = find_model(shapes)
        if model:
            card["network"] = {"model": model, "classes": classes, "settings": {}}
    elif not card["network"].get("classes") and count_classes(shapes):
        card["network"] = {**card["network"], "classes": count_classes(shapes)}
    image = IMAGES.get(detect_dialect(shapes) or "")
    if "image" not in card and image:
        card["image"] = copy.deepcopy(image)
    return card


def _check_network(path: str, card: dict[str, Any]) -> None:
    """Raise where the card's network cannot be built, or has other tensors than the file."""
    section = card.get("network", {})
    model = section.get("model")
    if model is None or path.endswith(ONNX):
        return
    if model not in FAMILIES and not model.startswith(GLUONCV):
        raise CardError(
            f"{path}: network.model {model!r} is none of this project's (--list-models)"
        )
    shapes = read_weight_shapes(path)
    net = network_from({"classes": count_classes(shapes) or None, **section})
    channels, given = int(net.image_shape[0]), len(card.get("image", {}).get("mean", ()))
    if given not in (0, channels):
        raise CardError(
            f"{path}: image.mean and image.deviation have {given} numbers, images of {model} have "
            f"{channels} channels"
        )
    wanted = {name: p.shape for name, p in net._collect_params_with_prefix().items()}
    same_names = detect_dialect(shapes) == detect_dialect(wanted)
    wrong = [n for n in wanted if n in shapes and not fits(wanted[n], shapes[n])]
    if wrong or (same_names and set(wanted) != set(shapes)):
        name = (wrong or sorted(set(wanted) ^ set(shapes)))[0]
        raise CardError(
            f"{path}: network.model {model} with these settings has other tensors than the file: "
            f"{name} is {wanted.get(name)} there and {shapes.get(name)} here"
        )


def _put(card: dict[str, Any], word: str) -> None:
    field, equals, text = word.partition("=")
    section, _, key = field.partition(".")
    if (
        not equals
        or section not in SCHEMA
        or section == "card"
        or (isinstance(SCHEMA[section], dict) and not key)
    ):
        raise CardError(f"--set {word}: give FIELD=VALUE with one of the fields {_fields()}")
    if key:
        target = card.setdefault(section, {})
        if section == "network" and key.startswith("settings."):
            target, key = target.setdefault("settings", {}), key[len("settings.") :]
        if not isinstance(target, dict):
            raise CardError(f"--set {word}: {section} has no fields of its own")
        numbers = key in ("mean", "deviation") and not text.startswith("[")
        target[key] = list(map(_value, text.split(","))) if numbers else _value(text)
    else:
        card[section] = _names(text) if section == "classes" else _value(text)


def _value(text: str) -> Any:
    """Return a JSON value, or the text where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _names(text: str) -> Any:
    """Return a JSON list, the lines of @FILE, or the words between commas."""
    if text.startswith("["):
        return _value(text)
    if text.startswith("@"):
        try:
            return Path(text[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CardError(f"{text[1:]} cannot be read: {error}") from error
    return text.split(",")


def _remove(card: dict[str, Any], field: str) -> None:
    *path, last = field.split(".")
    target: Any = card
    for key in path:
        target = target.get(key) if isinstance(target, dict) else None
    if not isinstance(target, dict) or last not in target:
        raise CardError(f"--unset {field}: the card has no such field")
    del target[last]


def _fields() -> str:
    return ", ".join(
        f"{name}.{key}" if key else name
        for name, fields in SCHEMA.items()
        if name != "card"
        for key in (fields if isinstance(fields, dict) else ("",))
    )


# ------------------------------------------------------------------------------------ any file


def _read(path: str) -> dict[str, Any]:
    if not path.endswith(ONNX):
        return read_card(path) or {}
    texts = {prop.key: prop.value for prop in _onnx(path).metadata_props}
    return parse_card(texts[METADATA_KEY]) if METADATA_KEY in texts else {}


def _write(path: str, card: Optional[dict[str, Any]]) -> None:
    if not path.endswith(ONNX):
        write_card(path, card)
        return
    model = _onnx(path)
    kept = [prop for prop in model.metadata_props if prop.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    if card is not None:
        model.metadata_props.add(key=METADATA_KEY, value=card_text(card))
    try:
        write_atomically(path, model.SerializeToString())
    except OSError as error:
        raise ParamFileError(f"{path}: cannot be written: {error.strerror or error}") from error


def _onnx(path: str) -> Any:
    try:
        import onnx
    except ImportError as error:
        raise CardError(
            f"{path}: ONNX files need the package onnx: {error}. Run make setup, or pip install "
            "-e '.[cpu,export]'"
        ) from error
    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's errors are no one class
        raise ParamFileError(f"{path}: cannot be read as ONNX: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
