"""Folding trained gates for inference: one affine map per channel, or none at all.

With running statistics the chain of a recurrent gate
(`model.layers.channel_attention.RecurrentGate`) is one affine map of the channel's mean, ``y_T = A
g + B``; for two steps

    A = w^2 gamma / s,   B = w (gamma (b - m) / s + beta) + b,   s = sqrt(v + eps)

with m and v the running mean and variance. That is the gate of one step, w = A and b = B. Where A
is 0 in all channels of a unit, the gate is a constant, which goes into the unit's last
normalisation (version 1) or last convolution (version 2), and the gate is gone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mxnet as mx
import numpy as np

from model.layers.channel_attention import RecurrentGate, StaticGate
from model.layers.resnet_unit import Unit
from model.ram_resnet import ResNet

FOLDABLE = ("ram", "static")


def fold_gates(net: ResNet, tolerance: float = 1e-8) -> ResNet:
    """Return a network for inference that gives the same logits with less work.

    Parameters
    ----------
    net
        With attention ``ram`` or ``static`` and parameters. It is not changed: files of its own
        format go on loading into it, and folding can be repeated.
    tolerance
        A gate is constant where no |A| of its unit is above this.

    Returns
    -------
    ResNet
        With one-step gates, without gates where they were constant (``spec.ungated``), and with
        attention ``none`` where all were; on the same devices, not hybridized. Its spec builds a
        network that loads its files.

    Raises
    ------
    ValueError
        When the network has no such gate, or another normalisation than batch normalisation.

    Examples
    --------
    >>> from model import create_model
    >>> net = create_model("resnet20_ram")
    >>> net.initialize()
    >>> fold_gates(net).spec.attention  # w is 0 in an untrained network
    'none'
    """
    if net.spec.attention not in FOLDABLE:
        raise ValueError(
            f"attention {net.spec.attention!r} cannot be folded; available: {', '.join(FOLDABLE)}"
        )
    if net.norms["norm_layer"] is not None:
        raise ValueError("gates with another norm_layer than batch normalisation cannot be folded")
    affine = {
        (stage, index): collapse(unit.gate)
        for stage, index, unit in net.units()
        if unit.gate is not None
    }
    constant = tuple(key for key, (a, _) in affine.items() if np.abs(a).max() <= tolerance)
    folded = _create(net, len(constant) == len(affine), constant)
    parameters = net._collect_params_with_prefix()
    for name, parameter in folded._collect_params_with_prefix().items():
        if name.split(".")[2:3] != ["gate"]:
            parameter.set_data(parameters[name].data(parameters[name].list_ctx()[0]))
    for stage, index, unit in folded.units():
        if unit.gate is not None:
            a, b = affine[stage, index]
            _set(unit.gate.w, a)
            _set(unit.gate.b, b)
        elif (stage, index) in affine:
            _scale_branch(unit, 1 / (1 + np.exp(-affine[stage, index][1])))
    return folded


def collapse(gate: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return A and B, float64 (C,), of a gate's logit ``A g + B`` with running statistics."""
    if isinstance(gate, StaticGate):
        b = _values(gate.b)
        return np.zeros_like(b), b
    if not isinstance(gate, RecurrentGate):
        raise ValueError(f"{type(gate).__name__} is no affine map of the mean")
    w, b = _values(gate.w), _values(gate.b)
    slope, offset = w, b
    for bn in gate.batch_norms():
        gamma = np.ones_like(w) if bn._kwargs["fix_gamma"] else _values(bn.gamma)
        gamma = gamma / np.sqrt(_values(bn.running_var) + bn._kwargs["eps"])
        slope = w * gamma * slope
        offset = w * (gamma * (offset - _values(bn.running_mean)) + _values(bn.beta)) + b
    return slope, offset


def _create(net: ResNet, plain: bool, constant: tuple[tuple[int, int], ...]) -> ResNet:
    """Return the folded network with its own shapes and no values of its own yet."""
    gates: dict[str, Any] = {"attention": "none", "ungated": ()}
    if not plain:
        gates = {"attention": "ram", "ungated": (*net.spec.ungated, *constant)}
    spec = replace(net.spec, steps=1 if not plain else 2, w_init=0.0, b_init=-1.0, **gates)
    folded = ResNet(spec, net.classes, **net.norms)
    folded.cast(net.fc.weight.dtype)
    # Zero draws no random numbers: folding does not change what comes after it.
    for parameter in folded.collect_params().values():
        parameter.initialize(init=mx.init.Zero(), ctx=net.fc.weight.list_ctx())
    return folded


def _values(parameter: Any) -> np.ndarray:
    values: np.ndarray = parameter.data(parameter.list_ctx()[0]).asnumpy().astype(np.float64)
    return values.ravel()


def _set(parameter: Any, values: np.ndarray) -> None:
    dtype = np.dtype(parameter.dtype)
    parameter.set_data(mx.nd.array(values.reshape(parameter.shape), dtype=dtype))


def _scale_branch(unit: Unit, factor: np.ndarray) -> None:
    """Multiply the residual branch of a unit by a factor (C,)."""
    norm, conv = getattr(unit, f"bn{unit.depth}"), getattr(unit, f"conv{unit.depth}")
    if unit.version == 2:
        values = _values(conv.weight).reshape(conv.weight.shape)
        _set(conv.weight, values * factor.reshape(-1, 1, 1, 1))
    elif norm._kwargs["fix_gamma"]:
        raise ValueError("a constant gate cannot be folded into a normalisation without scale")
    else:
        _set(norm.gamma, _values(norm.gamma) * factor)
        _set(norm.beta, _values(norm.beta) * factor)
