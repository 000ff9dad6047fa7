"""Own operators in C++, ``model/native``: built when they are first needed, and loaded.

They are optional, for CPUs alone, and do faster what a graph does too. ``python -m
model.native`` builds all of them ahead; ``ATTENTION_NATIVE=0`` leaves them out. They need a
C++ compiler, and those of residual units oneDNN 3, which the locked environment for the CPU has as
a package; ``ATTENTION_ONEDNN=FOLDER`` names another one, with ``lib`` and ``include`` in it. What
was built is kept in ``model/native/build`` or, where that cannot be written, in the user's cache
folder, under a name that tells sources, options, compiler, processor, MXNet and oneDNN: a library
for another one of them is not found and so never loaded. ``ATTENTION_ISA=avx2`` builds and loads
what a processor without AVX-512 gets; see `machine.processor`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

import mxnet as mx

from machine.processor import AVX512, Unavailable, cpu_identity, is_limited
from model.native.onednn import OneDNN, open_onednn

__all__ = [
    "GLIMPSE",
    "UNITS",
    "Operators",
    "block_channels",
    "build",
    "load",
    "require_bfloat16",
    "require_instructions",
]

NATIVE = Path(__file__).resolve().parent
CACHE_NAME = "attention-networks-gluon"
SWITCH = "ATTENTION_NATIVE"  # 0: neither build nor load
FLAGS = ("-O3", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-std=c++17")
SOURCES = (".cc", ".h", ".def")
# MXNet looks its entry points up by name; everything else stays out of sight.
HIDDEN = ("-fvisibility=hidden", "-Wno-psabi")
COMPILERS = ("g++", "c++", "clang++")
BUILD_TIMEOUT_SEC = 600.0


class Operators(NamedTuple):
    """A folder of sources below ``model/native``, and what it needs."""

    name: str
    onednn: bool = False
    flags: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()  # that the processor must have


class BuildFailed(Unavailable):
    """There is all that is needed, and yet the operators could not be compiled or loaded."""


GLIMPSE = Operators("glimpse")  # glimpse_rollouts: all glimpses of a batch
# attn_unit, attn_pool, attn_upsample, attn_mask, attn_block, attn_mean: units on blocked maps;
# attn_update: a step of the optimizer
UNITS = Operators("units", onednn=True, instructions=("avx2", "fma"))

_loaded: dict[str, Optional[OneDNN]] = {}


def load(operators: Operators) -> str:
    """Load operators into MXNet, building them first where needed; return what they are.

    Afterwards they are in ``mxnet.nd`` and ``mxnet.sym``. Further calls do nothing.

    Raises
    ------
    Unavailable
        When they cannot be built or loaded; nothing is changed then.
    """
    _require_switched_on()
    if operators.name not in _loaded:
        require_instructions(*operators.instructions)
        onednn = _onednn_of(operators)
        path = build(operators, onednn)

        try:
            mx.library.load(str(path), verbose=False)
        except (OSError, mx.MXNetError) as error:
            lines = str(error).strip().splitlines()
            raise BuildFailed(f"{path.name} cannot be loaded ({lines[-1]})") from None
        _loaded[operators.name] = onednn
    made = _loaded[operators.name]
    with_onednn = f", oneDNN {made.version}, blocks of {made.block}" if made else ""
    return f"operators in C++ ({operators.name}{with_onednn})"


def _require_switched_on() -> None:
    if os.environ.get(SWITCH) == "0":
        raise Unavailable(f"{SWITCH}=0")


def block_channels() -> int:
    """Return how many channels a block of the operators of residual units has, 16 or 8.

    It is that of the loaded ones, or else of those that this processor would load.
    """
    loaded = _loaded.get(UNITS.name)
    return loaded.block if loaded else _block_of_processor()


def _onednn_of(operators: Operators) -> Optional[OneDNN]:
    return open_onednn(_block_of_processor()) if operators.onednn else None


def _block_of_processor() -> int:
    return 16 if set(cpu_identity().split()) >= AVX512 else 8


def require_bfloat16() -> None:
    """Return where the operators of residual units know bfloat16.

    Raises
    ------
    Unavailable
        Where they have blocks of 8: without AVX-512 oneDNN has only reference code for it.
    """
    if block_channels() != 16:
        raise Unavailable("bfloat16 takes a processor with AVX-512")


def require_instructions(*needed: str) -> None:
    """Return where the processor has all of the instruction sets, as Linux names them.

    Raises
    ------
    Unavailable
        Where it has not.
    """
    missing = set(needed) - set(cpu_identity().split())
    if missing:
        raise Unavailable(f"the processor has no {', '.join(sorted(missing))}")


def build(operators: Operators, onednn: Optional[OneDNN] = None) -> Path:
    """Return the library for this machine, compiling it unless it is there; `onednn` where needed.

    Raises
    ------
    Unavailable
        Without a compiler, or when it fails.
    """
    compiler = _compiler()
    name = f"{operators.name}-{_key(operators, compiler, onednn)}.so"
    for folder in _folders():
        if os.path.isfile(folder / name):  # Path.is_file raises where a folder cannot be searched
            return folder / name
    folder = _writable_folder()
    _remove_leftovers(folder)
    print(f"building {name} for this processor, once (half a minute)", file=sys.stderr, flush=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as temporary:
            made = Path(temporary) / name
            _compile(operators, compiler, onednn, made)
            with made.open("rb") as file:  # else a power cut can leave its name on nothing
                os.fsync(file.fileno())
            os.replace(made, folder / name)
    except OSError as error:
        raise Unavailable(f"they cannot be written into {folder}: {error.strerror}") from error
    return folder / name


def _remove_leftovers(folder: Path) -> None:
    """Remove what builds have left behind that were killed."""
    for path in folder.glob(".build-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > 2 * BUILD_TIMEOUT_SEC:
                shutil.rmtree(path)


def _compiler() -> tuple[str, ...]:
    """Return the words that call a C++ compiler: those of CXX, or one that is found."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        raise Unavailable("they are for Linux on x86-64")
    given = os.environ.get("CXX", "").strip()
    if given:
        try:
            named = tuple(shlex.split(given))
        except ValueError:  # a quote without its other half
            named = ("",)
        if not shutil.which(named[0]):
            raise Unavailable(f"CXX={given} is no program here")
        return named
    for name in COMPILERS:
        path = shutil.which(name)
        if path:
            return (path,)
    raise Unavailable(f"no C++ compiler: install one, such as {COMPILERS[0]}")


def _mxnet_folder() -> Path:
    return Path(mx.__file__).parent


def _key(operators: Operators, compiler: Sequence[str], onednn: Optional[OneDNN]) -> str:
    """Return what changes when another library is needed."""
    digest = hashlib.sha256()
    for path in _sources(operators):
        digest.update(path.name.encode() + path.read_bytes())
    core = _mxnet_folder() / "libmxnet.so"
    size = core.stat().st_size if core.is_file() else 0
    for fact in (
        *_flags(operators, onednn),
        *compiler[1:],
        _run([*compiler, "--version"]),
        mx.__version__,
        str(size),
    ):
        digest.update(fact.encode() + b"\0")
    if onednn:
        digest.update(f"{onednn.version} {onednn.library.stat().st_size}".encode())
    digest.update(cpu_identity().encode())
    return digest.hexdigest()[:16]


def _sources(operators: Operators) -> list[Path]:
    """Return the files to compile and those that they include, not what editors leave there."""
    folder = NATIVE / operators.name
    found = (path for path in folder.iterdir() if path.suffix in SOURCES)
    return sorted(path for path in found if not path.name.startswith("."))


def _flags(operators: Operators, onednn: Optional[OneDNN]) -> tuple[str, ...]:
    """Return the compiler's options; those of a block are for one vector of its channels."""
    block = onednn.block if onednn else 0
    blocked = (f"-DBLOCK={block}", f"-mprefer-vector-width={32 * block}") if block else ()
    target = ("-march=haswell", "-mtune=native") if is_limited() else ("-march=native",)
    return (*FLAGS, *target, *blocked, *operators.flags)


def _folders() -> Iterator[Path]:
    """Yield the folders that a built library may be in."""
    yield NATIVE / "build"
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    yield Path(cache) / CACHE_NAME


def _writable_folder() -> Path:
    for folder in _folders():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise Unavailable(f"no folder to build in: {' and '.join(map(str, _folders()))} are read-only")


def _compile(
    operators: Operators, compiler: Sequence[str], onednn: Optional[OneDNN], target: Path
) -> None:
    mxnet_folder = _mxnet_folder()
    includes = [f"-I{mxnet_folder / 'include'}", *([f"-I{onednn.include}"] if onednn else [])]
    api = mxnet_folder / "src" / "lib_api.cc"
    sources = [path for path in _sources(operators) if path.suffix == ".cc"]
    known = _flags(operators, onednn)
    objects = []
    for source, flags in [(api, ()), *((file, HIDDEN) for file in sources)]:
        objects.append(target.with_name(source.stem + ".o"))
        _run([*compiler, *known, *flags, *includes, "-c", str(source), "-o", str(objects[-1])])
    linked = [*map(str, objects), *([str(onednn.library)] if onednn else [])]
    _run([*compiler, "-shared", "-fopenmp", *linked, "-o", str(target)])


def _run(command: Sequence[str]) -> str:
    """Return what a command prints.

    Raises
    ------
    Unavailable
        When it cannot be run. `BuildFailed` when it fails; the message has the first line that says
        so.
    """
    # What it says is read, and is part of the library's name: not in the user's language.
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=BUILD_TIMEOUT_SEC,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{command[0]} cannot be run ({error})") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise BuildFailed(
            f"{command[0]} failed: {next((ln for ln in lines if 'error' in ln), lines[-1])}"
        )
    return done.stdout


def main() -> int:
    """Build all operators and say so, or why not; 0 in both cases: everything works without."""
    for operators in (GLIMPSE, UNITS):
        try:
            _require_switched_on()
            print(f"built {build(operators, _onednn_of(operators))}")
        except Unavailable as error:
            print(f"{operators.name}: not built: {error}; MXNet's own operators are used")
    return 0
