"""Own operators in C++, ``model/native``: built when they are first needed, and loaded.

They are optional, for CPUs alone, and do faster what a graph does too. ``python -m
model.operators`` builds all of them ahead; ``ATTENTION_NATIVE=0`` leaves them out. They need a C++
compiler, and those of residual units oneDNN 3, which the locked environment for the CPU has as a
package; ``ATTENTION_ONEDNN=FOLDER`` names another one, with ``lib`` and ``include`` in it. What was
built is kept in ``model/native/build`` or, where that cannot be written, in the user's cache
folder, under a name that tells sources, options, compiler, processor, MXNet and oneDNN: a library
for another one of them is not found and so never loaded.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple, Optional

NATIVE = Path(__file__).resolve().parent / "native"
CACHE_NAME = "attention-networks-gluon"
SWITCH = "ATTENTION_NATIVE"  # 0: neither build nor load
ONEDNN_VARIABLE = "ATTENTION_ONEDNN"
ISA_VARIABLE = "ATTENTION_ISA"
# What a processor that is capped so has not: beginnings of the names that Linux gives.
LEFT_OUT: dict[str, tuple[str, ...]] = {"avx2": ("avx512", "amx", "avx_vnni")}
FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-fPIC", "-std=c++17")
# MXNet looks its entry points up by name; everything else stays out of sight.
HIDDEN = ("-fvisibility=hidden", "-Wno-psabi")
COMPILERS = ("g++", "c++", "clang++")
BUILD_TIMEOUT_SEC = 600.0


class Unavailable(Exception):
    """The operators cannot be built or loaded here; the message is the reason."""


class OneDNN(NamedTuple):
    """Where oneDNN is, and which one."""

    library: Path
    include: Path
    version: str


class Operators(NamedTuple):
    """A folder of sources below ``model/native``, and what it needs."""

    name: str
    onednn: bool = False
    flags: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()  # that the processor must have


GLIMPSE = Operators("glimpse")  # glimpse_rollouts: all glimpses of a batch
# attn_unit, attn_pool, attn_upsample, attn_mask, attn_block, attn_mean: units on blocked maps;
# attn_update: a step of the optimizer
UNITS = Operators(
    "units",
    onednn=True,
    flags=("-mprefer-vector-width=512",),
    # oneDNN convolves maps in blocks of 16 channels by its reference code elsewhere, which is
    # hundreds of times slower than MXNet's graph.
    instructions=("avx512f", "avx512bw", "avx512vl", "avx512dq"),
)

_loaded: dict[str, str] = {}


def load(operators: Operators) -> str:
    """Load operators into MXNet, building them first where needed; return what they are.

    Afterwards they are in ``mxnet.nd`` and ``mxnet.sym``. Further calls do nothing.

    Raises
    ------
    Unavailable
        When they cannot be built or loaded; nothing is changed then.
    """
    if os.environ.get(SWITCH) == "0":
        raise Unavailable(f"{SWITCH}=0")
    if operators.name not in _loaded:
        require_instructions(*operators.instructions)
        onednn = find_onednn() if operators.onednn else None
        path = build(operators, onednn)
        import mxnet as mx

        try:
            if onednn:  # loaded by its path, it is what the operators' library finds by its name
                ctypes.CDLL(str(onednn.library))
            mx.library.load(str(path), verbose=False)
        except (OSError, mx.MXNetError) as error:
            lines = str(error).strip().splitlines()
            raise Unavailable(f"{path.name} cannot be loaded ({lines[-1]})") from None
        _loaded[operators.name] = f", oneDNN {onednn.version}" if onednn else ""
    return f"operators in C++ ({operators.name}{_loaded[operators.name]})"


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
        if (folder / name).is_file():
            return folder / name
    folder = _writable_folder()
    print(f"building {name} for this processor, once (half a minute)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as temporary:
        made = Path(temporary) / name
        _compile(operators, compiler, onednn, made)
        os.replace(made, folder / name)
    return folder / name


def find_onednn() -> OneDNN:
    """Return the oneDNN to build with and to run on.

    Raises
    ------
    Unavailable
        When there is none.
    """
    named = os.environ.get(ONEDNN_VARIABLE)
    if named:
        library = Path(named) / "lib" / "libdnnl.so.3"
        include = Path(named) / "include"
        version = "3"
    else:
        library, version = _packaged("onednn-cpu-gomp", "libdnnl.so.3")
        header, _ = _packaged("onednn-devel-cpu-gomp", "oneapi/dnnl/dnnl.hpp")
        include = header.parent.parent.parent
    if not library.is_file() or not (include / "oneapi" / "dnnl" / "dnnl.hpp").is_file():
        where = f"in {ONEDNN_VARIABLE}={named}" if named else "in this environment"
        raise Unavailable(f"no oneDNN 3 {where}")
    return OneDNN(library, include, version)


def _packaged(package: str, ending: str) -> tuple[Path, str]:
    """Return the file of an installed package whose path ends so, and the package's version."""
    try:
        found = metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise Unavailable(f"the package {package} is not installed") from None
    for file in found.files or ():
        if str(file).endswith(ending):
            return Path(os.path.abspath(str(file.locate()))), found.version
    raise Unavailable(f"the package {package} has no {ending}")


def _compiler() -> str:
    if platform.machine() != "x86_64" or sys.platform != "linux":
        raise Unavailable("they are for Linux on x86-64")
    for name in filter(None, (os.environ.get("CXX"), *COMPILERS)):
        path = shutil.which(name)
        if path:
            return path
    raise Unavailable(f"no C++ compiler: install one, such as {COMPILERS[0]}")


def _mxnet_folder() -> Path:
    import mxnet as mx

    return Path(mx.__file__).parent


def _key(operators: Operators, compiler: str, onednn: Optional[OneDNN]) -> str:
    """Return what changes when another library is needed."""
    import mxnet as mx

    digest = hashlib.sha256()
    for path in sorted((NATIVE / operators.name).glob("*.*")):
        digest.update(path.name.encode() + path.read_bytes())
    core = _mxnet_folder() / "libmxnet.so"
    size = core.stat().st_size if core.is_file() else 0
    for fact in (
        *FLAGS,
        *operators.flags,
        _run([compiler, "--version"]),
        mx.__version__,
        str(size),
    ):
        digest.update(fact.encode() + b"\0")
    if onednn:
        digest.update(f"{onednn.version} {onednn.library.stat().st_size}".encode())
    digest.update(cpu_identity().encode())
    return digest.hexdigest()[:16]


def cpu_identity() -> str:
    """Return the processor's name and instruction sets, less those that ATTENTION_ISA leaves out.

    Unavailable is raised where that has an unknown value.
    """
    named = os.environ.get(ISA_VARIABLE, "")
    if named not in ("", *LEFT_OUT):
        known = ", ".join(LEFT_OUT)
        raise Unavailable(f"{ISA_VARIABLE}={named} is unknown; allowed is {known}, or nothing")
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    lines = text.partition("\n\n")[0].splitlines()
    words = [line.split(" ") for line in lines if line.startswith(("model name", "flags"))]
    out = LEFT_OUT.get(named, ("\n",))
    return "\n".join(" ".join(w for w in line if not w.startswith(out)) for line in words)


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


def _compile(operators: Operators, compiler: str, onednn: Optional[OneDNN], target: Path) -> None:
    mxnet_folder = _mxnet_folder()
    includes = [f"-I{mxnet_folder / 'include'}", *([f"-I{onednn.include}"] if onednn else [])]
    api = mxnet_folder / "src" / "lib_api.cc"
    sources = sorted((NATIVE / operators.name).glob("*.cc"))
    objects = []
    for source, flags in [(api, ()), *((file, (*operators.flags, *HIDDEN)) for file in sources)]:
        objects.append(target.with_name(source.stem + ".o"))
        _run([compiler, *FLAGS, *flags, *includes, "-c", str(source), "-o", str(objects[-1])])
    linked = [*map(str, objects), *([str(onednn.library)] if onednn else [])]
    _run([compiler, "-shared", "-fopenmp", *linked, "-o", str(target)])


def _run(command: Sequence[str]) -> str:
    """Return what a command prints.

    Raises
    ------
    Unavailable
        When it cannot be run or fails; the message has the first line that says so.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=BUILD_TIMEOUT_SEC, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{command[0]} cannot be run ({error})") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise Unavailable(
            f"{command[0]} failed: {next((ln for ln in lines if 'error' in ln), lines[-1])}"
        )
    return done.stdout


def main() -> int:
    """Build all operators and say so, or why not; 0 in both cases: everything works without."""
    for operators in (GLIMPSE, UNITS):
        try:
            print(f"built {build(operators, find_onednn() if operators.onednn else None)}")
        except Unavailable as error:
            print(f"{operators.name}: not built: {error}; MXNet's own operators are used")
    return 0


if __name__ == "__main__":
    sys.exit(main())
