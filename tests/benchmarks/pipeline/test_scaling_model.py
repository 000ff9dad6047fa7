"""The model of trainings by many workers: its formulas by hand, its table, its figure, its limits.

Nothing is timed here.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.pipeline import scaling_model
from benchmarks.pipeline.scaling_model import (
    GBIT,
    LATENCY_SEC,
    Config,
    Step,
    curves,
    fit_step,
    gradient_bytes,
    ring_seconds,
    server_seconds,
    speed_ups,
    table,
)

STEP = Step(start=0.1, image=0.01, gradient=125_000_000)  # one second at 1 Gbit/s


def test_a_ring_sends_twice_what_the_others_share() -> None:
    assert ring_seconds(1, 8e6, 1e6, 1.0) == 0
    assert ring_seconds(2, 8e6, 1e6, 0) == pytest.approx(8)
    assert ring_seconds(4, 8e6, 1e6, 0.5) == pytest.approx(2 * 3 * (2 + 0.5))


def test_the_link_of_a_server_carries_all_workers() -> None:
    assert server_seconds(1, 8e6, 1e6, 1.0) == 0
    assert server_seconds(4, 8e6, 1e6, 0.5) == pytest.approx(2 * (32 + 0.5))
    assert server_seconds(4, 8e6, 1e6, 0, servers=2) == pytest.approx(32)
    assert server_seconds(4, 8e6, 1e6, 0, servers=9) == pytest.approx(16)  # a worker's own link


def test_a_line_is_found_again_in_steps() -> None:
    found = fit_step({1: 0.11, 2: 0.12, 8: 0.18}, 4)
    assert [found.start, found.image] == pytest.approx([0.1, 0.01])
    assert found.gradient == 4
    assert found.seconds(20) == pytest.approx(0.3)


def test_strong_and_weak_scaling_by_hand() -> None:
    strong = speed_ups(STEP, 10, ring_seconds, GBIT, weak=False)
    assert list(strong) == [1, 2, 4, 8]  # 16 workers would be more than images
    assert strong[1] == 1
    assert strong[2] == pytest.approx(0.2 / (0.15 + 1 + 2 * LATENCY_SEC))
    weak = speed_ups(STEP, 10, ring_seconds, 100 * GBIT, weak=True)
    assert weak[64] == pytest.approx(64 * 0.2 / (0.2 + 126 / 64 / 100 + 126 * LATENCY_SEC))


def test_table_and_figure_have_every_network(tmp_path: Path) -> None:
    records = curves({"attention92": STEP, "attention56_imagenet": STEP}, Config())
    assert len(records) == 2 * 2 * 2 * 3
    text = table(records).splitlines()
    assert text[0].endswith("| 2 | 4 | 8 | 16 | 32 | 64 |")
    assert len(text) == 2 + len(records)
    weak = [line for line in text if "attention92 | weak | ring | 100" in line]
    expected = speed_ups(STEP, 64, ring_seconds, 100 * GBIT, weak=True)
    assert weak[0].endswith(f"| {expected[64]:.1f} |")
    scaling_model.draw(records, str(tmp_path / "model.png"))
    with Image.open(tmp_path / "model.png") as figure:
        assert figure.size[0] > 1000


def test_gradients_of_what_is_trained_are_counted() -> None:
    assert gradient_bytes("resnet20", 32) == 881_512


@pytest.mark.parametrize(
    "words", ["--batches 4", "--batches 4 4", "--batches 0 4", "--gbits 0", "--rounds 0"]
)
def test_what_measures_nothing_is_refused(
    words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling_model, "begin", lambda: pytest.fail("it began"))
    with pytest.raises(SystemExit) as ended:
        scaling_model.main(words.split())
    assert ended.value.code == 2
    assert words.split()[0] in capsys.readouterr().err


def test_a_launcher_can_start_it_as_a_script(tmp_path: Path) -> None:
    words = [sys.executable, str(Path(scaling_model.__file__).resolve()), "--help"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--gbits" in done.stdout
