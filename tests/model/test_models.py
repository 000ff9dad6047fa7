"""Networks of the registry: file format, sizes, equality with gluoncv's, gradients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

from model import ModelError, create_model
from model.layers.attention_presets import SPECS
from model.residual_attention_network import (
    ResidualAttentionModel_32input,
    ResidualAttentionModel_92_32input_update,
)
from model.weights.dialects import rename

GOLDEN = Path(__file__).parents[1] / "golden"
# One variant of each kind.
KINDS = [
    "attention56",
    "attention56_small",
    "attention56_paper",
    "attention56_tf",
    "attention56_imagenet",
    "attention56_imagenet448",
    "attentionnext56_imagenet",
]


def _arrays(net: gluon.HybridBlock) -> dict[str, np.ndarray]:
    return {k: p.data().asnumpy() for k, p in net._collect_params_with_prefix().items()}


def _set_arrays(net: gluon.HybridBlock, arrays: dict[str, np.ndarray]) -> None:
    parameters = net._collect_params_with_prefix()
    assert list(parameters) == list(arrays)
    for name, parameter in parameters.items():
        parameter.initialize(ctx=mx.cpu(), force_reinit=True)
        parameter.set_data(mx.nd.array(arrays[name]))


def _calibrate(net: gluon.HybridBlock, image: mx.nd.NDArray) -> None:
    """Give the batch normalisations the statistics of one batch, as training would.

    With statistics at random, activations grow to 1e5 and rounding differences with them.
    """

    def set_momentum(momentum: float) -> None:
        net.apply(
            lambda b: (
                b._kwargs.update(momentum=momentum) if isinstance(b, gluon.nn.BatchNorm) else None
            )
        )

    set_momentum(0.0)
    with autograd.record():
        logits = net(image)
    logits.backward()  # this, and not the forward pass, is where MXNet sets the statistics
    set_momentum(0.9)


def _thin(name: str, **overrides: Any) -> gluon.HybridBlock:
    """Return a variant with its own structure and few channels, with random parameters."""
    channels = (16, 16, 32, 64)[-len(SPECS[name].channels) :]
    thin = {"stem_channels": 16, "channels": channels, "tail_channels": 64, "groups": 4}
    return _initialized(create_model(name, **{**thin, **overrides}))


def _initialized(net: gluon.HybridBlock) -> gluon.HybridBlock:
    net.initialize(mx.init.MSRAPrelu())
    return net


@pytest.mark.parametrize(
    ("build", "golden"),
    [
        (lambda: create_model("attention56"), "head_attention56"),
        (lambda: create_model("attention92"), "head_attention92"),
        (ResidualAttentionModel_32input, "head_attention56"),
        (lambda: ResidualAttentionModel_32input(additional_stage=True), "head_attention92"),
        (ResidualAttentionModel_92_32input_update, "pre_attention92"),
    ],
)
def test_names_shapes_and_order_are_the_file_format(
    build: Callable[[], gluon.HybridBlock], golden: str
) -> None:
    """A change here makes every saved file of that network unreadable: take a new name instead."""
    expected = json.loads((GOLDEN / f"{golden}.json").read_text(encoding="utf-8"))
    found = {name: list(p.shape) for name, p in build()._collect_params_with_prefix().items()}
    assert list(found.items()) == list(expected.items())


@pytest.mark.parametrize("depth", [56, 92])
def test_forward_equals_gluoncv(depth: int) -> None:
    from gluoncv import model_zoo

    theirs = _initialized(getattr(model_zoo, f"cifar_residualattentionnet{depth}")())
    image = mx.nd.random.normal(shape=(2, 3, 32, 32))
    _calibrate(theirs, image)
    ours = create_model(f"attention{depth}")
    _set_arrays(ours, rename(_arrays(theirs), "head"))
    expected = theirs(image).asnumpy()
    scale = np.abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(ours(image).asnumpy(), expected, atol=1e-5 * scale)


def test_old_names_compute_the_same() -> None:
    new = _initialized(ResidualAttentionModel_32input(additional_stage=True))
    image = mx.nd.random.normal(shape=(2, 3, 32, 32))
    _calibrate(new, image)
    old = ResidualAttentionModel_92_32input_update()
    _set_arrays(old, rename(_arrays(new), "pre"))
    np.testing.assert_array_equal(old(image).asnumpy(), new(image).asnumpy())


@pytest.mark.parametrize("name", KINDS)
def test_eager_equals_hybridized_and_every_parameter_learns(name: str) -> None:
    net = _thin(name, classes=7)
    size = 64 if "imagenet" in name else 32
    image = mx.nd.random.normal(shape=(4, 3, size, size))
    label = mx.nd.array([0, 3, 6, 2])
    loss_function = gluon.loss.SoftmaxCrossEntropyLoss()
    _calibrate(net, image)
    eager = net(image)
    assert eager.shape == (4, 7)
    net.hybridize(static_alloc=True, static_shape=True)
    scale = float(eager.abs().max().asscalar())
    np.testing.assert_allclose(net(image).asnumpy(), eager.asnumpy(), atol=1e-6 * scale)

    with autograd.record():
        loss = loss_function(net(image), label)
    loss.backward()
    for key, parameter in net._collect_params_with_prefix().items():
        if parameter.grad_req != "null":
            gradient = parameter.grad().asnumpy()
            assert np.isfinite(gradient).all(), key
            assert np.abs(gradient).max() > 0, key


def test_gradients_equal_gluoncv_in_float64() -> None:
    """In float32 a rounding difference turns single ReLUs, so this is compared in float64.

    In a process whose engine computes one thing after the other: on a busy machine the usual one
    gives, in about one process of ten, other gradients for the same network.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GRADIENTS],
        cwd=GOLDEN.parents[1],
        env={**os.environ, "MXNET_ENGINE_TYPE": "NaiveEngine"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) < 1e-8


GRADIENTS = "from tests.model.test_models import difference_to_gluoncv as d; print(d())"


def difference_to_gluoncv() -> float:
    """Return the largest difference in float64, over each parameter's largest gradient.

    MXNet's resize, whose weights are float32 in any case, is put in for the matrix product, which
    has its own test.
    """
    from gluoncv.model_zoo import cifar_residualattentionnet56

    from model.layers import attention_module

    # gluoncv's form. In `like` mode the backward pass writes without looking at its request.
    attention_module.upsample_like = lambda F, low, high: F.contrib.BilinearResize2D(
        low, height=high.shape[2], width=high.shape[3]
    )
    mx.random.seed(0)
    np.random.seed(0)
    theirs, ours = cifar_residualattentionnet56(), create_model("attention56")
    _initialized(theirs)
    image = mx.nd.random.normal(shape=(2, 3, 32, 32))
    theirs(image)
    _set_arrays(ours, rename(_arrays(theirs), "head"))
    gradients = []
    for net in (theirs, ours):
        net.cast("float64")
        with autograd.record():
            loss = (net(image.astype("float64")) ** 2).sum()
        loss.backward()
        gradients.append(
            [p.grad().asnumpy() for p in net.collect_params().values() if p.grad_req != "null"]
        )
    return float(
        max(
            np.abs(found - expected).max() / np.abs(expected).max()
            for expected, found in zip(*gradients)
        )
    )


SIZES = [(9, 9), (28, 28), (32, 32), (64, 64), (48, 80), (160, 160), (224, 224), (256, 256)]


@pytest.mark.parametrize("size", [*SIZES, (320, 320)])
@pytest.mark.parametrize("name", ["attention56", "attention56_tf", "attention56_imagenet"])
def test_any_image_size(name: str, size: tuple[int, int]) -> None:
    # Gradients grow with the depth of an untrained network, not with the width.
    net = _thin(name, stem_channels=8, channels=(8, 8, 16), tail_channels=16)
    net.hybridize(static_alloc=True, static_shape=True)
    with autograd.record():
        logits = net(mx.nd.random.normal(shape=(2, 3, *size)))
        loss = (logits**2).sum()
    loss.backward()
    assert logits.shape == (2, net.classes)
    assert np.isfinite(logits.asnumpy()).all()
    for key, parameter in net._collect_params_with_prefix().items():
        if parameter.grad_req != "null":
            assert np.isfinite(parameter.grad().asnumpy()).all(), key


@pytest.mark.slow
def test_full_width_at_320() -> None:
    """The size at which the paper gives the error of its Attention-92."""
    net = _initialized(create_model("attention56_imagenet"))
    net.hybridize(static_alloc=True, static_shape=True)
    with autograd.record():
        logits = net(mx.nd.random.normal(shape=(1, 3, 320, 320)))
    logits.backward()
    assert logits.shape == (1, 1000)
    gradient = net.conv1[0].weight.grad().asnumpy()
    assert np.isfinite(gradient).all()
    assert np.abs(gradient).max() > 0


def _norms(net: gluon.HybridBlock) -> list[gluon.HybridBlock]:
    found: list[gluon.HybridBlock] = []
    kinds = (gluon.nn.BatchNorm, gluon.nn.InstanceNorm)
    net.apply(lambda b: found.append(b) if isinstance(b, kinds) else None)
    assert len(found) == sum(k.endswith("gamma") for k in net._collect_params_with_prefix())
    return found


@pytest.mark.parametrize("name", KINDS)
def test_norm_kwargs_reach_every_norm(name: str) -> None:
    norms = _norms(_thin(name, norm_kwargs={"epsilon": 0.125}))
    assert {norm._kwargs["eps"] for norm in norms} == {0.125}


@pytest.mark.parametrize("name", KINDS)
def test_norm_layer_takes_the_place_of_every_norm(name: str) -> None:
    layer = gluon.contrib.nn.SyncBatchNorm
    net = _thin(name, norm_layer=layer, norm_kwargs={"num_devices": 2})
    norms = _norms(net)
    assert {type(norm) for norm in norms} == {layer}
    assert {norm._kwargs["ndev"] for norm in norms} == {2}


def test_another_norm_layer_runs() -> None:
    net = _thin("attention56", norm_layer=gluon.nn.InstanceNorm, norm_kwargs={"scale": True})
    assert np.isfinite(net(mx.nd.random.normal(shape=(2, 3, 32, 32))).asnumpy()).all()


def test_unknown_names_are_answered_with_what_there_is() -> None:
    with pytest.raises(ModelError, match=r"attenton92.*did you mean 'attention92'.*attention56"):
        create_model("attenton92")
    with pytest.raises(ModelError, match=r"chanels.*did you mean 'channels'"):
        create_model("attention56", chanels=(1, 2, 3))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"channels": (10, 20, 40)}, "multiple of 4"),
        ({"wiring": "other"}, "legacy, paper"),
        ({"learning": "other"}, "arl, nal"),
        ({"attention": "other"}, "mixed, channel, spatial"),
        ({"modules": (0, 1, 1)}, "positive"),
        ({"ptr": (1, 0, 1)}, "p, t, r"),
        ({"classes": 0}, "classes"),
        ({"modules": (1, 1)}, "one entry per stage"),
        ({"stem": "9x9"}, "3x3, 5x5, 7x7"),
        ({"unit": "other"}, "bottleneck, resnext"),
        ({"unit": "resnext", "groups": 48}, "twice its groups"),
        ({"post_units": 0}, "post_units"),
        ({"tail_units": 0}, "tail_units"),
    ],
)
def test_impossible_networks(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        create_model("attention56", **overrides)


@pytest.mark.parametrize(
    "name", ["glimpse_mnist", "gluoncv:cifar_resnet20_v1", "resnet20_ram", "attention56"]
)
def test_every_network_has_a_class_or_more(name: str) -> None:
    with pytest.raises(ModelError, match="0 classes; give 1 or more"):
        create_model(name, 0)


# SymbolBlock asks for types before it knows the input's; float32 is right.
@pytest.mark.filterwarnings("ignore:Cannot decide type:UserWarning")
@pytest.mark.parametrize("name", ["attention56", "attention56_tf", "attention56_imagenet"])
def test_an_exported_graph_takes_other_sizes(name: str, tmp_path: Path) -> None:
    net = _thin(name)
    net.hybridize()
    net(mx.nd.zeros((1, 3, 32, 32)))
    net.export(str(tmp_path / "net"))
    loaded = gluon.SymbolBlock.imports(
        str(tmp_path / "net-symbol.json"), ["data"], str(tmp_path / "net-0000.params")
    )
    image = mx.nd.random.normal(shape=(2, 3, 40, 56))
    np.testing.assert_allclose(loaded(image).asnumpy(), net(image).asnumpy(), rtol=1e-5, atol=1e-6)
