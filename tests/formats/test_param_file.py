"""Parameter files against MXNet's own writer and reader, and against damage of every kind."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
import tracemalloc
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest

from formats.atomic import write_atomically, write_together
from formats.digest import verify_digest
from formats.file_kinds import describe_kind
from formats.param_file import read_params, read_shapes, write_params
from formats.param_reader import ParamFileError

DTYPES = ["float32", "float64", "float16", "uint8", "int32", "int8", "int64", "bool"]
V1, V2, V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA


def sample(dtype: str = "float32") -> dict[str, np.ndarray]:
    rng = np.random.RandomState(0)
    values = {
        "arg:conv1.0.weight": rng.randn(3, 4, 2, 1) * 50,
        "aux:bn.running_mean": rng.randn(5) * 50,
        "größe": rng.randn(1, 1),
    }
    arrays = {name: value.astype(dtype) for name, value in values.items()}
    if np.dtype(dtype).kind == "f":
        arrays["größe"][0, 0] = np.nan
        arrays["aux:bn.running_mean"][:3] = np.inf, -np.inf, -0.0
    return arrays


def array_record(magic: int = V2, *fields: bytes) -> bytes:
    """A sound record of the float32 array [1], or with other fields after the magic number."""
    sound = (struct.pack("<iiqiii", 0, 1, 1, 1, 0, 0), b"\0\0\x80?")
    return struct.pack("<I", magic) + b"".join(fields or sound)


def list_file(record: bytes, *, count: int = 1, names: tuple[bytes, ...] = (b"w",)) -> bytes:
    head = struct.pack("<QQQ", 0x112, 0, count) + record + struct.pack("<Q", len(names))
    return head + b"".join(struct.pack("<Q", len(name)) + name for name in names)


def assert_same(read: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert list(read) == list(expected)
    for name, array in expected.items():
        assert read[name].dtype == array.dtype
        assert read[name].shape == array.shape
        assert read[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_equal_mxnet_in_both_directions(tmp_path: Path, dtype: str) -> None:
    arrays = sample(dtype)
    theirs, ours = str(tmp_path / "theirs"), str(tmp_path / "ours")
    mx.nd.save(theirs, {n: mx.nd.array(a, dtype=a.dtype) for n, a in arrays.items()})
    write_params(ours, arrays)
    assert Path(ours).read_bytes() == Path(theirs).read_bytes()
    assert_same(read_params(theirs), arrays)
    assert_same({n: a.asnumpy() for n, a in mx.nd.load(ours).items()}, arrays)
    assert read_shapes(ours) == {n: (a.shape, a.dtype) for n, a in arrays.items()}


def test_reads_what_save_parameters_writes(tmp_path: Path) -> None:
    net = mx.gluon.nn.HybridSequential()
    net.add(mx.gluon.nn.Dense(3, in_units=2), mx.gluon.nn.BatchNorm(in_channels=3))
    net.initialize()
    net.save_parameters(str(tmp_path / "net.params"))
    expected = {n: p.data().asnumpy() for n, p in net._collect_params_with_prefix().items()}
    assert_same(read_params(tmp_path / "net.params"), expected)


def test_list_without_names_is_numbered(tmp_path: Path) -> None:
    path = str(tmp_path / "list")
    mx.nd.save(path, [mx.nd.ones((2,)), mx.nd.zeros((1, 3))])
    assert_same(read_params(path), {"0": np.ones(2, "f4"), "1": np.zeros((1, 3), "f4")})


@pytest.mark.parametrize("arrays", [{}, {"": np.ones(1, "f4")}])
def test_unusual_but_sound(tmp_path: Path, arrays: dict[str, np.ndarray]) -> None:
    write_params(tmp_path / "f", arrays)
    assert_same(read_params(tmp_path / "f"), arrays)


def test_strided_and_big_endian_arrays_are_written_by_value(tmp_path: Path) -> None:
    base = np.arange(12, dtype="f4").reshape(3, 4)
    write_params(tmp_path / "f", {"t": base.T, "b": base.astype(">f4"), "s": base[:, ::-2]})
    assert_same(read_params(tmp_path / "f"), {"t": base.T, "b": base, "s": base[:, ::-2]})


@pytest.mark.parametrize(
    "header",
    [struct.pack("<Ii2qiii", V1, 2, 2, 3, 1, 0, 0), struct.pack("<I2Iiii", 2, 2, 3, 1, 0, 0)],
    ids=["V1", "before V1"],
)
def test_older_layouts_read_as_mxnet_reads_them(tmp_path: Path, header: bytes) -> None:
    path, values = tmp_path / "old", np.arange(6, dtype="f4").reshape(2, 3)
    path.write_bytes(list_file(header + values.tobytes()))
    assert_same(read_params(path), {"w": values})
    assert_same({"w": mx.nd.load(str(path))["w"].asnumpy()}, {"w": values})


def test_file_saved_on_a_gpu(tmp_path: Path) -> None:
    record = array_record(V2, struct.pack("<iiqiii", 0, 1, 1, 2, 3, 0), b"\0\0\x80?")
    (tmp_path / "gpu").write_bytes(list_file(record))
    assert_same(read_params(tmp_path / "gpu"), {"w": np.ones(1, "f4")})


def test_numpy_shape_layout(tmp_path: Path) -> None:
    path = str(tmp_path / "np")
    with mx.util.np_shape(True), mx.util.np_array(True):
        mx.npx.save(path, {"s": mx.np.ones(()), "z": mx.np.ones((0, 3)), "a": mx.np.ones((2, 1))})
    shapes: dict[str, tuple[int, ...]] = {"s": (), "z": (0, 3), "a": (2, 1)}
    assert_same(read_params(path), {n: np.ones(s, "f4") for n, s in shapes.items()})


def test_bfloat16_is_widened(tmp_path: Path) -> None:
    values = np.array([1.5, -2.0, 3.140625], "f4")
    half = (values.view("u4") >> 16).astype("<u2").tobytes()
    (tmp_path / "b").write_bytes(
        list_file(array_record(V2, struct.pack("<iiqiii", 0, 1, 3, 1, 0, 12), half))
    )
    assert_same(read_params(tmp_path / "b"), {"w": values})


def v2(storage: int = 0, ndim: int = 1, dims: tuple[int, ...] = (1,), flag: int = 0) -> bytes:
    shape = struct.pack(f"<ii{len(dims)}q", storage, ndim, *dims)
    return array_record(V2, shape, struct.pack("<iii", 1, 0, flag), b"\0\0\x80?")


BROKEN = {
    "many arrays": (list_file(array_record(), count=2**60), "announces 1,152,921,504,606,846,976"),
    "huge dimension": (list_file(v2(dims=(2**60,))), "ends too early"),
    "overflowing product": (list_file(v2(ndim=2, dims=(2**40, 2**40))), "impossible shape"),
    "zero times huge": (
        list_file(array_record(V3, struct.pack("<ii3qiii", 0, 3, 0, 2**62, 2**62, 1, 0, 0), b"")),
        "impossible shape",
    ),
    "many dimensions": (list_file(v2(ndim=2**30)), "has 1073741824 dimensions"),
    "no dimensions": (list_file(v2(ndim=0)), "0 dimensions"),
    "negative dimension": (list_file(v2(dims=(-1,))), r"shape \(-1,\)"),
    "zero dimension": (list_file(v2(dims=(0,))), r"shape \(0,\)"),
    "sparse": (list_file(v2(storage=1)), "row_sparse.*tostype"),
    "element type": (list_file(v2(flag=99)), "element type 99"),
    "device": (
        list_file(array_record(V2, struct.pack("<iiqiii", 0, 1, 1, 77, 0, 0), b"\0\0\0\0")),
        "device type 77",
    ),
    "reserved": (b"\x12\1" + b"\0" * 6 + b"\1" + list_file(array_record())[9:], "reserved"),
    "trailing": (list_file(array_record()) + b"x", "1 bytes follow the last name"),
    "duplicate": (
        list_file(array_record() * 2, count=2, names=(b"w", b"w")),
        "'w' occurs twice",
    ),
    "name count": (list_file(array_record(), names=(b"a", b"b")), "2 names for 1 arrays"),
    "name text": (list_file(array_record(), names=(b"\xff",)), "UTF-8"),
    "name zero": (list_file(array_record(), names=(b"a\0b",)), "UTF-8"),
    "long name": (list_file(array_record())[:-9] + struct.pack("<Q", 2**61) + b"w", "name 0 needs"),
    "bool of 2": (
        list_file(array_record(V2, struct.pack("<iiqiii", 0, 1, 1, 1, 0, 7), b"\2")),
        "other bytes than 0 and 1",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_kind_of_damage_is_named(tmp_path: Path, case: str) -> None:
    data, words = BROKEN[case]
    path = tmp_path / "broken.params"
    path.write_bytes(data)
    with pytest.raises(ParamFileError, match=words) as caught:
        read_params(path)
    assert str(path) in str(caught.value)
    assert "Expected" in str(caught.value)


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"", "an empty file"),
        (b"PK\x03\x04\0\0archive/data.pkl", "a PyTorch zip checkpoint"),
        (b"PK\x03\x04\0\0weight.npy", "NumPy .npz"),
        (b"PK\x03\x04\0\0readme", "a zip archive"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "PyTorch checkpoint"),
        (b"\x80\x04\x95abc", "pickle"),
        (b"\x89HDF\r\n\x1a\n....", "HDF5"),
        (b"\n  <!DOCTYPE html><title>404", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b'{"nodes": []}', "network description"),
        (b"\0" * 100, "zero bytes only"),
        (b"hello", "a text file"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x08\x01\x02\x03", "unknown kind .first bytes 08 01 02 03"),
    ],
)
def test_other_files_are_recognised(tmp_path: Path, head: bytes, words: str) -> None:
    assert describe_kind(head)
    (tmp_path / "f.param").write_bytes(head)
    for read in (read_params, read_shapes):
        with pytest.raises(ParamFileError, match=words):
            read(tmp_path / "f.param")


def test_paths_that_are_no_readable_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    paths: list[tuple[os.PathLike[str] | str, str]] = [
        (tmp_path, "a folder"),
        (tmp_path / "none", "no such file"),
        (tmp_path / "pipe", "a device or pipe"),
        ("a\0b", "null (byte|character)"),
        (tmp_path / ("x" * 400), "name too long"),
    ]
    for path, words in paths:
        with pytest.raises(ParamFileError, match=words):
            read_params(path)


def test_truncation_at_every_byte_is_refused(tmp_path: Path) -> None:
    write_params(tmp_path / "whole", sample())
    data = (tmp_path / "whole").read_bytes()
    for length in range(len(data)):
        (tmp_path / "cut").write_bytes(data[:length])
        for read in (read_params, read_shapes):
            with pytest.raises(ParamFileError):
                read(tmp_path / "cut")


def test_mutated_files_are_refused_or_read_within_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "fuzz.params"
    write_params(path, {"a": np.ones((2, 3), "f4"), "b": np.arange(4)})
    sound, rng, refused = path.read_bytes(), np.random.RandomState(1), 0
    extremes = np.array([0, 1, 2, 127, 128, 255], "u1")
    tracemalloc.start()
    for _ in range(2000):
        data = np.frombuffer(sound, "u1").copy()
        spots = rng.randint(len(data), size=rng.randint(1, 5))
        data[spots] = rng.choice(extremes, len(spots)) if rng.rand() < 0.5 else rng.randint(256)
        path.write_bytes(data.tobytes())
        changed = data.tobytes() != sound
        if changed:
            with pytest.raises(ParamFileError, match="SHA-256"):
                verify_digest(path)
        try:
            assert len(read_params(path)) <= 2
        except ParamFileError:
            refused += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 500 < refused < 2000
    assert peak < 2_000_000


def test_read_shapes_loads_no_elements(tmp_path: Path) -> None:
    write_params(tmp_path / "big", {"a": np.zeros((500, 1000), "f4"), "b": np.zeros(1, "f4")})
    tracemalloc.start()
    shapes = read_shapes(tmp_path / "big")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert shapes["a"] == ((500, 1000), np.dtype("f4"))
    assert peak < 200_000


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": np.zeros(1, "c8")}, "element type complex64"),
        ({"a": np.zeros(1, "u2")}, "element type uint16"),
        ({"a": np.array("text")}, "element type <U4"),
        ({"a": np.float32(1)}, r"shape \(\)"),
        ({"a": np.zeros((2, 0), "f4")}, r"shape \(2, 0\)"),
        ({"a\0": np.zeros(1, "f4")}, "cannot be a name"),
        ({"\ud800": np.zeros(1, "f4")}, "cannot be a name"),
    ],
)
def test_writer_refuses_what_mxnet_cannot_read(
    tmp_path: Path, arrays: dict[str, np.ndarray], words: str
) -> None:
    with pytest.raises(ParamFileError, match=words):
        write_params(tmp_path / "f", arrays)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.param", "with space.param", "back\\slash", "line\nfeed"])
def test_digest_is_what_sha256sum_writes_and_checks(tmp_path: Path, name: str) -> None:
    digest = write_params(tmp_path / name, sample())
    side = tmp_path / (name + ".sha256")
    assert digest in side.read_text()
    assert verify_digest(tmp_path / name) is True
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    out = subprocess.run(["sha256sum", "--", name], cwd=tmp_path, capture_output=True, check=True)
    assert out.stdout == side.read_bytes()
    subprocess.run(["sha256sum", "-c", "--quiet", side.name], cwd=tmp_path, check=True)


def test_digest_missing_wrong_renamed_and_garbled(tmp_path: Path) -> None:
    path, side = tmp_path / "a.param", tmp_path / "a.param.sha256"
    digest = write_params(path, sample(), digest=False)
    assert verify_digest(path) is False
    side.write_text(f"{digest.upper()} *a.param\r\n")
    assert verify_digest(path) is True
    side.write_text(f"{digest}  old-name.param\n")
    assert verify_digest(path) is True
    side.write_text(f"{'0' * 64}  other\n{digest}  a.param\n")
    assert verify_digest(path) is True
    for text, words in [
        (f"{'0' * 64}  a.param\n", f"its SHA-256 is {digest}"),
        (f"{digest}  b\n{digest}  c\n", "no single line"),
        (f"{digest[:-1]}  a.param\n", "no single line"),
        ("", "no single line"),
        ("x" * 100_000, "no single line"),
    ]:
        side.write_text(text)
        with pytest.raises(ParamFileError, match=words):
            verify_digest(path)
    side.unlink()
    side.mkdir()
    with pytest.raises(ParamFileError, match="cannot be read"):
        verify_digest(path)


def test_write_without_digest_removes_the_old_one(tmp_path: Path) -> None:
    write_params(tmp_path / "f", sample())
    write_params(tmp_path / "f", {}, digest=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["f"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_failed_write_leaves_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "f.param"
    write_params(path, sample())
    before = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    with pytest.raises(ParamFileError, match="cannot be written: No space left"):
        write_params(path, {})
    assert path.read_bytes() == before
    assert verify_digest(path) is (failing == "fsync")
    assert not [entry for entry in tmp_path.iterdir() if entry.suffix == ".tmp"]


def test_write_atomically_keeps_link_and_permissions(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "real").stat().st_mode) == 0o640


def test_write_atomically_refuses_folders_and_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "none" / "f"):
        with pytest.raises(OSError, match=r"directory|not a regular file"):
            write_atomically(path, b"x")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_side_file_is_gone_while_the_main_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main, side = tmp_path / "main", tmp_path / "side"
    write_together([(main, b"old"), (side, b"about old")])
    real, seen = os.replace, []

    def watch(source: str, target: str) -> None:
        seen.append((os.path.basename(target), side.exists()))
        real(source, target)

    monkeypatch.setattr(os, "replace", watch)
    write_together([(main, b"new"), (side, b"about new")])
    assert seen == [("main", False), ("side", False)]
    assert side.read_bytes() == b"about new"
