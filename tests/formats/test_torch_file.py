"""PyTorch checkpoints: read without PyTorch, no code run, damage and bombs refused.

`golden/torch_zip.pt` and `golden/torch_legacy.pt` were written by PyTorch 2.13.0. Everything
else is built here: by Python's own pickler with stand-ins for PyTorch's classes, or byte by byte.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, Optional
from unittest import mock

import numpy as np
import pytest

from formats.param_reader import ParamFileError
from formats.torch_file import read_state_dict, read_torch

GOLDEN = Path(__file__).parents[1] / "golden"
FORMATS = ["zip", "legacy"]
DTYPES = {
    "Float": "f4",
    "Double": "f8",
    "Half": "f2",
    "Long": "i8",
    "Int": "i4",
    "Short": "i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
}


class Storage:
    def __init__(self, values: np.ndarray, kind: str = "Float", view: Any = None) -> None:
        self.values, self.kind, self.view = values, kind, view


class Tensor:
    def __init__(
        self, storage: Storage, *geometry: Any, rebuild: str = "_rebuild_tensor_v2"
    ) -> None:
        self.storage, self.geometry, self.rebuild = storage, geometry, rebuild


def tensor(array: np.ndarray, kind: str = "Float") -> Tensor:
    steps = tuple(step // array.itemsize for step in array.strides)
    return Tensor(Storage(array.ravel(), kind), 0, array.shape, steps)


def stand_in_modules() -> dict[str, types.ModuleType]:
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in [*DTYPES, "BFloat16"]:
        setattr(torch, f"{kind}Storage", type(f"{kind}Storage", (), {"__module__": "torch"}))
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"):
        setattr(utils, name, type(name, (), {"__module__": "torch._utils"}))
    return {"torch": torch, "torch._utils": utils}


class TorchPickler(pickle.Pickler):
    """Writes what `torch.save` writes; ``blocks`` collects the elements by key."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.modules, self.blocks = stand_in_modules(), {}  # type: ignore[var-annotated]

    def persistent_id(self, obj: Any) -> Optional[tuple]:
        if not isinstance(obj, Storage):
            return None
        keys = [key for key, block in self.blocks.items() if block is obj.values]
        key = keys[0] if keys else str(len(self.blocks))
        self.blocks[key] = obj.values
        kind = getattr(self.modules["torch"], f"{obj.kind}Storage")
        return ("storage", kind, key, "cuda:0", len(obj.values), obj.view)

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, Tensor):
            return NotImplemented
        rest: tuple = (False, OrderedDict()) if obj.rebuild.endswith("v2") else ()
        function = getattr(self.modules["torch._utils"], obj.rebuild)
        return function, (obj.storage, *obj.geometry, *rest)

    def dumps(self, obj: object, stream: io.BytesIO) -> tuple[bytes, dict[str, np.ndarray]]:
        with mock.patch.dict(sys.modules, self.modules):
            self.dump(obj)
        return stream.getvalue(), self.blocks


def pickled(obj: object, protocol: int = 2) -> tuple[bytes, dict[str, np.ndarray]]:
    stream = io.BytesIO()
    return TorchPickler(stream, protocol).dumps(obj, stream)


def zip_bytes(
    data: bytes,
    blocks: Optional[dict[str, np.ndarray]] = None,
    compression: int = zipfile.ZIP_STORED,
    **extra: bytes,
) -> bytes:
    stream = io.BytesIO()
    members = {"data.pkl": data, "version": b"3\n", **extra}
    members.update({f"data/{key}": block.tobytes() for key, block in (blocks or {}).items()})
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content, compression)
    return stream.getvalue()


def legacy_bytes(
    data: bytes, blocks: Optional[dict[str, np.ndarray]] = None, protocol: int = 2
) -> bytes:
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"long": 4}}
    head = [pickle.dumps(v, protocol) for v in (0x1950A86A20F9469CFC6C, 1001, machine)]
    tail = [pickle.dumps(sorted(blocks or {}), protocol)]
    tail += [struct.pack("<q", b.size) + b.tobytes() for _, b in sorted((blocks or {}).items())]
    return b"".join([*head, data, *tail])


def checkpoint(tmp_path: Path, obj: object, form: str = "zip", protocol: int = 2) -> Path:
    data, blocks = pickled(obj, protocol)
    whole = zip_bytes(data, blocks) if form == "zip" else legacy_bytes(data, blocks, protocol)
    (tmp_path / f"{form}.pth").write_bytes(whole)
    return tmp_path / f"{form}.pth"


def raw(tmp_path: Path, data: bytes, form: str = "zip", **blocks: np.ndarray) -> Path:
    (tmp_path / "raw.pth").write_bytes((zip_bytes if form == "zip" else legacy_bytes)(data, blocks))
    return tmp_path / "raw.pth"


def assert_same(read: object, expected: object) -> None:
    assert type(read) is type(expected)
    if isinstance(expected, np.ndarray):
        assert isinstance(read, np.ndarray)
        assert (read.dtype, read.shape) == (expected.dtype, expected.shape)
        assert read.tobytes() == expected.tobytes()
    elif isinstance(expected, dict):
        assert isinstance(read, dict)
        assert list(read) == list(expected)
        for key, value in expected.items():
            assert_same(read[key], value)
    elif isinstance(expected, (list, tuple)):
        assert isinstance(read, (list, tuple))
        assert len(read) == len(expected)
        for item, value in zip(read, expected):
            assert_same(item, value)
    else:
        assert read == expected


@pytest.mark.parametrize("form", FORMATS)
def test_files_that_pytorch_wrote(form: str) -> None:
    base = np.arange(12, dtype="f4").reshape(3, 4) / 8 - np.float32(0.5)
    params = {
        "module.t": base.T,
        "module.half": base.astype("f2")[1:, ::2],
        "module.bf": base[0],
        "module.n": np.array(3),
    }
    group = {"lr": 0.1, "betas": (0.9, 0.999), "params": [0], "foreach": None}
    state = {0: {"step": np.array(5, "f4"), "exp_avg": base[1]}}
    expected = {
        "epoch": 7,
        "best_valid_acc": 98.5,
        "state_dict": params,
        "optimizer": {"state": state, "param_groups": [group]},
    }
    assert_same(read_torch(GOLDEN / f"torch_{form}.pt"), expected)
    stripped = {name.replace("module.", ""): array for name, array in params.items()}
    assert_same(read_state_dict(GOLDEN / f"torch_{form}.pt"), stripped)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_type_in_every_protocol(tmp_path: Path, form: str, protocol: int) -> None:
    rng = np.random.RandomState(0)
    arrays = {kind: (rng.randn(3, 2) * 50).astype(code) for kind, code in DTYPES.items()}
    arrays["Float"][0] = np.nan, -0.0
    metadata: dict = {
        "plain": [1, -1, 255, 256, 2**31, -(2**63), 2**70, 0.1, True, False, None, "ü", (), [], {}],
        "nested": {0: ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)), -1.5: {"deep": [[["x"]]]}},
        "bytes": b"\x00\xff\x80abc",
        "many": list(range(3000)),
    }
    saved: dict = {kind: tensor(array, kind) for kind, array in arrays.items()}
    path = checkpoint(tmp_path, OrderedDict({**saved, **metadata}), form, protocol)
    assert_same(read_torch(path), {**arrays, **metadata})


@pytest.mark.parametrize("form", FORMATS)
def test_numpy_numbers_become_python_numbers(tmp_path: Path, form: str) -> None:
    numbers = [np.float64(98.5), np.float32(0.1), np.int64(-5), np.bool_(True), np.dtype(">f4")]
    path = checkpoint(tmp_path, [*numbers, np.array(2.5, ">f8")[()]], form)
    assert_same(read_torch(path), [98.5, float(np.float32(0.1)), -5, True, "float32", 2.5])
    # The name that NumPy 2 writes, either byte order, and text as Python 2 wrote it.
    scalar = (
        b"\x80\x02cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\nU\x02f8K\0K\x01\x87R"
        b"(K\x03U\x01%sNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tbU\x08%s\x86R."
    )
    for order, value in ((b"<", 0.25), (b">", 98.5)):
        encoded = struct.pack(order.decode() + "d", value)
        assert read_torch(raw(tmp_path, scalar % (order, encoded), form)) == value


@pytest.mark.parametrize("form", FORMATS)
def test_views_of_one_storage_become_arrays_of_their_own(tmp_path: Path, form: str) -> None:
    base = np.arange(24, dtype="f4")
    cube, shared = base.reshape(2, 3, 4), Storage(base)
    twice = Tensor(shared, 0, (24,), (1,), rebuild="_rebuild_tensor")
    saved = {
        "transposed": Tensor(shared, 0, (4, 3, 2), (1, 4, 12)),
        "slice": Tensor(shared, 12 + 1, (2, 2), (8, 2)),
        "last": Tensor(shared, 23, (), ()),
        "empty": Tensor(shared, 24, (0, 3), (3, 1)),
        "expanded": Tensor(shared, 5, (2, 3), (0, 0)),
        "twice": [twice, twice],
    }
    read = read_torch(checkpoint(tmp_path, saved, form))
    assert isinstance(read, dict)
    expected = {
        "transposed": cube.T,
        "slice": cube[1, ::2, 1::2],
        "last": base[23:].reshape(()),
        "empty": np.empty((0, 3), "f4"),
        "expanded": np.full((2, 3), 5, "f4"),
        "twice": [base, base],
    }
    assert_same(read, expected)
    read["transposed"][...] = 0
    read["expanded"][0, 0] = 9
    assert_same(read["twice"][0], base)
    assert read["expanded"].sum() == 9 + 5 * 5


def test_parts_of_storages_in_the_oldest_files(tmp_path: Path) -> None:
    base = np.arange(10, dtype="f4")
    saved = [Tensor(Storage(base, view=("9", 4, 3)), 1, (2,), (1,)), Storage(base)]
    assert_same(read_torch(checkpoint(tmp_path, saved, "legacy")), [base[5:7], base])


@pytest.mark.parametrize("form", FORMATS)
def test_bfloat16_is_widened(tmp_path: Path, form: str) -> None:
    values = np.array([1.5, -2.0, np.nan, np.inf, 3.140625, -0.0], "f4")
    half = (values.view("u4") >> 16).astype("<u2")
    saved = Tensor(Storage(half, "BFloat16"), 0, (3,), (2,))
    assert_same(read_torch(checkpoint(tmp_path, saved, form)), values[::2])


def test_big_endian_and_deflated_zips(tmp_path: Path) -> None:
    values = np.arange(1000, dtype="f4")
    data, blocks = pickled(tensor(values))
    swapped = {key: block.astype(">f4") for key, block in blocks.items()}
    for content in (
        zip_bytes(data, swapped, byteorder=b"big"),
        zip_bytes(data, blocks, byteorder=b"little", compression=zipfile.ZIP_DEFLATED),
    ):
        (tmp_path / "f").write_bytes(content)
        assert_same(read_torch(tmp_path / "f"), values)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


TOUCH = text("touch PWNED")
CODE = {
    "os.system": (b"cposix\nsystem\n" + TOUCH + b"\x85R.", "posix.system"),
    "protocol 4": (b"\x8c\x02os\x8c\x06system\x93" + TOUCH + b"\x85R.", "os.system"),
    "eval": (b"c__builtin__\neval\n" + text("open('PWNED', 'w')") + b"\x85R.", "__builtin__.eval"),
    "getattr": (b"cbuiltins\ngetattr\n(ctorch\nSize\n" + text("__init__") + b"tR.", "getattr"),
    "dotted": (b"\x8c\x0bcollections\x8c\x16OrderedDict.__init__.x\x93.", "OrderedDict.__init__"),
    "loader": (b"ctorch.storage\n_load_from_bytes\n" + text("x") + b"\x85R.", "_load_from_bytes"),
    "class": (b"cresnet\nResNet\n)\x81}b.", "resnet.ResNet'"),
    "control": (b"cos\x1b[2J\nsystem\n.", r"os\\x1b\[2J.system'"),
    "INST": (b"(" + TOUCH + b"iposix\nsystem\n.", "posix.system"),
}
NONSENSE = {
    "INST known": (b"(icollections\nOrderedDict\n.", "instruction INST"),
    "OBJ": (b"(ccollections\nOrderedDict\no.", "instruction OBJ"),
    "NEWOBJ": (b"ctorch\nSize\n)\x81.", "instruction NEWOBJ"),
    "NEWOBJ_EX": (b"ctorch\nSize\n)}\x92.", "instruction NEWOBJ_EX"),
    "EXT1": (b"\x82\x01.", "instruction EXT1"),
    "PERSID": (b"Pstorage\n.", "instruction PERSID"),
    "unknown": (b"\xfe.", "the byte fe"),
    "BUILD function": (b"ctorch\nSize\n}" + text("x") + b"K\x01sb.", "sets attributes"),
    "BUILD slots": (b"ctorch\nSize\nN}" + text("call") + b"Ns\x86b.", "sets attributes"),
    "BUILD list": (b"]}b.", "sets attributes"),
    "BUILD dtype": (b"cnumpy\ndtype\nX\2\0\0\0f8\x85RK\1b.", "NumPy type is described wrongly"),
    "object dtype": (b"cnumpy\ndtype\nX\2\0\0\0O8\x85R.", "NumPy type 'O8'"),
    "call text": (text("print") + b")R.", "no function"),
    "call result": (b"ctorch\nSize\n)R)R.", "no function"),
    "call with a list": (b"ctorch\nSize\n]R.", "no function"),
    "call class": (b"ctorch\nFloatStorage\n)R.", "no function"),
    "arguments": (b"ctorch\nSize\nNN\x86R.", "called with 2 arguments"),
    "a function left": (b"ctorch\nSize\n.", "it holds the function torch.Size"),
    "a class left": (b"]ctorch\nFloatStorage\na.", "the class torch.FloatStorage"),
    "codec": (b"c_codecs\nencode\n" + text("x") + text("rot13") + b"\x86R.", "latin1"),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", CODE)
def test_code_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, form: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "system", lambda _: pytest.fail("the code ran"))
    data, name = CODE[case]
    path = raw(tmp_path, b"\x80\x02" + data, form)
    words = f"{path}: it needs the Python object '.*{name}.* is code, which is never run here.*save"
    with pytest.raises(ParamFileError, match=words):
        read_torch(path)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.parametrize("case", NONSENSE)
def test_only_stand_ins_are_called(tmp_path: Path, case: str) -> None:
    data, words = NONSENSE[case]
    with pytest.raises(ParamFileError, match=words) as caught:
        read_torch(raw(tmp_path, b"\x80\x02" + data))
    assert "Expected" in str(caught.value)


FLOAT, INT = b"ctorch\nFloatStorage\n", b"ctorch\nIntStorage\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor\n"


def storage_id(size: bytes, kind: str = "storage", key: str = "k", typ: bytes = FLOAT) -> bytes:
    return b"(" + text(kind) + typ + text(key) + text("cpu") + size + b"tQ"


def rebuilt(offset: bytes, shape: bytes, strides: bytes, storage: bytes = b"") -> bytes:
    storage = storage or storage_id(b"K\x04")
    return b"\x80\x02" + REBUILD + b"(" + storage + offset + shape + strides + b"tR."


def number_in(storage: bytes) -> bytes:
    return rebuilt(b"K\0", b")", b")", storage)


HUGE = b"\x8a\x08" + struct.pack("<q", 2**62)
MINUS = b"J\xff\xff\xff\xff"
GEOMETRY = {
    "one too far": (rebuilt(b"K\1", b"K\4\x85", b"K\1\x85"), "reaches element 4 of a storage of 4"),
    "stride": (rebuilt(b"K\0", b"K\2\x85", b"K\4\x85"), "reaches element 4"),
    "huge shape": (rebuilt(b"K\0", HUGE + b"\x85", b"K\0\x85"), "impossible shape"),
    "zero times huge": (
        rebuilt(b"K\0", b"K\0" + HUGE + HUGE + b"\x87", b"K\0K\0K\0\x87"),
        "impossible shape",
    ),
    "huge offset": (rebuilt(HUGE, b")", b")"), "reaches element 4,611,686"),
    "negative offset": (rebuilt(MINUS, b"K\1\x85", b"K\1\x85"), "the offset of a tensor has -1"),
    "negative size": (rebuilt(b"K\0", MINUS + b"\x85", b"K\1\x85"), "the shape of a tensor has -1"),
    "negative stride": (rebuilt(b"K\3", b"K\2\x85", MINUS + b"\x85"), "the strides of a tensor"),
    "bool size": (rebuilt(b"K\0", b"\x88\x85", b"K\1\x85"), "an object of type bool"),
    "nested size": (rebuilt(b"K\0", b")\x85\x85", b"K\1\x85"), "an object of type tuple"),
    "dimensions": (rebuilt(b"K\0", b"(" + b"K\1" * 33 + b"t", b")"), "at most 32"),
    "lengths": (rebuilt(b"K\0", b"K\1\x85", b")"), "strides"),
    "a repeated element": (rebuilt(b"K\0", b"J\0\0\0\x10\x85", b"K\0\x85"), "more memory than"),
    "no storage": (rebuilt(b"K\0", b")", b")", b"]"), "lies in an object of type list"),
    "other key": (number_in(storage_id(b"K\4", key="x")), "missing|size of storage|are used"),
    "other size": (number_in(storage_id(b"K\5")), "16 bytes|4 elements"),
    "huge storage": (number_in(storage_id(HUGE)), "described wrongly"),
    "large storage": (number_in(storage_id(b"J\0\0\0\x7f")), "8,522,825,728 bytes"),
    "negative storage": (number_in(storage_id(MINUS)), "described wrongly"),
    "path as key": (number_in(storage_id(b"K\4", key="../version")), "missing|are used"),
    "storage type": (number_in(storage_id(b"K\4", typ=b"N")), "described wrongly"),
    "not a storage": (number_in(storage_id(b"K\4", kind="module")), "described wrongly"),
    "two types": (
        b"\x80\x02" + storage_id(b"K\4") + storage_id(b"K\4", typ=INT) + b"\x86.",
        "IntStorage of 4 elements here and FloatStorage of 4 elsewhere",
    ),
    "no persistent id": (b"\x80\x02NQ.", "no storage"),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", GEOMETRY)
def test_no_element_outside_a_storage_is_touched(tmp_path: Path, case: str, form: str) -> None:
    sound = rebuilt(b"K\1", b"K\3\x85", b"K\1\x85")
    block = np.arange(4, dtype="f4")
    assert_same(read_torch(raw(tmp_path, sound, form, k=block)), block[1:])
    data, words = GEOMETRY[case]
    with pytest.raises(ParamFileError, match=words):
        read_torch(raw(tmp_path, data, form, k=block))


@pytest.mark.parametrize("form", FORMATS)
def test_the_stride_of_a_single_element_says_nothing(tmp_path: Path, form: str) -> None:
    block = np.arange(4, dtype="f4")
    data = rebuilt(b"K\1", b"K\1K\2\x86", HUGE + b"K\1\x86")
    assert_same(read_torch(raw(tmp_path, data, form, k=block)), block[None, 1:3])


# Ten times the last tuple in the next one, 60 times: 10^60 values in 1,500 bytes.
LAUGHS = b"(]q\0" + b"".join(
    b"(" + (b"h" + bytes([i])) * 10 + b"tq" + bytes([i + 1]) for i in range(60)
) + b"t."  # fmt: skip
BOMBS = {
    "memo index": (b"Nr\xff\xff\xff\xff.", None),  # 2^32: only a number here
    "frame": (b"\x95" + b"\xff" * 8 + b"N.", None),
    "long text": (b"X\xff\xff\xff\xff.", "ends too early"),
    "long bytes": (b"\x8e" + b"\xff" * 8 + b".", "BINBYTES8"),
    "bytearray": (b"\x96\0\0\0\0\0\1\0\0.", "BYTEARRAY8"),
    "long integer": (b"\x8b\xff\xff\xff\x7f.", "LONG4"),
    "integer of 255 bytes": (b"\x8a\xff" + b"\1" * 255 + b".", "255 bytes"),
    "endless line": (b"c" + b"x" * 100_000, "does not end"),
    "deep": (b")" + b"\x85" * 100_000 + b".", "nested at most 100 deep"),
    "deep key": (b"})" + b"\x85" * 100_000 + b"Ns.", "a dictionary key"),
    "colliding keys": (b"}\x8a\x09" + b"\0" * 8 + b"\1Ns.", "a dictionary key"),
    "cycle": (b"]q\0h\0a.", "hold each other"),
    "billion laughs": (LAUGHS, "hold each other"),
    "two values": (b"NN.", "left over"),
    "open mark": (b"(N.", "left over"),
    "empty": (b".", "where there is none"),
    "no mark": (b"t.", "takes a mark"),
    "memo": (b"h\7.", "object 7"),
    "same key": (b"}(K\1NK\1Nu.", "'1' occurs twice"),
    "odd items": (b"}(K\1u.", "pairs"),
    "append": (b"}Na.", "a list"),
    "utf-8": (b"X\1\0\0\0\xff.", "UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("case", BOMBS)
def test_bombs_and_unsound_pickles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setattr("formats.torch_objects.MAX_VALUES", 10_000)
    data, words = BOMBS[case]
    path = raw(tmp_path, b"\x80\x02" + data)
    if words is None:
        assert read_torch(path) is None
        return
    with pytest.raises(ParamFileError, match=words):
        read_torch(path)


def test_number_of_instructions_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = checkpoint(tmp_path, list(range(500)))
    monkeypatch.setattr("formats.torch_pickle.MAX_INSTRUCTIONS", 400)
    with pytest.raises(ParamFileError, match="more than 400 instructions"):
        read_torch(path)
    monkeypatch.undo()
    monkeypatch.setattr("formats.torch_objects.MAX_VALUES", 400)
    with pytest.raises(ParamFileError, match="at most 400 values"):
        read_torch(path)


def test_zip_bombs(tmp_path: Path) -> None:
    zeros = np.zeros(8_000_000, "f4")
    data, blocks = pickled(tensor(zeros))
    deflated = zip_bytes(data, blocks, zipfile.ZIP_DEFLATED)
    # One stored entry that 300 lines of the table of contents point at.
    small = zip_bytes(b"N.", {"0": np.zeros(10_000, "f4")})
    start, end = small.index(b"PK\1\2"), small.index(b"PK\5\6")
    entry = small[small.rindex(b"PK\1\2") : end]
    many = b"".join(entry[:-1] + bytes([33 + i % 90, 33 + i // 90]) for i in range(300))
    many = many.replace(struct.pack("<H", 14) + b"\0\0\0\0", struct.pack("<H", 15) + b"\0\0\0\0")
    table = small[start:end] + many
    overlapping = small[:start] + table + b"PK\5\6" + struct.pack(
        "<4H2IH", 0, 0, 303, 303, len(table), start, 0
    )  # fmt: skip
    bzip2 = zip_bytes(data, None, zipfile.ZIP_BZIP2)
    tracemalloc.start()
    for content, words in (
        (deflated, "more than 16 times the size of the file"),
        (overlapping, "more than 16 times the size of the file"),
        (bzip2, "compressed in a rare way"),
    ):
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(ParamFileError, match=words):
            read_torch(tmp_path / "f")
    assert tracemalloc.get_traced_memory()[1] < 3_000_000
    tracemalloc.stop()


def test_zip_with_a_huge_table_of_contents(tmp_path: Path) -> None:
    size = 100 << 20
    with open(tmp_path / "f", "wb") as stream:
        stream.write(b"PK\3\4")
        stream.seek(size)  # a hole, so it takes no room on the disk
        stream.write(b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 9, 9, size, 0, 0))
    tracemalloc.start()
    with pytest.raises(ParamFileError, match="announces a piece of 104,857,600 bytes"):
        read_torch(tmp_path / "f")
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert data.count(old) >= 1
    return data.replace(old, new)


def test_broken_archives_are_named(tmp_path: Path) -> None:
    block = {"k": np.arange(4, dtype="f4")}
    sound = rebuilt(b"K\1", b"K\3\x85", b"K\1\x85")
    truth = rebuilt(b"K\0", b")", b")", storage_id(b"K\4", typ=b"ctorch\nBoolStorage\n"))
    for content, words in (
        (zip_bytes(sound), "'k' is missing"),
        (zip_bytes(sound, {"k": block["k"][:3]}), "'k' is 12 bytes. Expected 16"),
        (zip_bytes(sound + b"x", block), "1 bytes follow the pickle"),
        (zip_bytes(sound, block, version=b"77"), "version is '77'"),
        (zip_bytes(sound, block, version=b"\xb2"), "version is"),
        (zip_bytes(sound, block, byteorder=b"middle"), "byte order is 'middle'"),
        (patched(zip_bytes(sound, block, versio2=b"3"), b"versio2", b"version"), "occurs twice"),
        (patched(zip_bytes(sound, block, constants_pkl=b"N."), b"s_pkl", b"s.pkl"), "TorchScript"),
        (zip_bytes(truth, {"k": np.array([0, 1, 2, 1], "u1")}), "other bytes than 0 and 1"),
        (patched(zip_bytes(sound, block), block["k"].tobytes(), b"\1" * 16), "Bad CRC-32"),
        (patched(zip_bytes(sound, block), b"/data.pkl", b"/data.pxl"), "0 entries FOLDER/data.pkl"),
    ):
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(ParamFileError, match=words):
            read_torch(tmp_path / "f")


def test_broken_legacy_files_are_named(tmp_path: Path) -> None:
    data, blocks = pickled(tensor(np.arange(4, dtype="f4")))
    sound = legacy_bytes(data, blocks)
    for content, words in (
        (sound + b"x", "1 bytes follow the last storage"),
        (sound[:-1], "storage '0' needs 16 bytes, 15 are left"),
        (legacy_bytes(data), "0 storages are stored, 1 are used"),
        (legacy_bytes(data, {**blocks, "1": blocks["0"]}), "2 storages are stored"),
        (legacy_bytes(data, {"0": blocks["0"][:3]}), "'0' has 3 elements. Expected 4"),
        (patched(sound, b"M\xe9\x03.", b"M\xe8\x03."), "protocol version is 1,000"),
        (patched(sound, b"M\xe9\x03.", b"]a\x03."), "empty|where there is none|list"),
    ):
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(ParamFileError, match=words):
            read_torch(tmp_path / "f")


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ([1], "the top level is of type list"),
        ({}, "the top level is empty"),
        ({"a": tensor(np.ones(1, "f4")), "b": 1}, "entry 'b' of type int"),
        ({"a": tensor(np.ones(1, "f4")), 5: tensor(np.ones(1, "f4"))}, "entry '5'"),
        ({"epoch": 1, "state_dict": {}}, "'state_dict' is empty"),
        ({"state_dict": {"a": {"b": tensor(np.ones(1, "f4"))}}}, "'state_dict' has an entry 'a'"),
        (
            {k: {"w": tensor(np.ones(1, "f4"))} for k in ("model", "net")},
            "'model' and 'net' are state dicts",
        ),
    ],
)
def test_what_is_no_state_dict(tmp_path: Path, saved: object, words: str) -> None:
    with pytest.raises(ParamFileError, match=words):
        read_state_dict(checkpoint(tmp_path, saved))


@pytest.mark.parametrize(
    "key", ["", "state_dict", "model_state_dict", "model_state", "model", "net"]
)
def test_where_the_state_dict_may_be(tmp_path: Path, key: str) -> None:
    arrays = {"module.b": np.ones(2, "f4"), "module.module.a": np.zeros((1, 2), "f4")}
    params = OrderedDict((name, tensor(array)) for name, array in arrays.items())
    params._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]  # as PyTorch adds it
    path = checkpoint(tmp_path, {"epoch": 1, key: params} if key else params)
    assert_same(read_state_dict(path), {name[7:]: array for name, array in arrays.items()})
    params["other"] = tensor(np.ones(1, "f4"))
    path = checkpoint(tmp_path, params)
    assert list(read_state_dict(path)) == ["module.b", "module.module.a", "other"]


def test_other_files_and_paths(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    kinds = {
        "empty": (b"", "an empty file"),
        "pickle": (pickle.dumps({"a": 1}), "a Python pickle"),
        "npz": (zip_bytes(b"").replace(b"data.pkl", b"data.npy"), "NumPy .npz"),
        "tar": (
            b"a".ljust(257, b"\0") + b"ustar\x0000".ljust(255, b"\0"),
            "tar archive, the format",
        ),
        "html": (b"<!DOCTYPE html><title>404", "web page"),
        "random": (b"\x08\x01\x02\x03", "unknown kind"),
    }
    for name, (content, words) in kinds.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ParamFileError, match=words):
            read_torch(tmp_path / name)
    for path, words in (
        (tmp_path, "this is a folder"),
        (tmp_path / "none", "no such file"),
        (tmp_path / "pipe", "a device or pipe"),
        ("a\0b", "null (byte|character)"),
    ):
        with pytest.raises(ParamFileError, match=words):
            read_torch(path)


@pytest.mark.parametrize("form", FORMATS)
def test_truncation_at_every_byte_is_refused(tmp_path: Path, form: str) -> None:
    saved = {
        "w": tensor(np.arange(6, dtype="f4").reshape(2, 3)),
        "acc": np.float64(0.5),
        "n": 2**40,
    }
    data = checkpoint(tmp_path, saved, form).read_bytes()
    for length in range(len(data)):
        (tmp_path / "cut").write_bytes(data[:length])
        with pytest.raises(ParamFileError):
            read_torch(tmp_path / "cut")


@pytest.mark.parametrize("form", FORMATS)
def test_mutated_files_are_refused_or_read_within_bounded_memory(tmp_path: Path, form: str) -> None:
    saved = {"w": tensor(np.ones((2, 3), "f4")), "acc": np.float64(0.5), "l": [(1, b"x"), None]}
    sound, blocks = pickled(saved)
    path, rng, refused = tmp_path / "fuzz", np.random.RandomState(1), 0
    extremes = np.array([0, 1, 2, 127, 128, 255], "u1")
    tracemalloc.start()
    for index in range(500):
        # Half of them in the pickle alone: in a zip archive the checksums would find it first.
        inner = index % 2 == 0
        whole = sound if inner else (zip_bytes if form == "zip" else legacy_bytes)(sound, blocks)
        data = np.frombuffer(whole, "u1").copy()
        spots = rng.randint(len(data), size=rng.randint(1, 5))
        data[spots] = rng.choice(extremes, len(spots)) if rng.rand() < 0.5 else rng.randint(256)
        mutated = data.tobytes()
        if inner:
            mutated = (zip_bytes if form == "zip" else legacy_bytes)(mutated, blocks)
        path.write_bytes(mutated)
        try:
            read_torch(path)
        except ParamFileError:
            refused += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 150 < refused < 500
    assert peak < 4_000_000


def test_neither_pytorch_nor_mxnet_is_imported() -> None:
    code = "import sys, formats.torch_file; sys.exit(len({'torch', 'mxnet'} & set(sys.modules)))"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)
