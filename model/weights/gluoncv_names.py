"""The constructors of ``gluoncv.model_zoo.residual_attentionnet`` for this project's networks.

``from model.weights.gluoncv_names import cifar_residualattentionnet92`` takes the place of
gluoncv's. The networks compute the same, accept any image size, and load gluoncv's files through
`model.weights.loading.load_parameters`; their tensors have the names of
`model.residual_attention_network`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from model.registry import ModelError, create_model
from model.residual_attention_network import ResidualAttentionNetwork

_SUFFIXES = {32: "", 224: "_imagenet"}
_DEPTHS = {32: (56, 92, 452), 224: (56, 92, 128, 164, 200, 236, 452)}


def get_residualAttentionModel(
    input_size: int, num_layers: int, pretrained: bool = False, **kwargs: Any
) -> ResidualAttentionNetwork:
    """Return the network that gluoncv's function of this name returns.

    Parameters
    ----------
    input_size
        32 or 224, the image size that the variant is meant for.
    num_layers
        56, 92 or 452; for 224 also 128, 164, 200 and 236. What gluoncv calls 452 has 398 layers.
    pretrained
        Must be False: gluoncv has no weights for these networks, though it accepts True.
    kwargs
        ``classes``, ``norm_layer``, ``norm_kwargs`` and whatever `model.create_model` takes.

    Raises
    ------
    model.ModelError
        When gluoncv has no such network, or `pretrained` is True.
    """
    if num_layers not in _DEPTHS.get(input_size, ()):
        available = "; ".join(f"{size}: {', '.join(map(str, d))}" for size, d in _DEPTHS.items())
        raise ModelError(
            f"gluoncv has no attention network of {num_layers} layers for input size {input_size}. "
            f"Available by input size: {available}"
        )
    if pretrained:
        raise ModelError(
            f"gluoncv has never published weights of this network (input size {input_size}, "
            f"{num_layers} layers). Leave out pretrained=True and load a file of your own."
        )
    suffix = _SUFFIXES[input_size] + ("_gluoncv" if num_layers == 452 else "")
    net: ResidualAttentionNetwork = create_model(f"attention{num_layers}{suffix}", **kwargs)
    return net


cifar_residualattentionnet56 = partial(get_residualAttentionModel, 32, 56)
cifar_residualattentionnet92 = partial(get_residualAttentionModel, 32, 92)
cifar_residualattentionnet452 = partial(get_residualAttentionModel, 32, 452)
residualattentionnet56 = partial(get_residualAttentionModel, 224, 56)
residualattentionnet92 = partial(get_residualAttentionModel, 224, 92)
residualattentionnet128 = partial(get_residualAttentionModel, 224, 128)
residualattentionnet164 = partial(get_residualAttentionModel, 224, 164)
residualattentionnet200 = partial(get_residualAttentionModel, 224, 200)
residualattentionnet236 = partial(get_residualAttentionModel, 224, 236)
residualattentionnet452 = partial(get_residualAttentionModel, 224, 452)
