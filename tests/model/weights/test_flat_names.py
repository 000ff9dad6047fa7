"""Whatever MXNet itself has saved loads, though it calls tensors by the prefixes of blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest

from formats.weight_file import write_card
from model import create_model
from model.export.export_files import export_symbol
from model.export.tracing import trace
from model.weights.file_match import LoadError, find_model
from model.weights.flat_names import from_flat, is_flat
from model.weights.loading import load_parameters

IMAGES = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype("f4")


@pytest.fixture(scope="module")
def net() -> Any:
    mx.random.seed(3)
    np.random.seed(3)
    net = create_model("resnet20_basic_ram", 3)
    net.initialize(mx.init.Xavier())
    net.hybridize()
    net(mx.nd.array(IMAGES))
    for name, parameter in net._collect_params_with_prefix().items():
        if name.endswith("running_mean"):
            parameter.set_data(mx.nd.random.normal(shape=parameter.shape))
    return net


def exported(net: Any, place: Path) -> Path:
    net(mx.nd.array(IMAGES))
    net.export(str(place / "net"))
    return place / "net-0000.params"


def collected(net: Any, place: Path) -> Path:
    net.collect_params().save(str(place / "net.params"))
    return place / "net.params"


def without_prefix(net: Any, place: Path) -> Path:
    """As `save_params` did before MXNet 1.3."""
    net.collect_params().save(str(place / "net.params"), strip_prefix=net.prefix)
    return place / "net.params"


def module_checkpoint(net: Any, place: Path) -> Path:
    symbol = net(mx.sym.var("data"))
    module = mx.mod.Module(symbol, label_names=None)
    module.bind([("data", IMAGES.shape)], for_training=False)
    values = {p.name: p.data() for p in net.collect_params().values()}
    auxiliary = set(symbol.list_auxiliary_states())
    module.set_params(
        {name: value for name, value in values.items() if name not in auxiliary},
        {name: value for name, value in values.items() if name in auxiliary},
    )
    module.save_checkpoint(str(place / "module"), 1)
    return place / "module-0001.params"


def our_symbol(net: Any, place: Path) -> Path:
    export_symbol(trace(net), str(place / "ours"), {"card": '{"card":1}'})
    path = place / "ours-0000.params"
    write_card(path, None)
    return path


@pytest.mark.parametrize(
    "save", [exported, collected, without_prefix, module_checkpoint, our_symbol]
)
def test_files_of_mxnet_load(net: Any, tmp_path: Path, save: Any) -> None:
    path = save(net, tmp_path)
    assert find_model(path) == ("resnet20_basic_ram", 3)
    other = create_model("resnet20_basic_ram", 3)
    load_parameters(other, path, mx.cpu())
    np.testing.assert_array_equal(
        other(mx.nd.array(IMAGES)).asnumpy(), net(mx.nd.array(IMAGES)).asnumpy()
    )
    with pytest.raises(LoadError):
        load_parameters(create_model("resnet20_basic", 3), path, mx.cpu())


def test_glimpse_models_are_found_by_such_names(tmp_path: Path) -> None:
    net = create_model("glimpse_mnist_209677")
    net.initialize()
    path = collected(net, tmp_path)
    assert find_model(path) == ("glimpse_mnist_209677", 10)


def test_a_scalar_belongs_to_no_network(net: Any, tmp_path: Path) -> None:
    shapes = {name: p.shape for name, p in mx.nd.load(str(collected(net, tmp_path))).items()}
    assert find_model(shapes) == ("resnet20_basic_ram", 3)
    (bias,) = [name for name, shape in shapes.items() if shape == (3,)]
    assert find_model({**shapes, bias: ()})[0] is None


def test_other_names_are_left_alone(net: Any) -> None:
    names = {name: (1,) for name in net._collect_params_with_prefix()}
    assert not is_flat(names)
    assert not is_flat(["weight", "bias"])
    assert from_flat({"a_weight": 1}, net) is None
