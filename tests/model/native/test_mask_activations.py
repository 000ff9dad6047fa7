"""Activations of the soft mask: one table, which Python and the operator in C++ read."""

from __future__ import annotations

from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from model.layers import attention_module
from model.layers.attention_module import ATTENTIONS, LEARNINGS, read_activations, soft_mask
from model.native.build import block_channels
from training.classifier import config


def _maps() -> tuple[Any, Any]:
    """Maps whose channels are a block, which the operator and a graph read alike."""
    mx.random.seed(3)
    shape = (2, block_channels(), 3, 4)
    return mx.nd.random.normal(shape=shape), mx.nd.random.normal(shape=shape)


def _blocked(maps: Any) -> Any:
    """The same numbers as the operator has them: the channels of a block side by side."""
    return maps.transpose((0, 2, 3, 1)).reshape(maps.shape)


def _with_gradients(maps: tuple[Any, Any], compute: Any) -> list[np.ndarray]:
    for one in maps:
        one.attach_grad()
    with autograd.record():
        attended = compute(*maps)
        total = (attended * attended).sum()
    total.backward()
    return [attended.asnumpy(), *(one.grad.asnumpy() for one in maps)]


@pytest.mark.usefixtures("unit_operators")
@pytest.mark.parametrize("learning", LEARNINGS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_operator_computes_what_the_graph_does(attention: str, learning: str) -> None:
    mask, trunk = _maps()
    base = 1 if learning == "arl" else 0
    expected = _with_gradients(
        (mask, trunk), lambda m, t: (base + soft_mask(mx.nd, m, attention)) * t
    )
    found = _with_gradients(
        (_blocked(mask), _blocked(trunk)),
        lambda m, t: mx.nd.attn_mask(m, t, attention=attention, learning=learning, inputs=2),
    )
    for ours, theirs in zip(found, expected):
        blocked = _blocked(mx.nd.array(theirs)).asnumpy()
        np.testing.assert_allclose(ours, blocked, rtol=2e-5, atol=2e-6)


@pytest.mark.usefixtures("unit_operators")
def test_maps_of_two_sizes_are_refused() -> None:
    """Not read past the end of the smaller one."""
    maps = _maps()[0]
    smaller = maps[:, :, :2]
    named = {"attention": "mixed", "learning": "arl"}
    with pytest.raises(mx.MXNetError, match="its maps have different shapes"):
        mx.nd.attn_mask(maps, smaller, inputs=2, **named).asnumpy()
    mx.nd.attn_upsample(smaller, maps, height=3, width=4, inputs=2).wait_to_read()
    with pytest.raises(mx.MXNetError, match="its maps have different shapes"):
        mx.nd.attn_upsample(smaller, smaller, height=3, width=4, inputs=2).asnumpy()


@pytest.mark.usefixtures("unit_operators")
def test_other_names_are_refused_and_those_of_the_table_are_known() -> None:
    """Not computed as another one, as it would be if the operator did not look."""
    maps = _maps()[0]
    for changed, message in (
        ({"attention": "cubed"}, f"unknown attention cubed; available: {', '.join(ATTENTIONS)}"),
        ({"learning": "none"}, f"unknown learning none; available: {', '.join(LEARNINGS)}"),
    ):
        named = {"attention": "mixed", "learning": "arl", **changed}
        with pytest.raises(mx.MXNetError, match=message):
            mx.nd.attn_mask(maps, maps, inputs=2, **named).asnumpy()
    with pytest.raises(ValueError, match="unknown attention 'cubed'; available: mixed, channel"):
        soft_mask(mx.nd, maps, "cubed")


def test_the_table_says_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = read_activations("// none\nACTIVATION(odd, MAPS, TANH, 1e-2)\n")
    assert rows == {"odd": ("MAPS", "TANH", 0.01)}
    monkeypatch.setattr(attention_module, "ACTIVATIONS", rows)
    monkeypatch.setattr(attention_module, "ATTENTIONS", tuple(rows))
    found = soft_mask(mx.nd, mx.nd.array([[[[3.0, 1.0]]]]), "odd").asnumpy().ravel()
    np.testing.assert_allclose(found, np.tanh(np.array([1, -1]) / np.sqrt(1.01)), rtol=1e-6)


def test_the_flag_offers_what_the_table_has() -> None:
    assert set(config.ATTENTIONS) <= set(ATTENTIONS)
    assert config.LEARNINGS == LEARNINGS
