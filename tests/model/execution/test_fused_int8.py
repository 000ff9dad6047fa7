"""Residual units that multiply 8 bit integers, against fake quantization and their networks."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any, Optional

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd

from model.execution import quantization
from model.execution.fused_inference import INT8, ranges_graph
from model.execution.inference import PreparedNetwork, prepare_inference
from model.execution.inference_graphs import compiled, reason
from model.execution.quantization import AccuracyError, quantize
from model.native import build as operators
from tests.model.execution.prepared_checks import QUIET, difference, images
from tests.model.execution.test_fused_inference import NETWORKS, network
from tests.model.execution.test_fused_training import bfloat16
from tests.model.native.processor import without_bytes, without_operators

pytestmark = QUIET
EPSILON = 1e-5


def refused(net: Any) -> bool:
    """Return False where own operators quantize; elsewhere see that they say why, return True."""
    why = without_bytes()
    if why is None:
        return False
    said = re.escape(f"own operators do not quantize this network: {why}")
    with pytest.raises(ValueError, match=f"^{said}$"):
        quantize(net, images(8, 16), max_loss=1.0, operators=True)
    return True


@pytest.mark.parametrize("operators", [False, None])
def test_images_of_two_sizes_are_refused(operators: Optional[bool]) -> None:
    """A network that was prepared for one would be judged by what lies behind the other."""
    net = network("no gate")
    judges = images(8, 8), [0] * 8
    said = r"judged by images of shape \(3, 8, 8\), calibrated with \(3, 16, 16\)"
    with pytest.raises(ValueError, match=said):
        quantize(net, images(8, 16), judges, operators=operators)


def stored_as_bfloat16(values: np.ndarray) -> np.ndarray:
    rounded: np.ndarray = bfloat16(mx.nd.array(values)).asnumpy()
    return rounded


def convolved(x: np.ndarray, weight: np.ndarray, step: float, stride: int) -> np.ndarray:
    """Convolve bytes of x by bytes of the weights, each output channel with a step of its own."""
    steps = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
    kernel = weight.shape[2]
    products = mx.nd.Convolution(
        mx.nd.array(np.clip(np.rint(x / step), 0, 255)),
        mx.nd.array(np.rint(weight / steps)),
        kernel=(kernel, kernel),
        stride=(stride, stride),
        pad=(kernel // 2, kernel // 2),
        num_filter=len(weight),
        no_bias=True,
    ).asnumpy()
    found: np.ndarray = products * step * steps.reshape(1, -1, 1, 1)
    return found


class Arrays:
    """Arrays of a unit, drawn at random, and what fake quantization makes of them."""

    def __init__(self, version: int, projected: bool, stride: int) -> None:
        self.version, self.projected, self.stride = version, projected, stride
        self._random = np.random.RandomState(version + stride)
        out = 48 if projected else 32
        self.weights = [self.weight(16, 32, 1), self.weight(16, 16, 3), self.weight(out, 16, 1)]
        of_norms = [16, 16, out] if version == 1 else [32, 16, 16]
        self.norms = [self.norm(channels) for channels in of_norms]
        self.side = self.weight(out, 32, 1)
        self.side_norm = self.norm(out)

    def weight(self, out: int, channels: int, kernel: int) -> np.ndarray:
        return self._random.normal(size=(out, channels, kernel, kernel)).astype(np.float32)

    def norm(self, channels: int) -> list[np.ndarray]:
        draw = self._random.uniform
        return [draw(-1, 1, channels).astype(np.float32) for _ in range(3)] + [
            draw(50, 100, channels).astype(np.float32)
        ]

    def inputs(self) -> list[np.ndarray]:
        found: list[np.ndarray] = []
        for weight, norm in zip(self.weights, self.norms):
            found += [weight, *norm]
        if self.projected:
            found += [self.side, *(self.side_norm if self.version == 1 else [])]
        return found

    @staticmethod
    def affine(norm: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        gamma, beta, mean, var = (each.reshape(1, -1, 1, 1) for each in norm)
        scale = gamma / np.sqrt(var + EPSILON)
        return scale, beta - mean * scale

    def faked(self, x: np.ndarray, ranges: list[float]) -> np.ndarray:
        steps = [each / 255 for each in ranges]
        y = x
        if self.version == 2:
            scale, shift = self.affine(self.norms[0])
            y = np.maximum(x * scale + shift, 0)
        read = y
        for i, weight in enumerate(self.weights):
            after = self.norms[i] if self.version == 1 else [*self.norms[1:], None][i]
            stride = self.stride if i == 1 else 1
            y = self.layer(y, weight, steps[i], stride, after)
            if i < 2:
                y = np.clip(np.rint(np.maximum(y, 0) / steps[i + 1]), 0, 255) * steps[i + 1]
        y = stored_as_bfloat16(y)
        beside = x
        if self.projected:
            norm = self.side_norm if self.version == 1 else None
            beside = self.layer(read, self.side, steps[0], self.stride, norm)
            beside = stored_as_bfloat16(beside)
        total = y + beside
        return stored_as_bfloat16(np.maximum(total, 0) if self.version == 1 else total)

    def layer(self, x: np.ndarray, weight: np.ndarray, step: float, stride: int, norm: Any) -> Any:
        if norm is None:
            return convolved(x, weight, step, stride)
        scale, shift = self.affine(norm)
        return convolved(x, weight * scale.reshape(-1, 1, 1, 1), step, stride) + shift


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("projected", "stride"), [(False, 1), (True, 1), (True, 2)])
def test_a_unit_is_fake_quantization(version: int, projected: bool, stride: int) -> None:
    if refused(network("no gate")):
        return
    arrays = Arrays(version, projected, stride)
    x = stored_as_bfloat16(np.random.RandomState(7).normal(size=(3, 32, 6, 5)) * 10)
    x = np.maximum(x, 0) if version == 1 else x
    ranges = [24.0, 3.0, 2.5]  # of the first some numbers are larger
    inputs = [mx.nd.array(each) for each in arrays.inputs()]
    blocked = mx.nd.attn_infer_block(mx.nd.array(x), inputs=1, precision=INT8)
    output = mx.nd.attn_infer_unit(
        blocked,
        *inputs,
        inputs=1 + len(inputs),
        precision=INT8,
        ranges=",".join(map(str, ranges)),
        version=version,
        convolutions=3,
        strided=2,
        stride=stride,
        shortcut="projected" if projected else "identity",
        gate="none",
        steps=1,
        epsilon=EPSILON,
        momentum=0.9,
    )
    found = mx.nd.attn_infer_mean(
        output, inputs=1, precision=INT8, epsilon=EPSILON, momentum=0.9
    ).asnumpy()
    expected = arrays.faked(x, ranges).mean(axis=(2, 3))
    # A number in between two bytes may become either: a few are one step off.
    np.testing.assert_allclose(found, expected, atol=0.004 * np.abs(expected).max())
    wrong = arrays.faked(x, [ranges[0], ranges[1] * 1.1, ranges[2]]).mean(axis=(2, 3))
    assert np.abs(found - expected).max() < np.abs(found - wrong).max() / 2


@pytest.mark.parametrize("case", NETWORKS)
def test_logits_are_near_for_any_number_of_images(case: str) -> None:
    net = network(case)
    if refused(net):
        return
    prepared = quantize(net, images(8, 16), max_loss=1.0, operators=True)
    assert prepared.steps[0].startswith("residual units by operators in C++ (units, oneDNN ")
    assert 1e-4 < difference(net, prepared, images(8, 16)) < 0.2
    whole = prepared(images(7, 16, seed=1)).asnumpy()
    for start, stop in ((0, 1), (1, 4), (4, 7)):
        part = prepared(images(7, 16, seed=1)[start:stop]).asnumpy()
        np.testing.assert_allclose(part, whole[start:stop], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("case", "kernels"), [("basic", (3, 3)), ("version 2", (1, 3, 1))])
def test_ranges_are_what_the_networks_convolutions_read(
    case: str, kernels: tuple[int, ...]
) -> None:
    net = network(case)
    image = images(5, 16)
    why = without_operators()
    if why is not None:
        with pytest.raises(ValueError, match=re.escape(f"do not compute this network: {why}")):
            prepare_inference(net, image, operators=True)
        return
    with autograd.pause(train_mode=False):
        found = [each.asnumpy() for each in compiled(*ranges_graph(net, image.shape))(image)]
    seen: list[np.ndarray] = []

    def note(_: Any, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0].asnumpy().max(axis=(1, 2, 3)))

    for _, block in sorted(net._children.items()):
        for unit in block._children.values() if hasattr(block, "_children") else ():
            for number in range(1, len(kernels) + 1):
                conv = getattr(unit, f"conv{number}", None)
                if conv is not None:
                    conv.register_forward_pre_hook(note)
    net(image)
    assert len(found) * len(kernels) == len(seen)
    for column, expected in zip(np.concatenate(found, axis=1).T, seen):
        np.testing.assert_allclose(column, expected, rtol=1e-4)


def test_what_is_exported_is_quantized_by_mxnet_and_judged(tmp_path: Path) -> None:
    net = network("legacy")
    if refused(net):
        return
    prepared = quantize(net, images(16, 16), max_loss=1.0, operators=True)
    assert "attn_infer_unit" in prepared.block(mx.sym.var("data")).tojson()
    expected = net(images(3, 16)).asnumpy()
    net.fc.weight.data()[:] = 0.0  # as training would, in place
    prepared.export(str(tmp_path / "net"))
    content = (tmp_path / "net-symbol.json").read_text()
    assert "attn_infer" not in content
    assert "quantized" in content
    again = mx.gluon.SymbolBlock.imports(
        str(tmp_path / "net-symbol.json"), ["data"], str(tmp_path / "net-0000.params")
    )
    found = again(images(3, 16)).asnumpy()
    np.testing.assert_allclose(found, expected, atol=0.25 * np.abs(expected).max())


@pytest.mark.parametrize("own", [True, None, False])
def test_accuracy_that_is_lost_is_refused(own: Optional[bool]) -> None:
    net = network("no gate")
    if own and refused(net):
        return
    decided = net(images(8, 16)).asnumpy()
    judges = (images(8, 16), decided.argmax(axis=1))
    with pytest.raises(AccuracyError, match=r"float32 1\.0000 on 8 images; .* points are lost"):
        quantize(net, images(8, 16), judges, max_loss=-0.01, operators=own)


def test_without_them_mxnet_quantizes_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network("no gate")
    reason = without_operators() or "the processor has no avx512_vnni"  # now they are loaded
    others = operators.cpu_identity().replace(quantization.DOT_PRODUCTS, "")
    monkeypatch.setattr(operators, "cpu_identity", lambda: others)
    prepared = quantize(net, images(8, 16), max_loss=1.0)
    assert f"not by own operators: {reason}" in prepared.steps
    assert "attn_infer" not in prepared.block(mx.sym.var("data")).tojson()
    assert difference(net, prepared, images(8, 16)) < 0.25
    with pytest.raises(ValueError, match=re.escape(f"quantize this network: {reason}")):
        quantize(net, images(8, 16), max_loss=1.0, operators=True)
    monkeypatch.undo()
    left = quantize(net, images(8, 16), max_loss=1.0, operators=False)
    assert "attn_infer" not in left.block(mx.sym.var("data")).tojson()


def is_own(prepared: PreparedNetwork) -> bool:
    return "attn_infer" in prepared.block(mx.sym.var("data")).tojson()


@pytest.mark.parametrize("seconds", [[0.002, 0.003], [0.003, 0.002]])
def test_the_faster_form_is_returned(
    seconds: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def measured(blocks: Any, image: Any) -> list[float]:
        if isinstance(blocks[1], PreparedNetwork):  # float32
            return [0.001, 0.002]
        own, mxnets = ("attn_infer" in block(mx.sym.var("data")).tojson() for block in blocks)
        asked.append((own, mxnets, len(image)))
        np.testing.assert_array_equal(image[8:].asnumpy(), image[:3].asnumpy())  # once more
        return seconds

    monkeypatch.setattr(quantization, "_seconds", measured)
    net = network("no gate")
    prepared = quantize(net, images(8, 16), max_loss=1.0, batch_size=11)
    if refused(net):
        assert not asked
        assert not is_own(prepared)
        return
    assert asked == [(True, False, 11)]
    assert is_own(prepared) == (seconds[0] < seconds[1])
    own, mxnets = (f"{1e3 * each:g} ms" for each in seconds)
    said = f"{own} by own operators, {mxnets} by MXNet's, 11 images"
    assert said in prepared.steps
    prepared.export(str(tmp_path / "net"))
    assert "attn_infer" not in (tmp_path / "net-symbol.json").read_text()


@pytest.mark.parametrize("own", [True, False])  # False: as on a processor without dot products
@pytest.mark.parametrize(("int8", "told"), [(0.004, True), (0.003, True), (0.002, False)])
def test_float32_that_is_faster_is_told(
    int8: float, told: bool, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not own:
        others = operators.cpu_identity().replace(quantization.DOT_PRODUCTS, "")
        monkeypatch.setattr(operators, "cpu_identity", lambda: others)
    compared = []

    def measured(blocks: Any, image: Any) -> list[float]:
        if isinstance(blocks[1], PreparedNetwork):
            compared.append((quantization.INT8 in blocks[1].steps, len(image)))
        return [int8, 0.003]

    monkeypatch.setattr(quantization, "_seconds", measured)
    net = network("no gate")
    prepared = quantize(net, images(8, 16), max_loss=1.0, batch_size=11)
    step = f"8 bits are not faster here: {1e3 * int8:g} ms, float32 of prepare_inference 3 ms"
    assert (f"{step}, 11 images" in prepared.steps) == told
    assert compared == [(False, 11)]
    assert "int8: accuracy" in prepared.steps[-1]


def test_a_float32_that_cannot_be_prepared_takes_nothing_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refusing(*given: Any) -> None:
        raise ValueError("too far from the network")

    monkeypatch.setattr(quantization, "prepare_inference", refusing)
    prepared = quantize(network("no gate"), images(8, 16), max_loss=1.0)
    assert "not compared with the time of float32: too far from the network" in prepared.steps


@pytest.mark.filterwarnings("ignore:Cannot decide type for the following arguments")
def test_float32_is_not_timed_for_a_form_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantization, "_seconds", lambda blocks, image: pytest.fail("timed"))
    for own in (False, True):
        net = network("no gate")
        if not (own and refused(net)):
            quantize(net, images(8, 16), max_loss=1.0, operators=own)


def test_the_slower_form_is_returned_where_the_faster_loses_too_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net = network("no gate")
    if refused(net):
        return
    monkeypatch.setattr(quantization, "_seconds", lambda blocks, image: [1.0, 2.0])
    accept = quantization.Judges.accept

    def refuse_the_first(self: quantization.Judges, block: Any) -> str:
        monkeypatch.setattr(quantization.Judges, "accept", accept)
        raise AccuracyError("too much")

    monkeypatch.setattr(quantization.Judges, "accept", refuse_the_first)
    prepared = quantize(net, images(8, 16), max_loss=1.0)
    assert not is_own(prepared)
    assert "the faster is not accurate enough: too much" in prepared.steps


def test_own_operators_stay_where_mxnet_cannot_quantize(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(block: Any, calibration: Any) -> Any:
        raise ValueError("MXNet cannot quantize this network: no reason")

    monkeypatch.setattr(quantization, "_quantized", fail)
    net = network("no gate")
    if refused(net):
        with pytest.raises(ValueError, match=r"^MXNet cannot quantize this network: no reason$"):
            quantize(net, images(8, 16), max_loss=1.0)
        return
    prepared = quantize(net, images(8, 16), max_loss=1.0)
    assert is_own(prepared)
    assert "MXNet cannot quantize this network: no reason" in prepared.steps


def test_forms_are_timed_in_turn_by_their_fastest_call() -> None:
    calls: list[str] = []

    def form(name: str, seconds: float) -> Any:
        def run(image: Any) -> Any:
            slow = len(calls) < 2  # as a first call, which makes buffers, or a busy machine
            calls.append(name)
            time.sleep(0.2 if slow else seconds)
            return image

        return run

    seconds = quantization._seconds([form("a", 0.03), form("b", 0.001)], mx.nd.zeros((1, 1)))
    assert calls == ["a", "b"] * quantization.ROUNDS
    assert 0.03 <= seconds[0] < 0.2
    assert 0.001 <= seconds[1] < seconds[0]


def test_a_batch_has_an_image_or_more() -> None:
    with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
        quantize(network("no gate"), images(8, 16), batch_size=0)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("it differs"), "it differs"),
        (mx.MXNetError("no such backend\nstack"), "MXNet failed (no such backend)"),
        (
            mx.MXNetError(
                'Traceback (most recent call last):\n  File "a.cc", line 3\nMXNetError: b'
            ),
            "MXNet failed (b)",
        ),
        (mx.MXNetError("Traceback:\n [0] a\n  last\n"), "MXNet failed (last)"),
        (mx.MXNetError(""), "MXNet failed (without a reason)"),
    ],
)
def test_a_reason_is_one_line_and_no_traceback(error: Exception, said: str) -> None:
    assert reason(error) == said


@pytest.mark.parametrize("units", [1, 2])
def test_a_range_is_the_largest_of_any_image(units: int) -> None:
    image = mx.nd.arange(quantization.BATCH + 20).reshape((-1, 1))  # the last batch is smaller

    def read(batch: Any) -> Any:
        found = [mx.nd.concat(batch, -batch, dim=1) for _ in range(units)]
        return found if units > 1 else found[0]

    largest = [list(each) for each in quantization._largest(read, image)]
    assert largest == [[quantization.BATCH + 19, 0]] * units


@pytest.mark.parametrize("shape", [(7,), (8, 1), (8, 10), (0,)])
def test_labels_must_be_one_for_each_image(shape: tuple[int, ...]) -> None:
    wrong: Any = (images(8, 16), np.zeros(shape, int))
    with pytest.raises(ValueError, match=r"8 images and labels of shape .* one class number each"):
        quantize(network("no gate"), images(8, 16), wrong)


def test_processors_without_the_instructions_leave_them_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(operators.SWITCH, raising=False)
    monkeypatch.setattr(operators, "_loaded", {})
    monkeypatch.setattr(operators, "cpu_identity", lambda: "flags : sse2 sse4_2 avx")
    with pytest.raises(operators.Unavailable, match=r"^the processor has no avx"):
        operators.load(operators.UNITS)
