"""Which processor this is: its name with the generation, and its instruction sets.

Linux' /proc/cpuinfo tells; elsewhere there is a name at most. ``ATTENTION_ISA=avx2`` makes a
processor with AVX-512 compute as one without: the project's own operators are compiled for AVX2,
and the oneDNN that they call stops there. So do MXNet's own oneDNN, where a program calls
`limit_onednn` at its start as the scripts and the tests do, and other libraries by `library_caps`.
Nothing here changes a setting by being imported. Needs the standard library alone.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

CPUINFO = "/proc/cpuinfo"
ISA_VARIABLE = "ATTENTION_ISA"
AVX2 = "avx2"
BEYOND_AVX2 = ("avx512", "amx", "avx_vnni")  # beginnings of the names that Linux gives
# What oneDNN's convolutions of blocks of 16 channels and of bfloat16 take.
AVX512 = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"})
# What keeps libraries to AVX2: oneDNN 2, MXNet's, and oneDNN 3; then PyTorch's own kernels and its
# compiler, MKL, OpenBLAS.
ONEDNN_LIMITS = {"DNNL_MAX_CPU_ISA": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
LIMITS = {
    **ONEDNN_LIMITS,
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
}
# Families and models of AMD's generations, as in Linux' arch/x86/kernel/cpu/amd.c; first and last.
ZEN: Mapping[int, tuple[tuple[int, int, str], ...]] = {
    0x17: (
        *((0x00, 0x2F, "Zen"), (0x50, 0x5F, "Zen"), (0x30, 0x4F, "Zen 2"), (0x60, 0x7F, "Zen 2")),
        *((0x90, 0x91, "Zen 2"), (0xA0, 0xAF, "Zen 2")),
    ),
    0x19: (
        *((0x00, 0x0F, "Zen 3"), (0x20, 0x5F, "Zen 3")),
        *((0x10, 0x1F, "Zen 4"), (0x60, 0xAF, "Zen 4")),
    ),
    0x1A: ((0x00, 0x2F, "Zen 5"), (0x40, 0x4F, "Zen 5"), (0x60, 0x7F, "Zen 5")),
}


class Unavailable(Exception):
    """What was asked for cannot be had on this machine; the message is the reason."""


@dataclass(frozen=True)
class Processor:
    """A processor, as far as the system tells.

    Parameters
    ----------
    name
        Its model name, as the maker writes it.
    vendor, family, model
        What identifies its generation; 0 and "" where they are unknown.
    flags
        Instruction sets that may be used, as Linux names them.
    """

    name: Optional[str]
    vendor: str = ""
    family: int = 0
    model: int = 0
    flags: frozenset[str] = frozenset()

    @property
    def generation(self) -> Optional[str]:
        """AMD's generation, or None."""
        if self.vendor == "AuthenticAMD":
            for first, last, name in ZEN.get(self.family, ()):
                if first <= self.model <= last:
                    return name
        return None

    @property
    def full_name(self) -> Optional[str]:
        """The name; with the generation where it has no number that would tell it.

        Virtual machines say "AMD EPYC" of every generation.
        """
        if self.name is None or re.search(r"\d", self.name.partition("@")[0]) or not self.family:
            return self.name
        known = self.generation or f"family {self.family}, model {self.model}"
        return f"{self.name} ({known})"

    @property
    def level(self) -> str:
        """The widest vectors: AVX-512, AVX2, AVX or SSE; "" where nothing is known."""
        if self.flags >= AVX512:
            return "AVX-512"
        if not self.flags:
            return ""
        return next((name for name in ("AVX2", "AVX") if name.lower() in self.flags), "SSE")

    @property
    def instructions(self) -> str:
        """The widest vectors, and what multiplies shorter numbers."""
        short = {
            "bfloat16": "avx512_bf16" in self.flags,
            "VNNI": bool({"avx512_vnni", "avx_vnni"} & self.flags),
            "AMX": "amx_tile" in self.flags,
        }
        has = [name for name, known in short.items() if known]
        return self.level + (f" with {' and '.join(has)}" if has else "")


def is_limited() -> bool:
    """Return whether ``ATTENTION_ISA`` keeps this process to AVX2.

    Raises
    ------
    Unavailable
        When the variable says anything else; so do all functions below.
    """
    value = os.environ.get(ISA_VARIABLE, "")
    if value not in ("", AVX2):
        raise Unavailable(
            f"{ISA_VARIABLE}={value} is unknown: {AVX2} leaves instructions beyond AVX2 unused, "
            "unset or empty it leaves out none"
        )
    return value == AVX2


def _cpuinfo() -> list[str]:
    """Return what Linux says of the first processor, without what ``ATTENTION_ISA`` leaves out."""
    left_out = BEYOND_AVX2 if is_limited() else ()
    try:
        text = Path(CPUINFO).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    lines = (line.split(" ") for line in text.partition("\n\n")[0].splitlines())
    return [" ".join(word for word in words if not word.startswith(left_out)) for words in lines]


def cpu_identity() -> str:
    """Return the processor's name and instruction sets, as Linux names them."""
    lines = [line for line in _cpuinfo() if line.startswith(("model name", "flags"))]
    return "\n".join(lines) or platform.processor()


def this_processor() -> Processor:
    """Return the processor of this machine."""
    pairs = (line.partition(":") for line in _cpuinfo())
    found = {key.strip(): value.strip() for key, _, value in pairs}
    return Processor(
        found.get("model name") or platform.processor() or platform.machine() or None,
        found.get("vendor_id", ""),
        _number(found.get("cpu family")),
        _number(found.get("model")),
        frozenset(found.get("flags", "").split()),
    )


def _number(text: Optional[str]) -> int:
    return int(text) if text and text.isdigit() else 0


def cpu_name() -> Optional[str]:
    """Return the processor's name, with its generation where the maker's name does not tell it."""
    return this_processor().full_name


def instructions() -> str:
    """Return the instruction sets in words, and what caps them, where something does."""
    text = this_processor().instructions
    if is_limited():
        return f"capped to {text} ({ISA_VARIABLE})"
    capped = [f"{name}={value}" for name, value in _set_by_hand().items()]
    return f"{text}, libraries capped by {' and '.join(capped)}" if capped else text


def instructions_slug(text: str) -> str:
    """Return what `instructions` says as part of a file's name, as avx512 or avx2."""
    level = re.search("AVX-512|AVX2|AVX|SSE", text)
    name = level[0].replace("-", "").lower() if level else "unknown"
    return name + ("-capped" if "libraries capped" in text else "")


def _set_by_hand() -> dict[str, str]:
    names = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
    return {name: os.environ[name] for name in names if os.environ.get(name)}


def library_caps() -> dict[str, str]:
    """Return the variables that cap libraries as ``ATTENTION_ISA`` caps own operators.

    They are for the environment of a process, before it loads the libraries; none without that
    variable. What is set by hand stays as it is.
    """
    caps = LIMITS if is_limited() else {}
    return {name: value for name, value in caps.items() if not os.environ.get(name)}


def limit_onednn() -> None:
    """Keep oneDNN, MXNet's own too, to what ``ATTENTION_ISA`` says; nothing where it is not set.

    Call it at the start of a program: oneDNN reads its limit once, when it is first called.
    Processes that this one starts inherit it.
    """
    if is_limited():
        os.environ.update(ONEDNN_LIMITS)
