"""CIFAR ResNets with channel attention: sizes, file format, gradients, batches of one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

from model import ModelError, create_model, list_models
from model.layers.basic_layer import ResidualBlock
from model.layers.resnet_spec import SPECS, ResNetSpec
from model.layers.resnet_unit import Unit
from model.weights.file_match import find_model
from tests.model.counts import parameter_count

GOLDEN = Path(__file__).parents[1] / "golden"
THIN: dict[str, Any] = {"channels": (8, 8, 16)}

# Counts of the authors' code, of ASR's table and of osmr's networks, for 10 and 100 classes.
COUNTS = [
    ("resnet29", 313_114, 336_244),
    ("resnet29_ram", 318_490, 341_620),
    ("resnet83", 869_530, 892_660),
    ("resnet83_ram", 885_658, 908_788),
    ("resnet164", 1_704_154, 1_727_284),
    ("resnet164_ie", 1_720_282, 1_743_412),
    ("resnet164_ram", 1_736_410, 1_759_540),
    ("resnet164_srm", 1_736_410, 1_759_540),
    ("resnet164_se", 1_906_258, 1_929_388),
    ("resnet164_dia", 1_923_002, 1_946_132),
    ("preresnet164", 1_703_258, 1_726_388),
    ("preresnet164_dia", 1_922_106, 1_945_236),
    ("resnet245", 2_538_778, 2_561_908),
    ("resnet245_ram", 2_587_162, 2_610_292),
]


@pytest.mark.parametrize(("name", "ten", "hundred"), COUNTS)
def test_parameter_counts(name: str, ten: int, hundred: int) -> None:
    assert parameter_count(create_model(name, classes=100))[0] == hundred
    assert hundred - ten == 90 * (256 + 1)


def test_parameter_counts_of_more_steps() -> None:
    counts = [
        parameter_count(create_model("resnet164_ram", classes=100, steps=steps))[0]
        for steps in (3, 4)
    ]
    assert counts == [1_775_668, 1_791_796]
    plain, ram = (parameter_count(create_model(f"resnet20{s}"))[0] for s in ("", "_ram"))
    assert ram - plain == 3_584


def test_names_are_systematic() -> None:
    names = set(list_models())
    assert names >= set(SPECS)
    assert {"resnet164", "resnet164_ram", "resnet20_basic_se", "preresnet164_ram"} <= names
    for name, spec in SPECS.items():
        assert name.startswith("pre") == (spec.version == 2)
        assert f"resnet{spec.depth}" in name
        assert ("_basic" in name) == (spec.block == "basic")


@pytest.mark.parametrize("name", ["resnet20_ram", "preresnet20_basic_ram"])
def test_names_shapes_and_order_are_the_file_format(name: str) -> None:
    """A change here makes every saved file of that network unreadable: take a new name instead."""
    expected = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    found = {
        key: list(p.shape) for key, p in create_model(name)._collect_params_with_prefix().items()
    }
    assert list(found.items()) == list(expected.items())


KINDS = [
    f"{version}resnet{unit}{gate}"
    for version in ("", "pre")
    for unit in ("20", "20_basic")
    for gate in ("", "_ram")
] + [f"resnet20_{gate}" for gate in ("static", "ie", "se", "eca", "dia", "srm", "cbam")]


@pytest.mark.parametrize("name", KINDS)
def test_eager_equals_hybridized_and_every_parameter_learns(name: str) -> None:
    """With w of the RAM gate, and SRM's weights, away from 0, where they are stationary."""
    net = create_model(name, classes=7, reduction=2 if name.endswith(("_se", "_cbam")) else None)
    net.initialize()
    for key, parameter in net._collect_params_with_prefix().items():
        if key.endswith(("gate.w", "cfc")):
            parameter.set_data(mx.nd.random.normal(0, 0.3, shape=parameter.shape))
    image, label = mx.nd.random.normal(shape=(8, 3, 32, 32)), mx.nd.arange(8) % 7
    eager = net(image)
    assert eager.shape == (8, 7)
    net.hybridize(static_alloc=True, static_shape=True)
    scale = float(eager.abs().max().asscalar())
    np.testing.assert_allclose(net(image).asnumpy(), eager.asnumpy(), atol=1e-6 * scale)

    with autograd.record():
        loss = gluon.loss.SoftmaxCrossEntropyLoss()(net(image), label)
    loss.backward()
    for key, parameter in net._collect_params_with_prefix().items():
        if parameter.grad_req != "null":
            gradient = parameter.grad().asnumpy()
            assert np.isfinite(gradient).all(), key
            assert np.abs(gradient).max() > 0, key


def test_first_values() -> None:
    net = create_model("resnet20_ram")
    net.initialize(mx.init.Xavier())  # changes nothing: the layers have their own
    weight = net.layer3.units[0].conv3.weight.data().asnumpy()  # (256, 64, 1, 1)
    assert weight.std() == pytest.approx(np.sqrt(2 / 256), rel=0.05)
    for values in (net.fc.weight.data().asnumpy(), net.fc.bias.data().asnumpy()):
        assert 0.03 < np.abs(values).max() <= 1 / 16
    gate = net.layer1.units[0].gate
    assert (gate.w.data().asnumpy() == 0).all()
    assert (gate.b.data().asnumpy() == -1).all()
    net = create_model("resnet20_ram", w_init=0.1, b_init=-2.0)
    net.initialize()
    assert net.layer1.units[0].gate.w.data().asnumpy().max() == pytest.approx(0.1)
    assert net.layer1.units[0].gate.b.data().asnumpy().max() == -2


@pytest.mark.parametrize("hybridize", [False, True])
@pytest.mark.parametrize("name", ["resnet20_ram", "resnet20_srm"])
def test_a_batch_of_one_is_refused_in_training(name: str, hybridize: bool) -> None:
    net = create_model(name, **THIN)
    net.initialize()
    if hybridize:
        net.hybridize()
    assert net.minimum_batch == 2
    one = mx.nd.random.normal(shape=(1, 3, 8, 8))
    assert net(one).shape == (1, 10)
    with autograd.record(), pytest.raises(ValueError, match="needs 2 or more images per device"):
        net(one)
    net.apply(
        lambda b: (
            b._kwargs.update(use_global_stats=True) if isinstance(b, gluon.nn.BatchNorm) else None
        )
    )
    assert net.minimum_batch == 1


@pytest.mark.parametrize("name", ["resnet20", "resnet20_ie", "resnet20_se", "resnet20_static"])
def test_others_take_a_batch_of_one(name: str) -> None:
    net = create_model(name, **THIN)
    net.initialize()
    assert net.minimum_batch == 1
    with autograd.record():
        assert net(mx.nd.random.normal(shape=(1, 3, 8, 8))).shape == (1, 10)


@pytest.mark.parametrize("size", [9, 48, 96])
def test_any_image_size(size: int) -> None:
    net = create_model("resnet20_basic_ram", **THIN, image_size=96)
    assert net.image_shape == (3, 96, 96)
    net.initialize()
    assert net(mx.nd.random.normal(shape=(2, 3, size, size))).shape == (2, 10)


def test_norm_settings_reach_every_norm() -> None:
    for name in ("resnet20_ram", "preresnet20_srm", "resnet20_cbam"):
        net = create_model(name, norm_kwargs={"epsilon": 0.125})
        norms: list[Any] = []
        net.apply(lambda b: norms.append(b) if isinstance(b, gluon.nn.BatchNorm) else None)  # noqa: B023
        assert len(norms) == sum(key.endswith("gamma") for key in net._collect_params_with_prefix())
        assert {norm._kwargs["eps"] for norm in norms} == {0.125}


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("resnet164", {"depth": 110, "block": "bottleneck", "attention": "x"}, "none, static, ram"),
        ("resnet164", {"depth": 100}, r"9n \+ 2, got 100; near it are 92 and 101"),
        ("resnet20_basic", {"depth": 29}, r"6n \+ 2, got 29; near it are 26 and 32"),
        ("resnet164", {"depth": 2}, r"near it are 11 and 20"),
        ("resnet164", {"block": "wide"}, "bottleneck, basic"),
        ("resnet164", {"version": 3}, "1, 2"),
        ("resnet164_ram", {"steps": 0}, "steps must be 1 or more"),
        ("resnet164_se", {"steps": 3}, "setting of attention ram, here attention is 'se'"),
        ("resnet164", {"w_init": 0.1}, "setting of attention ram"),
        ("resnet164_ram", {"reduction": 4}, "setting of attention se"),
        ("resnet164", {"channels": (16, 32)}, "3 positive numbers"),
        ("resnet164", {"classes": 0}, "classes"),
    ],
)
def test_impossible_networks(name: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        create_model(name, **overrides)


def test_unknown_names_do_not_list_hundreds() -> None:
    with pytest.raises(ModelError, match=r"did you mean 'resnet164_ram'\?") as error:
        create_model("resnet164_raam")
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["resnet164_ram", "preresnet20_basic", "resnet29_se"])
def test_files_tell_their_network(name: str) -> None:
    net = create_model(name, classes=100)
    shapes = {key: p.shape for key, p in net._collect_params_with_prefix().items()}
    assert find_model(shapes) == (name, 100)
    # Those are built, which takes long.
    assert [other for other, spec in SPECS.items() if spec.may_fit(shapes)] == [name]


def _other_unit(version: int, block: str, in_channels: int, stride: int) -> Any:
    from gluoncv.model_zoo.cifarresnet import CIFARBasicBlockV1, CIFARBasicBlockV2

    if block == "bottleneck":
        return ResidualBlock(64, in_channels, stride)
    basic = CIFARBasicBlockV1 if version == 1 else CIFARBasicBlockV2
    return basic(64, stride, downsample=stride > 1, in_channels=in_channels)


@pytest.mark.parametrize(
    ("version", "block", "in_channels", "stride"),
    [
        (1, "basic", 32, 2),
        (2, "basic", 64, 1),  # the projection of gluoncv's reads the raw input, unlike He's
        (2, "bottleneck", 32, 2),
    ],
)
def test_units_equal_those_of_others(
    version: int, block: str, in_channels: int, stride: int
) -> None:
    """The bottleneck of version 1 is compared in test_resnet_names.py."""
    theirs = _other_unit(version, block, in_channels, stride)
    theirs.initialize(mx.init.Xavier())
    spec = ResNetSpec(20, block, version)
    ours = Unit(spec, 64 // spec.expansion, in_channels, stride, None)
    ours.initialize()
    x = mx.nd.random.normal(shape=(2, in_channels, 8, 8))
    theirs(x)  # in which shapes become known
    for parameter in theirs.collect_params().values():  # norms other than the identity
        if parameter.name.endswith(("gamma", "beta", "mean", "var")):
            parameter.set_data(mx.nd.random.uniform(0.5, 1.5, shape=parameter.shape))
    for kind in ("weight", "gamma", "beta", "running_mean", "running_var"):
        sources, targets = (
            [p for k, p in net._collect_params_with_prefix().items() if k.endswith(kind)]
            for net in (theirs, ours)
        )
        assert len(sources) == len(targets)
        for source, target in zip(sources, targets):
            target.set_data(source.data())
    expected = theirs(x).asnumpy()
    np.testing.assert_allclose(ours(x).asnumpy(), expected, atol=1e-5 * np.abs(expected).max())
