"""``net.attention_maps`` against masks computed by hand, block by block."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

from model.layers.attention_module import ATTENTIONS, SOFT_MASK
from model.registry import create_model
from model.residual_attention_network import ResidualAttentionNetwork

THIN = {"stem_channels": 8, "channels": (8, 16, 32), "tail_channels": 32}
NAMES = ["attention_module1", "attention_module2", "attention_module2_2"]


def _net(
    attention: str = "mixed", modules: tuple[int, ...] = (1, 2, 1)
) -> ResidualAttentionNetwork:
    net = create_model("attention56", classes=4, modules=modules, attention=attention, **THIN)
    net.initialize(mx.init.MSRAPrelu())
    assert isinstance(net, ResidualAttentionNetwork)
    for name, parameter in net._collect_params_with_prefix().items():
        if name.endswith("running_mean"):
            parameter.set_data(mx.nd.random.normal(0, 0.1, shape=parameter.shape))
        elif name.endswith("running_var"):
            parameter.set_data(mx.nd.random.uniform(0.5, 2, shape=parameter.shape))
    return net


def _by_hand(net: ResidualAttentionNetwork, image: mx.nd.NDArray) -> dict[str, np.ndarray]:
    masks, y = {}, image
    for name, block in net.blocks():
        if name.startswith("attention_module"):
            x = block.first_residual_blocks(y)
            masks[name] = block._soft_mask(mx.nd, x, block.trunk_branches(x)).asnumpy()
        y = block(y)
    return masks


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("hybridized", [False, True])
def test_maps_are_the_masks_of_every_module(attention: str, hybridized: bool) -> None:
    net = _net(attention)
    image = mx.nd.random.normal(shape=(2, 3, 16, 24))
    expected = _by_hand(net, image)
    if hybridized:
        net.hybridize(static_alloc=True, static_shape=True)
        net(image)
    found = net.attention_maps(image)
    assert list(found) == list(net.module_names()) == [*NAMES, "attention_module3"]
    assert found["attention_module1"].shape == (2, 8, 16, 24)
    assert found["attention_module3"].shape == (2, 32, 4, 6)
    for name, mask in found.items():
        np.testing.assert_allclose(mask.asnumpy(), expected[name], atol=1e-5, err_msg=name)


def test_what_is_observed_depends_on_the_ending() -> None:
    net, image = _net(), mx.nd.random.normal(shape=(2, 3, 16, 16))
    masks = net.observe(SOFT_MASK, image)
    last = net(mx.sym.var("image")).name[len(net.prefix) :]
    (logits,) = net.observe(last, image)
    np.testing.assert_allclose(logits.asnumpy(), net(image).asnumpy(), atol=1e-5)
    assert len(net.observe(SOFT_MASK, image)) == len(masks) == len(net.module_names())


def test_maps_follow_the_parameters_and_the_size_of_the_image() -> None:
    net = _net()
    net.hybridize(static_alloc=True, static_shape=True)
    before = net.attention_maps(mx.nd.ones((1, 3, 16, 16)))
    net.attention_module1.softmax4_blocks[5].weight.data()[:] = 0
    after = net.attention_maps(mx.nd.ones((1, 3, 16, 16)))
    assert np.abs(before["attention_module1"].asnumpy() - 0.5).max() > 1e-3
    np.testing.assert_array_equal(after["attention_module1"].asnumpy(), 0.5)
    assert net.attention_maps(mx.nd.ones((1, 3, 20, 28)))["attention_module1"].shape[2:] == (20, 28)


def test_maps_leave_network_and_gradients_alone() -> None:
    net = _net(modules=(1, 1, 1))
    image = mx.nd.random.normal(shape=(2, 3, 16, 16))
    names = list(net._collect_params_with_prefix())
    state = {n: p.data().asnumpy() for n, p in net._collect_params_with_prefix().items()}
    with autograd.record():
        net.attention_maps(image)
        loss = net(image).sum()
    loss.backward()
    gradients = {n: p.grad().asnumpy() for n, p in _trained(net)}
    _restore(net, state)
    with autograd.record():
        loss = net(image).sum()
    loss.backward()
    for name, parameter in _trained(net):
        np.testing.assert_array_equal(parameter.grad().asnumpy(), gradients[name], err_msg=name)
    _restore(net, state)
    assert list(net._collect_params_with_prefix()) == names
    for name, parameter in net._collect_params_with_prefix().items():
        np.testing.assert_array_equal(parameter.data().asnumpy(), state[name], err_msg=name)


def test_maps_use_the_running_statistics_even_while_training() -> None:
    net = _net(modules=(1, 1, 1))
    image = mx.nd.random.normal(shape=(2, 3, 16, 16))
    expected = _by_hand(net, image)
    with autograd.record():
        found = net.attention_maps(image)
    for name, mask in found.items():
        np.testing.assert_allclose(mask.asnumpy(), expected[name], atol=1e-5, err_msg=name)


def _trained(net: gluon.HybridBlock) -> list[tuple[str, gluon.Parameter]]:
    parameters = net._collect_params_with_prefix().items()
    return [(name, p) for name, p in parameters if p.grad_req != "null"]


def _restore(net: gluon.HybridBlock, state: dict[str, np.ndarray]) -> None:
    for name, parameter in net._collect_params_with_prefix().items():
        parameter.set_data(mx.nd.array(state[name]))


def test_one_module_is_enough() -> None:
    net = create_model(
        "attention56", modules=(1,), channels=(8,), mask_depths=(1,), tail_channels=8
    )
    net.initialize()
    assert list(net.attention_maps(mx.nd.zeros((1, 3, 8, 8)))) == ["attention_module1"]
