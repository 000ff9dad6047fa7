"""Networks in PyTorch against MXNet: outputs, gradients, training steps, decisions, files.

`python -m benchmarks.bridge.bridge_parity` does this for every network; here are small ones of each
kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest

from benchmarks.bridge import bridge_pair, bridge_parity
from benchmarks.bridge.bridge_cases import Size, make_case
from benchmarks.bridge.bridge_pair import Pair
from benchmarks.bridge.bridge_parity import compare_case, too_large, write_docs
from benchmarks.harness.interleave import Worker
from formats.errors import UserError
from formats.param_file import read_params, write_params
from model import create_model
from model.export.export_symbol import symbol_json
from model.weights.loading import load_parameters
from train_cifar import test as score
from training.data.shapes import load_shapes

EXACT = 1e-9
NETWORKS: dict[str, dict[str, Any]] = {
    "attention56_small": {},
    "preresnet20_basic_ram": {"steps": 3, "w_init": 0.2},
    "resnet20_dia": {},
    "preresnet20_basic_cbam": {},
    "resnet20_basic_srm": {},
    "resnet20_basic_eca": {},
    "resnet20_se": {},
    "glimpse_mnist": {"core": "lstm", "first_location": "context", "num_patches": 2},
}
NETWORKS["glimpse_mnist"]["glimpse_scale"] = 2.0


@pytest.fixture(scope="module")
def pair(torch_python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = str(tmp_path_factory.mktemp("pair"))
    command = [torch_python, "-m", "benchmarks.bridge.torch_symbol"]
    with Worker("PyTorch", command, {"OMP_NUM_THREADS": "1"}, timeout_sec=250) as worker:
        yield Pair(worker, folder)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_computes_and_trains_as_in_mxnet(name: str, pair: Pair) -> None:
    record = compare_case(pair, make_case(name, **NETWORKS[name]), steps=10)
    assert not too_large(record)
    if not name.startswith("glimpse"):
        assert record["gradients"] < EXACT
        assert record["loss"] < 1e-6


@pytest.mark.parametrize(
    "changes",
    [{"attention": "channel"}, {"attention": "spatial", "learning": "nal"}, {"wiring": "paper"}],
    ids=str,
)
def test_variants_of_the_soft_mask_are_the_same(changes: dict[str, Any], pair: Pair) -> None:
    case = make_case("attention56_small", Size(2, 16), **changes)
    inputs = case.inputs(np.random.RandomState(0))
    found = pair.compare(case.symbol, case.arrays, inputs, True, "float64")
    assert max(found["forward"], found["gradients"]) < EXACT


def test_a_file_comes_back_with_the_same_bytes(pair: Pair, tmp_path: Path) -> None:
    net = create_model("attention56_small")
    net.initialize()
    net(mx.nd.zeros((1, 3, 16, 16)))
    net.save_parameters(str(tmp_path / "in.param"))
    (tmp_path / "net.json").write_text(symbol_json(net))
    names = {"symbol": tmp_path / "net.json", "weights": tmp_path / "in.param"}
    paths = {key: str(path) for key, path in names.items()}
    pair.worker.ask(do="save", out=str(tmp_path / "out.param"), **paths)
    assert (tmp_path / "out.param").read_bytes() == (tmp_path / "in.param").read_bytes()
    assert load_parameters(net, tmp_path / "out.param") == "verified"


def test_a_network_trained_in_pytorch_decides_the_same_in_mxnet(pair: Pair, tmp_path: Path) -> None:
    case = make_case("resnet20_basic_ram", Size(50, 16), depth=8)
    data = load_shapes(100, 300).test
    image = data.images.transpose(0, 3, 1, 2)[:, :, ::2, ::2].astype(np.float32) / 128 - 1
    batches = {"image": image[:200].reshape(4, 50, 3, 16, 16)}
    batches["label"] = data.labels[:200].reshape(4, 50).astype(np.float32)
    trained = pair.train(case, batches, "float32")
    weights = tmp_path / "trained.param"
    write_params(weights, trained.found)

    paths = pair.write(case.symbol, input={"image": image})
    answer = pair.worker.ask(
        do="decide", symbol=paths["symbol"], images=paths["arrays"], weights=str(weights)
    )
    right = int((np.array(answer["classes"]) == data.labels).sum())

    net = create_model("resnet20_basic_ram", depth=8)
    load_parameters(net, weights)
    loader = [(mx.nd.array(image[i : i + 60]), data.labels[i : i + 60]) for i in (0, 60, 120)]
    loader += [(mx.nd.array(image[180:]), data.labels[180:])]
    _, accuracy = score(net, mx.cpu(), loader)
    assert round(accuracy * len(image)) == right
    with mx.autograd.predict_mode():
        assert answer["classes"] == net(mx.nd.array(image)).asnumpy().argmax(1).tolist()


def test_a_loss_curve_of_the_glimpse_network_is_the_same(pair: Pair) -> None:
    case = make_case("glimpse_mnist", hidden_size=16, glimpse_hidden=8, num_glimpses=3)
    record = bridge_parity.compare_curve(pair, case, 30, "float32")
    np.testing.assert_allclose(record["torch"], record["mxnet"], rtol=1e-5)
    assert record["mxnet"][-1] < record["mxnet"][0]


def test_a_difference_is_seen() -> None:
    record = {"model": "x", "forward": 2e-5, "gradients": 1e-12, "statistics": float("nan")}
    assert [line.partition(",")[0] for line in too_large(record)] == [
        "x: forward",
        "x: running statistics nan",
    ]
    with pytest.raises(UserError, match="shape"):
        bridge_pair.difference(np.zeros(2), np.zeros(3))
    with pytest.raises(UserError, match="one side"):
        bridge_pair.worst({"a": np.zeros(1)}, {"b": np.zeros(1)})
    assert bridge_pair.difference(np.array([1.0, 2.5]), np.array([1.0, 2.0])) == 0.25


def test_the_table_goes_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{bridge_parity.BEGIN}\nold\n{bridge_parity.END}\nafter\n")
    write_docs("new", page)
    assert page.read_text().split() == [
        "before",
        *bridge_parity.BEGIN.split(),
        "new",
        *bridge_parity.END.split(),
        "after",
    ]
    page.write_text("nothing")
    with pytest.raises(UserError, match="lacks the lines"):
        write_docs("new", page)


def test_unknown_networks_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        bridge_parity.main(["--models", "resnet21"])
    assert "resnet21" in capsys.readouterr().err


# MXNet says so of every symbol whose input has no type.
@pytest.mark.filterwarnings("ignore:Cannot decide type")
def test_an_exported_symbol_and_its_file_load_in_gluon(tmp_path: Path) -> None:
    net = create_model("resnet20_basic_ram", depth=8)
    net.initialize()
    image = mx.nd.random.normal(shape=(2, 3, 8, 8))
    expected = net(image).asnumpy()
    net.save_parameters(str(tmp_path / "net.param"))
    (tmp_path / "net.json").write_text(symbol_json(net))
    assert set(read_params(tmp_path / "net.param")) == set(net._collect_params_with_prefix())
    block = mx.gluon.SymbolBlock.imports(
        str(tmp_path / "net.json"), ["image"], str(tmp_path / "net.param")
    )
    np.testing.assert_array_equal(block(image).asnumpy(), expected)
