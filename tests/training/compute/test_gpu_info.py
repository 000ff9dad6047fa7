"""What is said of GPUs, from injected answers of nvidia-smi; no GPU is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mxnet as mx
import pytest

from formats.errors import UserError
from training.compute import devices
from training.compute.gpu_info import gpu_lines, list_gpus, parse_gpus, visible_gpus
from training.loop import announce

TABLE = """\
0, NVIDIA GeForce RTX 3090, 8.6, 24576, 535.54.03
1, NVIDIA H100 80GB HBM3, 9.0, 81559, 535.54.03
2, Tesla K80, 3.7, 11441, 535.54.03
3, NVIDIA GeForce RTX 4090, 8.9, 24564, 535.54.03
4, Quadro, [N/A], [N/A], 390.10
garbage
"""


@pytest.mark.parametrize(
    ("index", "has_kernels"), [(0, True), (1, False), (2, False), (3, True), (4, None)]
)
def test_kernels_are_known_by_compute_capability(index: int, has_kernels: bool) -> None:
    gpus = parse_gpus(TABLE)
    assert len(gpus) == 5
    assert gpus[index].has_kernels is has_kernels


def test_the_lines_say_what_to_do() -> None:
    good, new, old, ada, unknown = gpu_lines(parse_gpus(TABLE), cuda=True)
    assert good == (
        "GPU 0: NVIDIA GeForce RTX 3090, compute capability 8.6, 24576 MiB, driver 535.54.03: "
        "this MXNet has kernels for it"
    )
    assert "docs/newer_gpu.md" in new
    assert "container" in new
    assert "use the CPU" in old
    assert "has kernels" in ada
    assert "compute capability unknown, driver 390.10" in unknown


def test_a_gpu_beside_an_mxnet_for_cpus_is_pointed_out() -> None:
    gpus = parse_gpus(TABLE)
    (line,) = gpu_lines(gpus[:1], cuda=False)
    assert "NVIDIA GeForce RTX 3090: not used" in line
    assert "make gpu" in line
    (line,) = gpu_lines(gpus[1:2], cuda=False)
    assert "make gpu" not in line
    assert "docs/newer_gpu.md" in line
    assert gpu_lines([], cuda=False) == gpu_lines([], cuda=True) == []


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, ["0 NVIDIA GeForce RTX 3090", "1 NVIDIA H100 80GB HBM3"]),
        ("1,0", ["0 NVIDIA H100 80GB HBM3", "1 NVIDIA GeForce RTX 3090"]),
        ("1", ["0 NVIDIA H100 80GB HBM3"]),
        ("0,7,1", ["0 NVIDIA GeForce RTX 3090"]),
        ("GPU-5d4", []),
        ("", []),
    ],
)
def test_numbers_are_those_of_mxnet(
    visible: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = visible_gpus(parse_gpus(TABLE)[:2], visible)
    assert [f"{gpu.number} {gpu.name}" for gpu in found] == names


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program nvidia-smi, first on PATH, that answers with the table."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{TABLE}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return program


def test_the_program_is_asked(smi: Path) -> None:
    assert [gpu.number for gpu in list_gpus()] == [0, 1, 2, 3, 4]
    smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert list_gpus() == []
    assert list_gpus("no-such-program") == []


def test_a_gpu_without_kernels_is_explained(smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        devices, "_gpu_count" if hasattr(devices, "_gpu_count") else "gpu_count", lambda: 2
    )
    monkeypatch.setattr(devices, "probe_gpu", lambda index: "no kernel image is available")
    with pytest.raises(UserError) as error:
        devices.choose_contexts("1")
    for part in ("no kernel image", "H100", "compute capability 9.0", "docs/newer_gpu.md"):
        assert part in str(error.value)


def test_a_training_says_it_at_its_start(smi: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from training.batches.in_memory import Loaders
    from training.classifier.config import TrainConfig
    from training.records.run_progress import Progress

    class Batches:
        data = (0, 1)

    loaders: Any = Loaders(Batches(), None, Batches())  # type: ignore[arg-type]
    announce.announce(TrainConfig(), [mx.cpu()], loaders, Path("run"), Progress())
    out = capsys.readouterr().out
    assert "NVIDIA GeForce RTX 3090, NVIDIA H100" in out
    assert "make gpu sets up the one for CUDA" in out
