"""Names and instruction sets of processors, by what Linux tells of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import mxnet as mx
import pytest

from benchmarks.harness import interleave, report
from benchmarks.networks import bench_train
from machine import processor
from machine.processor import Processor, Unavailable
from training.batches.in_memory import Loaders
from training.classifier.config import CifarConfig
from training.loop.announce import announce
from training.records.environment import describe
from training.records.run_progress import Progress
from training.settings.exit_code import exits

AVX512 = "avx avx2 avx512f avx512bw avx512vl avx512dq"
VARIABLES = (
    *("ATTENTION_ISA", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY"),
    *("MKL_ENABLE_INSTRUCTIONS", "OPENBLAS_CORETYPE"),
)


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the suite run capped without changing what is asserted here."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")


def write_cpuinfo(path: Path, name: str, model: tuple[int, int], flags: str) -> None:
    path.write_text(
        f"processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: {model[0]}\n"
        f"model\t\t: {model[1]}\nmodel name\t: {name}\nflags\t\t: fpu {flags}\n\n"
        "processor\t: 1\nmodel name\t: another\nflags\t\t: none\n"
    )


@pytest.mark.parametrize(
    ("family", "model", "generation"),
    [
        *((23, 0x01, "Zen"), (23, 0x11, "Zen"), (23, 0x31, "Zen 2"), (23, 0x71, "Zen 2")),
        *((25, 0x01, "Zen 3"), (25, 0x21, "Zen 3"), (25, 0x44, "Zen 3"), (25, 0x50, "Zen 3")),
        *((25, 0x11, "Zen 4"), (25, 0x61, "Zen 4"), (25, 0xA0, "Zen 4")),
        *((26, 0x02, "Zen 5"), (26, 0x11, "Zen 5"), (26, 0x44, "Zen 5")),
        *((25, 0xFF, None), (21, 2, None), (0, 0, None)),
    ],
)
def test_amds_generations(family: int, model: int, generation: Optional[str]) -> None:
    assert Processor("AMD EPYC", "AuthenticAMD", family, model).generation == generation
    assert Processor("AMD EPYC", "GenuineIntel", family, model).generation is None


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (Processor("AMD EPYC", "AuthenticAMD", 25, 0x11), "AMD EPYC (Zen 4)"),
        (Processor("AMD EPYC", "AuthenticAMD", 31, 2), "AMD EPYC (family 31, model 2)"),
        (Processor("AMD EPYC 7B13", "AuthenticAMD", 25, 1), "AMD EPYC 7B13"),
        (
            Processor("Intel(R) Xeon(R) Processor @ 2.90GHz", "GenuineIntel", 6, 143),
            "Intel(R) Xeon(R) Processor @ 2.90GHz (family 6, model 143)",
        ),
        (
            Processor("Intel(R) Xeon(R) CPU E5-2670 0 @ 2.60GHz", "GenuineIntel", 6, 45),
            "Intel(R) Xeon(R) CPU E5-2670 0 @ 2.60GHz",
        ),
        (Processor("arm"), "arm"),
        (Processor(None), None),
    ],
)
def test_a_name_without_a_number_gets_the_generation(found: Processor, name: str) -> None:
    assert found.full_name == name


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (AVX512, "AVX-512"),
        (f"{AVX512} avx512_bf16 avx512_vnni", "AVX-512 with bfloat16 and VNNI"),
        (f"{AVX512} avx512_bf16 avx_vnni amx_tile", "AVX-512 with bfloat16 and VNNI and AMX"),
        ("sse4_2 avx avx2", "AVX2"),
        ("avx avx2 avx_vnni", "AVX2 with VNNI"),
        ("avx avx2 avx512f", "AVX2"),  # the first processors with AVX-512 are none to our operators
        ("sse4_2 avx", "AVX"),
        ("sse4_2", "SSE"),
        ("", ""),
    ],
)
def test_instruction_sets_in_words(flags: str, text: str) -> None:
    assert Processor("x", flags=frozenset(flags.split())).instructions == text


def test_the_cap_leaves_out_what_operators_leave_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "cpuinfo"
    flags = f"{AVX512} avx512_bf16 avx512_vnni avx_vnni amx_tile amx_int8"
    write_cpuinfo(path, "AMD EPYC", (26, 2), flags)
    monkeypatch.setattr(processor, "CPUINFO", str(path))
    assert processor.cpu_name() == "AMD EPYC (Zen 5)"
    assert processor.instructions() == "AVX-512 with bfloat16 and VNNI and AMX"
    assert processor.library_caps() == {}
    monkeypatch.setenv("ATTENTION_ISA", "avx2")
    assert processor.this_processor().flags == {"fpu", "avx", "avx2"}
    assert processor.instructions() == "capped to AVX2 (ATTENTION_ISA)"
    assert describe()["isa"] == "capped to AVX2 (ATTENTION_ISA)"
    assert describe()["variables"]["ATTENTION_ISA"] == "avx2"


def test_libraries_that_are_capped_by_hand_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert processor.instructions().endswith(", libraries capped by DNNL_MAX_CPU_ISA=AVX2")


def test_an_unknown_cap_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ATTENTION_ISA", "sse")
    for action in (processor.cpu_name, processor.instructions, processor.library_caps, describe):
        with pytest.raises(Unavailable, match="ATTENTION_ISA=sse is unknown: avx2 leaves"):
            action()
    assert exits()(lambda: bool(report.begin()))() == 2  # as every benchmark does
    assert "error: ATTENTION_ISA=sse" in capsys.readouterr().err


def test_workers_are_capped_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch is measured with the instruction sets that ours has."""
    code = (
        "import os, sys; sys.path.insert(0, '.')\n"
        "from benchmarks.harness.worker import serve\n"
        "names = ('ATEN_CPU_CAPABILITY', 'ONEDNN_MAX_CPU_ISA', 'DNNL_MAX_CPU_ISA')\n"
        "serve(lambda: ({name: os.environ.get(name) for name in names}, {}))\n"
    )

    def caps() -> list[Optional[str]]:
        with interleave.Worker("theirs", [sys.executable, "-c", code]) as worker:
            return [value for name, value in worker.about.items() if name != "ready"]

    assert caps() == ["", "", ""]
    monkeypatch.setenv("ATTENTION_ISA", "avx2")
    assert caps() == ["avx2", "AVX2", "AVX2"]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")  # what is set by hand stays
    assert caps() == ["avx2", "SSE41", "AVX2"]


def test_a_benchmark_caps_itself() -> None:
    code = (
        "import os\nfrom benchmarks.harness.report import begin\nbegin()\n"
        "print(os.environ['DNNL_MAX_CPU_ISA'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=interleave.ROOT,
        env={**os.environ, "ATTENTION_ISA": "avx2"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == ["AVX2"]


def test_variants_that_cannot_be_had_are_lines_of_the_table() -> None:
    part = {"forward": 1.0, "backward": 2.0, "update": 3.0}
    rates = {"train": 64.0, "infer": 200.0}
    found = {
        "fused": {"left_out": "no C++ compiler"},
        "own": {"cpu": part, "cpu_total": [6.0, 8.0], "images_per_sec": rates},
        "bfloat16": {"cpu": part, "cpu_total": [3.0, 4.0], "images_per_sec": rates},
    }
    first, second, third = bench_train.lines("resnet20", found)
    assert first == f"{'resnet20':<20}{'fused':<10}  left out: no C++ compiler"
    assert second.endswith("7.000     64.0    200.0  1.00 [1.00, 1.00]")
    assert third.endswith("3.500     64.0    200.0  2.00 [2.00, 2.00]")
    (only,) = bench_train.lines("resnet20", {"fused": found["fused"]})
    assert only == first


def test_a_training_begins_with_the_processor(capsys: pytest.CaptureFixture[str]) -> None:
    sets: Any = SimpleNamespace(data=[0, 1])
    loaders = Loaders(sets, None, sets)
    config = CifarConfig(dataset="shapes", model="attention56_small")
    announce(config, [mx.cpu()], loaders, Path("runs/x"), Progress())
    lines = capsys.readouterr().out.splitlines()
    assert f"processor: {processor.cpu_name()}, {processor.instructions()}" in lines
