"""Networks with published weights."""

from __future__ import annotations

import mxnet as mx
import numpy as np
import pytest

from model import ModelError, create_model, list_models
from model.pretrained.store import weights_path
from model.weights.loading import load_parameters

NAME, DATASET = "attention56_small", "shapes"


def test_names_with_weights_are_names() -> None:
    assert set(list_models(pretrained=True)) < set(list_models())


def test_weights_are_those_of_the_file() -> None:
    net = create_model(NAME, pretrained=DATASET)
    other = create_model(NAME, 10)
    load_parameters(other, weights_path(NAME, DATASET), mx.cpu())
    images = mx.nd.random.uniform(shape=(2, 3, 32, 32))
    assert np.array_equal(net(images).asnumpy(), other(images).asnumpy())


def test_the_number_of_classes_is_the_files() -> None:
    net = create_model("resnet56_basic_ram", pretrained="cifar100", ctx=mx.cpu(0))
    assert net(mx.nd.zeros((1, 3, 32, 32))).shape == (1, 100)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        (NAME, {"pretrained": DATASET, "classes": 7}, ["10 classes", "not 7", "--finetune"]),
        (NAME, {"pretrained": DATASET, "wiring": "paper"}, ["leave out wiring"]),
        (NAME, {"ctx": mx.cpu()}, ["pretrained=True"]),
    ],
)
def test_what_contradicts_the_weights_is_refused(
    name: str, arguments: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(ModelError) as caught:
        create_model(name, **arguments)  # type: ignore[arg-type]
    assert not [word for word in words if word not in str(caught.value)]
