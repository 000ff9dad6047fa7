"""What is not finite never becomes a finite score."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn

import train_cifar
from formats.errors import UserError
from formats.images.preprocessing import Preprocessing
from formats.param_file import write_params
from model import create_model
from model.weights.file_match import LoadError
from model.weights.loading import check_finite
from training.apply.predict import Picture, probabilities
from training.loop.evaluation import evaluate

BAD = (math.nan, math.inf, -math.inf)


def network(bias: float = 0.0) -> Any:
    """A network whose ReLU would turn NaN of an image into 0."""
    net = nn.HybridSequential()
    net.add(nn.Flatten(), nn.Dense(4, activation="relu", in_units=12), nn.Dense(3, in_units=4))
    net.initialize(mx.init.Xavier())
    net[2].bias.set_data(mx.nd.array([0.0, bias, 0.0]))
    return net


def loader(value: float = 0.5) -> list[Any]:
    images = np.full((2, 3, 2, 2), 0.5, np.float32)
    images[1, 2, 1, 1] = value
    return [(mx.nd.array(images), mx.nd.array([0, 1]))]


@pytest.mark.parametrize("value", BAD)
def test_images(value: float) -> None:
    assert math.isfinite(train_cifar.test(network(), mx.cpu(), loader())[0])
    with pytest.raises(UserError, match="NaN or infinite"):
        train_cifar.test(network(), mx.cpu(), loader(value))


@pytest.mark.parametrize("value", BAD)
def test_outputs(value: float) -> None:
    scores = evaluate(network(value), loader(), [mx.cpu()])
    assert math.isnan(scores.loss)
    assert math.isnan(scores.acc)
    with pytest.raises(UserError, match="no score"):
        train_cifar.test(network(value), mx.cpu(), loader())
    picture = Picture("x.png", np.zeros((2, 2, 3), np.uint8))
    expected = Preprocessing(2, (0.5,) * 3, (0.2,) * 3)
    with pytest.raises(UserError, match=r"outputs for x\.png are not finite"):
        probabilities(network(value), mx.cpu(), [picture], expected)


def test_weights_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = create_model("resnet20_basic", 3, depth=8)
    net.initialize()
    net(mx.nd.zeros((2, 3, 32, 32)))
    check_finite(net, "x")
    arrays = {n: p.data().asnumpy() for n, p in net._collect_params_with_prefix().items()}
    arrays["bn1.gamma"][3] = math.nan
    write_params(tmp_path / "x.param", arrays)
    words = ["--test", str(tmp_path / "x.param"), "--model", "resnet20_basic", "--depth", "8"]
    assert train_cifar.main([*words, "--dataset", "shapes", "--gpus", "cpu"]) == 2
    assert "bn1.gamma has NaN or infinite values" in capsys.readouterr().err
    net.bn1.gamma.set_data(mx.nd.array(arrays["bn1.gamma"]))
    with pytest.raises(LoadError):
        check_finite(net, "x")
