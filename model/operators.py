"""Own operators in C++: ``python -m model.operators`` compiles them; needs a C++ compiler.

They are optional, for CPUs alone, and do what a graph does too, faster; nothing that is exported
contains one. The library is compiled for the processor it is made on. Its name holds a checksum of
the sources, the compiler's options, the processor's abilities and the version of MXNet, so that one
that was made elsewhere or from other sources is never loaded.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Optional

SOURCES = Path(__file__).resolve().parent / "native"
FOLDER = SOURCES.parent.parent / "build" / "native"
OPTIONS = ("-O3", "-march=native", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC")
STANDARD = "-std=c++11"
COMPILERS = ("g++", "c++", "clang++")
SWITCH = "ATTENTION_NATIVE"  # 0: do not load what was compiled
_loaded: list[Path] = []


class OperatorError(Exception):
    """The operators could not be compiled; the message says why and what to do."""


def library_path() -> Path:
    """Return where the library for this machine is, or would be."""
    import mxnet as mx

    digest = hashlib.sha256()
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.read_bytes())
    digest.update(" ".join((*OPTIONS, STANDARD, mx.__version__, _abilities())).encode())
    return FOLDER / f"operators-{digest.hexdigest()[:16]}.so"


def _abilities() -> str:
    """Return what the processor can do, as Linux tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            flags = next((line for line in lines if line.startswith("flags")), "")
    except OSError:
        flags = ""
    return platform.machine() + flags


def build() -> Path:
    """Compile the operators unless that is done, in about half a minute; return the library.

    Raises
    ------
    OperatorError
        When there is no compiler, or it fails.
    """
    import mxnet as mx

    path = library_path()
    if path.is_file():
        return path
    compiler = find_compiler()
    if compiler is None:
        raise OperatorError(
            f"no C++ compiler was found (looked for {', '.join(COMPILERS)}): install one, such as "
            "the package g++, or set CXX. Without it everything works, but the glimpse model slower"
        )
    package = Path(mx.__file__).parent
    inputs = [*sorted(SOURCES.glob("*.cc")), package / "src" / "lib_api.cc"]
    FOLDER.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(suffix=".tmp", dir=FOLDER)
    os.close(handle)
    try:
        done = subprocess.run(
            [compiler, *OPTIONS, STANDARD, f"-I{package / 'include'}", *inputs, "-o", name],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise OperatorError(f"{compiler} failed:\n{done.stderr.strip()}")
        os.chmod(name, 0o755)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path


def find_compiler() -> Optional[str]:
    """Return the C++ compiler: CXX, or the first one that is found."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else COMPILERS
    return next((found for found in map(shutil.which, names) if found), None)


def load() -> bool:
    """Make the operators known to MXNet if they were compiled; return whether they are known."""
    import mxnet as mx

    if os.environ.get(SWITCH) == "0":
        return False
    path = library_path()
    if _loaded == [path]:
        return True
    if _loaded or not path.is_file():
        return False
    mx.library.load(str(path), verbose=False)
    _loaded.append(path)
    return True


def main() -> int:
    """Compile; 2 when that is impossible."""
    try:
        print(f"operators: {os.path.relpath(build())}")
    except OperatorError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
