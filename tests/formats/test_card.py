"""Cards behind arrays: found from the end, checked, and invisible to MXNet."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn

from formats import card as cards
from formats.card import CardError, check_card, decode_block, encode_block, parse_card
from formats.digest import digest_path, verify_digest
from formats.param_file import read_params, read_shapes, write_params
from formats.param_reader import ParamFileError
from formats.safetensors_file import read_safetensors, write_safetensors
from formats.weight_file import read_card, write_card

ARRAYS = {"0.weight": np.arange(12, dtype="f4").reshape(3, 4), "0.bias": np.ones(3, "f4")}
CARD: dict[str, Any] = {
    "card": 1,
    "network": {"model": "resnet20", "classes": 3, "settings": {"channels": [16, 32, 64]}},
    "classes": ["cat", "dög", "\udce9"],
    "image": {
        "height": 32,
        "width": 32,
        "mean": [0.5, 0.25, 0.125],
        "deviation": [0.2, 0.2, 0.1],
        "crop": 0.875,
    },
    "data": {"name": "folder:a", "train": 30, "test": 6, "digest": "00"},
    "training": {"recipe": "quick", "epochs": 3, "seed": 0, "precision": "float32"},
    "scores": {"test_acc": 0.5},
    "licence": "MIT",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_params(tmp_path / "net.param", ARRAYS, card=CARD)
    return tmp_path / "net.param"


def same(found: Any) -> bool:
    return found.keys() == ARRAYS.keys() and all((found[n] == ARRAYS[n]).all() for n in ARRAYS)


def test_it_is_read_from_the_end_and_leaves_the_arrays(path: Path) -> None:
    assert read_card(path) == CARD
    assert verify_digest(path)
    assert same(read_params(path))
    assert read_shapes(path).keys() == ARRAYS.keys()


def test_mxnet_does_not_see_it(path: Path) -> None:
    arrays = mx.nd.load(str(path))
    assert same({name: array.asnumpy() for name, array in arrays.items()})
    arrays = mx.nd.load_frombuffer(path.read_bytes())
    assert same({name: array.asnumpy() for name, array in arrays.items()})
    net = nn.HybridSequential()
    net.add(nn.Dense(3))
    net.load_parameters(str(path))
    assert (net[0].weight.data().asnumpy() == ARRAYS["0.weight"]).all()


def test_taking_it_off_gives_the_bytes_before(path: Path, tmp_path: Path) -> None:
    write_params(tmp_path / "bare.param", ARRAYS)
    bare, whole = (tmp_path / "bare.param").read_bytes(), path.read_bytes()
    write_card(path, None)
    assert path.read_bytes() == bare
    assert verify_digest(path)
    assert read_card(path) is None
    write_card(path, CARD)
    assert path.read_bytes() == whole
    Path(digest_path(path)).unlink()
    write_card(path, {"card": 1})
    assert read_card(path) == {"card": 1}
    assert not Path(digest_path(path)).exists()  # nobody vouched for the file before


def test_a_file_that_differs_from_its_digest_keeps_its_card(path: Path) -> None:
    changed = bytearray(path.read_bytes())
    changed[100] ^= 1
    path.write_bytes(changed)
    with pytest.raises(ParamFileError, match="SHA-256"):
        write_card(path, None)
    assert path.read_bytes() == changed


def test_safetensors_carry_it_in_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    write_safetensors(path, ARRAYS, {"format": "pt"})
    before = path.read_bytes()
    assert read_card(path) is None
    write_card(path, CARD)
    assert read_card(path) == CARD
    assert verify_digest(path)
    assert same(read_safetensors(path))
    from safetensors import safe_open

    with safe_open(str(path), "np") as opened:
        assert opened.metadata()["format"] == "pt"
    write_card(path, None)
    assert same(read_safetensors(path))
    assert len(path.read_bytes()) == len(before)


@pytest.mark.parametrize("place", [1, 40, 44, 60, 90])
def test_a_damaged_card_is_refused_and_can_be_taken_off(path: Path, place: int) -> None:
    changed = bytearray(path.read_bytes())
    changed[-place] ^= 1
    path.write_bytes(changed)
    Path(digest_path(path)).unlink()
    with pytest.raises(ParamFileError, match="card"):
        read_params(path)
    if place > len(cards.MAGIC):
        with pytest.raises(ParamFileError, match="damaged"):
            read_card(path)
    write_card(path, None)
    assert same(read_params(path))


def block(text: bytes) -> bytes:
    trailer = cards.TRAILER.pack(len(text), hashlib.sha256(text).digest(), cards.MAGIC)
    return text + trailer


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"[]", "no JSON object"),
        (b"{}", "version"),
        (b'{"card": true}', "version"),
        (b'{"card": 0}', "version"),
        (b'{"card": 1, "card": 1}', "twice"),
        (b'{"card": 1, "licence": NaN}', "NaN"),
        (b'{"card": 1, "scores": {"a": 1e999}}', "out of range"),
        (b'{"card": ' + b"9" * 5000 + b"}", "out of range"),
        (b'{"card": 1, "network": {"settings": {"a": ' + b"[" * 9 + b"]" * 9 + b"}}}", "deeper"),
        (b'{"card": 1, "licence": ' + b"[" * 100_000, "no JSON"),
        (b'{"card": 1, "licence": "\xff"}', "ASCII"),
        (b" " * (cards.MAX_BYTES + 1), "bytes"),
    ],
)
def test_impossible_texts_are_refused(text: bytes, problem: str) -> None:
    with pytest.raises(CardError, match=problem):
        decode_block(block(text))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"clases": []}, "no field 'clases'"),
        ({"network": {"modell": "x"}}, "network has no field 'modell'"),
        ({"network": []}, "expected an object"),
        ({"network": {"classes": 2}}, "names 3 classes, the network has 2"),
        ({"network": {"classes": True}}, "network.classes cannot be true"),
        ({"classes": ["a", "a"]}, "'a' occurs twice"),
        ({"classes": ["a", ""]}, "classes cannot be"),
        ({"image": {"mean": [0.5]}}, "belong together"),
        ({"image": {"mean": [0.5], "deviation": [0]}}, "image.deviation"),
        ({"image": {"mean": [], "deviation": []}}, "belong together"),
        ({"image": {"mean": []}}, "belong together"),
        ({"image": {"mean": [0.5] * 2, "deviation": [0.5] * 2}}, "1 or 3 channels"),
        ({"image": {"height": 32, "width": 48}}, "images are square"),
        ({"network": {"settings": {"classes": 5}}}, "network.settings.classes is no setting"),
        ({"network": {"settings": {"name": "x"}}}, "network.settings.name is no setting"),
        ({"image": {"height": 10_000}}, "image.height"),
        ({"image": {"crop": 0}}, "image.crop"),
        ({"data": {"train": -1}}, "data.train"),
        ({"glimpse": {"deviation": 2}}, "glimpse.deviation"),
        ({"scores": {"test_acc": float("nan")}}, "scores"),
        ({"scores": {"test_acc": "good"}}, "scores"),
        ({"licence": "x" * 3000}, "licence"),
    ],
)
def test_impossible_values_are_refused(path: Path, change: Any, problem: str) -> None:
    with pytest.raises(CardError, match=problem):
        check_card({**CARD, **change})
    before = path.read_bytes()
    with pytest.raises(ParamFileError, match="card cannot be written"):
        write_card(path, {**CARD, **change})
    assert path.read_bytes() == before


def test_a_glimpse_model_may_look_at_any_shape() -> None:
    image = {"height": 32, "width": 48, "mean": [0.0], "deviation": [1.0]}
    assert check_card({"card": 1, "image": image, "glimpse": {"deviation": 0.1}})["image"] == image


def test_a_later_version_is_known_as_such(path: Path) -> None:
    later = {"card": 2, "anything": {"else": [1]}}
    write_card(path, later)
    assert read_card(path) == later
    assert cards.is_newer(later)
    assert not cards.is_newer(CARD)
    assert same(read_params(path))


def test_every_prefix_and_every_further_byte_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    end = len(whole) - len(encode_block(CARD))
    Path(digest_path(path)).unlink()
    for length in [*range(end + 1, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ParamFileError, match="follow the last name"):
            read_params(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ParamFileError, match="follow the last name"):
        read_params(path)


def test_the_text_is_ascii_json() -> None:
    text = cards.card_text(CARD)
    assert text.isascii()
    assert json.loads(text) == CARD == parse_card(text)
