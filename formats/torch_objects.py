"""Stand-ins for the few Python objects that a PyTorch checkpoint may name.

A pickle is a program: it names Python functions and says on what to call them. Here a name is only
ever looked up in the table `STAND_INS`, and only the functions of this file are called. They keep a
note of each tensor; its elements are read when every number has been checked, into the plain values
that `Resolver` makes of what the unpickler gave.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Callable, Union

import numpy as np

from formats.param_reader import MAX_DIMENSIONS

MAX_DEPTH = 100  # a checkpoint nests about five containers
MAX_VALUES = 2_000_000


class Refusal(Exception):
    """What is wrong with a checkpoint; `read_torch` adds the path."""

    def __init__(self, found: str, expected: str, remedy: str = "") -> None:
        super().__init__(found, expected, remedy)
        self.found, self.expected, self.remedy = found, expected, remedy


@dataclass(frozen=True, eq=False)
class Function:
    """A function that the pickle may call; ``call`` gets the arguments, still unchecked."""

    name: str
    call: Callable[..., object]


@dataclass(frozen=True, eq=False)
class StorageType:
    name: str
    stored: np.dtype
    bfloat16: bool = False  # NumPy has no such type: read as uint16 and widened to float32

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32) if self.bfloat16 else self.stored


@dataclass(frozen=True, eq=False)
class Storage:
    """``size`` elements of the stored block ``key``, from element ``start`` on."""

    key: str
    type: StorageType
    start: int
    size: int

    @property
    def nbytes(self) -> int:
        return self.size * self.type.stored.itemsize


@dataclass(frozen=True, eq=False)
class Tensor:
    """Offset and strides count elements, as in PyTorch."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(eq=False)
class ScalarType:
    """``numpy.dtype``; a following BUILD sets the byte order."""

    dtype: np.dtype


def _integers(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, (tuple, list)) or len(value) > MAX_DIMENSIONS:
        raise Refusal(f"{what} is {describe(value)}", f"at most {MAX_DIMENSIONS} numbers")
    for item in value:
        if type(item) is not int or not 0 <= item < 2**63:
            shown = f"{item:,}" if type(item) is int else describe(item)
            raise Refusal(f"{what} has {shown}", "whole numbers from 0 to 2^63 - 1")
    return tuple(value)


def _rebuild_tensor(storage: object, offset: object, size: object, stride: object) -> Tensor:
    if not isinstance(storage, Storage):
        raise Refusal(f"a tensor lies in {describe(storage)}", "a storage")
    (start,) = _integers((offset,), "the offset of a tensor")
    shape = _integers(size, "the shape of a tensor")
    strides = _integers(stride, "the strides of a tensor")
    if len(shape) != len(strides):
        raise Refusal(f"a tensor has shape {shape} but strides {strides}", "one stride per size")
    # Counted without the zeros: NumPy refuses a shape whose other dimensions overflow.
    if math.prod(max(n, 1) for n in shape) * storage.type.dtype.itemsize >= 2**63:
        raise Refusal(f"a tensor has the impossible shape {shape}", "a shape that fits")
    last = start + sum((n - 1) * step for n, step in zip(shape, strides))
    if 0 not in shape and last >= storage.size:
        raise Refusal(
            f"a tensor of shape {shape}, strides {strides} and offset {start:,} reaches element "
            f"{last:,} of a storage of {storage.size:,}",
            "all its elements inside",
        )
    return Tensor(storage, start, shape, strides)


def _rebuild_tensor_v2(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    *rest: object,  # requires_grad, backward_hooks, [metadata]
) -> Tensor:
    if not 2 <= len(rest) <= 3 or rest[2:] not in ((), (None,), ({},)):
        raise Refusal("a tensor has unknown further properties", "an ordinary dense tensor")
    return _rebuild_tensor(storage, offset, size, stride)


def _rebuild_parameter(data: object, requires_grad: object, backward_hooks: object) -> Tensor:
    if not isinstance(data, Tensor):
        raise Refusal(f"a parameter holds {describe(data)}", "a tensor")
    return data


def _ordered_dict(items: object = ()) -> dict:
    """`OrderedDict()`, or with the list of pairs that Python 2 wrote."""
    table: dict = {}
    if not isinstance(items, (tuple, list)):
        raise Refusal(f"an OrderedDict is made of {describe(items)}", "pairs")
    for pair in items:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise Refusal(f"an OrderedDict is made of {describe(pair)}", "pairs")
        set_item(table, *pair)
    return table


def set_item(table: dict, key: object, value: object) -> None:
    # The hash of a deeply nested tuple overflows the C stack, huge integers can be made to collide.
    plain = key is None or isinstance(key, (str, bytes, float, int))
    if not plain or (isinstance(key, int) and abs(key) >= 2**64):
        raise Refusal(f"a dictionary key is {describe(key)}", "text or a number of 64 bits")
    if key in table:
        raise Refusal(f"the key {str(key)[:80]!r} occurs twice in a dictionary", "different keys")
    table[key] = value


def _size(sizes: object = ()) -> tuple[int, ...]:
    return _integers(sizes, "a torch.Size")


def _device(kind: object, index: object = None) -> str:
    if not isinstance(kind, str) or (index is not None and type(index) is not int):
        raise Refusal(f"a torch.device is made of {describe(kind)}", "a name and a number")
    return kind if index is None else f"{kind}:{index}"


def _encode(text: object, encoding: object) -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refusal("_codecs.encode is called on something else", "text to encode as latin1")
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as error:
        raise Refusal(f"bytes are written as {text[:20]!r}", "characters below 256") from error


def _scalar_type(code: object, align: object = False, copy: object = True) -> ScalarType:
    if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?(b1|[iu][1248]|f[248])", code):
        shown = repr(code[:20]) if isinstance(code, str) else describe(code)
        raise Refusal(f"a number has the NumPy type {shown}", "a real number of at most 64 bits")
    return ScalarType(np.dtype(code))


def set_byte_order(kind: ScalarType, state: object) -> None:
    orders = ("<", ">", "|", "=")
    if not isinstance(state, tuple) or len(state) < 2 or state[1] not in orders:
        raise Refusal("a NumPy type is described wrongly", "its version and byte order")
    kind.dtype = kind.dtype.newbyteorder(state[1])


def _scalar(kind: object, data: object) -> Union[float, int, bool]:
    if isinstance(data, str):  # written by Python 2; UTF-8 is how the unpickler decoded it
        data = data.encode("utf-8", "replace")
    if not isinstance(kind, ScalarType) or not isinstance(data, bytes):
        raise Refusal("a NumPy number is made of something else", "a type and bytes")
    if len(data) != kind.dtype.itemsize:
        raise Refusal(f"a NumPy {kind.dtype} has {len(data)} bytes", f"{kind.dtype.itemsize}")
    return np.frombuffer(data, kind.dtype)[0].item()


_ELEMENTS = {
    "Float": "<f4",
    "Double": "<f8",
    "Half": "<f2",
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
}
_DTYPES = (
    "float16 float32 float64 half float double bfloat16 uint8 int8 int16 int32 int64 short int "
    "long bool"
)
_UNTYPED = StorageType("UntypedStorage", np.dtype("u1"))

STAND_INS: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): Function("OrderedDict", _ordered_dict),
    ("torch._utils", "_rebuild_tensor"): Function("_rebuild_tensor", _rebuild_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): Function("_rebuild_tensor_v2", _rebuild_tensor_v2),
    ("torch._utils", "_rebuild_parameter"): Function("_rebuild_parameter", _rebuild_parameter),
    ("torch", "Size"): Function("torch.Size", _size),
    ("torch", "device"): Function("torch.device", _device),
    ("_codecs", "encode"): Function("_codecs.encode", _encode),
    ("numpy", "dtype"): Function("numpy.dtype", _scalar_type),
    ("numpy.core.multiarray", "scalar"): Function("numpy scalar", _scalar),
    ("numpy._core.multiarray", "scalar"): Function("numpy scalar", _scalar),
    ("torch", "BFloat16Storage"): StorageType("BFloat16Storage", np.dtype("<u2"), bfloat16=True),
    ("torch", "UntypedStorage"): _UNTYPED,
    ("torch.storage", "UntypedStorage"): _UNTYPED,
    **{
        ("torch", f"{name}Storage"): StorageType(f"{name}Storage", np.dtype(code))
        for name, code in _ELEMENTS.items()
    },
    **{("torch", name): f"torch.{name}" for name in _DTYPES.split()},
}


def describe(value: object) -> str:
    if isinstance(value, Function):
        return f"the function {value.name}"
    if isinstance(value, StorageType):
        return f"the class torch.{value.name}"
    return f"an object of type {type(value).__name__}"


# ------------------------------------------------------------------------ plain values


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
    # The stride of an axis of one element says nothing, and can be larger than NumPy holds.
    strides = [
        step * kind.stored.itemsize if size > 1 else 0
        for size, step in zip(tensor.shape, tensor.strides)
    ]
    # Sound: _rebuild_tensor has checked that the last element lies inside the storage.
    view = np.lib.stride_tricks.as_strided(elements[start:], tensor.shape, strides)
    out[...] = (view.astype(np.uint32) << 16).view(np.float32) if kind.bfloat16 else view
