"""An unpickler for PyTorch checkpoints that runs no code.

It knows the instructions that `torch.save` writes and calls only the stand-ins of
`formats.torch_objects`. Python's own unpickler would not do: even with a table of allowed names it
takes gigabytes of memory for a memo index of 2^31, changes attributes of the allowed functions, and
crashes on the hash of a deeply nested tuple.

Source: CPython's `Lib/pickletools.py`, which describes each instruction.
"""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
from io import BufferedReader, BytesIO
from typing import Callable, Optional, Union, cast

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

MAX_INSTRUCTIONS = 2_000_000  # a thousand tensors with two optimizer states each need 100,000
MAX_INTEGER_BYTES = 32
MAX_NAME = 200
SAVE_STATE_DICT = (
    "In PyTorch, load it if you trust it and save the state dict alone: "
    "torch.save(net.state_dict(), PATH)."
)


class PickleSource(ParamReader):
    """The part of `ParamReader` that knows how many bytes are left, for a pickle."""

    def __init__(self, path: PathLike, stream: Union[BufferedReader, BytesIO], size: int) -> None:
        self.path = os.fspath(path)
        self.stream = cast(BufferedReader, stream)  # of BytesIO only what both have is used
        self.left = size

    def line(self, what: str) -> str:
        text = self.stream.readline(min(MAX_NAME, self.left))
        self.left -= len(text)
        if not text.endswith(b"\n"):
            raise Refusal(f"{what} does not end", f"a line of less than {MAX_NAME} bytes")
        return text[:-1].decode("utf-8", "replace")


class Unpickler:
    """Reads one pickle; what it makes still has stand-ins in it (see `formats.torch_arrays`).

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
        self.source = source
        self.find_block = find_block
        self.blocks: dict[str, Storage] = {}
        self.storages: dict[tuple[str, int, int], Storage] = {}
        self.stack: list = []
        self.marks: list[list] = []
        self.memo: dict[int, object] = {}

    def load(self) -> object:
        for _ in range(MAX_INSTRUCTIONS):
            code = self.source.take(1, "the pickle")
            if code == pickle.STOP:
                value = self.pop()
                if self.stack or self.marks:
                    raise Refusal("the pickle ends with objects left over", "exactly one object")
                return value
            instruction = INSTRUCTIONS.get(code)
            if instruction is None:
                self.refuse_instruction(code)
            else:
                instruction(self)
        raise Refusal(
            f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions",
            "a checkpoint: tensors and some numbers and names",
            SAVE_STATE_DICT,
        )

    def refuse_instruction(self, code: bytes) -> None:
        if code == pickle.INST:
            self.find_global(self.source.line("a module name"), self.source.line("a name"))
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

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> object:
        self.top()
        return self.stack.pop()

    def top(self) -> object:
        if not self.stack:
            raise Refusal("its pickle takes an object where there is none", "a sound pickle")
        return self.stack[-1]

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list:
        if not self.marks:
            raise Refusal("its pickle takes a mark where there is none", "a sound pickle")
        items, self.stack = self.stack, self.marks.pop()
        return items

    def number(self, layout: str) -> int:
        return self.source.numbers(layout, "a number in the pickle")[0]

    def float64(self) -> None:
        self.push(struct.unpack(">d", self.source.take(8, "a number in the pickle"))[0])

    def long_integer(self) -> None:
        count = self.number("B")
        if count > MAX_INTEGER_BYTES:
            raise Refusal(f"an integer has {count} bytes", f"at most {MAX_INTEGER_BYTES}")
        self.push(int.from_bytes(self.source.take(count, "an integer"), "little", signed=True))

    def data(self, layout: str) -> bytes:
        return self.source.take(self.number(layout), "a text in the pickle")

    def text(self, layout: str) -> None:
        encoded = self.data(layout)
        try:
            self.push(encoded.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise Refusal(f"a text is {encoded[:40]!r}", "UTF-8") from error

    def python2_text(self, layout: str) -> None:
        """Text and bytes were one type in Python 2."""
        encoded = self.data(layout)
        try:
            self.push(encoded.decode("utf-8"))
        except UnicodeDecodeError:
            self.push(encoded)

    def tuple_of(self, count: int) -> None:
        self.push(tuple([self.pop() for _ in range(count)][::-1]))

    def append(self, items: list) -> None:
        target = self.top()
        if not isinstance(target, list):
            raise Refusal("its pickle appends to something else than a list", "a list")
        target.extend(items)

    def set_items(self, items: list) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(items) % 2:
            raise Refusal("its pickle stores keys in something else than a dictionary", "pairs")
        for key, value in zip(items[::2], items[1::2]):
            set_item(target, key, value)

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise Refusal(f"its pickle refers to object {index:,}, which it has not", "one it has")
        self.push(self.memo[index])

    def find_global(self, module: object, name: object) -> object:
        if not isinstance(module, str) or not isinstance(name, str):
            raise Refusal("its pickle names a Python object by something else", "text")
        if (module, name) not in STAND_INS:
            raise Refusal(
                f"it needs the Python object {f'{module}.{name}'[:MAX_NAME]!r}",
                "tensors, dict, list, tuple, numbers and text only; any other object is code, "
                "which is never run here",
                SAVE_STATE_DICT,
            )
        return STAND_INS[module, name]

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Function) or not isinstance(arguments, tuple):
            raise Refusal("its pickle calls something that is no function", "a function")
        try:
            self.push(function.call(*arguments))
        except TypeError as error:
            found = f"{function.name} is called with {len(arguments)} arguments"
            raise Refusal(found, "fewer or more") from error

    def build(self) -> None:
        state, target = self.pop(), self.top()
        if isinstance(target, ScalarType):
            set_byte_order(target, state)
        elif not isinstance(target, dict):
            raise Refusal("its pickle sets attributes of an object", "none but a dictionary's")
        # A state dict has an attribute _metadata, the version numbers of its modules: not needed.

    def persistent(self) -> None:
        """("storage", type, key, location, size, [None or (key of the view, start, size)])."""
        described = self.pop()
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
        self.push(self.storages.setdefault((key, start, count), storage))


def _view(view: object, size: int) -> tuple[int, int]:
    """First element and number of elements; before PyTorch 0.4 a storage could be part of one."""
    if view is None:
        return 0, size
    if isinstance(view, tuple) and len(view) == 3:
        _, start, count = view
        if type(start) is int and type(count) is int and 0 <= start <= start + count <= size:
            return start, count
    raise Refusal("a view of a storage is described wrongly", f"a part of {size:,} elements")


INSTRUCTIONS: dict[bytes, Callable[[Unpickler], object]] = {
    pickle.PROTO: lambda u: u.number("B"),
    pickle.FRAME: lambda u: u.number("Q"),  # only a hint for buffering
    pickle.NONE: lambda u: u.push(None),
    pickle.NEWTRUE: lambda u: u.push(True),
    pickle.NEWFALSE: lambda u: u.push(False),
    pickle.BININT: lambda u: u.push(u.number("i")),
    pickle.BININT1: lambda u: u.push(u.number("B")),
    pickle.BININT2: lambda u: u.push(u.number("H")),
    pickle.LONG1: Unpickler.long_integer,
    pickle.BINFLOAT: Unpickler.float64,
    pickle.BINUNICODE: lambda u: u.text("I"),
    pickle.SHORT_BINUNICODE: lambda u: u.text("B"),
    pickle.BINSTRING: lambda u: u.python2_text("I"),
    pickle.SHORT_BINSTRING: lambda u: u.python2_text("B"),
    pickle.BINBYTES: lambda u: u.push(u.data("I")),
    pickle.SHORT_BINBYTES: lambda u: u.push(u.data("B")),
    pickle.EMPTY_TUPLE: lambda u: u.push(()),
    pickle.TUPLE1: lambda u: u.tuple_of(1),
    pickle.TUPLE2: lambda u: u.tuple_of(2),
    pickle.TUPLE3: lambda u: u.tuple_of(3),
    pickle.TUPLE: lambda u: u.push(tuple(u.pop_mark())),
    pickle.EMPTY_LIST: lambda u: u.push([]),
    pickle.APPEND: lambda u: u.append([u.pop()]),
    pickle.APPENDS: lambda u: u.append(u.pop_mark()),
    pickle.EMPTY_DICT: lambda u: u.push({}),
    pickle.SETITEM: lambda u: u.set_items([u.pop(), u.pop()][::-1]),
    pickle.SETITEMS: lambda u: u.set_items(u.pop_mark()),
    pickle.MARK: Unpickler.mark,
    pickle.BINPUT: lambda u: u.put(u.number("B")),
    pickle.LONG_BINPUT: lambda u: u.put(u.number("I")),
    pickle.MEMOIZE: lambda u: u.put(len(u.memo)),
    pickle.BINGET: lambda u: u.get(u.number("B")),
    pickle.LONG_BINGET: lambda u: u.get(u.number("I")),
    pickle.GLOBAL: lambda u: u.push(
        u.find_global(u.source.line("a module name"), u.source.line("a name"))
    ),
    pickle.STACK_GLOBAL: lambda u: u.push(u.find_global(*[u.pop(), u.pop()][::-1])),
    pickle.REDUCE: Unpickler.call,
    pickle.BUILD: Unpickler.build,
    pickle.BINPERSID: Unpickler.persistent,
}
