"""``quantize(net, calibration, ...)``: inference with 8 bit integers, where accuracy holds."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.gluon import SymbolBlock, nn

from machine.processor import cpu_identity
from model.execution.fused_inference import INT8, ranges_graph
from model.execution.graph import Graph
from model.execution.inference import PreparedNetwork, check_image, prepare_inference
from model.execution.inference_graphs import (
    Checked,
    Target,
    by_operators,
    compiled,
    logits_of,
    reason,
    snapshot,
)
from model.execution.threads import release_callers_team
from model.native.build import require_instructions

MAX_LOSS = 0.002  # of accuracy: 0.2 points
BATCH = 100
ROUNDS = 6  # of timing two forms in turn; the first one also makes buffers
SIGNED_ONLY = ["elemwise_mul", "_mul"]  # its 8 bit form fails on what a ReLU or sigmoid gives
# Without this instruction oneDNN adds pairs of products in 16 bits, which overflow.
DOT_PRODUCTS = "avx512_vnni"
EXACT = {DOT_PRODUCTS, "avx_vnni"}  # one of them, for MXNet's oneDNN
INEXACT = (
    "this processor adds 8 bit products in pairs of 16 bits, which can overflow: the results are "
    f"others on a processor with {' or '.join(sorted(EXACT))}"
)


class AccuracyError(ValueError):
    """Quantization costs too much accuracy; the message has the numbers."""


class Judges:
    """Images and labels, and what may be lost on them; see `quantize`."""

    def __init__(
        self, net: nn.HybridBlock, image: Any, label: Optional[Any], max_loss: float
    ) -> None:
        if label is not None and (not len(image) or label.shape != (len(image),)):
            raise ValueError(
                f"judges: {len(image)} images and labels of shape {label.shape}; give one image or "
                "more and one class number each"
            )
        decided = _decisions(net, image)
        self._image, self._max_loss = image, max_loss
        self._label = decided if label is None else label
        self._before = float(np.mean(decided == self._label))

    def accept(self, block: Callable[[Any], Any]) -> str:
        """Return the accuracies as text.

        Raises
        ------
        AccuracyError
            When a block loses too much.
        """
        after = float(np.mean(_decisions(block, self._image) == self._label))
        lost = self._before - after
        text = (
            f"int8: accuracy {after:.4f}, float32 {self._before:.4f} on {len(self._label)} images"
        )
        if not lost <= self._max_loss:
            raise AccuracyError(
                f"{text}; {100 * lost:.2f} points are lost, allowed are "
                f"{100 * self._max_loss:.2f}: use float32 or bfloat16"
            )
        return text


def quantize(
    net: nn.HybridBlock,
    calibration: Any,
    judges: Optional[tuple[Any, Sequence[int]]] = None,
    max_loss: float = MAX_LOSS,
    operators: Optional[bool] = None,
    batch_size: int = BATCH,
) -> PreparedNetwork:
    """Return a network that computes convolutions with 8 bit integers.

    What a convolution reads is quantized by the largest value that the calibration images give,
    its weights channel by channel. There are two forms. In one, residual units are computed by the
    project's own operators, which leave the stem and the classifier in float32. In the other, which
    is the one that is exported, the graph is rewritten as by
    `model.execution.inference.prepare_inference` and quantized by MXNet, dense layers too. Both are
    timed, and the faster that is accurate enough is returned.

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
    operators
        None: the faster of the two. True: the project's own operators, which must be built, know
        the network and run on this processor. False: MXNet's. Float32 is timed for None alone.
    batch_size
        Number of images of a call that is timed.

    Returns
    -------
    PreparedNetwork
        Its last step tells the accuracies. It takes any number of images of that height and width.
        Where it is MXNet's form and this processor's 8 bit sums can overflow, so that another one
        gives other results, a step tells that.

    Raises
    ------
    AccuracyError
        When more accuracy is lost; also by ``export`` of what is returned.
    ValueError
        When the images are none or of two sizes, `batch_size` is below 1, MXNet cannot quantize
        the network, or own operators were asked for in vain.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
    release_callers_team()
    calibration = check_image(net, calibration)
    graph, steps, size = snapshot(net, calibration.shape)
    image, label = (calibration, None) if judges is None else judges
    if image.shape[1:] != calibration.shape[1:]:
        raise ValueError(
            f"judged by images of shape {image.shape[1:]}, calibrated with "
            f"{calibration.shape[1:]}; give both in one size"
        )
    judge = Judges(net, _numpy(image), None if label is None else _numpy(label), max_loss)
    first = calibration[:BATCH]
    # How near is for the judges to say.
    target = Target(first, logits_of(net, first), float("inf"))
    own: Checked = None, 0.0, "not asked for"
    if operators is not False:
        own = by_operators(net, INT8, target, lambda: _ranges(net, calibration))
    block, _, how = own
    forms = _Forms(graph, steps, size, calibration, judge, target, own)
    timed = _repeated(calibration, batch_size)
    if block is None:
        if operators:
            raise ValueError(f"own operators do not quantize this network: {how}")
        steps.append(f"not by own operators: {how}")
        quantized = forms.by_mxnet()
    else:
        quantized = forms.by_operators() if operators else forms.faster(timed)
    if operators is None:
        told = _slower_than_float32(net, quantized, timed)
        quantized.steps = (*told, *quantized.steps)
    return quantized


@dataclass
class _Forms:
    """The quantized forms of a network, each judged when it is asked for.

    `graph` is rewritten for inference, `steps` tell how, `own` is what `by_operators` of
    `model.execution.inference_graphs` says, `timed` is what was found about speed.
    """

    graph: Graph
    steps: list[str]
    size: Optional[tuple[int, int]]
    calibration: Any
    judge: Judges
    target: Target
    own: Checked
    timed: list[str] = field(default_factory=list)

    def by_operators(self) -> PreparedNetwork:
        """Return the form by own operators, which must be there."""
        block, difference, how = self.own
        assert block is not None
        done = (how, INT8, *self.timed, self.judge.accept(block))
        return PreparedNetwork(block, done, difference, self.size, self._portable)

    def by_mxnet(self) -> PreparedNetwork:
        """Return the form by MXNet's."""
        block = self._mxnets
        told = () if EXACT & set(cpu_identity().split()) else (INEXACT,)
        done = (*self.steps, *self.timed, *told, self.judge.accept(block))
        return PreparedNetwork(block, done, self.target.difference(block), self.size)

    def _portable(self) -> SymbolBlock:
        self.judge.accept(self._mxnets)
        return self._mxnets

    @functools.cached_property
    def _mxnets(self) -> SymbolBlock:
        block = compiled(self.graph.symbol(), self.graph.parameters())
        return _quantized(block, self.calibration)

    def faster(self, image: Any) -> PreparedNetwork:
        """Return the form that is faster, or the other one where it loses too much accuracy."""
        try:
            seconds = _seconds((self.own[0], self._mxnets), image)
        except ValueError as error:
            self.timed.append(str(error))
            return self.by_operators()
        ours, theirs = (f"{1e3 * each:.3g} ms" for each in seconds)
        self.timed.append(f"{ours} by own operators, {theirs} by MXNet's, {len(image)} images")
        forms = [self.by_operators, self.by_mxnet]
        if seconds[1] < seconds[0]:
            forms.reverse()
        try:
            return forms[0]()
        except AccuracyError as error:
            self.timed.append(f"the faster is not accurate enough: {error}")
            return forms[1]()


def _slower_than_float32(
    net: nn.HybridBlock, quantized: PreparedNetwork, image: Any
) -> tuple[str, ...]:
    """Return a step that says so where 8 bits take no less time than prepared float32."""
    try:
        prepared = prepare_inference(net, image[:BATCH])
    except ValueError as error:  # the network in 8 bits is sound all the same
        return (f"not compared with the time of float32: {error}",)
    int8, float32 = _seconds((quantized, prepared), image)
    if int8 < float32:
        return ()
    ours, plain = f"{1e3 * int8:.3g} ms", f"float32 of prepare_inference {1e3 * float32:.3g} ms"
    return (f"8 bits are not faster here: {ours}, {plain}, {len(image)} images",)


def _seconds(blocks: Sequence[Any], image: Any) -> list[float]:
    """Return the least time that each takes for the image, measured in turn."""
    best = [float("inf")] * len(blocks)
    for _ in range(ROUNDS):
        for index, block in enumerate(blocks):
            start = time.perf_counter()
            logits_of(block, image)
            best[index] = min(best[index], time.perf_counter() - start)
    return best


def _repeated(image: Any, count: int) -> Any:
    """Return so many images, the given ones from the first on, again and again."""
    return mx.nd.take(image, mx.nd.arange(count), mode="wrap")


def _numpy(values: Any) -> np.ndarray:
    return values.asnumpy() if isinstance(values, mx.nd.NDArray) else np.asarray(values)


def _ranges(net: nn.HybridBlock, images: Any) -> list[list[float]]:
    """Return what `_largest` finds; Unavailable where the processor does not multiply bytes."""
    require_instructions(DOT_PRODUCTS)
    return _largest(compiled(*ranges_graph(net, images.shape)), images)


def _largest(reader: Callable[[Any], Any], images: Any) -> list[list[float]]:
    """Return the largest numbers that each unit's convolutions read in any image."""
    found: list[np.ndarray] = []
    for start in range(0, len(images), BATCH):
        with autograd.pause(train_mode=False):
            units = reader(images[start : start + BATCH])
        units = units if isinstance(units, (list, tuple)) else [units]  # one unit: no list
        largest = [each.asnumpy().max(axis=0) for each in units]
        found = [np.maximum(a, b) for a, b in zip(found, largest)] if found else largest
    return [each.tolist() for each in found]


def _quantized(block: SymbolBlock, calibration: Any) -> SymbolBlock:
    """Return a block quantized by MXNet.

    Raises
    ------
    ValueError
        When MXNet cannot do it.
    """
    from mxnet.contrib.quantization import quantize_net_v2

    # An iterator without labels: a loader's would be taken for a second input of the network.
    images = mx.io.NDArrayIter(calibration, None, min(len(calibration), 64))
    try:
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
        logits_of(quantized, calibration[:1])
    except mx.MXNetError as error:
        raise ValueError(f"MXNet cannot quantize this network: {reason(error)}") from error
    return quantized


def _decisions(block: Callable[[Any], Any], image: np.ndarray) -> np.ndarray:
    """Return the class of each image."""
    parts = [
        logits_of(block, mx.nd.array(image[start : start + BATCH])).argmax(axis=1)
        for start in range(0, len(image), BATCH)
    ]
    return np.concatenate(parts)
