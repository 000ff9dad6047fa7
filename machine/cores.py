"""How many physical cores this process may use: of its affinity, siblings once, within its quota.

Nothing here needs more than the standard library, so that it can be asked before OpenMP is loaded.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Set
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Optional

TOPOLOGY = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
SAMPLE_SEC = 0.3  # 30 ticks of the kernel's clock
BUSY_SHARE = 0.5  # of the sample


class Cores(NamedTuple):
    """A number of cores, at least 1, and where it comes from in words."""

    number: int
    reason: str


class Mount(NamedTuple):
    """A mounted file system: the part of it that is seen, and where."""

    part: PurePosixPath
    place: PurePosixPath
    kind: str
    options: frozenset[str]


def allowed_processors() -> frozenset[int]:
    """Return the numbers of the logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def physical_cores(root: Path = Path("/"), allowed: Optional[Set[int]] = None) -> Cores:
    """Return how many threads can compute at once without sharing a core.

    Parameters
    ----------
    root
        Where ``sys`` and ``proc`` are; another folder for a topology that is made up.
    allowed
        Logical processors that may be used; None: those of this process's affinity.

    Returns
    -------
    Cores
        Cores with a processor in `allowed`, each once however many of its hyper-threads are in it,
        but not more whole cores than the CPU quota of a control group allows. Processors whose
        siblings nothing tells count as cores.
    """
    mine = allowed_processors() if allowed is None else allowed
    siblings = {number: _siblings(root, number) for number in mine}
    cores = _cores(siblings)
    count, reason = max(1, len(cores)), "physical cores"
    if not any(siblings.values()):
        reason = "processors (nothing tells which of them share a core)"
    elif mine != _online(root, mine):
        reason = "physical cores of the affinity"
    quota = cpu_quota(root)
    if quota is not None and quota < count:
        return Cores(max(1, int(quota)), f"CPU quota {quota:g}")
    return Cores(count, reason)


def idle_cores(
    root: Path = Path("/"), allowed: Optional[Set[int]] = None, seconds: float = SAMPLE_SEC
) -> Optional[int]:
    """Return how many physical cores of the affinity other processes leave idle at present.

    Parameters
    ----------
    root, allowed
        As for `physical_cores`.
    seconds
        How long to watch, while this process sleeps.

    Returns
    -------
    int or None
        Cores without a hyper-thread that is busy for half of that time; None: nothing tells.
    """
    mine = allowed_processors() if allowed is None else allowed
    before = _processor_ticks(root)
    time.sleep(seconds if before else 0)
    after = _processor_ticks(root)
    busy = set()
    for number in before.keys() & after.keys():
        ticks, idle = (then - now for then, now in zip(after[number], before[number]))
        if ticks > 0 and 1 - idle / ticks >= BUSY_SHARE:
            busy.add(number)
    if not before.keys() & after.keys() >= mine:
        return None
    return sum(1 for core in _cores({n: _siblings(root, n) for n in mine}) if not core & busy)


def _processor_ticks(root: Path) -> dict[int, tuple[int, int]]:
    """Return the ticks that each logical processor has counted: all, and those it was idle."""
    found = {}
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/stat").read_text().splitlines():
            name, *words = line.split() or [""]
            if name[:3] == "cpu" and name[3:].isdigit() and len(words) >= 5:
                ticks = [int(word) for word in words[:8]]  # the rest is in user and nice already
                found[int(name[3:])] = (sum(ticks), ticks[3] + ticks[4])
    return found


def _cores(siblings: Mapping[int, Optional[frozenset[int]]]) -> set[frozenset[int]]:
    """Return cores as sets of logical processors; one whose siblings nothing tells is a core."""
    return {found or frozenset([number]) for number, found in siblings.items()}


def _siblings(root: Path, number: int) -> Optional[frozenset[int]]:
    """Return the logical processors that share a core with processor `number`, itself included."""
    try:
        found = _parse_list((root / TOPOLOGY.format(number)).read_text())
    except (OSError, ValueError):
        return None
    return found if number in found else None


def _online(root: Path, unknown: Set[int]) -> Set[int]:
    try:
        return _parse_list((root / "sys/devices/system/cpu/online").read_text())
    except (OSError, ValueError):
        return unknown


def _parse_list(text: str) -> frozenset[int]:
    """Return the numbers of Linux's list format: ``0-2,8`` is 0, 1, 2, 8."""
    numbers: set[int] = set()
    for word in text.strip().split(","):
        first, _, last = word.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


def cpu_quota(root: Path = Path("/")) -> Optional[float]:
    """Return the least CPU quota of this process's control group and those above it, in cores.

    Both kinds are read: ``cpu.max`` of version 2, ``cpu.cfs_quota_us`` of version 1. None: no
    limit, or none that can be read.
    """
    folders = list(_group_folders(root))
    quotas = [*map(_quota_v2, folders), *map(_quota_v1, folders)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _group_folders(root: Path) -> Iterator[Path]:
    """Yield the folders of the control groups that may limit this process."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        mounts = list(_mounts(root))
    except OSError:
        return
    for line in groups:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for mount in mounts:
            version_2 = not controllers and mount.kind == "cgroup2"
            version_1 = "cpu" in controllers.split(",") and mount.kind == "cgroup"
            if version_2 or (version_1 and "cpu" in mount.options):
                yield from _upwards(root, mount, PurePosixPath(path))


def _upwards(root: Path, mount: Mount, group: PurePosixPath) -> Iterator[Path]:
    """Yield the folder of a group and of all above it that the mount shows."""
    inside = group.relative_to(mount.part) if mount.part in (group, *group.parents) else None
    # In a container the group may be named as the host sees it; its mount then is the group itself.
    parts = () if inside is None or ".." in inside.parts else inside.parts
    top = root / mount.place.relative_to("/")
    for length in range(len(parts), -1, -1):
        yield top.joinpath(*parts[:length])


def _mounts(root: Path) -> Iterator[Mount]:
    for line in (root / "proc/self/mountinfo").read_text(errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(), after.split()
        if len(fields) >= 5 and len(kinds) >= 3 and fields[4].startswith("/"):
            part, place = (PurePosixPath(_unescaped(word)) for word in fields[3:5])
            yield Mount(part, place, kinds[0], frozenset(kinds[2].split(",")))


def _unescaped(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)


def _quota_v2(folder: Path) -> Optional[float]:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(folder: Path) -> Optional[float]:
    try:
        quota, period = (
            int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period")
        )
        return None if quota < 0 else quota / period
    except (OSError, ValueError, ZeroDivisionError):
        return None
