"""Networks prepared for inference against the networks that they come from."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from model import create_model
from model.execution import inference_graphs
from model.execution.graph import Graph
from model.execution.graph_rewrite import fold_batch_norms, fold_shapes
from model.execution.inference import prepare_inference
from model.execution.quantization import AccuracyError, quantize
from model.weights.loading import load_parameters
from tests.model.execution.prepared_checks import (
    QUIET,
    as_trained,
    difference,
    images,
    prepared_without_warning,
)
from tests.model.native.processor import BFLOAT16, LANES, without_operators

ROOT = Path(__file__).resolve().parents[3]
THIN: dict[str, Any] = {"channels": (4, 8, 8), "depth": 11}
TINY: dict[str, Any] = {
    "modules": (1, 1),
    "channels": (8, 16),
    "mask_depths": (2, 1),
    "stem_channels": 4,
    "tail_channels": 16,
    "tail_units": 1,
}
RESNETS = ("", "_static", "_ram", "_ie", "_se", "_eca", "_srm", "_cbam", "_dia")
pytestmark = QUIET


def trained(name: str, **overrides: Any) -> Any:
    return as_trained(create_model(name, **overrides), "gate.w", "gate.b")


def assert_same(net: Any, prepared: Any, image: Any, tolerance: float = 1e-5) -> None:
    assert difference(net, prepared, image) <= tolerance


@pytest.mark.parametrize("gate", RESNETS)
@pytest.mark.parametrize("version", ["", "pre"])
def test_resnets_give_the_same(version: str, gate: str) -> None:
    net = trained(f"{version}resnet20{gate}", **THIN)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where fusion is left out is another test's matter
        prepared = prepare_inference(net, images(3, 16))
    for image in (images(3, 16), images(5, 16, seed=1), images(1, 16, seed=2)):
        assert_same(net, prepared, image)


def test_a_gate_that_cannot_be_folded_stays() -> None:
    net = create_model("resnet20_ram", **THIN, norm_kwargs={"scale": False})
    net.initialize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare_inference(net, images(3, 16))
    assert prepared.steps[0].startswith("gates not folded: ")
    assert_same(net, prepared, images(3, 16))


def test_what_is_done_to_a_recurrent_gate() -> None:
    net = trained("resnet20_ram", **THIN)
    prepared = prepared_without_warning(net, images(3, 16))
    why = without_operators() or f"4 channels, which are no multiple of {LANES}"
    assert prepared.steps == (
        "gates folded",
        "13 normalisations folded",  # 3 units of 3, 3 shortcuts, the stem
        "4 means pooled",  # of 3 gates and before the classifier
        "3 gates broadcast",
        f"not by own operators: {why}",
        "fused by oneDNN",
    )
    assert_same(net, prepared, images(3, 20, 12))  # any size will do
    operators = {node["op"] for node in Graph(prepared.block(mx.sym.var("data")), {}).nodes}
    assert "_sg_mkldnn_conv" in operators
    assert not operators & {"BatchNorm", "Convolution", "dot", "mean", "ones_like"}


@pytest.mark.parametrize("wiring", ["legacy", "paper"])
@pytest.mark.parametrize("attention", ["mixed", "spatial", "channel"])
@pytest.mark.parametrize("size", [(16, 16), (21, 13)])
def test_attention_networks_give_the_same(
    wiring: str, attention: str, size: tuple[int, int]
) -> None:
    net = trained("attention56", wiring=wiring, attention=attention, **TINY)
    prepared = prepare_inference(net, images(3, *size))
    for image in (images(3, *size), images(4, *size, seed=1)):
        assert_same(net, prepared, image)
    with pytest.raises(ValueError, match=r"^prepared for images of .* pixels, got 24x24; call"):
        prepared(images(1, 24))


def test_sizes_are_no_longer_computed() -> None:
    net = trained("attention56", **TINY)
    graph, steps = inference_graphs.rewritten(net, (1, 3, 16, 16))
    assert "6 constants of the image size" in steps  # 3 upsamplings, an axis each
    assert graph.symbol().tojson().count("arange_like") == 0


def test_resnext_units_give_the_same() -> None:
    net = trained("attention56", unit="resnext", groups=2, **TINY)
    assert_same(net, prepare_inference(net, images(3, 16)), images(4, 16, seed=1))


@pytest.mark.parametrize("name", ["attention56_small_shapes", "attention56_small_cifar10"])
def test_trained_files_give_the_same(name: str) -> None:
    (path,) = ROOT.glob(f"cifar_param/{name}_*.param")
    net = create_model("attention56_small")
    load_parameters(net, path, mx.cpu())
    prepared = prepared_without_warning(net, images(2, 32))
    assert prepared.difference < 1e-5
    assert_same(net, prepared, images(3, 32, seed=1))


@pytest.mark.parametrize("modules", [(1, 1), (1, 3)])
def test_bfloat16_is_near(modules: tuple[int, int]) -> None:
    net = trained("attention56", **{**TINY, "modules": modules})
    if not BFLOAT16:
        with pytest.raises(ValueError, match=r"in bfloat16 here \(bfloat16 takes a .* AVX-512\)"):
            prepare_inference(net, images(3, 16), "bfloat16")
        return
    prepared = prepare_inference(net, images(3, 16), "bfloat16")
    assert prepared(images(3, 16)).dtype == np.float32
    assert 1e-5 < prepared.difference < 0.05  # not float32 by another name
    assert_same(net, prepared, images(4, 16, seed=1), tolerance=0.05)


def test_an_exported_one_gives_the_same(tmp_path: Path) -> None:
    net = trained("resnet20_ram", **THIN)
    prepared = prepare_inference(net, images(3, 16))
    prepared.export(str(tmp_path / "net"))
    again = mx.gluon.SymbolBlock.imports(
        str(tmp_path / "net-symbol.json"), ["data"], str(tmp_path / "net-0000.params")
    )
    assert_same(net, again, images(3, 16))


def test_the_network_itself_stays_and_can_be_trained_on() -> None:
    net = trained("resnet20_ram", **THIN)
    before = {key: p.data().asnumpy() for key, p in net._collect_params_with_prefix().items()}
    prepared = prepare_inference(net, images(3, 16))
    expected = prepared(images(3, 16)).asnumpy()
    with autograd.record():  # training mode changes neither outputs nor statistics of the prepared
        found = prepared(images(3, 16))
    # Not the same bits: oneDNN chooses other kernels while gradients are recorded.
    np.testing.assert_allclose(found.asnumpy(), expected, atol=1e-5 * np.abs(expected).max())
    for key, parameter in net._collect_params_with_prefix().items():
        np.testing.assert_array_equal(parameter.data().asnumpy(), before[key])
    with autograd.record():
        loss = net(images(3, 16)).sum()
    loss.backward()
    assert float(mx.nd.abs(net.conv1.weight.grad()).sum().asscalar()) > 0


def test_a_wrong_fusion_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(symbol: Any, values: Any, image: Any) -> Any:
        name = next(name for name in values if name.endswith("folded_bias"))
        return symbol, {**values, name: values[name] + 1}

    net = trained("resnet20", **THIN)
    monkeypatch.setattr(inference_graphs, "fuse_symbol", wrong)
    with pytest.warns(UserWarning, match=r"fusion is left out: it changes the outputs by \d"):
        prepared = prepare_inference(net, images(3, 16))
    assert prepared.steps[-1].startswith("not fused: it changes")
    assert_same(net, prepared, images(3, 16))


def test_a_fusion_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any) -> Any:
        raise mx.MXNetError("no such backend\nstack of calls")

    monkeypatch.setattr(inference_graphs, "fuse_symbol", fails)
    net = trained("resnet20", **THIN)
    with pytest.warns(UserWarning, match="is left out: MXNet failed .no such backend.$"):
        assert_same(net, prepare_inference(net, images(3, 16)), images(3, 16))


def test_a_rewrite_that_changes_the_outputs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = inference_graphs.rewrite.affine_of_norm
    monkeypatch.setattr(
        inference_graphs.rewrite,
        "affine_of_norm",
        lambda *args: (2 * right(*args)[0], right(*args)[1]),
    )
    with pytest.raises(ValueError, match=r"differs by .* of the largest logit, allowed is 1e-05"):
        prepare_inference(trained("resnet20", **THIN), images(3, 16))


@pytest.mark.parametrize(
    ("image", "precision", "message"),
    [
        (np.zeros((1, 3, 16, 16), np.float32), "float16", "unknown precision 'float16'; available"),
        (np.zeros((3, 16, 16), np.float32), "float32", r"must be float32 \(N, C, H, W\).* got"),
        (np.zeros((0, 3, 16, 16), np.float32), "float32", "with N 1 or more"),
    ],
)
def test_what_is_refused(image: Any, precision: str, message: str) -> None:
    net = trained("resnet20", **THIN)
    with pytest.raises(ValueError, match=message):
        prepare_inference(net, image, precision)


def test_shared_and_read_convolutions_are_left() -> None:
    """A convolution that something else reads must keep its weights; so must shared weights."""
    data, weight = mx.sym.var("data"), mx.sym.var("w")
    settings = {"kernel": (1, 1), "num_filter": 2, "no_bias": True}
    first = mx.sym.Convolution(data, weight, name="a", **settings)
    second = mx.sym.Convolution(data, weight, name="b", **settings)
    read = mx.sym.Convolution(data, mx.sym.var("v"), name="c", **settings)
    outputs = mx.sym.BatchNorm(first, name="n") + second + mx.sym.BatchNorm(read, name="m") + read
    names = outputs.list_inputs()
    shapes = {"w": (2, 3, 1, 1), "v": (2, 3, 1, 1)}
    values = {name: mx.nd.ones(shapes.get(name, (2,))) for name in names if name != "data"}
    assert fold_batch_norms(Graph(outputs, values)) == 0


def test_constants_with_one_row_an_image_are_left() -> None:
    data = mx.sym.var("data")
    outputs = mx.sym.batch_dot(mx.sym.ones_like(data), data, transpose_b=True)
    graph = Graph(outputs, {})
    assert fold_shapes(graph, (4, 3, 5)) == 0
    assert graph.count("ones_like") == 1


QUANTIZED = (("resnet20_ram", THIN), ("attention56", TINY))


@pytest.mark.parametrize(("name", "overrides"), QUANTIZED, ids=[n for n, _ in QUANTIZED])
def test_int8_is_near(name: str, overrides: dict[str, Any]) -> None:
    net = trained(name, **overrides)
    prepared = quantize(net, images(8, 16), max_loss=1.0)
    content = prepared.block(mx.sym.var("data")).tojson()
    assert content.count('"quantized": "true"') > 10 or "quantized_conv" in content
    assert_same(net, prepared, images(8, 16, seed=3), 0.25)
    assert not np.array_equal(prepared(images(8, 16)).asnumpy(), net(images(8, 16)).asnumpy())


def test_int8_that_costs_accuracy_is_refused() -> None:
    net = trained("resnet20_ram", **THIN)
    decided = net(images(8, 16)).asnumpy()
    wrong_by_net = decided.argmin(axis=1)  # so that the network is never right
    with pytest.raises(AccuracyError, match=r"float32 1\.0000 on 8 images; .* points are lost"):
        quantize(net, images(8, 16), (images(8, 16), decided.argmax(axis=1)), max_loss=-0.01)
    found = quantize(net, images(8, 16), (images(8, 16), wrong_by_net))
    assert "float32 0.0000 on 8 images" in found.steps[-1]


# In a process of its own: the number of threads only ever grows otherwise.
TEAMS = """
import os, sys, time, warnings
import mxnet as mx
from model import create_model
from model.execution.inference import prepare_inference
from model.execution.threads import release_callers_team
net = create_model("resnet20", 10)
net.initialize()
image = mx.nd.ones((2, 3, 32, 32))
net(image).wait_to_read()
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
if sys.argv[1] == "read":
    [p.data().asnumpy() for p in net.collect_params().values()]
    print(count() - before, end=" ")
    release_callers_team()
else:
    prepare_inference(net, image)
deadline = time.monotonic() + 5  # a thread that has ended is listed for a moment more
while count() > before and time.monotonic() < deadline:
    time.sleep(0.01)
print(max(0, count() - before))  # others may have ended since
"""


@pytest.mark.parametrize(("mode", "more"), [("read", "1 0"), ("prepare", "0")])
def test_no_team_of_threads_stays_beside_the_engines(
    mode: str, more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    command = [sys.executable, "-W", "ignore", "-c", TEAMS, mode]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == more
