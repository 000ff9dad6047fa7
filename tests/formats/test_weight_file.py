"""One entrance for all formats: the content decides, not the ending of the name."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from formats.param_file import write_params
from formats.param_reader import ParamFileError
from formats.safetensors_file import write_safetensors
from formats.torch_file import read_state_dict
from formats.weight_file import detect_format, read_weight_shapes, read_weights

GOLDEN = Path(__file__).parents[1] / "golden"
ARRAYS = {"b": np.arange(6, dtype="f4").reshape(2, 3), "a": np.ones(4, "f2")}


@pytest.mark.parametrize("prefix", ["", "arg:", "module."])
@pytest.mark.parametrize("kind", ["param", "safetensors"])
def test_formats_under_a_foreign_ending(tmp_path: Path, kind: str, prefix: str) -> None:
    arrays = {prefix + name: array for name, array in ARRAYS.items()}
    if kind == "param":
        write_params(tmp_path / "weights.pth", arrays)
    else:
        write_safetensors(tmp_path / "weights.pth", arrays)
    assert detect_format(tmp_path / "weights.pth") == kind
    found = read_weights(tmp_path / "weights.pth")
    # Each prefix is stripped from the files of the framework that makes it, and from no other.
    bare = {"arg:": kind == "param", "module.": kind == "safetensors"}.get(prefix, True)
    assert found.keys() == {name if bare else prefix + name for name in ARRAYS}
    for name, array in found.items():
        np.testing.assert_array_equal(array, ARRAYS[name[-1]])
    shapes = read_weight_shapes(tmp_path / "weights.pth")
    assert shapes == {name: array.shape for name, array in found.items()}
    assert list(shapes) == list(found)


@pytest.mark.parametrize("name", ["torch_zip.pt", "torch_legacy.pt"])
def test_pytorch_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "weights.param").write_bytes((GOLDEN / name).read_bytes())
    assert detect_format(tmp_path / "weights.param") == "torch"
    expected, found = read_state_dict(GOLDEN / name), read_weights(tmp_path / "weights.param")
    assert found.keys() == expected.keys()
    assert read_weight_shapes(GOLDEN / name) == {n: a.shape for n, a in expected.items()}


def test_other_files_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    (tmp_path / "page").write_text("<!DOCTYPE html>")
    for path, words in (
        (tmp_path / "pipe", "device or pipe"),
        (tmp_path, "a folder"),
        (tmp_path / "none", "no such file"),
        (tmp_path / "page", "a web page"),
        ("a\0b", "null (byte|character)"),
    ):
        for read in (read_weights, read_weight_shapes):
            with pytest.raises(ParamFileError, match=words):
                read(path)


def test_names_that_coincide_without_prefixes(tmp_path: Path) -> None:
    write_params(tmp_path / "f", {"arg:x": np.ones(1, "f4"), "aux:x": np.ones(1, "f4")})
    for read in (read_weights, read_weight_shapes):
        with pytest.raises(ParamFileError, match="with arg: and with aux:"):
            read(tmp_path / "f")
