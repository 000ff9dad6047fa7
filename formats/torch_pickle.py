"""An unpickler for PyTorch checkpoints that runs no code.

It knows the instructions that `torch.save` writes and calls only the stand-ins of
`formats.torch_objects`. It is the unpickler of Python's library that is written in Python: the one
in C takes gigabytes of memory for a memo index of 2^31. Whatever would call, change or hash what a
file names is done here instead.

Source: CPython's `Lib/pickle.py`, and `Lib/pickletools.py`, which describes each instruction.
"""

from __future__ import annotations

import os
import pickle
import pickletools
from io import BufferedReader, BytesIO
from typing import Any, Callable, Optional, Union, cast

from formats.atomic import PathLike
from formats.param_reader import ParamReader
from formats.torch_objects import (
    STAND_INS,
    Function,
    Refusal,
    ScalarType,
    Storage,
    StorageType,
    set_byte_order,
    set_item,
)

InPython: Any = pickle._Unpickler
MAX_INSTRUCTIONS = 2_000_000  # a thousand tensors with two optimizer states each need 100,000
MAX_INTEGER_BYTES = 32
MAX_NAME = 200
SAVE_STATE_DICT = (
    "In PyTorch, load it if you trust it and save the state dict alone: "
    "torch.save(net.state_dict(), PATH)."
)
KNOWN = (
    "PROTO FRAME NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE "
    "SHORT_BINUNICODE BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES EMPTY_TUPLE TUPLE1 TUPLE2 "
    "TUPLE3 TUPLE EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS MARK BINPUT LONG_BINPUT "
    "MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID STOP"
)


class PickleSource(ParamReader):
    """The part of `ParamReader` that knows how many bytes are left, for a pickle."""

    def __init__(self, path: PathLike, stream: Union[BufferedReader, BytesIO], size: int) -> None:
        self.path = os.fspath(path)
        self.stream = cast(BufferedReader, stream)  # of BytesIO only what both have is used
        self.left = size

    def read(self, count: int) -> bytes:
        return self.take(count, "the pickle")

    def readline(self) -> bytes:
        line = self.stream.readline(min(MAX_NAME, self.left))
        self.left -= len(line)
        if not line.endswith(b"\n"):
            raise Refusal("a name does not end", f"a line of less than {MAX_NAME} bytes")
        return line


class Memo(dict):
    """What the pickle can refer to by number."""

    def __missing__(self, index: int) -> object:
        raise Refusal(f"its pickle refers to object {index:,}, which it has not", "one it has")


class Instructions(dict):
    """What to do for an instruction; counts them."""

    def __init__(self) -> None:
        codes = [getattr(pickle, name)[0] for name in KNOWN.split()]
        names = {code: InPython.dispatch[code].__name__ for code in codes}
        super().__init__({code: getattr(Unpickler, name) for code, name in names.items()})
        self.left = MAX_INSTRUCTIONS

    def __getitem__(self, code: int) -> Callable[[Unpickler], None]:
        self.left -= 1
        if self.left < 0:
            raise Refusal(
                f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions",
                "a checkpoint: tensors and some numbers and names",
                SAVE_STATE_DICT,
            )
        known: Callable[[Unpickler], None] = super().__getitem__(code)
        return known

    def __missing__(self, code: int) -> Callable[[Unpickler], None]:
        return lambda unpickler: unpickler.refuse_instruction(bytes([code]))


class Unpickler(InPython):
    """Reads one pickle; what it makes still has stand-ins in it (see `formats.torch_objects`).

    Parameters
    ----------
    source
        Where the pickle begins. Afterwards the source stands behind it.
    find_block
        Called with key and announced size in bytes of a block of elements that is met for the first
        time; raises `Refusal` when there cannot be such a block. None: tensors are not allowed.
    """

    def __init__(
        self, source: PickleSource, find_block: Optional[Callable[[str, int], None]] = None
    ) -> None:
        super().__init__(source, encoding="utf-8")
        self.find_block = find_block
        self.blocks: dict[str, Storage] = {}
        self.storages: dict[tuple[str, int, int], Storage] = {}
        self.memo = Memo()
        self.dispatch = Instructions()

    def load(self) -> object:
        try:
            value: object = super().load()
        except IndexError as error:
            raise Refusal(
                "its pickle takes an object where there is none", "a sound pickle"
            ) from error
        except (pickle.UnpicklingError, ValueError, AttributeError) as error:
            expected = "a sound pickle: text in UTF-8, items for a list"
            raise Refusal(f"its pickle has a wrong instruction ({error})", expected) from error
        if self.stack or self.metastack:
            raise Refusal("the pickle ends with objects left over", "exactly one object")
        return value

    def refuse_instruction(self, code: bytes) -> None:
        if code == pickle.INST:
            self.load_global()  # refused by its name, where that is not known
        names = [
            known.name for known in pickletools.opcodes if known.code.encode("latin-1") == code
        ]
        name = f"the pickle instruction {names[0]}" if names else f"the byte {code.hex()}"
        raise Refusal(
            f"its pickle uses {name}",
            "the instructions for tensors, containers, numbers and text (others make objects of a "
            "class, which is code and is never run here)",
            SAVE_STATE_DICT,
        )

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in STAND_INS:
            raise Refusal(
                f"it needs the Python object {f'{module}.{name}'[:MAX_NAME]!r}",
                "tensors, dict, list, tuple, numbers and text only; any other object is code, "
                "which is never run here",
                SAVE_STATE_DICT,
            )
        return STAND_INS[module, name]

    def pop_mark(self) -> list:
        if not self.metastack:
            raise Refusal("its pickle takes a mark where there is none", "a sound pickle")
        items: list = super().pop_mark()
        return items

    def load_frame(self) -> None:
        self.read(8)  # a length, which is only a hint for buffering

    def load_long1(self) -> None:
        super().load_long1()
        count = (self.stack[-1].bit_length() + 7) // 8
        if count > MAX_INTEGER_BYTES:
            raise Refusal(f"an integer has {count} bytes", f"at most {MAX_INTEGER_BYTES}")

    def load_binunicode(self) -> None:
        super().load_binunicode()
        self.stack[-1].encode("utf-8")  # the library lets halves of characters pass

    def load_short_binunicode(self) -> None:
        super().load_short_binunicode()
        self.stack[-1].encode("utf-8")

    def _decode_string(self, value: bytes) -> Union[str, bytes]:
        """Text and bytes were one type in Python 2."""
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value

    def load_setitem(self) -> None:
        self.set_items([self.stack.pop(), self.stack.pop()][::-1])

    def load_setitems(self) -> None:
        self.set_items(self.pop_mark())

    def set_items(self, items: list) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise Refusal("its pickle stores keys in something else than a dictionary", "pairs")
        for key, value in zip(items[::2], items[1::2]):
            set_item(target, key, value)

    def load_reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack[-1]
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise Refusal("its pickle calls something that is no function", "a function")
        try:
            self.stack[-1] = function.call(*arguments)
        except TypeError as error:
            found = f"{function.name} is called with {len(arguments)} arguments"
            raise Refusal(found, "fewer or more") from error

    def load_build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, ScalarType):
            set_byte_order(target, state)
        elif not isinstance(target, dict):
            raise Refusal("its pickle sets attributes of an object", "none but a dictionary's")
        # A state dict has an attribute _metadata, the version numbers of its modules: not needed.

    def persistent_load(self, described: Any) -> Storage:
        """("storage", type, key, location, size, [None or (key of the view, start, size)])."""
        if self.find_block is None or not isinstance(described, tuple) or len(described) < 5:
            raise Refusal("its pickle refers to something outside that is no storage", "a storage")
        kind, storage_type, key, _, size = described[:5]
        view = described[5] if len(described) == 6 else None
        sound = isinstance(storage_type, StorageType) and isinstance(key, str) and len(key) < 100
        if not sound or type(size) is not int or not 0 <= size < 2**60 or kind != "storage":
            raise Refusal("a storage is described wrongly", "its type, key and size")
        if key not in self.blocks:
            block = Storage(key, storage_type, 0, size)
            self.find_block(key, block.nbytes)
            self.blocks[key] = block
        known = self.blocks[key]
        if known.type is not storage_type or known.size != size:
            raise Refusal(
                f"the storage {key!r} is {storage_type.name} of {size:,} elements here and "
                f"{known.type.name} of {known.size:,} elsewhere",
                "the same",
            )
        start, count = _view(view, size)
        storage = Storage(key, storage_type, start, count)
        return self.storages.setdefault((key, start, count), storage)


def _view(view: object, size: int) -> tuple[int, int]:
    """First element and number of elements; before PyTorch 0.4 a storage could be part of one."""
    if view is None:
        return 0, size
    if isinstance(view, tuple) and len(view) == 3:
        _, start, count = view
        if type(start) is int and type(count) is int and 0 <= start <= start + count <= size:
            return start, count
    raise Refusal("a view of a storage is described wrongly", f"a part of {size:,} elements")
