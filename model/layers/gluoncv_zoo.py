"""Classifiers of gluoncv's model zoo by name: ``gluoncv:cifar_resnet56_v1``.

gluoncv is imported when the first of them is asked for. Its networks are built with fresh weights;
nothing is downloaded.
"""

from __future__ import annotations

import difflib
from typing import Any

import mxnet as mx
from mxnet.gluon import nn

PREFIX = "gluoncv:"
# Where gluoncv has its classifiers. Builders elsewhere (detection, poses, ...) fetch weights from
# the web even when they are only called, so they must not be.
MODULES = (
    *("alexnet", "cifarresnet", "cifarresnext", "cifarwideresnet", "densenet", "dla", "googlenet"),
    *("hrnet", "inception", "mobilenet", "mobilenetv3", "nasnet", "residual_attentionnet"),
    *("resnest", "resnet", "resnetv1b", "resnext", "senet", "se_resnet", "shufflenet"),
    *("squeezenet", "vgg", "xception"),
)
# Edges of the images that the networks are made for, by the beginning of their names; else 224.
SIZES = {"cifar_": 32, "inceptionv3": 299, "xception": 299, "nasnet": 331}
NEAREST = 8
OPTIONS = ("norm_layer", "norm_kwargs")  # that most of its builders take


def zoo_names() -> list[str]:
    """Return the names in gluoncv's modules of classifiers, with the prefix, sorted."""
    return sorted(PREFIX + name for name in _builders())


def _builders() -> dict[str, Any]:
    from gluoncv.model_zoo import model_zoo

    return {
        name: builder
        for name, builder in model_zoo._models.items()
        if builder.__module__.rpartition(".")[2] in MODULES
    }


def build_zoo_network(name: str, classes: int, **options: Any) -> nn.HybridBlock:
    """Return a classifier of gluoncv, uninitialized, with its ``image_shape``.

    Parameters
    ----------
    name
        One of `zoo_names`.
    classes
        Number of classes.
    options
        ``norm_layer`` and ``norm_kwargs``.

    Raises
    ------
    ValueError
        When gluoncv has no such classifier, or it takes no such option.
    """
    builders, short = _builders(), name[len(PREFIX) :]
    if short not in builders:
        near = difflib.get_close_matches(short, builders, n=NEAREST, cutoff=0.3)
        raise ValueError(
            f"gluoncv has no classifier called {short!r}; near: {', '.join(near) or 'none'} "
            f"({len(builders)} in all: python -m model.layers.gluoncv_zoo)"
        )
    unknown = [key for key in options if key not in OPTIONS]
    if unknown:
        raise ValueError(f"networks of gluoncv take no {', '.join(unknown)}")
    net: nn.HybridBlock = builders[short](classes=classes, **options)
    edge = next((size for start, size in SIZES.items() if short.startswith(start)), 224)
    net.image_shape = (3, edge, edge)
    if not _takes(net, edge, classes):
        raise ValueError(f"{name} has other outputs than the logits of {classes} classes")
    net.infer_shape(mx.nd.zeros((1, *net.image_shape)))  # its parameters leave their shapes open
    return net


def _takes(net: nn.HybridBlock, edge: int, classes: int) -> bool:
    """Return whether the network gives logits (N, classes), and nothing else, for such images."""
    logits = net(mx.sym.var("image"))
    if not isinstance(logits, mx.sym.Symbol) or len(logits.list_outputs()) != 1:
        return False
    used, parameters = {*logits.list_inputs()}, net.collect_params().values()
    fixed = (p for p in parameters if p.name in used and p.shape and min(p.shape) > 0)
    known = {p.name: p.shape for p in fixed}
    try:
        image = (1, int(net.image_shape[0]), edge, edge)
        return bool(logits.infer_shape(image=image, **known)[1] == [(1, classes)])
    except mx.MXNetError:
        return False


def check_size(net: nn.HybridBlock, edge: int, classes: int) -> None:
    """Raise ValueError when a classifier takes no images of this edge."""
    if not _takes(net, edge, classes):
        made_for = "x".join(map(str, net.image_shape[1:]))
        raise ValueError(f"takes images of {made_for}, not of {edge}x{edge}")


if __name__ == "__main__":
    print("\n".join(zoo_names()))
