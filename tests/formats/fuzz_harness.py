"""Change files at random and load them: parameter files, checkpoints, PyTorch files, pictures.

    PYTHONPATH=. python tests/formats/fuzz_harness.py                  26,000 changed files
    PYTHONPATH=. python tests/formats/fuzz_harness.py --scale 0.02     as the tests do

Each loader runs in processes of its own, with a limit on memory (`MEMORY` above what it takes at
its start) and on processor time. A changed file must be refused in one line, or load as what it
says: the arrays that come out make up the file again, byte for byte (.param), or have names, shapes
and types of the network (what changes a network or a training). Without a digest, other values
are all that may slip through; with one, no changed file loads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Callable, Literal, NamedTuple, Optional

import numpy as np

from formats.card import (
    MAGIC,
    TRAILER,
    block_length,
    card_text,
    decode_block,
    encode_block,
    parse_card,
)
from formats.digest import digest_line, digest_path, sha256_hex, verify_digest
from formats.errors import UserError
from formats.param_file import read_params, read_shapes, write_params
from formats.param_reader import ParamFileError
from formats.weight_file import read_card, read_weight_shapes, read_weights
from training.loop.checkpoint import collect_state, restore
from training.records.run_folder import STATE_FILE
from training.records.state_file import load_state, write_state

MEMORY = 300 * 2**20
BATCH = 500  # files of one process
SECONDS_PER_FILE = 5
EXTREME = (0, 1, 2, 0x7F, 0xFF, 2**31 - 1, 2**31, 2**32 - 1, 2**60, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = (b"null", b"-1", b"1e999", b"NaN", b"[]", b"{}", b'"x"', b"true", b"9" * 40, b"[" * 3000)
REFUSED, SAME, OTHER = "refused", "loaded, same content", "loaded, other values"

CARD = {
    "card": 1,
    "network": {"model": "resnet20", "classes": 2, "settings": {"channels": [16, 32, 64]}},
    "classes": ["cat", "dog"],
    "image": {"height": 32, "width": 32, "mean": [0.5, 0.25, 0.1], "deviation": [0.2, 0.2, 0.1]},
    "scores": {"test_acc": 0.5},
}


class Failure(Exception):
    """A loader did something else than refuse or load."""


class Target(NamedTuple):
    """A loader: ``load`` gets a file and returns what may be compared, or raises an error.

    ``samples`` are sound files; ``inner`` makes a file of a changed inner part, so that a checksum
    around it does not find the change first. ``check`` raises `Failure` for the content of a
    changed file that should not have loaded.
    """

    name: str
    files: int
    samples: list[bytes]
    load: Callable[[Path], Any]
    check: Callable[[bytes, Any, Any], None]
    inner: Sequence[tuple[bytes, Callable[[bytes], bytes]]] = ()
    file: str = "file"
    digest: bool = True


def require(condition: object, message: str) -> None:
    if not condition:
        raise Failure(message)


# ---------------------------------------------------------------------------------------- mutations


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Change a file in one to three ways, mostly in one."""
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        way = WAYS[int(rng.integers(len(WAYS)))]
        data = way(data, rng) if data else b"\0"
    return data


def _bits(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for place in rng.integers(0, len(data), int(rng.integers(1, 5))):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _bytes(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for place in rng.integers(0, len(data), int(rng.integers(1, 9))):
        changed[place] = int(rng.choice([0, 1, 2, 127, 128, 255, rng.integers(256)]))
    return bytes(changed)


def _number(data: bytes, rng: np.random.Generator) -> bytes:
    width = int(rng.choice([2, 4, 8]))
    value = EXTREME[int(rng.integers(len(EXTREME)))] % 2 ** (8 * width)
    place = int(rng.integers(0, max(len(data) // 4, 1))) * 4
    order: Literal["little", "big"] = "little" if rng.random() < 0.8 else "big"
    return data[:place] + value.to_bytes(width, order) + data[place + width :]


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(0, len(data)))]


def _longer(data: bytes, rng: np.random.Generator) -> bytes:
    return data + (rng.bytes(16) if rng.random() < 0.5 else bytes(int(rng.integers(1, 64))))


def _piece(data: bytes, rng: np.random.Generator) -> bytes:
    """Remove, repeat or blank a piece, or put it elsewhere."""
    start, length = int(rng.integers(len(data))), int(rng.integers(1, 33))
    piece, rest = data[start : start + length], data[:start] + data[start + length :]
    other = int(rng.integers(len(data)))
    return (
        rest,
        data[:start] + piece + data[start:],
        data[:start] + bytes(len(piece)) + data[start + length :],
        rest[:other] + piece + rest[other:],
    )[int(rng.integers(4))]


def _word(data: bytes, rng: np.random.Generator) -> bytes:
    """Put a word of JSON in the place of a number, or anywhere."""
    digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
    place = (
        int(rng.choice(digits)) if digits and rng.random() < 0.8 else int(rng.integers(len(data)))
    )
    return data[:place] + WORDS[int(rng.integers(len(WORDS)))] + data[place + 1 :]


WAYS = (_bits, _bits, _bits, _bytes, _bytes, _number, _number, _cut, _longer, _piece, _word)


# ------------------------------------------------------------------------------------------ loaders


def network() -> tuple[Any, Any]:
    """A small network and its trainer after one step, for what is loaded into one."""
    import mxnet as mx
    from mxnet import autograd, gluon
    from mxnet.gluon import nn

    mx.random.seed(0)
    np.random.seed(0)
    net = nn.HybridSequential()
    net.add(nn.Dense(3, in_units=4), nn.BatchNorm(in_channels=3), nn.Dense(2, in_units=3))
    net.initialize()
    trainer = gluon.Trainer(
        net.collect_params(), "adam", {"learning_rate": 0.01}, update_on_kvstore=False
    )
    with autograd.record():
        loss = net(mx.nd.ones((2, 4))).sum()
    loss.backward()
    trainer.step(2)
    return net, trainer


def layout(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[Any, Any]]:
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


def same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return layout(one) == layout(other) and all(
        one[name].tobytes() == other[name].tobytes() for name in one
    )


def read_both(path: Path) -> dict[str, np.ndarray]:
    """Read a parameter file with and without its elements."""
    arrays = read_params(path)
    require(read_shapes(path) == layout(arrays), "read_shapes and read_params disagree")
    return arrays


def read_with_card(path: Path) -> dict[str, np.ndarray]:
    """Read arrays, and the card as its text."""
    card = read_card(path)
    arrays = read_weights(path)
    text = b"none" if card is None else card_text(card).encode()
    return {**arrays, "card": np.frombuffer(text, np.uint8)}


def check_param(data: bytes, arrays: Any, _: Any) -> None:
    """Write the arrays again: the same bytes, but for the device and the version of the layout."""
    with tempfile.TemporaryDirectory(dir=memory()) as folder:
        stored = {name: value for name, value in arrays.items() if value.ndim and value.size}
        require(len(stored) == len(arrays), "arrays without elements")
        write_params(Path(folder) / "again", stored, digest=False)
        again = bytearray((Path(folder) / "again").read_bytes())
    found, place = bytearray(data), 24
    require(len(found) == len(again), f"{len(found)} bytes in the file, {len(again)} in its arrays")
    for array in arrays.values():
        device = place + 12 + 8 * array.ndim
        for part in (found, again):
            part[place : place + 4], part[device : device + 8] = bytes(4), bytes(8)
        place = device + 12 + array.nbytes
    require(found == again, "the arrays are not what the file says")


def check_card(data: bytes, found: Any, _: Any) -> None:
    """The arrays and the card make up the file again, but for white space in the card."""
    text = found.pop("card").tobytes()
    card, end = None, len(data)
    if text != b"none":
        card = parse_card(text.decode())
        require(isinstance(card.get("card"), int), "a card without a version")
        end = len(data) - (block_length(data) or 0)
        require(decode_block(data[end:]) == card, "the card is not what the file says")
    check_param(data[:end], found, None)


def check_layout(_: bytes, found: Any, expected: Any) -> None:
    require(
        layout(found) == layout(expected), "names, shapes or types are others than the network's"
    )


def check_arrays(data: bytes, arrays: Any, _: Any) -> None:
    """A file of another framework: sound arrays that are not much larger than it."""
    for array in arrays.values():
        require(isinstance(array, np.ndarray), f"a {type(array).__name__} among the arrays")
    total = sum(array.nbytes for array in arrays.values())
    require(total <= 17 * len(data) + 2**20, f"{total} bytes of arrays from {len(data)}")


class IntoNetwork:
    """Loads any weight file into a network, which must be as before when the file is refused."""

    def __init__(self) -> None:
        self.net: Any = None
        self.before: dict[str, np.ndarray] = {}

    def __call__(self, path: Path) -> dict[str, np.ndarray]:
        from model.weights.file_match import LoadError
        from model.weights.loading import load_parameters
        from training.loop.checkpoint import parameter_arrays

        if self.net is None:
            self.net = network()[0]
        before = parameter_arrays(self.net)
        try:
            load_parameters(self.net, path)
        except (LoadError, ParamFileError):
            require(same(parameter_arrays(self.net), before), "a refused file changed the network")
            raise
        shapes = read_weight_shapes(path)
        arrays = parameter_arrays(self.net)
        require(shapes == {n: a.shape for n, a in arrays.items()}, "it loads with other shapes")
        return arrays


class IntoTraining:
    """Continues a training from ``resume.state``."""

    def __init__(self) -> None:
        self.made: Any = None

    def __call__(self, path: Path) -> dict[str, np.ndarray]:
        self.made = self.made or network()
        _, arrays, meta = load_state(path.parent)
        net, trainer = self.made
        restore(net, trainer, arrays, meta)
        return arrays


def picture(path: Path) -> dict[str, np.ndarray]:
    from formats.images.decode import decode_image

    return {"pixels": decode_image(str(path), 16)}


# ------------------------------------------------------------------------------------------ samples


def encoded(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the bytes of a parameter file."""
    with tempfile.TemporaryDirectory() as folder:
        write_params(Path(folder) / "x", arrays, digest=False)
        return (Path(folder) / "x").read_bytes()


def state_sample() -> bytes:
    """Return a ``resume.state``, made in another process: MXNet must not run before the forks."""
    with tempfile.TemporaryDirectory() as folder:
        if not os.fork():
            from training.records.run_progress import Progress

            progress = Progress(epoch=1, batch=2, step=5, images=10, loss_sum=3.5, threads=1)
            write_state(
                folder, collect_state(*network(), progress, {"0.weight": np.ones((3, 4), "f4")})
            )
            os._exit(0)
        os.wait()
        return (Path(folder) / STATE_FILE).read_bytes()


def targets(scale: float) -> Iterator[Target]:
    rng = np.random.default_rng(0)
    state = state_sample()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x").write_bytes(state)
        stored = read_params(Path(folder) / "x")
    weights = {n[6:]: a for n, a in stored.items() if n.startswith("param:")}
    mixed = {
        "a": rng.normal(size=(2, 3)).astype("f4"),
        "arg:b": np.arange(4),
        "c": np.array([[True, False]]),
        "d.weight": rng.normal(size=(1, 2, 1, 2)),
        "e": np.arange(5, dtype="u1"),
    }

    def with_meta(meta: bytes) -> bytes:
        return encoded({**stored, "meta": np.frombuffer(meta or b" ", np.uint8)})

    def count(number: int) -> int:
        return max(1, round(number * scale))

    param, small = encoded(weights), encoded(mixed)
    yield Target(".param reader", count(6000), [param, small], read_both, check_param)
    yield Target(".param into a network", count(2000), [param], IntoNetwork(), check_layout)
    meta = stored["meta"].tobytes()
    yield Target(
        "resume.state into a training",
        count(5000),
        [state],
        IntoTraining(),
        check_state,
        [(meta, with_meta)],
        STATE_FILE,
    )
    text = card_text(CARD).encode()
    carded = param + encode_block(CARD)
    yield Target(
        ".param with a card",
        count(3000),
        [carded],
        read_with_card,
        check_card,
        [(text, lambda text: param + block_of(text))],
    )
    yield from _foreign_targets(count, weights)
    yield Target("pictures", count(2000), pictures(), picture, check_picture, digest=False)


def block_of(text: bytes) -> bytes:
    return text + TRAILER.pack(len(text), hashlib.sha256(text).digest(), MAGIC)


def check_state(_: bytes, found: Any, expected: Any) -> None:
    for name, array in expected.items():
        if not name.startswith("average:"):  # read only where a training keeps an average
            require(name in found, f"without {name}")
            require(found[name].shape == array.shape, f"{name} has another shape")
            require(found[name].dtype == array.dtype, f"{name} has another type")


def _foreign_targets(
    count: Callable[[int], int], weights: Mapping[str, np.ndarray]
) -> Iterator[Target]:
    from safetensors.numpy import save

    from tests.formats import test_torch_file as torch  # its writers need no PyTorch

    pickled, blocks = torch.pickled({name: torch.tensor(a) for name, a in weights.items()})
    for form, make in (("zip", torch.zip_bytes), ("before 1.6", torch.legacy_bytes)):
        whole = make(pickled, blocks)
        inner = [(pickled, partial(_pickle_in, make, blocks))]
        yield Target(f"PyTorch {form}", count(2500), [whole], read_weights, check_arrays, inner)
    whole = save(dict(weights), {"card": card_text(CARD)})
    length = struct.unpack("<Q", whole[:8])[0]
    header, elements = whole[8 : 8 + length], whole[8 + length :]
    inner = [(header, partial(_header_before, elements))]
    yield Target("safetensors", count(2000), [whole], read_with_card, check_arrays, inner)
    both = [torch.zip_bytes(pickled, blocks), whole]
    yield Target("both into a network", count(1000), both, IntoNetwork(), check_layout, inner)


def _header_before(elements: bytes, header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + elements


def _pickle_in(make: Callable[..., bytes], blocks: Any, pickled: bytes) -> bytes:
    return make(pickled, blocks)


def pictures() -> list[bytes]:
    import io

    from PIL import Image

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype("u1"))
    found = []
    for form in ("PNG", "JPEG", "WEBP", "BMP"):
        stream = io.BytesIO()
        image.save(stream, form)
        found.append(stream.getvalue())
    return found


def check_picture(_: bytes, found: Any, expected: Any) -> None:
    require(layout(found) == layout(expected), "other pixels than asked for")


# -------------------------------------------------------------------------------------- the workers


def memory() -> Optional[str]:
    """Return a folder in memory, where there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def limit() -> None:
    """Set the limits of this process, counted from what it takes now."""
    used = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmSize")
    )
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))

    def hang(*_: object) -> None:
        raise Failure(f"more than {SECONDS_PER_FILE} s of processor time for one file")

    signal.signal(signal.SIGVTALRM, hang)


def changed_file(target: Target, rng: np.random.Generator) -> bytes:
    if target.inner and rng.random() < 0.5:
        part, make = target.inner[int(rng.integers(len(target.inner)))]
        return make(mutate(part, rng))
    return mutate(target.samples[int(rng.integers(len(target.samples)))], rng)


def outcome(target: Target, path: Path, data: bytes, expected: list[Any]) -> str:
    """Load one changed file; return what became of it."""
    path.write_bytes(data)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS_PER_FILE)
    try:
        if target.digest and data not in target.samples:
            Path(digest_path(path)).write_bytes(digest_line(path, sha256_hex(target.samples[0])))
            for verify in (verify_digest, *([target.load] if path.name == STATE_FILE else [])):
                try:
                    verify(path)
                except (ParamFileError, UserError):
                    continue
                raise Failure("a changed file passed its digest")
            os.unlink(digest_path(path))
        try:
            found = target.load(path)
        except (ParamFileError, UserError, _load_error()) as error:
            require("\n" not in str(error), f"an error of several lines: {error}")
            require(len(str(error)) < 2000, "an error of more than 2,000 characters")
            return REFUSED
        if any(same(found, one) for one in expected):
            return SAME
        target.check(data, found, expected[0])
        return OTHER
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _load_error() -> type[Exception]:
    from model.weights.file_match import LoadError

    return LoadError


def work(target: Target, seed: int, numbers: range, folder: Path) -> dict[str, Any]:
    """Load the changed files of these numbers; a number and the seed make the file again."""
    path = folder / target.file
    expected = []
    for sample in target.samples:
        path.write_bytes(sample)
        expected.append(target.load(path))
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limit()
    found: Counter = Counter()
    for number in numbers:
        (folder / "number").write_text(str(number))
        data = changed_file(target, np.random.default_rng([seed, number]))
        (folder / "last").write_bytes(data)
        found[outcome(target, path, data, expected)] += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
    return {"found": found, "peak": peak * 1024}


def run_batch(target: Target, seed: int, numbers: range) -> dict[str, Any]:
    """Load in a process of its own.

    Raises
    ------
    Failure
        When it ends in any other way than by itself.
    """
    with tempfile.TemporaryDirectory(dir=memory()) as place:
        folder = Path(place)
        sys.stdout.flush()
        process = os.fork()
        if not process:
            try:
                answer = work(target, seed, numbers, folder)
                (folder / "answer").write_text(json.dumps(answer))
                os._exit(0)
            except BaseException:
                import traceback

                (folder / "trace").write_text(traceback.format_exc())
                os._exit(1)
        # What hangs outside of Python gets no signal of its own; this limit is generous.
        deadline = time.monotonic() + 600
        while True:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > deadline:
                os.kill(process, signal.SIGKILL)
            time.sleep(0.02)
        if status:
            number = (folder / "number").read_text() if (folder / "number").exists() else "none"
            trace = (folder / "trace").read_text() if (folder / "trace").exists() else ""
            kept = Path(tempfile.gettempdir()) / f"fuzz-{seed}-{number}"
            if (folder / "last").exists():
                kept.write_bytes((folder / "last").read_bytes())
            raise Failure(
                f"{target.name}, file {number} of seed {seed} (kept as {kept}): the process ended "
                f"with status {status}\n{trace}"
            )
        answer = json.loads((folder / "answer").read_text())
        return dict(answer)


def fuzz(target: Target, seed: int) -> tuple[Counter, int]:
    """Return how many files ended how, and the largest growth of memory in bytes."""
    found: Counter = Counter()
    peak = 0
    for start in range(0, target.files, BATCH):
        answer = run_batch(target, seed, range(start, min(start + BATCH, target.files)))
        found.update(answer["found"])
        peak = max(peak, answer["peak"])
    return found, peak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="share of the files")
    parser.add_argument("--seed", type=int, default=0, help="of the changes")
    arguments = parser.parse_args()
    total: Counter = Counter()
    failures = []
    print("| loader | files | refused | same content | other values, no digest | memory |")
    print("|---|---|---|---|---|---|")
    for target in targets(arguments.scale):
        try:
            found, peak = fuzz(target, arguments.seed)
        except Failure as failure:
            failures.append(str(failure))
            print(f"| {target.name} | failed | | | | |", flush=True)
            continue
        total.update(found)
        numbers = " | ".join(f"{found[kind]:,}" for kind in (REFUSED, SAME, OTHER))
        print(
            f"| {target.name} | {target.files:,} | {numbers} | +{peak / 2**20:.0f} MiB |",
            flush=True,
        )
    if failures:
        print("\n".join(failures))
        return 1
    print(
        f"{sum(total.values()):,} changed files: no crash, no hang, none over the memory limit, "
        "none with a damaged structure loaded; with a digest every changed weight file and "
        f"checkpoint was refused; {_cpu():.0f} s of processor time"
    )
    return 0


def _cpu() -> float:
    usages = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    import model.weights.loading  # noqa: F401 - imported once, before the forks

    sys.exit(main())
