"""PyTorch checkpoints (.pth, .pt, .pth.tar) without PyTorch: NumPy and the standard library only.

Both formats of `torch.save` are read, the zip archive (since PyTorch 1.6) and the one before it.
No code from a file is ever run (see `formats.torch_pickle`), every number is checked against the
size of the file before memory is allocated, and whatever is wrong becomes a `ParamFileError`.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from typing import Optional

import numpy as np

from formats.atomic import PathLike
from formats.file_kinds import HEAD_BYTES, describe_kind
from formats.param_reader import DAMAGED, ParamFileError, opened
from formats.torch_legacy import is_legacy, read_legacy
from formats.torch_objects import Refusal, Resolver
from formats.torch_pickle import SAVE_STATE_DICT, PickleSource, Unpickler

__all__ = ["read_state_dict", "read_torch"]

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model_state", "model", "net")
SAVE_AGAIN = "Load it with PyTorch and save it again with torch.save."
# Arrays may be larger than the file: bfloat16 is widened, tensors share storages, zips compress.
GROWTH, GROWTH_BASE = 16, 1 << 20
MAX_PICKLE = 64 << 20
MAX_READ = 8 << 20  # zipfile reads the whole table of contents at once; 80,000 entries fit
COMMENT = 66_000
MAX_QUOTED = 200  # characters of an error of the library
CHUNK = 1 << 20
NEWEST_VERSION = 10  # of the zip format; PyTorch itself writes 3 and reads 1 to 10


def read_torch(path: PathLike) -> object:
    """Read a PyTorch checkpoint.

    Parameters
    ----------
    path
        File that `torch.save` wrote.

    Returns
    -------
    object
        What was saved. Tensors, parameters and storages are arrays of their own (a tensor that
        occurs twice is one array), bfloat16 widened to float32, which loses nothing. Containers are
        dict (also for an OrderedDict), list and tuple (also for a torch.Size), all else is str,
        bytes, int, float, bool or None: NumPy numbers become Python numbers, ``torch.float32`` and
        ``torch.device("cuda", 0)`` become ``"torch.float32"`` and ``"cuda:0"``.

    Raises
    ------
    ParamFileError
        When the file cannot be read, is not a sound checkpoint or holds anything else, for example
        a whole network instead of its state dict.
    """
    try:
        with opened(path, "a PyTorch checkpoint") as file, _BoundedReader(file.raw) as stream:
            return _read(path, stream, os.fstat(stream.fileno()).st_size)
    except Refusal as refusal:
        raise _error(path, refusal) from refusal


def read_state_dict(path: PathLike) -> dict[str, np.ndarray]:
    """Read the parameters of a network from a PyTorch checkpoint.

    Parameters
    ----------
    path
        File with a state dict at the top level or under one of ``state_dict``,
        ``model_state_dict``, ``model_state``, ``model`` and ``net``.

    Returns
    -------
    dict
        Name to array, in the order of the file. The prefix ``module.`` that `DataParallel` puts
        before every name is removed.

    Raises
    ------
    ParamFileError
        As `read_torch`, and when there is no flat mapping of names to tensors or more than one.
    """
    content = read_torch(path)
    found = {"the top level": content}
    if isinstance(content, dict):
        found.update({repr(k): content[k] for k in STATE_DICT_KEYS if k in content})
    flat = {place: value for place, value in found.items() if not _flaw(value)}
    if len(flat) != 1:
        flaws = "; ".join(f"{place} {_flaw(value)}" for place, value in found.items())
        refusal = Refusal(
            f"{' and '.join(flat)} are state dicts" if flat else f"no state dict: {flaws}",
            "one flat mapping of names to tensors, at the top level or under one of "
            + ", ".join(STATE_DICT_KEYS),
            "Take the part you want from read_torch(), or save it alone in PyTorch: "
            "torch.save(net.state_dict(), PATH).",
        )
        raise _error(path, refusal)
    (params,) = flat.values()
    assert isinstance(params, dict)
    return without_module(params)


def without_module(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Remove the ``module.`` of `DataParallel`, where every name has it."""
    prefix = "module."
    if all(name.startswith(prefix) for name in params):
        return {name[len(prefix) :]: array for name, array in params.items()}
    return params


def _flaw(value: object) -> str:
    """What keeps ``value`` from being a state dict, or an empty string."""
    if not isinstance(value, dict):
        return f"is of type {type(value).__name__}"
    for name, array in value.items():
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            return f"has an entry {str(name)[:80]!r} of type {type(array).__name__}"
    return "" if value else "is empty"


def _error(path: PathLike, refusal: Refusal) -> ParamFileError:
    remedy = (
        refusal.remedy
        or "Get an undamaged copy, or load it with PyTorch and save it again with torch.save."
    )
    return ParamFileError(
        f"{os.fspath(path)}: {refusal.found}. Expected {refusal.expected}. {remedy}"
    )


class _BoundedReader(io.BufferedReader):
    """Reads a bounded piece at a time, whatever length a file has told `zipfile` to read."""

    def read(self, size: Optional[int] = -1) -> bytes:
        if size is not None and size > MAX_READ:
            raise ValueError(f"it announces a piece of {size:,} bytes, where {MAX_READ:,} are much")
        # Without a size only the last bytes are meant: the longest comment and its record.
        return super().read(COMMENT if size is None or size < 0 else size)


def _read(path: PathLike, stream: io.BufferedReader, size: int) -> object:
    head = stream.read(HEAD_BYTES)
    stream.seek(0)
    resolver = Resolver(GROWTH * size + GROWTH_BASE)
    if is_legacy(head):
        return read_legacy(PickleSource(path, stream, size), resolver)
    kind = describe_kind(head)
    if head.startswith(b"PK\x03\x04"):
        try:
            return _read_zip(path, stream, size, kind, resolver)
        except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, struct.error) as error:
            # zipfile quotes the bytes that it finds, tens of thousands of them at times.
            found = f"the zip archive is broken: {str(error)[:MAX_QUOTED]}"
            raise Refusal(found, "a whole one", DAMAGED) from error
    remedy = "Give the path of a file that torch.save wrote, or download it again."
    if kind == "a tar archive":
        kind, remedy = f"{kind}, the format of PyTorch before 0.1.10 or a packed folder", SAVE_AGAIN
    raise Refusal(
        f"this looks like {kind}", "a PyTorch checkpoint (.pth, .pt, .pth.tar, .ckpt)", remedy
    )


def _read_zip(
    path: PathLike, stream: io.BufferedReader, size: int, kind: str, resolver: Resolver
) -> object:
    with zipfile.ZipFile(stream) as archive:
        members = _members(archive, GROWTH * size + GROWTH_BASE)
        root = _root(members, kind)

        def read(name: str) -> np.ndarray:
            return _read_member(archive, members[f"{root}/{name}"])

        def find_block(key: str, nbytes: int) -> None:
            member = members.get(f"{root}/data/{key}")
            if member is None or member.file_size != nbytes:
                there = f"{member.file_size:,} bytes" if member else "missing"
                raise Refusal(f"the storage {key!r} is {there}", f"{nbytes:,} bytes", DAMAGED)

        def short_text(name: str, default: str) -> str:
            if f"{root}/{name}" not in members:
                return default
            return read(name)[:20].tobytes().decode("latin-1").strip()

        version = short_text("version", "3")
        if not version.isdecimal() or not 1 <= int(version) <= NEWEST_VERSION:
            raise Refusal(f"the version is {version!r}", f"1 to {NEWEST_VERSION}", SAVE_AGAIN)
        order = short_text("byteorder", "little")
        if order not in ("little", "big"):
            raise Refusal(f"the byte order is {order!r}", "'little' or 'big'")
        if members[f"{root}/data.pkl"].file_size > MAX_PICKLE:
            raise Refusal("data.pkl is too large", f"at most {MAX_PICKLE:,} bytes", SAVE_STATE_DICT)
        data = read("data.pkl").tobytes()
        source = PickleSource(path, io.BytesIO(data), len(data))
        plain = resolver.plain(Unpickler(source, find_block).load())
        if source.left:
            raise Refusal(f"{source.left:,} bytes follow the pickle", "its end there", DAMAGED)
        resolver.fill(lambda key: read(f"data/{key}"), big_endian=order == "big")
        return plain


def _members(archive: zipfile.ZipFile, byte_limit: int) -> dict[str, zipfile.ZipInfo]:
    """The entries by name, none of them compressed in a way that can be unpacked for ever."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        if member.filename in members:
            raise Refusal(f"the entry {member.filename[:80]!r} occurs twice", "different names")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refusal("an entry is compressed in a rare way", "stored entries", SAVE_AGAIN)
        members[member.filename] = member
        byte_limit -= member.file_size
    if byte_limit < 0:
        raise Refusal(
            f"its entries unpack to more than {GROWTH} times the size of the file",
            "entries that are stored without compression, as torch.save writes them",
            SAVE_AGAIN,
        )
    return members


def _root(members: dict[str, zipfile.ZipInfo], kind: str) -> str:
    """Name of the one folder that everything lies in."""
    roots = [name[: -len("/data.pkl")] for name in members if name.endswith("/data.pkl")]
    roots = [root for root in roots if "/" not in root]
    if len(roots) != 1:
        raise Refusal(
            f"this looks like {kind}, with {len(roots)} entries FOLDER/data.pkl",
            "a PyTorch checkpoint, with exactly one",
            "Give the path of a file that torch.save wrote, or download it again.",
        )
    if f"{roots[0]}/constants.pkl" in members:
        raise Refusal(
            "this is a TorchScript program (torch.jit.save)",
            "a checkpoint; such a program is code, which is never run here",
            SAVE_STATE_DICT,
        )
    return roots[0]


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    block = np.empty(member.file_size, np.uint8)
    position = 0
    with archive.open(member) as stream:
        while position < block.size:
            chunk = stream.read(min(CHUNK, block.size - position))
            if not chunk:
                raise Refusal(f"{member.filename[:80]!r} ends too early", "a whole file", DAMAGED)
            block[position : position + len(chunk)] = np.frombuffer(chunk, np.uint8)
            position += len(chunk)
    return block
