"""Names of networks: ``create_model("attention92", classes=100)``."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from mxnet.gluon import nn

from model.residual_attention_network import SPECS, AttentionSpec, ResidualAttentionNetwork


class ModelError(Exception):
    """An unknown network or override: the message names what is available."""


def list_models() -> list[str]:
    """Return the names that `create_model` takes, sorted."""
    return sorted(SPECS)


def create_model(name: str, classes: int = 10, **overrides: Any) -> nn.HybridBlock:
    """Return the network called `name`, uninitialized and on no device.

    Parameters
    ----------
    name
        One of `list_models`.
    classes
        Number of classes.
    overrides
        Fields of the variant's spec to replace (``channels=(64, 128, 256)``, ``wiring="paper"``),
        or ``norm_kwargs``.

    Raises
    ------
    ModelError
        When the name, an override or its value is impossible; the message gives the nearest name
        and everything that is available.
    """
    if name not in SPECS:
        raise ModelError(_unknown("model", name, list_models()))
    norm_kwargs = overrides.pop("norm_kwargs", None)
    fields = [field.name for field in dataclasses.fields(AttentionSpec)]
    for key in overrides:
        if key not in fields:
            raise ModelError(_unknown(f"override of {name}", key, [*fields, "norm_kwargs"]))
    try:
        spec = dataclasses.replace(SPECS[name], **overrides)
        return ResidualAttentionNetwork(spec, classes, norm_kwargs)
    except (ValueError, TypeError) as error:
        raise ModelError(f"cannot build {name}: {error}") from error


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


def _unknown(what: str, given: str, available: list[str]) -> str:
    close = difflib.get_close_matches(str(given), available, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"unknown {what} {given!r}{hint} Available: {', '.join(available)}"
