"""A processor that has no bfloat16; settings let any processor pass for one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
NETWORK = "--recipe quick --dataset shapes --model resnet20 --train-count 64"
PREPARE = """
import mxnet as mx
from model import create_model
from model.execution.inference import prepare_inference

net = create_model("resnet20")
net.initialize()
try:
    prepare_inference(net, mx.nd.ones((2, 3, 32, 32)), "bfloat16")
except ValueError as error:
    print(error)
"""


def run_without_avx512(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run Python where the project and oneDNN, MXNet's and the other, stop at AVX2."""
    limits = {
        "ATTENTION_ISA": "avx2",
        "DNNL_MAX_CPU_ISA": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    }
    return subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=ROOT,
        env={**os.environ, **limits, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("fused", ["auto", "off"])
def test_training_is_refused_with_one_line(tmp_path: Path, fused: str) -> None:
    folder = tmp_path / "run"
    settings = f"--epochs 1 --precision bfloat16 --fused {fused} --run-dir {folder}"
    done = run_without_avx512("train_cifar.py", *NETWORK.split(), *settings.split())
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "no bfloat16 convolution for this processor" in done.stderr.splitlines()[-1]
    assert not folder.exists()


def test_preparing_for_inference_says_what_is_missing() -> None:
    done = run_without_avx512("-c", PREPARE)
    assert done.returncode == 0, done.stderr
    assert "bfloat16 takes a processor with AVX-512" in done.stdout
