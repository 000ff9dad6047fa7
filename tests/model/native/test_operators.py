"""The operator in C++, against the graph that it stands for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet import autograd, gluon

from model import create_model
from model.hybrid_loss import HybridLoss, LossWeights
from model.native.build import SWITCH
from model.recurrent_attention import Rollouts

ROOT = Path(__file__).resolve().parents[3]
SMALL = {
    "height": 14,
    "width": 11,
    "channels": 2,
    "patch_size": 3,
    "num_patches": 2,
    "glimpse_scale": 2,
    "pad_value": 0.3,
    "num_glimpses": 3,
    "glimpse_hidden": 37,
    "loc_hidden": 5,
    "hidden_size": 70,
    "locator_hidden": 6,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"reinforce_to_core": False},
    {"baseline_per_glimpse": True},
    {"locator_hidden": 0, "squash": "tanh"},
    {"combine": "multiply", "location_octaves": 3},
    {"num_glimpses": 1},
    {"num_patches": 3, "patch_size": 4, "height": 5, "width": 6},  # larger than the image
    {"patch_size": 5, "num_patches": 2, "glimpse_scale": 3, "channels": 1},
    {"num_patches": 1, "pad_value": 0.0, "channels": 1, "height": 28, "width": 28},
]


def build(name: str = "glimpse_mnist", **overrides: Any) -> Any:
    net = create_model(name, 4, **{**SMALL, **overrides})
    net.initialize()
    rng = np.random.default_rng(0)
    for parameter in net.collect_params().values():
        # Larger than the initial values, so that the locations move and saturate.
        values = rng.standard_normal(parameter.shape) * 1.2 * parameter.shape[-1] ** -0.5
        parameter.set_data(mx.nd.array(values))
    return net


def inputs_for(net: Any, images: int, rollouts: int = 3) -> list[Any]:
    rng = np.random.default_rng(images)
    first = rng.uniform(-1, 1, (images, rollouts, 2))
    first[0, : min(rollouts, 4)] = [(-1, -1), (1, 1), (-1, 1), (1, -1)][:rollouts]
    noise = 0.4 * rng.standard_normal((images, rollouts, net.spec.num_glimpses, 2))
    image = rng.uniform(-0.5, 1.5, (images, *net.image_shape))
    return [mx.nd.array(array) for array in (image, first, noise)]


def outputs_and_gradients(net: Any, inputs: list[Any]) -> dict[str, np.ndarray]:
    """Outputs, and the gradients of a random linear function of them."""
    with autograd.record():
        rollouts = Rollouts(*net(*inputs))
        rng = np.random.default_rng(1)
        weights = [mx.nd.array(rng.standard_normal(output.shape)) for output in rollouts]
        total = mx.nd.add_n(*[(w * out).sum() for w, out in zip(weights, rollouts)])
    total.backward()
    found = {name: output.asnumpy() for name, output in zip(Rollouts._fields, rollouts)}
    parameters = net._collect_params_with_prefix().items()
    return {**found, **{name: parameter.grad().asnumpy() for name, parameter in parameters}}


def assert_close(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        limit = 1e-5 * max(1.0, np.abs(value).max())
        np.testing.assert_allclose(found[name], value, rtol=0, atol=limit, err_msg=name)


@pytest.mark.parametrize("hybridize", [False, True])
@pytest.mark.parametrize("overrides", VARIANTS, ids=str)
def test_outputs_and_gradients_equal_those_of_the_graph(
    overrides: dict[str, Any], hybridize: bool, glimpse_operators: None
) -> None:
    graph, operator = build(**overrides), build(**overrides)
    assert operator.use_operator()
    if hybridize:
        operator.hybridize(static_alloc=True, static_shape=True)
    for images in (13, 1, 22):  # another size of batch after the graph was built; odd numbers
        inputs = inputs_for(graph, images)
        expected = outputs_and_gradients(graph, inputs)
        assert_close(outputs_and_gradients(operator, inputs), expected)


@pytest.mark.parametrize("hybridize", [False, True])
def test_gradients_add_up_over_micro_batches(hybridize: bool, glimpse_operators: None) -> None:
    net = build()
    assert net.use_operator()
    if hybridize:
        net.hybridize(static_alloc=True, static_shape=True)
    parts = [outputs_and_gradients(net, inputs_for(net, images)) for images in (7, 5)]
    for parameter in net.collect_params().values():
        parameter.grad_req = "add"
        parameter.zero_grad()
    totals = [outputs_and_gradients(net, inputs_for(net, images)) for images in (7, 5)]
    for name in net._collect_params_with_prefix():
        expected = parts[0][name] + parts[1][name]
        limit = 1e-5 * max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(totals[1][name], expected, rtol=0, atol=limit, err_msg=name)


def test_high_octaves_are_those_of_the_graph(glimpse_operators: None) -> None:
    graph, operator = (build(location_octaves=34) for _ in range(2))
    assert operator.use_operator()
    inputs = inputs_for(graph, 2)
    inputs[1][:] = mx.nd.array(np.array([0, 2.0**-33, -(2.0**-20)])[None, :, None])
    inputs[2][:] = 0  # so that the later locations are the same in both
    for net in (graph, operator):
        for layer in (net.locator.fc, net.locator.fc_lt):
            layer.weight.set_data(mx.nd.zeros(layer.weight.shape))
            layer.bias.set_data(mx.nd.zeros(layer.bias.shape))
    found, expected = (net(*inputs)[0].asnumpy() for net in (operator, graph))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("combine", ["add", "multiply"])
def test_units_that_are_zero_are_left_out_rightly(combine: str, glimpse_operators: None) -> None:
    """Most units of a trained network are 0, often in all rows that are computed together."""
    graph, operator = (build(combine=combine, location_octaves=1) for _ in range(2))
    for net in (graph, operator):
        for name, parameter in net._collect_params_with_prefix().items():
            if name.endswith("bias") and "classifier" not in name:
                moved = np.where(np.arange(parameter.shape[0]) % 3, -1.5, 0.1)
                parameter.set_data(mx.nd.array(moved))
    assert operator.use_operator()
    inputs = inputs_for(graph, 9)
    inputs[0][:] *= mx.nd.array(np.arange(9) % 2).reshape((9, 1, 1, 1))  # some of background alone
    expected = outputs_and_gradients(graph, inputs)
    assert_close(outputs_and_gradients(operator, inputs), expected)
    for layer in ("sensor.fc1", "rnn.h2h", "locator.fc"):  # it does test what it says
        assert 0.2 < np.mean(expected[f"{layer}.bias"] == 0) < 1, layer


def test_a_training_stays_with_that_of_the_graph(glimpse_operators: None) -> None:
    def losses(use: bool) -> list[float]:
        net = build(combine="multiply", location_octaves=2)
        assert net.use_operator(use) is use
        loss = HybridLoss(net, LossWeights(reinforce=0.1))
        loss.hybridize(static_alloc=True, static_shape=True)
        trainer = gluon.Trainer(net.collect_params(), "adam", {"learning_rate": 3e-3})
        std, label, found = mx.nd.array([0.4]), mx.nd.array(np.arange(17) % 4), []
        for step in range(10):
            with autograd.record():
                value, _ = loss(*inputs_for(net, 16 + step % 2)[:3], std, label[: 16 + step % 2])
            value.backward()
            trainer.step(16)
            found.append(float(value.mean().asscalar()))
        return found

    mx.random.seed(0)
    expected = losses(False)
    assert expected[-1] != pytest.approx(expected[0], rel=1e-2)  # it does train
    np.testing.assert_allclose(losses(True), expected, rtol=1e-4)


@pytest.mark.parametrize(
    "overrides", [{"core": "lstm"}, {"first_location": "learned"}, {"gaze": "noise"}], ids=str
)
def test_what_the_operator_does_not_know_stays_a_graph(
    overrides: dict[str, Any], glimpse_operators: None
) -> None:
    net = build(**overrides)
    assert not net.use_operator()
    assert not net.uses_operator
    assert net(*inputs_for(net, 2))[0].shape == (2, 3, 3, 4)


WRONG = {
    "steps": (1, (4, 3, 2, 2)),
    "coordinates": (1, (4, 3, 3, 3)),
    "rollouts": (0, (4, 2, 2)),
    "images": (0, (5, 3, 2)),
}


@pytest.mark.parametrize("use", [False, True])
def test_arrays_that_do_not_fit_are_refused(use: bool, glimpse_operators: None) -> None:
    """Whose memory would be read, and written, past its end."""
    net = build()
    assert net.use_operator(use) is use
    image, *others = inputs_for(net, 4)
    for place, shape in WRONG.values():
        wrong = list(others)
        wrong[place] = mx.nd.zeros(shape)
        with pytest.raises(ValueError, match=r"has shape .* this network needs"):
            net(image, *wrong)
    with pytest.raises(ValueError, match=r"first_location has shape \(4,\)"):
        net(image, mx.nd.zeros((4,)), others[1])
    for shape in ((4, 2, 28, 40), (4, 1, 14, 11), (9, 2, 14, 11)):
        with pytest.raises(ValueError, match=r"has shape .* this network needs"):
            net(mx.nd.zeros(shape), *others)


@pytest.mark.parametrize("wrong", [*WRONG, "channels", "batch"])
def test_the_operator_itself_refuses_them(wrong: str, glimpse_operators: None) -> None:
    """As where a graph of it is bound, in a hybridized objective for one."""
    net = build()
    assert net.use_operator()
    variables = [mx.sym.var(name) for name in ("image", "first", "noise")]
    symbol = mx.sym.Group(list(net(*variables)))
    shapes = [one.shape for one in inputs_for(net, 4)]
    assert symbol.infer_shape(**dict(zip(("image", "first", "noise"), shapes)))[1]
    if wrong in WRONG:
        place, shape = WRONG[wrong]
        shapes[1 + place] = shape
    else:
        shapes[0] = (4, 1, 14, 11) if wrong == "channels" else (6, 2, 14, 11)
    with pytest.raises(mx.MXNetError, match="glimpse_rollouts needs images"):
        symbol.infer_shape(**dict(zip(("image", "first", "noise"), shapes)))


def test_back_to_the_graph_for_an_export(glimpse_operators: None, tmp_path: Path) -> None:
    net = build()
    net.hybridize()
    for use in (True, False):
        assert net.use_operator(use) is use
        net(*inputs_for(net, 2))
        net.export(str(tmp_path / "net"))
        symbol = (tmp_path / "net-symbol.json").read_text()
        assert ("glimpse_rollouts" in symbol) is use


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    assert not build().use_operator()


def test_without_a_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("model.native.build._loaded", {})
    monkeypatch.setattr("model.native.build.COMPILERS", ("no-such-compiler",))
    monkeypatch.delenv("CXX", raising=False)
    assert not build().use_operator()


BITS = """
import hashlib
from tests.model.native.test_operators import build, inputs_for, outputs_and_gradients
net = build(combine="multiply", height=28, width=28, num_patches=3)
assert net.use_operator()
found = outputs_and_gradients(net, inputs_for(net, 41))
parts = ("means", "sensor", "rnn", "locator")  # the heads are MXNet's own products
values = b"".join(v.tobytes() for k, v in found.items() if k.startswith(parts))
print(hashlib.sha256(values).hexdigest())
"""


def test_bits_do_not_depend_on_the_number_of_threads(
    glimpse_operators: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = set()
    for threads in ("1", "2"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        command = [sys.executable, "-c", BITS]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        digests.add(done.stdout)
    assert len(digests) == 1


COUNT = """
import os, sys
import mxnet as mx, numpy as np
from model.execution.threads import copy_on_one_thread
if sys.argv[1] == "one":
    copy_on_one_thread()
image, weight = mx.nd.ones((1, 32, 8, 8)), mx.nd.ones((64, 32, 3, 3))
mx.nd.Convolution(image, weight, kernel=(3, 3), num_filter=64, no_bias=True).wait_to_read()
before = len(os.listdir("/proc/self/task"))
if sys.argv[2] == "write":
    mx.nd.array(np.zeros(300_000, np.float32)).wait_to_read()
else:
    weight.asnumpy()  # in the convolution's layout
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.parametrize("what", ["write", "read"])
@pytest.mark.parametrize(("mode", "more"), [("one", 0), ("as it comes", 1)])
def test_a_large_copy_starts_no_second_team(
    mode: str, more: int, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("MXNET_CPU_PARALLEL_SIZE", raising=False)
    done = subprocess.run(
        [sys.executable, "-c", COUNT, mode, what],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == more
