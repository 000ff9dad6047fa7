"""oneDNN 3, whose convolutions the operators in ``model/native/units`` call: found and loaded."""

from __future__ import annotations

import ctypes
import os
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from machine.processor import Unavailable, is_limited

ONEDNN_VARIABLE = "ATTENTION_ONEDNN"
ISA_AVX2, ISA_AVX512 = 0x7, 0x27  # of its dnnl_cpu_isa_t


class OneDNN(NamedTuple):
    """Where oneDNN is, which one, and the channels in a block that its convolutions are fast with.

    ``block`` is 16 where it has AVX-512, else 8; the other one it computes by its reference code,
    which is hundreds of times slower than MXNet's graph.
    """

    library: Path
    include: Path
    version: str
    block: int = 8


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


def open_onednn(block: int) -> OneDNN:
    """Return the oneDNN to build with, loaded, kept to ``ATTENTION_ISA``, with its block.

    `block` is what the processor would have: ``ONEDNN_MAX_CPU_ISA`` may keep oneDNN to less.
    Loaded by its path, it is what the operators' library finds by its name.

    Raises
    ------
    Unavailable
        When there is none, or it cannot be loaded.
    """
    found = find_onednn()
    try:
        library = ctypes.CDLL(str(found.library))
        if is_limited():
            library.dnnl_set_max_cpu_isa(ISA_AVX2)
        has_avx512 = library.dnnl_get_effective_cpu_isa() & ISA_AVX512 == ISA_AVX512
    except (OSError, AttributeError) as error:
        raise Unavailable(f"{found.library.name} cannot be loaded ({error})") from None
    return found._replace(block=block if has_avx512 else 8)


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
