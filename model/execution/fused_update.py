"""A step of gradient descent with momentum for all parameters of a device at once.

MXNet updates one parameter by one operator call, which for hundreds of small parameters takes
longer than the arithmetic.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import mxnet as mx
import numpy as np
from mxnet.base import _LIB, check_call


def update(
    weights: Sequence[Any],
    gradients: Sequence[Any],
    momenta: Sequence[Any],
    rates: Any,
    *,
    momentum: float,
    scale: float,
    nesterov: bool,
) -> None:
    """Update weights and momenta in place, as MXNet's ``nag_mom_update`` and ``sgd_mom_update`` do.

    Parameters
    ----------
    weights, gradients, momenta
        float32 arrays on the CPU, of equal shapes.
    rates
        (2, parameters): their learning rates and weight decays.
    momentum
        Share of the momentum that is kept, 0 to 1.
    scale
        What gradients are multiplied by.
    nesterov
        Nesterov's form (``nag``), or the plain one (``sgd``).
    """
    # An evaluation that is under way may still read a weight in the layout that is given up here.
    mx.nd.waitall()
    for weight in weights:
        reorder(weight)
    settings = mx.nd.array(np.asarray(rates, np.float32), ctx=weights[0].context)
    mx.nd.attn_update(
        *weights,
        *gradients,
        *momenta,
        settings,
        count=len(weights),
        momentum=momentum,
        scale=scale,
        nesterov=int(nesterov),
        out=[*weights, *momenta],
    )


def reorder(array: Any) -> None:
    """Give an array its plain layout; an evaluation leaves the one that oneDNN reads fastest."""
    # The one call that changes the layout of the array itself, and waits for it.
    check_call(_LIB.MXNDArrayGetData(array.handle, ctypes.byref(ctypes.c_void_p())))
