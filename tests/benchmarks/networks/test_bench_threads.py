"""The benchmark of threads: what it compares, and its table."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.networks import bench_threads
from benchmarks.networks.bench_threads import Config, beside, combinations, main, table, worst


def row(median: float, ratio: float) -> dict[str, Any]:
    return {"median": median, "ratio": {"ratio": ratio}}


FOUND = {
    "attention56_small": {
        "alone": {"1 thread": row(0.5, 1.0), "2 threads, default": row(0.25, 0.5)},
        "beside a busy process": {"1 thread": row(0.5, 1.0), "2 threads, default": row(1.0, 2.0)},
    },
    "glimpse_mnist": {
        "alone": {"1 thread": row(0.01, 1.0), "2 threads, default": row(0.0125, 1.25)},
        "beside a busy process": {"1 thread": row(0.02, 1.0), "2 threads, default": row(0.02, 1.0)},
    },
}


def test_one_thread_is_compared_with_every_way_to_wait() -> None:
    config = Config(policies=("default", "OMP_WAIT_POLICY=passive"))
    assert combinations(config, 3) == {
        "1 thread": {"OMP_NUM_THREADS": "1"},
        "3 threads, default": {"OMP_NUM_THREADS": "3"},
        "3 threads, OMP_WAIT_POLICY=passive": {
            "OMP_NUM_THREADS": "3",
            "OMP_WAIT_POLICY": "passive",
        },
    }
    assert list(combinations(config, 1)) == ["1 thread"]


def test_the_table_has_images_a_second_and_the_ratio_to_one_thread() -> None:
    lines = table(FOUND, Config(batch_size=64)).splitlines()
    assert lines[2] == "| attention56_small | 1 thread | 128 | 1.00 | 128 | 1.00 |"
    assert lines[3] == "| attention56_small | 2 threads, default | 256 | 2.00 | 64 | 0.50 |"
    assert lines[5] == "| glimpse_mnist | 2 threads, default | 10,240 | 0.80 | 6,400 | 1.00 |"
    assert worst(FOUND) == "2 threads, default: at worst 0.50 x 1 thread"


def test_beside_a_busy_process_there_is_one() -> None:
    def children() -> list[str]:
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has just ended
                parent = (place / "stat").read_text().rpartition(")")[2].split()[1]
                if parent == str(os.getpid()):
                    found.append((place / "cmdline").read_text().replace("\0", " "))
        return [line for line in found if bench_threads.BUSY in line]

    with beside("alone"):
        assert not children()
    with beside("beside a busy process"):
        end = time.monotonic() + 20
        while not children() and time.monotonic() < end:
            time.sleep(0.05)
        assert len(children()) == 1
    assert not children()


@pytest.mark.parametrize("words", ["--rounds 0", "--threads -1", "--policies sleep"])
def test_what_measures_nothing_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words.split())
    assert capsys.readouterr().err.startswith("error: ")
