"""``quantize(net, calibration, ...)``: inference with 8 bit integers, where accuracy holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, Optional

import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.gluon import SymbolBlock, nn

from model.inference import PreparedNetwork, check_image
from model.inference_graphs import CONSTANTS, compiled, rewritten
from model.threads import release_callers_team

MAX_LOSS = 0.002  # of accuracy: 0.2 points
BATCH = 100
SIGNED_ONLY = ["elemwise_mul", "_mul"]  # its 8 bit form fails on what a ReLU or sigmoid gives


class AccuracyError(ValueError):
    """Quantization costs too much accuracy; the message has the numbers."""


def quantize(
    net: nn.HybridBlock,
    calibration: Any,
    judges: Optional[tuple[Any, Sequence[int]]] = None,
    max_loss: float = MAX_LOSS,
) -> PreparedNetwork:
    """Return a network that computes convolutions and dense layers with 8 bit integers.

    The graph is rewritten as by `model.inference.prepare_inference`, then quantized by MXNet with
    the least and largest values that the calibration images give, weights channel by channel.

    Parameters
    ----------
    net
        A classifier with parameters on the CPU; it is not changed.
    calibration
        (N, C, H, W) float32: normalised training images, some hundreds.
    judges
        Normalised images and labels that accuracy is measured on, best all of a held-out or test
        split. None: the calibration images, labelled by the network itself, so that the accuracy
        lost is the share of decisions that change.
    max_loss
        Largest loss of accuracy; 0.002 is 0.2 points.

    Returns
    -------
    PreparedNetwork
        Its last step tells the accuracies. It takes any number of images of that height and width.

    Raises
    ------
    AccuracyError
        When more accuracy is lost.
    ValueError
        When the images are none, or MXNet cannot quantize the network.
    """
    release_callers_team()
    calibration = check_image(net, calibration)
    graph, steps = rewritten(net, calibration.shape)
    try:
        block = _quantized(compiled(graph.symbol(), graph.parameters()), calibration)
        _run(block, calibration[:1])
    except mx.MXNetError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ValueError(f"MXNet cannot quantize this network: {lines[-1]}") from error
    if judges is None:
        image = calibration.asnumpy()
        label = _decisions(net, image)
    else:
        image, label = (
            each.asnumpy() if isinstance(each, mx.nd.NDArray) else np.asarray(each)
            for each in judges
        )
    before, after = (float(np.mean(_decisions(n, image) == label)) for n in (net, block))
    text = f"int8: accuracy {after:.4f}, float32 {before:.4f} on {len(label)} images"
    if not before - after <= max_loss:
        raise AccuracyError(
            f"{text}; {100 * (before - after):.2f} points are lost, allowed are "
            f"{100 * max_loss:.2f}: use float32 or bfloat16"
        )
    expected, found = (_run(n, calibration[:BATCH]) for n in (net, block))
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    fixed = any(step.endswith(CONSTANTS) for step in steps)
    size = tuple(calibration.shape[2:]) if fixed else None
    return PreparedNetwork(block, (*steps, text), difference, size)


def _quantized(block: SymbolBlock, calibration: Any) -> SymbolBlock:
    from mxnet.contrib.quantization import quantize_net_v2

    # An iterator without labels: a loader's would be taken for a second input of the network.
    images = mx.io.NDArrayIter(calibration, None, min(len(calibration), 64))
    quantized = quantize_net_v2(
        block,
        quantized_dtype="auto",
        quantize_granularity="channel-wise",
        exclude_operators=SIGNED_ONLY,
        calib_data=images,
        calib_mode="naive",
        num_calib_examples=len(calibration),
        ctx=mx.cpu(),
    )
    quantized.hybridize(static_alloc=True, static_shape=True)
    return quantized


def _run(block: Callable[[Any], Any], image: Any) -> np.ndarray:
    with autograd.pause(train_mode=False):
        logits: np.ndarray = block(image).astype("float32").asnumpy()
    return logits


def _decisions(block: Callable[[Any], Any], image: np.ndarray) -> np.ndarray:
    """Return the class of each image."""
    parts = [
        _run(block, mx.nd.array(image[start : start + BATCH])).argmax(axis=1)
        for start in range(0, len(image), BATCH)
    ]
    return np.concatenate(parts)
