"""Safetensors: bytes made by hand, damage, and types; the library alone is trusted with parsing."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, Union

import numpy as np
import pytest

from formats.digest import verify_digest
from formats.param_reader import ParamFileError
from formats.safetensors_file import is_safetensors, read_safetensors, write_safetensors

# Two arrays, by the description of the format: length of the header, header, elements.
HEADER = (
    b'{"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
    b'"a":{"dtype":"I16","shape":[1,2],"data_offsets":[8,12]}}'
)
GOLDEN = struct.pack("<Q", len(HEADER)) + HEADER + struct.pack("<ffhh", 1.5, -2, 3, -4)


def made(tmp_path: Path, header: Union[bytes, dict[str, Any]], data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (tmp_path / "f").write_bytes(struct.pack("<Q", len(text)) + text + data)
    return tmp_path / "f"


def entry(start: int, end: int, *shape: int, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def test_bytes_made_by_hand(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(GOLDEN)
    arrays = read_safetensors(tmp_path / "f")
    assert list(arrays) == ["a", "b"]
    np.testing.assert_array_equal(arrays["a"], np.array([[3, -4]], "i2"))
    np.testing.assert_array_equal(arrays["b"], np.array([1.5, -2], "f4"))
    assert is_safetensors(GOLDEN)
    assert not is_safetensors(b"\x12\x01" + bytes(6) + bytes(8))
    assert not is_safetensors(b'{"nodes": {')


ARRAYS = {
    "columns first": np.asfortranarray(np.arange(6, dtype="f4").reshape(2, 3)),
    "highest byte first": np.arange(3, dtype=">f8"),
    "every second": np.arange(8, dtype="f2")[::2],
    "number": np.array(7, "i8"),
    "none": np.empty((0, 2), "f4"),
    "bool": np.array([True, False]),
    "nan": np.array([np.nan, -0.0, np.inf], "f4"),
    "u2": np.array([65535], "u2"),
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    digest = write_safetensors(tmp_path / "f", ARRAYS, {"names": "mine"})
    found = read_safetensors(tmp_path / "f")
    assert list(found) == sorted(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype.newbyteorder("<")
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.astype(found[name].dtype).tobytes()
    data = (tmp_path / "f").read_bytes()
    assert b'"__metadata__":{"names":"mine"}' in data
    assert digest == (tmp_path / "f.sha256").read_text()[:64]
    assert verify_digest(tmp_path / "f")
    assert write_safetensors(tmp_path / "g", ARRAYS, {"names": "mine"}) == digest


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    values = np.array([1, -0.5, 3e38], "f4")
    stored = (values.view("u4") >> 16).astype("<u2")
    path = made(tmp_path, {"a": entry(0, 6, 3, dtype="BF16")}, stored.tobytes())
    found = read_safetensors(path)["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.view("u4") >> 16, stored)


PAIR = (
    b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
    b'"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}'
)
BROKEN = {
    "gap": ({"a": entry(2, 4, 2)}, b"abcd", "invalid offset"),
    "overlap": ({"a": entry(0, 4, 4), "b": entry(0, 4, 4)}, b"abcd", "invalid offset"),
    "beyond the end": ({"a": entry(0, 8, 8)}, b"abcd", "not fully covered"),
    "bytes behind": ({"a": entry(0, 2, 2)}, b"abcd", "not fully covered"),
    "shape": ({"a": entry(0, 4, 5)}, b"abcd", "invalid shape"),
    "overflow": ({"a": entry(0, 4, 2**62, 2**62)}, b"abcd", "overflow"),
    "empty and huge": ({"a": entry(0, 0, 0, 2**62, 2**62)}, b"", "one that NumPy can hold"),
    "70 dimensions": ({"a": entry(0, 1, *[1] * 70)}, b"a", "one that NumPy can hold"),
    "negative": ({"a": entry(0, 4, -4)}, b"abcd", "invalid JSON"),
    "unknown type": ({"a": entry(0, 4, 4, dtype="X")}, b"abcd", "unknown variant"),
    "8-bit floats": ({"a": entry(0, 4, 4, dtype="F8_E4M3")}, b"abcd", "element type F8_E4M3"),
    "bool": ({"a": entry(0, 4, 4, dtype="BOOL")}, b"\0\1\2\3", "other bytes than 0 and 1"),
    "twice": (HEADER.replace(b'"a"', b'"b"'), b"", "'b' occurs twice"),
    "twice, same place": (PAIR, b"x", "'a' occurs twice"),
    "no JSON": (b"{x", b"", "no JSON"),
    "deep": (b'{"a":' + b"[" * 100_000, b"", "no JSON"),
    "a list": (b'["a"]', b"", "broken"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named(tmp_path: Path, case: str) -> None:
    header, data, words = BROKEN[case]
    with pytest.raises(ParamFileError, match=words) as caught:
        read_safetensors(made(tmp_path, header, data))  # type: ignore[arg-type]
    assert str(tmp_path / "f") in str(caught.value)


def test_truncation_and_huge_headers(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for length in range(len(GOLDEN)):
        path.write_bytes(GOLDEN[:length])
        with pytest.raises(ParamFileError):
            read_safetensors(path)
    path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(ParamFileError, match="the header announces 1,152,921,504,606,846,976"):
        read_safetensors(path)
    text = b'{"a":' + b" " * (17 << 20) + b"}"
    with pytest.raises(ParamFileError, match="at most 16,777,216 bytes"):
        read_safetensors(made(tmp_path, text))


def test_paths_and_types_that_cannot_be(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "none", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(ParamFileError, match=words):
            read_safetensors(path)
    with pytest.raises(ParamFileError, match="'a' has element type complex64"):
        write_safetensors(tmp_path / "f", {"a": np.ones(1, "c8")})
    with pytest.raises(ParamFileError, match="cannot be written: No such file"):
        write_safetensors(tmp_path / "no" / "f", {"a": np.ones(1, "f4")})
    assert os.listdir(tmp_path) == []


def test_the_library_is_imported_only_when_it_is_used() -> None:
    code = (
        "import sys, formats.safetensors_file;"
        "sys.exit(len({'safetensors', 'torch', 'mxnet'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)
