"""The C++ operators in ``model/ops``: built by ``python -m model.fused_library``, and loaded.

They need a C++ compiler and oneDNN 3, which the locked environment for the CPU has as a package;
``ATTENTION_ONEDNN=FOLDER`` names another one, with ``lib`` and ``include`` in it. What was built is
kept in ``model/ops/build`` or, where that cannot be written, in the user's cache folder, under a
name that tells sources, compiler, processor, MXNet and oneDNN: a library for another one of them
is not found and so never loaded.
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

SOURCES = Path(__file__).resolve().parent / "ops"
CACHE_NAME = "attention-networks-gluon"
ONEDNN_VARIABLE = "ATTENTION_ONEDNN"
FLAGS = ("-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-fPIC", "-std=c++17")
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


_loaded: Optional[Path] = None


def load() -> str:
    """Load the operators into MXNet, building them first where needed; return what they are.

    Afterwards they are ``mxnet.sym.attn_unit`` and so on. Further calls do nothing.

    Raises
    ------
    Unavailable
        When they cannot be built or loaded; nothing is changed then.
    """
    global _loaded
    onednn = find_onednn()
    if _loaded is None:
        path = build(onednn)
        import mxnet as mx

        try:
            # Loaded by its path, it is what the operators' own library finds by its name.
            ctypes.CDLL(str(onednn.library))
            mx.library.load(str(path), verbose=False)
        except (OSError, mx.MXNetError) as error:
            lines = str(error).strip().splitlines()
            raise Unavailable(f"{path.name} cannot be loaded ({lines[-1]})") from None
        _loaded = path
    return f"fused operators, oneDNN {onednn.version}"


def build(onednn: OneDNN) -> Path:
    """Return the library for this machine, compiling it unless it is there.

    Raises
    ------
    Unavailable
        Without a compiler, or when it fails.
    """
    compiler = _compiler()
    name = f"attn-{_key(compiler, onednn)}.so"
    for folder in _folders():
        if (folder / name).is_file():
            return folder / name
    folder = _writable_folder()
    print(f"building {SOURCES.name}/{name} for this processor, once", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".build-") as temporary:
        made = Path(temporary) / name
        _compile(compiler, onednn, made)
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


def _key(compiler: str, onednn: OneDNN) -> str:
    """Return what changes when another library is needed."""
    import mxnet as mx

    digest = hashlib.sha256()
    for path in sorted(SOURCES.glob("*.*")):
        digest.update(path.name.encode() + path.read_bytes())
    core = _mxnet_folder() / "libmxnet.so"
    size = core.stat().st_size if core.is_file() else 0
    for fact in (*FLAGS, _run([compiler, "--version"]), mx.__version__, str(size)):
        digest.update(fact.encode() + b"\0")
    digest.update(f"{onednn.version} {onednn.library.stat().st_size}".encode())
    digest.update(cpu_identity().encode())
    return digest.hexdigest()[:16]


def cpu_identity() -> str:
    """Return the processor's name and instruction sets, which ``-march=native`` compiles for."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    lines = text.partition("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(("model name", "flags")))


def _folders() -> Iterator[Path]:
    """Yield the folders that a built library may be in."""
    yield SOURCES / "build"
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


def _compile(compiler: str, onednn: OneDNN, target: Path) -> None:
    mxnet_folder = _mxnet_folder()
    includes = [f"-I{mxnet_folder / 'include'}", f"-I{onednn.include}"]
    api = mxnet_folder / "src" / "lib_api.cc"
    objects = []
    for source, flags in [(api, ()), *((f, HIDDEN) for f in sorted(SOURCES.glob("*.cc")))]:
        objects.append(target.with_name(source.stem + ".o"))
        _run([compiler, *FLAGS, *flags, *includes, "-c", str(source), "-o", str(objects[-1])])
    linked = [*map(str, objects), str(onednn.library)]
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
    """Build the operators and say so, or why not; 0 in both cases: they are not needed to train."""
    try:
        print(f"built {build(find_onednn())}")
    except Unavailable as error:
        print(f"not built: {error}; training takes MXNet's own operators")
    return 0


if __name__ == "__main__":
    sys.exit(main())
