"""Read the python batches of CIFAR without running anything that a pickle can name.

A batch is a dictionary of one uint8 array, lists of integers and strings. Three names occur in it:
NumPy's array constructor, ``ndarray`` and ``dtype``. They are answered by the stand-ins below,
which only keep the bytes; every other name is refused, so no code outside this file is called.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, Optional

import numpy as np


class BatchError(Exception):
    """The content is not a CIFAR batch; the message says why, without the file's name."""


class _Dtype:
    """Stands for ``numpy.dtype``: only unsigned bytes are accepted."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        if code not in ("u1", b"u1"):
            raise BatchError(f"an array of type {code!r} where uint8 is expected")

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment say nothing about single bytes."""


class _Array:
    """Stands for ``numpy.ndarray``: the array appears when its state arrives."""

    array: Optional[np.ndarray] = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran_order, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise BatchError("an array that is not made of bytes")
        flat = np.frombuffer(content, np.uint8)
        self.array = flat.reshape(shape[::-1]).T if fortran_order else flat.reshape(shape)


def _reconstruct(*_: Any) -> _Array:
    return _Array()


_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # written by NumPy 2
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise BatchError(f"it names {module}.{name}, which no CIFAR batch does") from None

    def persistent_load(self, pid: Any) -> Any:
        raise BatchError("it refers to an object outside the file")


def read_batch(content: bytes, label_keys: tuple[bytes, ...]) -> np.ndarray:
    """Turn a python batch into the records of the binary version.

    Parameters
    ----------
    content : bytes
        The whole file.
    label_keys : tuple of bytes
        Keys of the label lists, in the order in which the binary version stores them.

    Returns
    -------
    np.ndarray
        uint8, (N, len(label_keys) + 3072).

    Raises
    ------
    BatchError
        ``content`` is anything else than a batch.
    """
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(batch, dict):
            raise BatchError("it holds no dictionary")
        columns = [np.asarray(_value(batch, key)) for key in label_keys]
        data = _value(batch, b"data")
        pixels = data.array if isinstance(data, _Array) else None
        if pixels is None or pixels.ndim != 2 or pixels.shape[1] != 3072:
            raise BatchError("its 'data' is not an (N, 3072) array")
        for key, column in zip(label_keys, columns):
            if column.shape != (len(pixels),) or column.dtype.kind not in "iu":
                raise BatchError(f"{key.decode()!r} is not a list of {len(pixels)} integers")
            if column.min(initial=0) < 0 or column.max(initial=0) > 255:
                raise BatchError(f"{key.decode()!r} goes beyond 0 to 255")
        labels = np.stack(columns, axis=1).astype(np.uint8)
        return np.concatenate([labels, pixels], axis=1)
    except BatchError:
        raise
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise BatchError(f"it cannot be read as a pickle ({type(error).__name__})") from error


def _value(batch: dict[Any, Any], key: bytes) -> Any:
    # Files written again by Python 3 have str keys.
    for name in (key, key.decode()):
        if name in batch:
            return batch[name]
    raise BatchError(f"it has no {key.decode()!r}")
