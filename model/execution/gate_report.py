"""What the gates of a network do: how many are alive, how open they are, how much they vary."""

from __future__ import annotations

from functools import partial
from typing import Any, Callable, Optional

import mxnet as mx
import numpy as np

from model.layers.channel_attention import RecurrentGate, StaticGate
from model.ram_resnet import ResNet

ALIVE = 1e-3  # |w| above which a recurrent gate counts as depending on its input


def watch_gates(net: Any) -> Optional[Callable[[mx.nd.NDArray], dict[str, float]]]:
    """Return `gate_statistics` of a network with gates, None for any other network."""
    gated = isinstance(net, ResNet) and net.spec.attention != "none"
    return partial(gate_statistics, net) if gated else None


def gate_statistics(net: ResNet, image: mx.nd.NDArray) -> dict[str, float]:
    """Return numbers about the gates for a batch, ready for a log.

    Parameters
    ----------
    net
        Hybridized or not; its running statistics are used and nothing in it changes.
    image
        (N, 3, H, W) float32, normalised as for the network; 2 or more for a spread.

    Returns
    -------
    dict
        For each stage k and, without a number, for all of them: ``gate_meank``, the mean over
        images, channels and units; ``gate_stdk``, the standard deviation over the images, averaged
        over channels and units; and, for attention ``ram`` and ``static``, ``gate_alivek``, the
        share of the channels with |w| > 1e-3 (0 for ``static``, which has no w). Empty for a
        network without gates.
    """
    found: dict[int, list[np.ndarray]] = {}
    for (stage, _), gate in net.gates(image).items():
        found.setdefault(stage, []).append(gate.asnumpy().astype(np.float64))
    if not found:
        return {}
    statistics = {}
    for suffix, gates in _with_total(found):
        means = np.concatenate([gate.mean(axis=0) for gate in gates])
        spreads = np.concatenate([gate.std(axis=0) for gate in gates])
        statistics[f"gate_mean{suffix}"] = float(means.mean())
        statistics[f"gate_std{suffix}"] = float(spreads.mean())
    alive: dict[int, list[np.ndarray]] = {}
    for stage, _, unit in net.units():
        if isinstance(unit.gate, RecurrentGate):
            w = unit.gate.w.data(image.context).asnumpy().ravel()
            alive.setdefault(stage, []).append(np.abs(w) > ALIVE)
        elif isinstance(unit.gate, StaticGate):
            alive.setdefault(stage, []).append(np.zeros(unit.gate.b.shape[1], dtype=bool))
    if alive:
        for suffix, flags in _with_total(alive):
            statistics[f"gate_alive{suffix}"] = float(np.concatenate(flags).mean())
    return statistics


def _with_total(by_stage: dict[int, list[np.ndarray]]) -> list[tuple[str, list[np.ndarray]]]:
    """Return (suffix, arrays) for each stage, and for all with an empty suffix."""
    stages = [(str(stage), arrays) for stage, arrays in sorted(by_stage.items())]
    return [*stages, ("", [array for _, arrays in stages for array in arrays])]
