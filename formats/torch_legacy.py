"""The checkpoints of PyTorch before 1.6: pickles and blocks of elements, one after the other.

Magic number, protocol version and a description of the machine, each a pickle; the pickle of the
object; the pickle of the list of keys; then per key an int64 number of elements and the elements,
little-endian on every machine.

Source: PyTorch's `torch/serialization.py` (`_legacy_load`).
"""

from __future__ import annotations

import os

import numpy as np

from formats.param_reader import DAMAGED
from formats.torch_objects import Refusal, Resolver
from formats.torch_pickle import PickleSource, Unpickler

MAGIC = 0x1950A86A20F9469CFC6C
MAGIC_PICKLE = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # after PROTO, with newer protocols also FRAME
PROTOCOL_VERSION = 1001


def is_legacy(head: bytes) -> bool:
    return head[:1] == b"\x80" and MAGIC_PICKLE in head[:32]


def read_legacy(source: PickleSource, resolver: Resolver) -> object:
    """Read the whole file; raises `Refusal` or `ParamFileError`."""
    if Unpickler(source).load() != MAGIC:
        raise Refusal("the magic number is another", f"{MAGIC:#x}")
    version = Unpickler(source).load()
    if type(version) is not int or version != PROTOCOL_VERSION:
        shown = f"{version:,}" if type(version) is int else "no number"
        raise Refusal(f"the protocol version is {shown}", f"{PROTOCOL_VERSION}")
    if not isinstance(Unpickler(source).load(), dict):
        raise Refusal("the third pickle is something else", "a description of the machine")

    def find_block(key: str, nbytes: int) -> None:
        source.need(nbytes, f"the storage {key!r}")

    unpickler = Unpickler(source, find_block)
    value = unpickler.load()
    places = _find_blocks(source, unpickler)
    plain = resolver.plain(value)

    def read(key: str) -> np.ndarray:
        block = np.empty(unpickler.blocks[key].nbytes, np.uint8)
        source.stream.seek(places[key])
        if block.size and source.stream.readinto(block.data) != block.size:
            raise Refusal("the file became shorter while it was read", "a file at rest", DAMAGED)
        return block

    resolver.fill(read)
    return plain


def _find_blocks(source: PickleSource, unpickler: Unpickler) -> dict[str, int]:
    """Positions of the blocks of elements in the file, by key."""
    keys = Unpickler(source).load()
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Refusal("the list of storages is something else", "a list of texts")
    if sorted(keys) != sorted(unpickler.blocks):
        raise Refusal(
            f"{len(keys):,} storages are stored, {len(unpickler.blocks):,} are used",
            "each storage used to be stored once",
            DAMAGED,
        )
    places = {}
    for key in keys:
        block = unpickler.blocks[key]
        (count,) = source.numbers("q", f"the size of storage {key!r}")
        if count != block.size:
            raise Refusal(
                f"storage {key!r} has {count:,} elements", f"{block.size:,} as announced", DAMAGED
            )
        source.need(block.nbytes, f"storage {key!r}")
        places[key] = source.stream.tell()
        source.stream.seek(block.nbytes, os.SEEK_CUR)
        source.left -= block.nbytes
    if source.left:
        raise Refusal(f"{source.left:,} bytes follow the last storage", "the end of the file there")
    return places
