"""Which NVIDIA GPUs a machine has, and whether this MXNet has kernels for them.

The wheels of MXNet 1.9.1 for CUDA hold machine code for compute capabilities 5.0 to 8.6. Code for
8.6 also runs on 8.9 (the same major version, NVIDIA's CUDA C++ Programming Guide, section "Binary
Compatibility"); for 9.0 and later there is none.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import NamedTuple, Optional

import mxnet as mx

QUERY = ("index", "name", "compute_cap", "memory.total", "driver_version")
TIMEOUT_SEC = 20
OLDEST, TOO_NEW = (5, 0), (9, 0)  # the first compute capability with kernels, the first without
NEWER_GPU_PAGE = "docs/newer_gpu.md"


class Gpu(NamedTuple):
    """A GPU as the driver tells of it; ``capability`` (major, minor) is None when it does not."""

    number: int
    name: str
    capability: Optional[tuple[int, int]]
    memory_mib: Optional[int]
    driver: str

    @property
    def has_kernels(self) -> Optional[bool]:
        """Whether MXNet 1.9.1's wheel for CUDA has code for it; None when that is unknown."""
        return None if self.capability is None else OLDEST <= self.capability < TOO_NEW

    def describe(self) -> str:
        """Return one line: what it is."""
        known = "unknown" if self.capability is None else "{}.{}".format(*self.capability)
        memory = "" if self.memory_mib is None else f", {self.memory_mib} MiB"
        name = f"GPU {self.number}: {self.name}, compute capability {known}"
        return f"{name}{memory}, driver {self.driver}"

    def advice(self) -> str:
        """Return what it means for this MXNet, and what to do when that is no good."""
        if self.has_kernels is None:
            return "whether this MXNet has kernels for it is found out by computing on it"
        if self.has_kernels:
            return "this MXNet has kernels for it"
        if self.capability is not None and self.capability < OLDEST:
            return "this MXNet has no kernels for GPUs below 5.0: use the CPU"
        return (
            "this MXNet has no kernels for it (they end at 8.9): train with PyTorch as "
            f"{NEWER_GPU_PAGE} says, or use NVIDIA's own MXNet container, or the CPU"
        )


def list_gpus(program: str = "nvidia-smi") -> list[Gpu]:
    """Return the GPUs of this machine; none when there is no driver, or it does not answer."""
    command = [program, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_SEC, check=False
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return []
    return parse_gpus(done.stdout) if done.returncode == 0 else []


def parse_gpus(text: str) -> list[Gpu]:
    """Return the GPUs of nvidia-smi's table of `QUERY`; lines that are none are left out."""
    gpus = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(QUERY) or not cells[0].isdecimal():
            continue
        index, name, capability, memory, driver = cells
        major, _, minor = capability.partition(".")
        known = (int(major), int(minor)) if (major + minor).isdecimal() and minor else None
        size = int(memory) if memory.isdecimal() else None
        gpus.append(Gpu(int(index), name, known, size, driver))
    return gpus


def visible_gpus(gpus: Sequence[Gpu], visible: Optional[str] = None) -> list[Gpu]:
    """Return the GPUs as MXNet numbers them: those that CUDA_VISIBLE_DEVICES names, in its order.

    `visible` stands for the variable's value; None reads it. Where it names GPUs otherwise than by
    number, nothing is known of their order, and the list is empty.
    """
    value = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
    if value is None:
        return list(gpus)
    by_index = {str(gpu.number): gpu for gpu in gpus}
    chosen = []
    for word in (word.strip() for word in value.split(",")):
        if word not in by_index:
            break  # CUDA ignores the rest as well
        chosen.append(by_index[word])
    return [gpu._replace(number=number) for number, gpu in enumerate(chosen)]


def has_cuda() -> bool:
    """Whether the installed MXNet was built for CUDA."""
    return bool(mx.runtime.Features().is_enabled("CUDA"))


def gpu_lines(gpus: Sequence[Gpu], cuda: bool) -> list[str]:
    """Return what a training says of GPUs at its start; nothing on a machine without any."""
    if gpus and not cuda:
        names = ", ".join(gpu.name for gpu in gpus)
        usable = [gpu for gpu in gpus if gpu.has_kernels]
        hint = "make gpu sets up the one for CUDA" if usable else gpus[0].advice()
        return [f"{names}: not used, the installed MXNet is the one for CPUs; {hint}"]
    return [f"{gpu.describe()}: {gpu.advice()}" for gpu in gpus]


def advice_for(index: int) -> str:
    """Return description and advice for GPU `index` as MXNet numbers it, "" when unknown."""
    found = [gpu for gpu in visible_gpus(list_gpus()) if gpu.number == index]
    return f"{found[0].describe()}: {found[0].advice()}" if found else ""
