"""Networks by name, with published weights where they are asked for."""

from __future__ import annotations

from typing import Any, Optional, Union

import mxnet as mx
from mxnet.gluon import nn

from model.pretrained.store import published_names, weights_path
from model.registry import ModelError
from model.registry import create_model as create_untrained
from model.registry import list_models as list_all
from model.weights.known import known_of
from model.weights.loading import load_parameters
from model.weights.network_card import network_from


def list_models(pretrained: bool = False) -> list[str]:
    """Return the names that `create_model` takes, sorted; `pretrained`: those with weights."""
    return published_names() if pretrained else list_all()


def create_model(
    name: str,
    classes: Optional[int] = None,
    *,
    pretrained: Union[bool, str] = False,
    ctx: Any = None,
    **overrides: Any,
) -> nn.HybridBlock:
    """Return the network called `name`, without weights or with published ones.

    Parameters
    ----------
    name
        One of `list_models`, or ``gluoncv:`` and the name of a classifier of gluoncv's model zoo.
    classes
        Number of classes. None: those of the weights, else of the variant's data set.
    pretrained
        True, or the name of a data set (``"cifar100"``): the network with the weights that are
        published for it (see `model.pretrained.store`), as they are: without `overrides`. False: it
        is uninitialized.
    ctx
        MXNet context, or several, for the weights; default: ``mx.cpu()``.
    overrides
        Fields of the variant's spec to replace, such as ``channels=(64, 128, 256)`` or
        ``wiring="paper"``, and options of its builder (see `model.registry.create_model`).

    Raises
    ------
    ModelError
        When the name, an override or its value is impossible, or goes with no published weights.
    formats.errors.UserError
        When there are no such weights, or their file is nowhere to be found.
    """
    if not pretrained:
        if ctx is not None:
            raise ModelError(
                f"{name}: ctx says where pretrained weights go, and there are none: add "
                "pretrained=True, or leave ctx out and call initialize(ctx=...)"
            )
        return create_untrained(name, classes, **overrides)
    if overrides:
        raise ModelError(
            f"{name}: the pretrained weights are of the network as it is; leave out "
            f"{', '.join(overrides)}, or pretrained"
        )
    path = weights_path(name, pretrained)
    section = known_of(path).card["network"]
    if classes not in (None, section["classes"]):
        raise ModelError(
            f"{name}: the pretrained weights tell {section['classes']} classes apart, not "
            f"{classes}. Leave classes out; to train it on other classes: --finetune {path}"
        )
    net = network_from(section)
    load_parameters(net, path, mx.cpu() if ctx is None else ctx)
    return net
