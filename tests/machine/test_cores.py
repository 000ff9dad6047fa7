"""Physical cores of a made up machine: hyper-threads, affinity, quotas of both kinds, no /sys."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import pytest

from machine import cores
from machine.cores import allowed_processors, cpu_quota, idle_cores, physical_cores

V2_MOUNT = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "33 32 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"


def machine(root: Path, siblings: Sequence[str]) -> Path:
    """Write the topology of a machine: for each logical processor those on its core."""
    cpu = root / "sys/devices/system/cpu"
    for number, text in enumerate(siblings):
        folder = cpu / f"cpu{number}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text + "\n")
    (cpu / "online").write_text(f"0-{len(siblings) - 1}\n")
    return root


def groups(root: Path, group: str, mount: str) -> None:
    """Say in which control group this process is and where the groups' files are."""
    folder = root / "proc/self"
    folder.mkdir(parents=True)
    (folder / "cgroup").write_text(f"9:name=systemd:/other\n{group}\n")
    (folder / "mountinfo").write_text(f"23 1 0:21 / / rw - ext4 /dev/vda1 rw\n{mount}\n")


def limit(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("cpu_", "cpu.", 1)).write_text(text + "\n")


EIGHT = ["0-1", "0-1", "2-3", "2-3", "4-5", "4-5", "6-7", "6-7"]  # four cores, as virtual ones are
APART = ["0,4", "1,5", "2,6", "3,7"] * 2  # four cores, as an own machine has them
SINGLE = ["0", "1", "2"]


@pytest.mark.parametrize(
    ("siblings", "allowed", "number", "reason"),
    [
        (SINGLE, None, 3, "physical cores"),
        (EIGHT, None, 4, "physical cores"),
        (APART, None, 4, "physical cores"),
        (EIGHT, {0, 1}, 1, "physical cores of the affinity"),  # both threads of one core
        (EIGHT, {1, 3, 4}, 3, "physical cores of the affinity"),  # one thread each
        (APART, {0, 1, 4}, 2, "physical cores of the affinity"),
        (APART, {7}, 1, "physical cores of the affinity"),
    ],
)
def test_hyper_threads_count_once(
    tmp_path: Path, siblings: Sequence[str], allowed: Optional[set[int]], number: int, reason: str
) -> None:
    root = machine(tmp_path, siblings)
    found = physical_cores(root, allowed or set(range(len(siblings))))
    assert found == (number, reason)


@pytest.mark.parametrize("text", ["", "x", "1,2"])  # the last does not name the processor itself
def test_processors_of_which_nothing_is_told_are_cores(tmp_path: Path, text: str) -> None:
    reason = "processors (nothing tells which of them share a core)"
    assert physical_cores(tmp_path, {0, 1, 2, 3, 4}) == (5, reason)
    assert physical_cores(machine(tmp_path, [text] * 8), {0, 5, 6, 7}) == (4, reason)


def test_one_core_is_the_least(tmp_path: Path) -> None:
    assert physical_cores(tmp_path, set()).number == 1


def test_the_affinity_of_this_process_is_heeded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 3, 4}, raising=False)
    assert allowed_processors() == {2, 3, 4}
    assert physical_cores(machine(tmp_path, EIGHT)).number == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert physical_cores(tmp_path).number == 4


@pytest.mark.parametrize(
    ("own", "above", "cores", "number"),
    [
        ("200000 100000", "max 100000", 2.0, 2),
        ("max 100000", "150000 50000", 3.0, 3),  # of the group above
        ("300000 100000", "250000 100000", 2.5, 2),  # the least, whole cores of it
        ("20000 100000", "max 100000", 0.2, 1),
        ("800000 100000", "max 100000", 8.0, 4),  # more than there are
        ("max 100000", "max 100000", None, 4),
        ("damaged", "max", None, 4),
        ("1 0", "max 100000", None, 4),
    ],
)
def test_a_quota_of_version_2(
    tmp_path: Path, own: str, above: str, cores: Optional[float], number: int
) -> None:
    root = machine(tmp_path, EIGHT)
    groups(root, "0::/user.slice/job", V2_MOUNT)
    limit(root / "sys/fs/cgroup/user.slice/job", cpu_max=own)
    limit(root / "sys/fs/cgroup/user.slice", cpu_max=above)
    limit(root / "sys/fs/cgroup/other", cpu_max="100000 100000")  # of other processes
    assert cpu_quota(root) == cores
    reason = f"CPU quota {cores:g}" if cores and cores < 4 else "physical cores"
    assert physical_cores(root, set(range(8))) == (number, reason)


@pytest.mark.parametrize(
    ("quota", "period", "number"), [("300000", "100000", 3), ("-1", "100000", 4), ("50", "0", 4)]
)
def test_a_quota_of_version_1(tmp_path: Path, quota: str, period: str, number: int) -> None:
    root = machine(tmp_path, EIGHT)
    groups(root, "4:cpu,cpuacct:/job/step", V1_MOUNT)
    folder = root / "sys/fs/cgroup/cpu,cpuacct/job"
    limit(folder, cpu_cfs_quota_us=quota, cpu_cfs_period_us=period)
    assert physical_cores(root, set(range(8))).number == number


@pytest.mark.parametrize(
    ("group", "part"),
    [
        ("/", "/"),  # a name space of its own
        ("/docker/abc", "/docker/abc"),  # the host's name
        ("/docker/abc", "/docker/another"),
        ("/../../elsewhere", "/"),
    ],
)
def test_a_container_sees_its_group_at_the_mount(tmp_path: Path, group: str, part: str) -> None:
    root = machine(tmp_path, EIGHT)
    groups(root, f"0::{group}", V2_MOUNT.replace(" / ", f" {part} ", 1))
    limit(root / "sys/fs/cgroup", cpu_max="100000 100000")
    limit(root / "sys/fs", cpu_max="1 100000")  # outside of the mount
    assert physical_cores(root, set(range(8))) == (1, "CPU quota 1")


def test_a_quota_of_another_controller_or_mount_is_none(tmp_path: Path) -> None:
    root = machine(tmp_path, EIGHT)
    groups(root, "4:cpuset:/job", V1_MOUNT)
    limit(root / "sys/fs/cgroup/cpu,cpuacct/job", cpu_cfs_quota_us="1", cpu_cfs_period_us="1")
    assert cpu_quota(root) is None
    (root / "proc/self/mountinfo").write_text(
        "short\n30 23 0:26 / /sys/fs\\040c rw - cgroup2 x y\n"
    )
    (root / "proc/self/cgroup").write_text("0::/job\n")
    limit(root / "sys/fs c/job", cpu_max="1 1")
    assert cpu_quota(root) == 1.0


def ticks(root: Path, busy: Sequence[int], idle: Sequence[int]) -> None:
    """Write what each logical processor of the machine has counted."""
    (root / "proc").mkdir(exist_ok=True)
    rows = [f"cpu{n} 0 {b} 0 {i} 0 0 0 0 0 0" for n, (b, i) in enumerate(zip(busy, idle))]
    (root / "proc/stat").write_text("\n".join(["cpu  1 2 3 4 5", *rows, "intr 5"]) + "\n")


@pytest.mark.parametrize(
    ("siblings", "allowed", "busy", "idle"),
    [
        (SINGLE, None, [0, 0, 0], 3),
        (SINGLE, None, [0, 20, 0], 2),
        (SINGLE, {1}, [0, 20, 20], 0),
        (SINGLE, None, [14, 14, 14], 3),  # less than half of the time
        (EIGHT, None, [0, 0, 0, 30, 0, 0, 0, 0], 3),  # one thread of a core is the core
        (APART, None, [0, 30, 0, 0, 0, 30, 0, 30], 2),
        (APART, {0, 1}, [0, 0, 0, 0, 0, 30, 0, 0], 1),  # the other thread is not ours, the core is
    ],
)
def test_cores_that_others_keep_busy_are_not_idle(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    siblings: Sequence[str],
    allowed: Optional[set[int]],
    busy: Sequence[int],
    idle: int,
) -> None:
    root = machine(tmp_path, siblings)
    ticks(root, [500] * len(siblings), [7000] * len(siblings))
    later = [500 + count for count in busy], [7030 - count for count in busy]
    monkeypatch.setattr(cores.time, "sleep", lambda seconds: ticks(root, *later))
    assert idle_cores(root, allowed or set(range(len(siblings)))) == idle


def test_without_proc_nothing_is_said_about_idle_cores(tmp_path: Path) -> None:
    assert idle_cores(machine(tmp_path, SINGLE), {0, 1, 2}) is None
    ticks(tmp_path, [0, 0], [5, 5])
    assert idle_cores(tmp_path, {0, 1, 2}, seconds=0) is None  # one of them is not told


def test_this_machine_tells_its_idle_cores() -> None:
    found = idle_cores(seconds=0.02)
    assert found is None or 0 <= found <= len(allowed_processors())
