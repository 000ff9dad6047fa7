"""What the papers count of a network."""

from __future__ import annotations

from mxnet.gluon import nn

from model.layers.attention_presets import AttentionSpec


def parameter_count(net: nn.HybridBlock) -> tuple[int, int]:
    """Return (trainable parameters, tensors in a parameter file) of an initialized or known net."""
    trainable = tensors = 0
    for parameter in net.collect_params().values():
        tensors += 1
        if parameter.grad_req != "null":
            size = 1
            for length in parameter.shape:
                size *= length
            trainable += size
    return trainable, tensors


def trunk_layers(spec: AttentionSpec) -> int:
    """Count the layers on the longest way that avoids the masks (Wang et al. 2017, section 4.1).

    Counted are the first convolution, the three convolutions of each residual unit and the
    classifier, as in the names of the networks: ``36 m + 20`` for m modules in each of three
    stages, p = 1 and t = 2.
    """
    p, t, _ = spec.ptr
    post = p if spec.post_units is None else spec.post_units
    units = len(spec.channels) + sum(spec.modules) * (p + t + post) + spec.tail_units
    return 1 + 3 * units + 1
