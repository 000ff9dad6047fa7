"""The GPU checklist with CPU contexts in the place of GPUs."""

from __future__ import annotations

from typing import Any

import mxnet as mx
import numpy as np
import pytest

from training.loop import gpu_checklist
from training.loop.gpu_checklist import Check, check_convolution, loaded_libraries, main, report


@pytest.fixture(autouse=True)
def _little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"IMAGES": 8, "EDGE": 8, "CHANNELS": 4, "TIMED_STEPS": 1}.items():
        monkeypatch.setattr(gpu_checklist, name, value)


def rows(text: str) -> dict[str, str]:
    """Result by name of the check."""
    cells = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {row[0][2:]: row[1] for row in cells[1:]}


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if mx.context.num_gpus():
        pytest.skip("this machine has a GPU")
    assert main([]) == 2
    output = capsys.readouterr()
    assert rows(output.out) == {"a GPU that MXNet sees": "FAILED"}
    assert output.err == "error: this MXNet sees no GPU, so nothing was checked\n"


def test_two_devices_pass_every_check(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], [mx.cpu(0), mx.cpu(1)]) == 0
    text = capsys.readouterr().out
    found = rows(text)
    for device in ("cpu(0)", "cpu(1)"):
        assert found[f"convolution and gradients, {device}"] == "ok"
        assert found[f"5 training steps float32, {device}"] == "ok"
        assert found[f"5 training steps float16, {device}"] == "not done"
    assert found["5 training steps on cpu(0), cpu(1)"] == "ok"
    assert "images/s" in text
    assert "- Python 3." in text


def test_one_device_has_no_second(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([], [mx.cpu(0)]) == 0
    assert rows(capsys.readouterr().out)["training steps on two GPUs"] == "not done"


def test_wrong_numbers_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = gpu_checklist.convolution

    def wrong(context: Any) -> list[np.ndarray]:
        y, *gradients = right(context)
        return [y, *(g * (1.01 if context == mx.cpu(1) else 1) for g in gradients)]

    monkeypatch.setattr(gpu_checklist, "convolution", wrong)
    assert check_convolution(mx.cpu(0)).passed
    assert not check_convolution(mx.cpu(1)).passed
    assert main([], [mx.cpu(1)]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_a_check_that_breaks_is_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(context: Any) -> Check:
        raise mx.MXNetError("Stack\nCUDA: no kernel image is available")

    monkeypatch.setattr(gpu_checklist, "check_training", broken)
    assert main([], [mx.cpu(0)]) == 1
    assert "| broken | FAILED | CUDA: no kernel image is available |" in capsys.readouterr().out


def test_libraries_come_from_the_process(tmp_path: Any) -> None:
    maps = tmp_path / "maps"
    maps.write_text(
        "7f0-7f1 r-xp 0 08:01 1 /x/nvidia/cudnn/lib/libcudnn.so.8\n"
        "7f0-7f1 r--p 0 08:01 1 /x/nvidia/cudnn/lib/libcudnn.so.8\n"
        "7f2-7f3 r-xp 0 08:01 2 /usr/lib/libcuda.so.1\n"
        "7f2-7f3 r-xp 0 08:01 2 /usr/lib/libc.so.6\n"
        "7f4-7f5 rw-p 0 00:00 0\n"
    )
    assert loaded_libraries(str(maps)) == ["libcuda.so.1", "libcudnn.so.8"]
    assert loaded_libraries(str(tmp_path / "none")) == []


def test_a_report_is_one_table_and_options_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = report([Check("a", True, "x|y")], ["about"])
    assert text.endswith("| a | ok | x\\|y |")
    assert main(["--help"]) == 2
    assert "error: unexpected '--help'" in capsys.readouterr().err
