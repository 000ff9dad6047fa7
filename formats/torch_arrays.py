"""From what the unpickler of a PyTorch checkpoint made to plain containers and arrays."""

from __future__ import annotations

import math
from typing import Callable

import numpy as np

from formats.torch_objects import Refusal, ScalarType, Storage, Tensor, describe

MAX_DEPTH = 100  # a checkpoint nests about five containers
MAX_VALUES = 2_000_000


class Resolver:
    """Turns what the unpickler made into plain values, tensors into arrays still to be filled.

    Containers that occur in several places are counted each time: without sharing, a few hundred
    bytes of pickle can stand for more values than any memory holds.
    """

    def __init__(self, byte_limit: int) -> None:
        self.bytes_left = byte_limit
        self.values_left = MAX_VALUES
        self.arrays: dict[Tensor, np.ndarray] = {}
        self.wholes: dict[Storage, Tensor] = {}

    def plain(self, value: object, depth: int = 0) -> object:
        self.values_left -= 1
        if self.values_left < 0 or depth > MAX_DEPTH:
            raise Refusal(
                "its containers hold each other",
                f"at most {MAX_VALUES:,} values, nested at most {MAX_DEPTH} deep",
            )
        if value is None or isinstance(value, (str, bytes, int, float)):
            return value
        if isinstance(value, dict):
            return {key: self.plain(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [self.plain(item, depth + 1) for item in value]
        if isinstance(value, tuple):
            return tuple([self.plain(item, depth + 1) for item in value])
        if isinstance(value, Storage):
            whole = Tensor(value, 0, (value.size,), (1,))
            value = self.wholes.setdefault(value, whole)
        if isinstance(value, Tensor):
            return self.array(value)
        if isinstance(value, ScalarType):
            return value.dtype.name
        raise Refusal(f"it holds {describe(value)}", "tensors, containers, numbers and text only")

    def array(self, tensor: Tensor) -> np.ndarray:
        if tensor not in self.arrays:
            dtype = tensor.storage.type.dtype
            self.bytes_left -= math.prod(tensor.shape) * dtype.itemsize
            if self.bytes_left < 0:
                raise Refusal(
                    "its tensors need far more memory than the file has bytes",
                    "tensors that are stored, not repeated by strides of 0",
                    "Load it with PyTorch, call .clone() on each tensor and save it again.",
                )
            self.arrays[tensor] = np.empty(tensor.shape, dtype)
        return self.arrays[tensor]

    def fill(self, read: Callable[[str], np.ndarray], big_endian: bool = False) -> None:
        """Fill the arrays; ``read`` gives the bytes (uint8) of the block of that key.

        One block is in memory at a time.
        """
        blocks: dict[str, list[Tensor]] = {}
        for tensor in self.arrays:
            blocks.setdefault(tensor.storage.key, []).append(tensor)
        for key, tensors in blocks.items():
            block = read(key)
            for tensor in tensors:
                _copy_elements(block, tensor, self.arrays[tensor], big_endian)


def _copy_elements(block: np.ndarray, tensor: Tensor, out: np.ndarray, big_endian: bool) -> None:
    if not out.size:
        return
    kind, start = tensor.storage.type, tensor.storage.start + tensor.offset
    if kind.stored == np.dtype(bool) and block.max() > 1:
        raise Refusal("a bool tensor has other bytes than 0 and 1", "0 or 1")
    elements = block.view(kind.stored.newbyteorder(">") if big_endian else kind.stored)
    strides = [step * kind.stored.itemsize for step in tensor.strides]
    # Sound: _rebuild_tensor has checked that the last element lies inside the storage.
    view = np.lib.stride_tricks.as_strided(elements[start:], tensor.shape, strides)
    out[...] = (view.astype(np.uint32) << 16).view(np.float32) if kind.bfloat16 else view
