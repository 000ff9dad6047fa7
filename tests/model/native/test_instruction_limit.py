"""``ATTENTION_ISA``: a processor with AVX-512 builds, runs and tests what one without it gets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import mxnet as mx
import pytest

from machine import processor
from machine.processor import Unavailable
from model import create_model
from model.execution import quantization
from model.native import build as operators
from model.native.build import UNITS, block_channels, load

ROOT = Path(__file__).resolve().parents[3]
AVX512 = "model name\t: one\nflags\t\t: fpu fma avx2 avx512f avx512bw avx512vl avx512dq avx512_bf16"
# What shows that the operators compute what they should, and what they refuse.
TESTS = ("fused_training", "fused_inference", "fused_update")
LIMITED = """
from machine.processor import limit_onednn

limit_onednn()
import mxnet as mx
"""
MXNETS_CONVOLUTION = (
    LIMITED
    + """
image, weight = mx.nd.ones((1, 16, 8, 8)), mx.nd.ones((16, 16, 3, 3))
mx.nd.Convolution(image, weight, kernel=(3, 3), num_filter=16, no_bias=True).wait_to_read()
"""
)
STEP = (
    LIMITED
    + """
from mxnet import autograd
from model import create_model
from model.execution.fused_training import fuse
from model.execution.inference import prepare_inference

for name in ("resnet20_ram", "preresnet20"):
    net = create_model(name, depth=11)
    net.initialize()
    print(fuse(net))
    image = mx.nd.random.normal(shape=(4, 3, 16, 16))
    with autograd.record():
        loss = net(image).square().sum()
    loss.backward()
    mx.nd.waitall()
    prepare_inference(net, image, operators=True)
"""
)


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, where only `variables` say what oneDNN may use."""
    kept = {k: v for k, v in os.environ.items() if k not in processor.ONEDNN_LIMITS}
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
    )


@pytest.mark.timeout(1200)  # whole files, and on a new machine a build before the first
@pytest.mark.parametrize("name", TESTS)
def test_the_operators_pass_with_blocks_of_8_too(name: str, unit_operators: None) -> None:
    if block_channels() == 8:  # then these tests themselves have run with them
        assert "blocks of 8" in load(UNITS)
        return
    arguments = ("pytest", "-q", "-p", "no:cacheprovider", "-k", "not where_a_comma")
    done = python("-m", *arguments, f"tests/model/execution/test_{name}.py", ATTENTION_ISA="avx2")
    assert done.returncode == 0, done.stdout
    assert re.search(r"^\d+ passed(?!.*skipped)", done.stdout.splitlines()[-1]), done.stdout


@pytest.mark.parametrize("isa", ["avx2", ""])
def test_no_convolution_is_by_the_reference_code(isa: str, unit_operators: None) -> None:
    done = python("-c", STEP, ONEDNN_VERBOSE="1", DNNL_VERBOSE="0", ATTENTION_ISA=isa)
    assert done.returncode == 0, done.stderr
    found = re.search(r", blocks of (\d+)\)", done.stdout)
    assert found
    block = int(found[1])
    assert block == 8 or not isa
    lines = [line for line in done.stdout.splitlines() if ",cpu,convolution," in line]
    kinds = {line.split(",")[5] for line in lines}
    assert kinds == {"forward_training", "forward_inference", "backward_data", "backward_weights"}
    for line in lines:
        assert re.search(r",(jit|brg)\w*:avx", line), line
        assert f"aBcd{block}b" in line, line
        assert "acdb" not in line, line


def test_blocks_are_those_that_onednn_is_left_with(unit_operators: None) -> None:
    code = "from model.native.onednn import open_onednn; print(open_onednn(16).block)"
    assert python("-c", code, ONEDNN_MAX_CPU_ISA="AVX2").stdout == "8\n"
    assert python("-c", code, ATTENTION_ISA="avx2").stdout == "8\n"
    assert python("-c", code).stdout == f"{block_channels()}\n"


def test_mxnets_own_onednn_stops_there_too() -> None:
    done = python("-c", MXNETS_CONVOLUTION, DNNL_VERBOSE="1", ATTENTION_ISA="avx2")
    assert done.returncode == 0, done.stderr
    said = [line.split("isa:")[-1] for line in done.stdout.splitlines() if "info,cpu,isa:" in line]
    assert said
    assert set(said) == {"Intel AVX2"}


def test_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "avx2 fma avx512f avx512_vnni amx_tile avx_vnni_int8 avx"
    monkeypatch.setattr(
        Path, "read_text", lambda *_, **__: f"model name\t: one\nflags\t\t: {words}"
    )
    for value, found in ((None, words), ("", words), ("avx2", "avx2 fma avx")):
        monkeypatch.delenv(processor.ISA_VARIABLE, raising=False)
        if value is not None:
            monkeypatch.setenv(processor.ISA_VARIABLE, value)
        assert operators.cpu_identity().split() == f"model name : one flags : {found}".split()


def test_anything_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(operators.SWITCH, raising=False)
    monkeypatch.setattr(operators, "_loaded", {})
    monkeypatch.setenv(processor.ISA_VARIABLE, "avx512")
    message = r"^ATTENTION_ISA=avx512 is unknown: avx2 leaves"
    for asked in (lambda: load(UNITS), processor.limit_onednn, operators.cpu_identity):
        with pytest.raises(Unavailable, match=message):
            asked()


@pytest.mark.parametrize(
    "command",
    [
        ["train_cifar.py", "--dataset", "shapes"],
        ["train_imagenet.py", "--data-dir", "none"],
        ["train_mnist_glimpse.py", "--dataset", "digits"],
        ["export_model.py", "none.param", "--to", "symbol"],
    ],
    ids=lambda command: command[0],
)
def test_scripts_refuse_it_in_one_line(command: list[str]) -> None:
    done = python(*command, ATTENTION_ISA="sse")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ATTENTION_ISA=sse is unknown: avx2 leaves")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("without", "block"), [("", 16), ("avx512dq", 8), ("avx512_bf16", 16), ("avx512bw", 8)]
)
def test_blocks_of_16_take_what_onednns_convolutions_do(
    without: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "_loaded", {})
    monkeypatch.setattr(
        operators, "cpu_identity", lambda: " ".join(set(AVX512.split()) - {without})
    )
    assert block_channels() == block


@pytest.mark.filterwarnings("ignore:Cannot decide type for the following arguments")
@pytest.mark.filterwarnings("ignore:Please import `csr_matrix`:DeprecationWarning")
@pytest.mark.parametrize(
    ("flags", "told"), [("avx2 fma", True), ("avx2 avx_vnni", False), ("avx512_vnni", False)]
)
def test_8_bits_that_other_processors_compute_otherwise_are_told(
    flags: str, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantization, "cpu_identity", lambda: f"flags : {flags}")
    net = create_model("resnet20", depth=11)
    net.initialize()
    image = mx.nd.random.normal(shape=(4, 3, 16, 16))
    prepared = quantization.quantize(net, image, max_loss=1.0, operators=False)
    assert (quantization.INEXACT in prepared.steps) == told


def test_importing_changes_no_setting() -> None:
    names = processor.ONEDNN_LIMITS
    code = (
        "import os, model.execution.fused_training, model.execution.inference\n"
        f"print([os.environ.get(name) for name in {names}])"
    )
    done = python("-c", code, ATTENTION_ISA="avx2")
    assert done.stdout.strip() == "[None, None]", done.stderr
