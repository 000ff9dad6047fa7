"""Loading into networks: all or nothing, whatever is wrong with the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Optional

import mxnet as mx
import numpy as np
import pytest
from gluoncv.model_zoo import cifar_residualattentionnet56
from mxnet.gluon import nn

from formats.param_file import read_params, write_params
from formats.param_reader import ParamFileError
from model.layers.attention_presets import AttentionSpec
from model.registry import create_model
from model.residual_attention_network import ResidualAttentionNetwork
from model.weights.dialects import GLUONCV, HEAD, PRE, rename
from model.weights.file_match import LoadError, find_model
from model.weights.loading import load_parameters


class Tiny(nn.HybridBlock):
    """A network with what matters for loading: running statistics, a classifier named fc."""

    def __init__(self, classes: int = 3, in_channels: int = 2, in_units: int = 4) -> None:
        super().__init__()
        with self.name_scope():
            self.conv1 = nn.Conv2D(4, 1, in_channels=in_channels)
            self.bn = nn.BatchNorm(in_channels=in_units)
            self.fc = nn.Dense(classes, in_units=in_units)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return self.fc(F.mean(self.bn(self.conv1(x)), axis=(2, 3)))


def tiny_params(classes: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.RandomState(3)
    shapes = {name: p.shape for name, p in parameters(Tiny(classes)).items()}
    return {name: rng.rand(*shape).astype("f4") for name, shape in shapes.items()}


def parameters(net: nn.HybridBlock) -> dict[str, mx.gluon.Parameter]:
    return dict(net._collect_params_with_prefix())


def values(net: nn.HybridBlock, ctx: Optional[mx.Context] = None) -> dict[str, np.ndarray]:
    return {name: p.data(ctx).asnumpy() for name, p in parameters(net).items()}


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.fixture
def tiny_file(tmp_path: Path) -> str:
    path = str(tmp_path / "tiny.param")
    write_params(path, tiny_params())
    return path


def deferred() -> Tiny:
    return Tiny(in_channels=0, in_units=0)


def initialized(net: nn.HybridBlock, ctx: Any = None) -> nn.HybridBlock:
    net.initialize(mx.init.Xavier(), ctx=ctx)
    return net


@pytest.mark.parametrize("ctx", [None, mx.cpu(0), mx.cpu(1), [mx.cpu(0), mx.cpu(1)]], ids=str)
@pytest.mark.parametrize(
    "make",
    [Tiny, deferred, lambda: initialized(Tiny()), lambda: initialized(deferred())],
    ids=["uninitialized", "deferred", "initialized", "initialized deferred"],
)
def test_loads_into_every_state_on_every_context(tiny_file: str, make: Any, ctx: Any) -> None:
    net = make()
    assert load_parameters(net, tiny_file, ctx) == "verified"
    contexts = [mx.cpu()] if ctx is None else ctx if isinstance(ctx, list) else [ctx]
    for parameter in parameters(net).values():
        assert set(parameter.list_ctx()) == set(contexts)
    for context in contexts:
        assert_equal(values(net, context), tiny_params())
        assert net(mx.nd.ones((2, 2, 1, 1), ctx=context)).shape == (2, 3)


def test_without_ctx_an_initialized_net_stays_where_it_is(tiny_file: str) -> None:
    net = initialized(Tiny(), [mx.cpu(1), mx.cpu(2)])
    load_parameters(net, tiny_file)
    assert net.fc.weight.list_ctx() == [mx.cpu(1), mx.cpu(2)]
    assert_equal(values(net, mx.cpu(2)), tiny_params())


def test_equals_gluons_own_loader_and_draws_no_random_numbers(tiny_file: str) -> None:
    theirs, ours = Tiny(), Tiny()
    theirs.load_parameters(tiny_file)
    mx.random.seed(5)
    expected = mx.nd.random.uniform(shape=3).asnumpy()
    mx.random.seed(5)
    load_parameters(ours, tiny_file)
    np.testing.assert_array_equal(mx.nd.random.uniform(shape=3).asnumpy(), expected)
    image = mx.nd.random.uniform(shape=(2, 2, 3, 3))
    np.testing.assert_array_equal(ours(image).asnumpy(), theirs(image).asnumpy())


def test_a_hybridized_net_computes_with_the_new_values(tiny_file: str) -> None:
    net, image = initialized(Tiny()), mx.nd.ones((1, 2, 2, 2))
    net.hybridize(static_alloc=True, static_shape=True)
    before = net(image).asnumpy()
    load_parameters(net, tiny_file)
    eager = Tiny()
    load_parameters(eager, tiny_file)
    assert not np.array_equal(net(image).asnumpy(), before)
    np.testing.assert_allclose(net(image).asnumpy(), eager(image).asnumpy(), rtol=1e-6)


def test_digest_absent_and_wrong(tiny_file: str) -> None:
    data = bytearray(Path(tiny_file).read_bytes())
    data[-200] ^= 1  # one bit of a weight: only the digest can tell
    Path(tiny_file).write_bytes(bytes(data))
    net = initialized(Tiny())
    before = values(net)
    with pytest.raises(ParamFileError, match="SHA-256"):
        load_parameters(net, tiny_file)
    assert_equal(values(net), before)
    Path(tiny_file + ".sha256").unlink()
    assert load_parameters(net, tiny_file) == "unverified"


def change(**edits: Any) -> dict[str, np.ndarray]:
    arrays = {**tiny_params(), **{n.replace("__", "."): v for n, v in edits.items()}}
    return {name: array for name, array in arrays.items() if array is not None}


BAD = {
    "missing": (change(bn__gamma=None), r"missing in the file: bn.gamma"),
    "unexpected": (change(extra=np.ones(1, "f4")), r"not in the network: extra"),
    "shape": (
        change(conv1__weight=np.ones((4, 9, 1, 1), "f4")),
        r"conv1.weight \(4, 9, 1, 1\) in the file, \(4, 2, 1, 1\) in the network",
    ),
    "last one wrong": (change(fc__bias=np.ones((3, 1), "f4")), r"fc.bias \(3, 1\)"),
    "classes": (tiny_params(7), "Only the number of classes differs.*--finetune"),
    "integers": (change(fc__bias=np.ones(3, "i4")), "element type int32"),
    "overflow": (change(fc__bias=np.array([1, 1e300, 2])), r"1e\+300, too large.*float32"),
    "arg and aux": (
        {**{"arg:" + n: a for n, a in tiny_params().items()}, "aux:fc.bias": np.ones(3, "f4")},
        "with arg: and with aux:",
    ),
    "nothing": ({}, "a file without arrays"),
    "another network": (
        {f"features.{i}.weight": np.ones(1, "f4") for i in range(9)},
        r"missing in the file: conv1.weight, conv1.bias, bn.gamma, ... \(8 in all\)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_does_not_fit_changes_nothing(tmp_path: Path, case: str) -> None:
    arrays, words = BAD[case]
    path = str(tmp_path / "bad.param")
    write_params(path, arrays)
    net, fresh = initialized(Tiny()), Tiny()
    before = values(net)
    for target in (net, fresh):
        with pytest.raises((LoadError, ParamFileError), match=words) as caught:
            load_parameters(target, path)
        assert path in str(caught.value)
    assert_equal(values(net), before)
    assert all(parameter._data is None for parameter in parameters(fresh).values())


@pytest.mark.parametrize("ctx", [mx.gpu(7), [], "cpu", [mx.cpu(), mx.gpu(7)]], ids=str)
def test_unusable_contexts_change_nothing(tiny_file: str, ctx: Any) -> None:
    net = Tiny()
    with pytest.raises(LoadError, match=r"gpu\(7\) cannot be used|Expected a Context"):
        load_parameters(net, tiny_file, ctx)
    assert all(parameter._data is None for parameter in parameters(net).values())


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_other_float_types_are_cast_and_reported(tmp_path: Path, dtype: str) -> None:
    path = str(tmp_path / "cast.param")
    arrays = change(fc__bias=np.array([0.1, -np.inf, np.nan], dtype))
    write_params(path, arrays)
    net = Tiny()
    result = load_parameters(net, path)
    assert result == "verified"
    assert result.cast == ("fc.bias",)
    assert_equal(values(net), {n: a.astype("f4") for n, a in arrays.items()})


def test_loads_into_a_half_precision_net(tiny_file: str) -> None:
    net = Tiny()
    net.cast("float16")
    result = load_parameters(net, tiny_file)
    assert "conv1.weight" in result.cast
    np.testing.assert_array_equal(
        net.fc.weight.data().asnumpy(), tiny_params()["fc.weight"].astype("f2")
    )


def test_arg_and_aux_prefixes_are_stripped(tmp_path: Path) -> None:
    path = str(tmp_path / "symbol.params")
    prefixed = {("aux:" if "running" in n else "arg:") + n: a for n, a in tiny_params().items()}
    write_params(path, prefixed)
    net = Tiny()
    load_parameters(net, path)
    assert_equal(values(net), tiny_params())


@pytest.mark.parametrize("state", ["uninitialized", "deferred", "initialized"])
def test_finetuning_keeps_a_classifier_with_other_classes(tiny_file: str, state: str) -> None:
    net = Tiny(classes=5) if state == "uninitialized" else Tiny(5, 0, 0)
    if state == "initialized":
        net = initialized(Tiny(classes=5))
        head = values(net)["fc.weight"]
    elif state == "deferred":
        initialized(net)
    result = load_parameters(net, tiny_file, mx.cpu(1), allow_classes_mismatch=True)
    assert result.fresh == ("fc.weight", "fc.bias")
    assert net(mx.nd.ones((1, 2, 2, 2), ctx=mx.cpu(1))).shape == (1, 5)
    loaded, stored = values(net), tiny_params()
    assert_equal({n: loaded[n] for n in stored if n[:2] != "fc"}, without_head(stored))
    assert loaded["fc.weight"].any()
    if state == "initialized":
        np.testing.assert_array_equal(loaded["fc.weight"], head)


def without_head(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in arrays.items() if not name.startswith("fc.")}


def test_finetuning_loads_a_classifier_that_fits_and_refuses_other_differences(
    tmp_path: Path, tiny_file: str
) -> None:
    net = Tiny()
    assert load_parameters(net, tiny_file, allow_classes_mismatch=True).fresh == ()
    assert_equal(values(net), tiny_params())
    path = str(tmp_path / "wide.param")
    write_params(path, change(fc__weight=np.ones((5, 9), "f4"), fc__bias=np.ones(5, "f4")))
    with pytest.raises(LoadError, match=r"fc.weight \(5, 9\)"):
        load_parameters(Tiny(), path, allow_classes_mismatch=True)


def small_attention(old_names: bool = False) -> ResidualAttentionNetwork:
    spec = AttentionSpec((1, 2, 1), 8, (8, 8, 8), 8, old_names=old_names)
    return ResidualAttentionNetwork(spec)


@pytest.mark.parametrize("old_net", [False, True])
@pytest.mark.parametrize("dialect", [HEAD, PRE, GLUONCV])
def test_dialects_load_into_either_name_tree(tmp_path: Path, dialect: str, old_net: bool) -> None:
    path, source = str(tmp_path / "f.param"), initialized(small_attention())
    write_params(path, rename(values(source), dialect))
    net = small_attention(old_net)
    result = load_parameters(net, path)
    assert result.renamed_from == (None if dialect == (PRE if old_net else HEAD) else dialect)
    assert_equal(values(net), rename(values(source), PRE if old_net else HEAD))
    image = mx.nd.random.uniform(shape=(1, 3, 16, 16))
    np.testing.assert_array_equal(net(image).asnumpy(), source(image).asnumpy())


def test_dialects_load_into_gluoncvs_own_network(tmp_path: Path) -> None:
    path, source = str(tmp_path / "f.param"), initialized(create_model("attention56"))
    source.save_parameters(path)
    net = cifar_residualattentionnet56()
    assert load_parameters(net, path).renamed_from == HEAD
    net.save_parameters(path)
    assert_equal(rename(read_params(path), HEAD), values(source))
    write_params(path, {**read_params(path), "attention_module9.5.x": np.ones(1, "f4")})
    with pytest.raises(LoadError, match=r"not in the network: attention_module9_6\.x"):
        load_parameters(create_model("attention56"), path)


@pytest.mark.parametrize("dialect", [HEAD, PRE, GLUONCV])
def test_the_wrong_model_is_named_and_the_right_one_advised(tmp_path: Path, dialect: str) -> None:
    source, path = create_model("attention56_small", classes=7), str(tmp_path / "f.param")
    write_params(path, rename(values(initialized(source)), dialect))
    words = (
        r"Attention-56(?:, with PistonY's names)? \(450 tensors, [\d,]+ numbers, 7 classes\), "
        r"the network is .*Attention-92 \(750 tensors.*missing in the file: "
        r".*--model attention56_small.*create_model\('attention56_small', classes=7\)"
    )
    with pytest.raises(LoadError, match=words):
        load_parameters(create_model("attention92"), path)


def test_find_model() -> None:
    shapes = {n: p.shape for n, p in parameters(create_model("attention92", classes=4)).items()}
    assert find_model(rename(shapes, GLUONCV)) == ("attention92", 4)
    assert find_model({"fc.weight": (3, 4)}) == (None, 3)
    glimpse = create_model("glimpse_mnist", classes=12)
    shapes = {name: p.shape for name, p in parameters(glimpse).items()}
    assert find_model(shapes) == ("glimpse_mnist", 12)
    assert find_model({"conv.weight": (3, 4)}) == (None, 0)
    assert find_model({"conv1.0.weight": (), "fc.weight": (10, 4)}) == (None, 10)


def test_finetuning_an_uninitialized_net_of_unknown_shapes_leaves_nothing_deferred(
    tiny_file: str,
) -> None:
    net = Tiny(5, 0, 0)
    load_parameters(net, tiny_file, allow_classes_mismatch=True)
    assert values(net)["fc.weight"].shape == (5, 4)  # before any forward pass
    assert not values(net)["fc.bias"].any()
