"""The processor's instruction sets, and ``ATTENTION_ISA``, which leaves some of them unused.

``ATTENTION_ISA=avx2`` makes a processor with AVX-512 compute as one without: the project's own
operators are compiled for AVX2, and the oneDNN that they call, which `model.native.build` loads,
stops there. So does MXNet's own oneDNN where a program calls `limit_onednn` at its start, as the
scripts and the tests do; nothing here changes a setting by being imported.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

ISA_VARIABLE = "ATTENTION_ISA"
AVX2 = "avx2"
BEYOND_AVX2 = ("avx512", "amx", "avx_vnni")  # beginnings of the names that Linux gives
# What oneDNN's convolutions of blocks of 16 channels and of bfloat16 take.
AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq")
ONEDNN_LIMITS = ("DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA")  # of MXNet's oneDNN 2, of oneDNN 3


class Unavailable(Exception):
    """The operators cannot be built or loaded here; the message is the reason."""


def is_limited() -> bool:
    """Return whether ``ATTENTION_ISA`` keeps this process to AVX2.

    Raises
    ------
    Unavailable
        When the variable says anything else.
    """
    value = os.environ.get(ISA_VARIABLE, "")
    if value not in ("", AVX2):
        raise Unavailable(
            f"{ISA_VARIABLE}={value} is unknown: {AVX2} leaves instructions beyond AVX2 unused, "
            "unset or empty it leaves out none"
        )
    return value == AVX2


def limit_onednn() -> None:
    """Keep oneDNN, MXNet's own too, to what ``ATTENTION_ISA`` says; nothing where it is not set.

    Call it at the start of a program: oneDNN reads its limit once, when it is first called.
    Processes that this one starts inherit it.

    Raises
    ------
    Unavailable
        When ``ATTENTION_ISA`` is unknown.
    """
    if is_limited():
        os.environ.update(dict.fromkeys(ONEDNN_LIMITS, AVX2.upper()))


def cpu_identity() -> str:
    """Return the processor's name and instruction sets, as Linux names them.

    Those that ``ATTENTION_ISA`` leaves unused are not among them.

    Raises
    ------
    Unavailable
        When ``ATTENTION_ISA`` is unknown.
    """
    limited = is_limited()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    lines = text.partition("\n\n")[0].splitlines()
    identity = "\n".join(line for line in lines if line.startswith(("model name", "flags")))
    if not limited:
        return identity
    words = (word for word in identity.split(" ") if not word.startswith(BEYOND_AVX2))
    return " ".join(words)


def compiler_flags() -> tuple[str, ...]:
    """Return what lets a compiler use the instructions that `cpu_identity` names."""
    return ("-march=haswell", "-mtune=native") if is_limited() else ("-march=native",)
