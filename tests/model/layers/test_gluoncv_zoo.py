"""Classifiers of gluoncv by name."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import mxnet as mx
import numpy as np
import pytest

from model import ModelError, create_model
from model.layers.gluoncv_zoo import zoo_names

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        pytest.fail("something was to be fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def test_it_is_the_network_of_gluoncv() -> None:
    from gluoncv.model_zoo import get_model

    nets = (
        create_model("gluoncv:cifar_resnet20_v1", classes=7),
        get_model("cifar_resnet20_v1", classes=7),
    )
    image = mx.nd.array(np.random.standard_normal((2, 3, 32, 32)))
    shapes = []
    for net in nets:
        net.initialize(mx.init.One())
        assert net(image).shape == (2, 7)
        shapes.append({n: p.shape for n, p in net._collect_params_with_prefix().items()})
    assert shapes[0] == shapes[1]
    assert nets[0].image_shape == (3, 32, 32)


def test_the_zoo_has_classifiers_alone() -> None:
    names = zoo_names()
    assert {"gluoncv:resnet50_v1b", "gluoncv:cifar_wideresnet16_10", "gluoncv:vgg16"} <= set(names)
    assert not [name for name in names if name.startswith(("gluoncv:ssd", "gluoncv:faster_rcnn"))]


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        (
            "gluoncv:cifar_resnet21_v1",
            {},
            "no classifier called 'cifar_resnet21_v1'; near: cifar_resn",
        ),
        ("gluoncv:ssd_512_resnet50_v1_voc", {}, "no classifier called 'ssd_512"),
        ("gluoncv:", {}, "no classifier called ''"),
        ("gluoncv:cifar_resnet20_v1", {"wiring": "paper"}, "take no wiring"),
    ],
)
def test_what_cannot_be_is_said(name: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        create_model(name, **given)


def test_gluoncv_is_loaded_only_when_asked_for() -> None:
    code = (
        "import sys; from model import create_model; create_model('resnet20'); "
        "assert 'gluoncv' not in sys.modules; create_model('gluoncv:cifar_resnet20_v1'); "
        "assert 'gluoncv' in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True)
