"""gluoncv's constructors: every name that it has, with the network that belongs to it."""

from __future__ import annotations

import pytest
from gluoncv.model_zoo import residual_attentionnet

from model import ModelError
from model.layers.attention_presets import SPECS
from model.residual_attention_network import ResidualAttentionNetwork
from model.weights import gluoncv_names

NAMES = [name for name in residual_attentionnet.__all__ if "residualattentionnet" in name]


@pytest.mark.parametrize("name", NAMES)
def test_every_name_of_gluoncv_builds_its_network(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    monkeypatch.setattr(gluoncv_names, "create_model", lambda name, **_: built.append(name))
    getattr(gluoncv_names, name)(classes=7)
    spec = SPECS[built[0]]
    scale, modules = _gluoncv_spec(name)
    assert (spec.ptr, spec.modules) == (scale, modules)
    assert spec.wiring == "legacy"
    assert (spec.post_units or spec.ptr[0]) == 1
    assert spec.image_size == (32 if name.startswith("cifar") else 224)


def _gluoncv_spec(name: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    depth = int(name.rpartition("net")[2])
    modules, scale = residual_attentionnet.attention_spec[depth]
    return scale, modules


def test_a_network_is_built_with_what_gluoncv_takes() -> None:
    assert len(NAMES) == 10
    net = gluoncv_names.cifar_residualattentionnet56(classes=7, norm_kwargs={"epsilon": 0.5})
    assert isinstance(net, ResidualAttentionNetwork)
    assert net.classes == 7
    assert net.conv1[1]._kwargs["eps"] == 0.5
    assert gluoncv_names.residualattentionnet56().classes == 1000


def test_what_gluoncv_does_not_have_is_refused() -> None:
    with pytest.raises(ModelError, match="never published weights"):
        gluoncv_names.residualattentionnet56(pretrained=True)
    with pytest.raises(ModelError, match=r"128 layers for input size 32.*32: 56, 92, 452; 224: 56"):
        gluoncv_names.get_residualAttentionModel(32, 128)
