"""Training in PyTorch, against MXNet; PyTorch is in an environment of its own, .venv-torch.

The checks are functions of torch_checks.py; each is a test here. Without that environment (make
test-bridge makes it) they skip.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import pytest

from benchmarks.bridge.compare_decisions import agreement
from formats.errors import UserError
from formats.param_file import write_params

ROOT = Path(__file__).resolve().parents[2]
RunTorch = Callable[..., "subprocess.CompletedProcess[str]"]
CHECKS = Path(__file__).with_name("torch_checks.py")
NAMES = [
    node.name
    for node in ast.parse(CHECKS.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]


@pytest.fixture(scope="module")
def run_torch(torch_python: str) -> RunTorch:
    """Runs the Python that has PyTorch, in the project's folder, with one thread."""

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(
            [torch_python, *argv],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    return run


def write_tiny_network(folder: Path) -> None:
    """Write a symbol with the names of a parameter file, and first weights for it."""
    import mxnet as mx

    image = mx.sym.var("image", shape=(0, 1, 28, 28))
    x = mx.sym.Convolution(
        image,
        mx.sym.var("conv.weight", shape=(16, 1, 3, 3)),
        no_bias=True,
        kernel=(3, 3),
        stride=(2, 2),
        pad=(1, 1),
        num_filter=16,
    )
    kinds = ("gamma", "beta", "running_mean", "running_var")
    x = mx.sym.BatchNorm(
        x, *(mx.sym.var(f"bn.{kind}", shape=(16,)) for kind in kinds), fix_gamma=False
    )
    x = mx.sym.Pooling(mx.sym.relu(x), kernel=(7, 7), stride=(7, 7), pool_type="max")
    weight, bias = mx.sym.var("fc.weight", shape=(10, 64)), mx.sym.var("fc.bias", shape=(10,))
    x = mx.sym.FullyConnected(mx.sym.flatten(x), weight, bias, num_hidden=10)
    (folder / "tiny-symbol.json").write_text(x.tojson())
    rng = np.random.default_rng(0)
    params = {
        "conv.weight": rng.normal(0, 0.3, (16, 1, 3, 3)),
        **{f"bn.{kind}": np.full(16, kind in ("gamma", "running_var")) for kind in kinds},
        "fc.weight": rng.normal(0, 0.2, (10, 64)),
        "fc.bias": np.zeros(10),
    }
    write_params(folder / "tiny.param", {n: a.astype(np.float32) for n, a in params.items()})


def write_mxnet_updates(folder: Path, name: str) -> None:
    """Write what MXNet's optimizer makes of some gradients: with decay (weight) and without."""
    import mxnet as mx

    rng = np.random.default_rng(1)
    first = rng.normal(size=500).astype(np.float32)
    gradients = rng.normal(size=(5, 500)).astype(np.float32)
    momentum = {} if name == "adam" else {"momentum": 0.9}
    results = {}
    for key, wd in (("a.weight", 0.01), ("a.gamma", 0.0)):
        optimizer = mx.optimizer.create(name, learning_rate=0.3, wd=wd, **momentum)
        weight = mx.nd.array(first)
        state, steps = optimizer.create_state(0, weight), []
        for step, gradient in enumerate(gradients, 1):
            optimizer.set_learning_rate(0.3 / step)
            optimizer.update(0, weight, mx.nd.array(gradient), state)
            steps.append(weight.asnumpy())
        results[key] = np.stack(steps)
    np.savez(folder / f"updates-{name}.npz", first=first, gradients=gradients, **results)


@pytest.fixture(scope="module")
def checked(
    run_torch: RunTorch, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Mapping[str, Optional[str]]]:
    """The folder of the checks, and the traceback or None of each."""
    folder = tmp_path_factory.mktemp("torch")
    write_tiny_network(folder)
    for name in ("nag", "sgd", "adam"):
        write_mxnet_updates(folder, name)
    done = run_torch(str(CHECKS), str(folder))
    assert (folder / "results.json").exists(), done.stderr
    return folder, json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_torch_side(checked: Any, name: str) -> None:
    failure = checked[1][name]
    assert failure is None, failure


def mxnet_logits(symbol: Path, params: Path, image: np.ndarray) -> np.ndarray:
    import mxnet as mx

    net = mx.gluon.SymbolBlock.imports(str(symbol), ["image"], str(params))
    logits: np.ndarray = net(mx.nd.array(image)).asnumpy()
    return logits


# MXNet says so of every symbol whose input has no type.
@pytest.mark.filterwarnings("ignore:Cannot decide type")
def test_mxnet_decides_as_pytorch_on_a_file_that_the_bridge_trained(
    checked: Any, run_torch: RunTorch
) -> None:
    from formats.images.preprocessing import normalize
    from training.data.digits import load_digits

    folder = checked[0]
    symbol, output = str(folder / "tiny-symbol.json"), folder / "logits.npz"
    done = run_torch(
        "-m", "bridge.train", "--symbol", symbol, "--recipe", "quick", "--dataset", "digits",
        "--epochs", "3", "--lr", "0.01", "--pad", "0", "--no-flip",
        "--run-dir", str(folder / "longer"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    params = folder / "longer/last.param"
    done = run_torch(
        "-m", "bridge.score", "--symbol", symbol, "--start", str(params), "--dataset", "digits",
        "--output", str(output),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = load_digits()
    image = normalize(data.test.images, data.mean, data.std)
    with np.load(output) as saved:
        result = agreement(
            mxnet_logits(Path(symbol), params, image),
            saved["logits"],
            saved["labels"],
        )
    assert result.images == result.equal == 500
    assert result.largest < 1e-4
    assert result.correct[0] > 100  # of 500; 50 by chance
    assert f"test accuracy {result.correct[0] / 500:.5f} (500 images)" in done.stdout


def test_differing_decisions_are_counted() -> None:
    ours = np.eye(4, 3, dtype=np.float32)
    theirs = ours.copy()
    theirs[1] = (0.5, 0, 0)
    result = agreement(ours, theirs, np.array([0, 1, 2, 0]))
    assert (result.images, result.equal, result.correct) == (4, 3, (4, 3))
    with pytest.raises(UserError, match="same images and classes"):
        agreement(ours, theirs[:3], np.array([0, 1, 2, 0]))


def test_the_bridge_imports_without_mxnet_and_its_helpers(run_torch: RunTorch) -> None:
    code = (
        "import sys\n"
        "for name in ('mxnet', 'gluoncv', 'mxboard', 'tqdm', 'requests', 'PIL', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "import bridge.train, bridge.bench, bridge.score\n"
        "import bridge.loop.prepare, training.reports.compare\n"
    )
    done = run_torch("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.data
def test_real_images_are_decided_equally(
    data_dir: Path, tmp_path: Path, run_torch: RunTorch
) -> None:
    """The published network of 86 % on 300 test images of CIFAR-10, by both."""
    from benchmarks.bridge.compare_decisions import mxnet_logits as known_logits
    from model.export.export_symbol import export_symbol

    (path,) = ROOT.glob("cifar_param/attention56_small_cifar10_*.param")
    symbol, output = tmp_path / "net-symbol.json", tmp_path / "logits.npz"
    export_symbol(str(path), symbol)
    done = run_torch(
        "-m", "bridge.score", "--symbol", str(symbol), "--start", str(path), "--count", "300",
        "--data-dir", str(data_dir), "--output", str(output),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours, labels = known_logits(str(path), ["--data-dir", str(data_dir)], 300)
    with np.load(output) as saved:
        result = agreement(ours, saved["logits"], labels)
    assert result.images == result.equal == 300
    assert result.correct[0] > 230
    assert result.largest < 1e-3
