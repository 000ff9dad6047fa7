"""A short version of ``make test-fuzz``, and the headers that announce more than any memory has."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from formats.param_file import read_params, read_shapes, write_params
from formats.param_reader import ParamFileError
from formats.weight_file import read_weights

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(1200)  # seconds alone, but many processes in turn on a busy machine
def test_changed_files_are_refused_or_load_as_what_they_say() -> None:
    harness = [sys.executable, str(ROOT / "tests/formats/fuzz_harness.py")]
    done = subprocess.run(
        [*harness, "--scale", "0.02", "--seed", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    files, refused = (
        sum(int(row.split("|")[column].replace(",", "")) for row in done.stdout.splitlines()[2:-1])
        for column in (2, 3)
    )
    assert files >= 400
    assert files / 2 < refused < files
    assert re.search(rf"^{files} changed files: no crash, no hang", done.stdout, re.MULTILINE)


def assert_refused_without_memory(path: Path, data: bytes, *readers: Any) -> None:
    path.write_bytes(data)
    tracemalloc.start()
    for read in readers:
        with pytest.raises(ParamFileError) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize("number", [2**31, 2**60, 2**63 - 1, 2**63, 2**64 - 1])
def test_headers_that_announce_too_much(tmp_path: Path, number: int) -> None:
    """Every number of a file is in turn as large as it can be."""
    write_params(tmp_path / "x", {"a": np.ones((2, 3), "f4")}, digest=False)
    sound = (tmp_path / "x").read_bytes()
    # Number of arrays, both dimensions, number of names, length of the name.
    for place in (16, 36, 44, 88, 96):
        assert struct.unpack_from("<Q", sound, place)[0] in (1, 2, 3)
        data = sound[:place] + struct.pack("<Q", number) + sound[place + 8 :]
        assert_refused_without_memory(tmp_path / "x", data, read_params, read_shapes, read_weights)


@pytest.mark.parametrize("shape", [[2**60], [2**31, 2**31], [0, 2**60], [-1]])
def test_safetensors_that_announce_too_much(tmp_path: Path, shape: list[int]) -> None:
    header = f'{{"a": {{"dtype": "F32", "shape": {shape}, "data_offsets": [0, 4]}}}}'.encode()
    data = struct.pack("<Q", len(header)) + header + bytes(4)
    assert_refused_without_memory(tmp_path / "x", data, read_weights)


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("shape", [(2**60,), (2**31, 2**31), (1, 2**60)])
def test_tensors_that_announce_too_much(
    torch_files: Any, tmp_path: Path, form: str, shape: tuple[int, ...]
) -> None:
    steps = (0,) * len(shape)  # the same element again and again: the file itself is sound
    tensor = torch_files.Tensor(torch_files.Storage(np.ones(4, "f4")), 0, shape, steps)
    data = torch_files.checkpoint(tmp_path, {"w": tensor}, form).read_bytes()
    assert_refused_without_memory(tmp_path / "x", data, read_weights)
