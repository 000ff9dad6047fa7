"""The reader of the python batches: right on batches, and safe on everything else."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.downloads.batch_pickle import BatchError, read_batch

PIXELS = np.arange(2 * 3072).astype(np.uint8).reshape(2, 3072)
BATCH = {b"labels": [3, 9], b"data": PIXELS}


@pytest.mark.parametrize("pixels", [PIXELS, np.asfortranarray(PIXELS)])
@pytest.mark.parametrize("protocol", [3, 4])
def test_reads_either_memory_order(pixels: np.ndarray, protocol: int) -> None:
    content = pickle.dumps({b"labels": [3, 9], b"data": pixels}, protocol=protocol)
    records = read_batch(content, (b"labels",))
    np.testing.assert_array_equal(records[:, 0], [3, 9])
    np.testing.assert_array_equal(records[:, 1:], PIXELS)


class _Calls:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("made-by-a-pickle",)


def test_counts_must_agree() -> None:
    content = pickle.dumps({**BATCH, b"labels": [3]}, protocol=3)
    with pytest.raises(BatchError, match="'labels' is not a list of 2 integers"):
        read_batch(content, (b"labels",))


@pytest.mark.parametrize(
    "batch",
    [
        {b"labels": [0], b"data": _Calls()},
        {b"labels": [0], b"data": np.zeros((1, 3072), np.float64)},
        {b"labels": [0], b"data": np.zeros((1, 3071), np.uint8)},
        {b"labels": [0, 1], b"data": np.zeros((1, 3072), np.uint8)},
        {b"labels": [256], b"data": np.zeros((1, 3072), np.uint8)},
        {b"labels": ["0"], b"data": np.zeros((1, 3072), np.uint8)},
        {b"data": np.zeros((1, 3072), np.uint8)},
        {b"labels": [0]},
        [0],
    ],
)
def test_unpickler_refuses_everything_else(
    batch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BatchError):
        read_batch(pickle.dumps(batch, protocol=3), (b"labels",))
    assert not os.listdir(tmp_path)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_pickles_raise_one_kind_of_error(data: st.DataObject) -> None:
    content = bytearray(pickle.dumps(BATCH, protocol=3))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(0, len(content))) :]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            records = read_batch(bytes(content), (b"labels",))
        except BatchError:
            return
    assert records.shape[1] == 3073
