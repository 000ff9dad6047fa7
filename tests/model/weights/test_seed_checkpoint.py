"""Checkpoints of kevinzakka/recurrent-visual-attention, against its forward pass in NumPy.

The checkpoints are built here, in the format that PyTorch wrote in 2018, with random weights.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any, Optional

import mxnet as mx
import numpy as np
import pytest

import train_mnist_glimpse
from formats.weight_file import TORCH, detect_format, read_weights
from model.export import export_symbol
from model.export.export_files import open_network
from model.registry import create_model
from model.weights import convert
from model.weights.file_match import LoadError
from model.weights.known import known_of
from model.weights.loading import load_parameters
from model.weights.seed_checkpoint import POLICY_STD, from_seed

MEAN, STD = 0.1307, 0.3081  # what the seed normalises MNIST with


def weights(hidden_layer: bool, values: int = 64) -> OrderedDict[str, np.ndarray]:
    """Random weights of the network of 2018, or of 2019 with a hidden layer in its locator."""
    shapes = {
        "sensor.fc1": (128, values),
        "sensor.fc2": (128, 2),
        "sensor.fc3": (256, 128),
        "sensor.fc4": (256, 128),
        "rnn.i2h": (256, 256),
        "rnn.h2h": (256, 256),
        "locator.fc": (128 if hidden_layer else 2, 256),
        **({"locator.fc_lt": (2, 128)} if hidden_layer else {}),
        "classifier.fc": (10, 256),
        "baseliner.fc": (1, 256),
    }
    rng = np.random.default_rng(0)
    found: OrderedDict[str, np.ndarray] = OrderedDict()
    for name, shape in shapes.items():
        bound = 1.5 * shape[1] ** -0.5
        found[f"{name}.weight"] = rng.uniform(-bound, bound, shape).astype(np.float32)
        found[f"{name}.bias"] = rng.uniform(-bound, bound, shape[0]).astype(np.float32)
    return found


def saved(
    folder: Path, tools: ModuleType, arrays: OrderedDict[str, np.ndarray], old: bool = False
) -> Path:
    tensors = OrderedDict((name, tools.tensor(array)) for name, array in arrays.items())
    key = "state_dict" if old else "model_state"
    whole = {"epoch": 153, key: tensors, "best_valid_acc": 98.5}
    path: Path = tools.checkpoint(folder, whole, "legacy")
    return path


def forward(
    arrays: dict[str, np.ndarray],
    image: np.ndarray,
    first: np.ndarray,
    noise: np.ndarray,
    size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The seed's forward pass: logits and baselines (T, ...) of one image (28, 28) in [0, 1]."""
    p = {name: array.astype(np.float64) for name, array in arrays.items()}
    modern, patches = "locator.fc_lt.weight" in p, p["sensor.fc1.weight"].shape[1] // size**2

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return p[f"{name}.weight"] @ x + p[f"{name}.bias"]

    normal, h, location = (image - MEAN) / STD, np.zeros(256), first
    logits, baselines = [], []
    for eps in noise:
        half = np.float32(0.5) * (location.astype(np.float32) + np.float32(1)) * np.float32(28)
        x, y = half.astype(int)
        seen = []
        for scale in range(patches):
            edge = size * 2**scale
            padded = np.pad(normal, edge // 2)  # with 0, after the normalisation
            patch = np.pad(padded, ((0, 1), (0, 1)))[y : y + edge, x : x + edge]
            seen.append(patch.reshape(size, 2**scale, size, 2**scale).mean(axis=(1, 3)).ravel())
        what = linear("sensor.fc1", np.concatenate(seen)).clip(0)
        where = linear("sensor.fc2", location).clip(0)
        g = (linear("sensor.fc3", what) + linear("sensor.fc4", where)).clip(0)
        h = (linear("rnn.i2h", g) + linear("rnn.h2h", h)).clip(0)
        if modern:
            mu = np.tanh(linear("locator.fc_lt", linear("locator.fc", h).clip(0)))
            location = (mu + eps).clip(-1, 1)
        else:
            location = np.tanh(np.tanh(linear("locator.fc", h)) + eps)
        logits.append(linear("classifier.fc", h))
        baselines.append(linear("baseliner.fc", h)[0])
    return np.array(logits), np.array(baselines)


@pytest.mark.parametrize(
    ("hidden_layer", "size", "patches"), [(False, 8, 1), (True, 8, 1), (False, 6, 2)]
)
def test_both_generations_compute_what_they_did(
    hidden_layer: bool, size: int, patches: int, tmp_path: Path, torch_files: ModuleType
) -> None:
    stored = weights(hidden_layer, patches * size**2)
    path = saved(tmp_path, torch_files, stored, old=not hidden_layer)
    assert detect_format(path) == TORCH
    name, arrays = from_seed(read_weights(path))
    assert name == ("glimpse_mnist_242317" if hidden_layer else "glimpse_mnist_209677")
    changes = {"patch_size": size, "num_patches": patches, "glimpse_scale": 2}
    net = create_model(name, 10, **changes)
    load_parameters(net, path, mx.cpu(), arrays=arrays)
    rng = np.random.default_rng(1)
    image = rng.uniform(0, 1, (6, 1, 28, 28)).astype(np.float32)
    first = rng.uniform(-1, 1, (6, 1, 2)).astype(np.float32)
    first[:4, 0] = [(-1, -1), (1, 1), (-1, 1), (1, -1)]
    noise = (POLICY_STD[name] * rng.standard_normal((6, 1, 6, 2))).astype(np.float32)
    outputs = [out.asnumpy()[:, 0] for out in net(*map(mx.nd.array, (image, first, noise)))]
    for index in range(6):
        # Here the noise of a glimpse belongs to its own location, there to the next one's.
        after = np.concatenate([noise[index, 0, 1:], [[0, 0]]])
        logits, baselines = forward(stored, image[index, 0], first[index, 0], after, size)
        np.testing.assert_allclose(outputs[0][index], logits, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(outputs[1][index], baselines, rtol=1e-4, atol=1e-4)
    assert np.ptp(outputs[4][:, -1], axis=0).min() > 0.01  # it looks at different places


def test_the_script_scores_a_checkpoint(
    tmp_path: Path, torch_files: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, torch_files, weights(hidden_layer=False))
    words = ["--dataset", "digits", "--M", "2", "--eval-seeds", "1", "--gpus", "cpu"]
    assert train_mnist_glimpse.main(["--test", str(path), *words]) == 0
    shown = capsys.readouterr().out
    assert "(unverified): glimpse_mnist_209677 on digits" in shown
    assert re.search(r"500 images.*random gaze", shown, re.DOTALL)


@pytest.mark.parametrize("hidden_layer", [False, True])
def test_it_is_the_same_network_however_it_is_loaded(
    hidden_layer: bool, tmp_path: Path, torch_files: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, torch_files, weights(hidden_layer), old=not hidden_layer)
    name, arrays = from_seed(read_weights(path))
    net = create_model(name, 10)
    assert load_parameters(net, path, mx.cpu()).seed == name
    for key, parameter in net._collect_params_with_prefix().items():
        np.testing.assert_array_equal(parameter.data().asnumpy(), arrays[key], err_msg=key)
    target = tmp_path / "ours.safetensors"
    assert convert.main([str(path), str(target), "--to", "safetensors"]) == 0
    assert "normalization: now part of sensor.fc1" in capsys.readouterr().out
    known, found = known_of(target).card, read_weights(target)
    assert known["network"] == {"model": name, "classes": 10, "settings": {}}
    assert known["glimpse"]["deviation"] == POLICY_STD[name]
    for key, array in arrays.items():
        np.testing.assert_array_equal(found[key], array, err_msg=key)
    words = ["--dataset", "digits", "--M", "2", "--eval-seeds", "1", "--gpus", "cpu"]
    scores = []
    for file in (path, target):
        assert train_mnist_glimpse.main(["--test", str(file), *words]) == 0
        scores.append(capsys.readouterr().out.split("500 images")[1])
    assert scores[0] == scores[1]


def test_networks_of_our_own_in_a_file_of_pytorch_stay_as_they_are(
    tmp_path: Path, torch_files: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ``torch.save(module.state_dict())`` writes them, where the names are the same."""
    stored = weights(hidden_layer=True)
    tensors = OrderedDict((name, torch_files.tensor(array)) for name, array in stored.items())
    path = torch_files.checkpoint(tmp_path, tensors, "legacy")
    net = create_model("glimpse_mnist_242317", 10)
    assert load_parameters(net, path, mx.cpu()).seed is None
    weight = net.sensor.fc1.weight.data().asnumpy()
    np.testing.assert_array_equal(weight, stored["sensor.fc1.weight"])
    words = ["--dataset", "digits", "--M", "2", "--eval-seeds", "1", "--gpus", "cpu"]
    assert train_mnist_glimpse.main(["--test", str(path), *words]) == 0
    assert "has no best_valid_acc, as kevinzakka's have" in capsys.readouterr().out


@pytest.mark.parametrize("name", [None, "glimpse_mnist_242317"])
def test_exports_fold_the_normalization_too(
    name: Optional[str],
    tmp_path: Path,
    torch_files: ModuleType,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = saved(tmp_path, torch_files, weights(hidden_layer=True))
    found = open_network(path, name)
    _, arrays = from_seed(read_weights(path))
    weight = found.net.sensor.fc1.weight.data().asnumpy()
    np.testing.assert_array_equal(weight, arrays["sensor.fc1.weight"])
    assert export_symbol.main([str(path), str(tmp_path / "net.json")]) == 2
    assert "Convert it first: python -m model.weights.convert" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sensor.fc1.weight": None}, "without sensor.fc1.weight: only checkpoints of kevinzakka"),
        ({"rnn.h2h.weight": None}, "without rnn.h2h.weight"),
        ({"sensor.fc1.weight": np.zeros(3, np.float32)}, r"sensor.fc1.weight is \(3,\), not a mat"),
        ({"sensor.fc1.bias": np.zeros(1, np.float32)}, r"sensor.fc1.bias is \(1,\); \(128,\) belo"),
    ],
)
def test_other_checkpoints_are_refused(change: dict[str, Any], message: str) -> None:
    changed = {**weights(hidden_layer=False), **change}
    arrays = {name: array for name, array in changed.items() if array is not None}
    with pytest.raises(LoadError, match=message):
        from_seed(arrays)


def test_a_checkpoint_of_another_size_is_refused(
    tmp_path: Path, torch_files: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, torch_files, weights(hidden_layer=True, values=3 * 144))
    words = ["--test", str(path), "--dataset", "digits", "--gpus", "cpu"]
    assert train_mnist_glimpse.main(words) == 2
    assert "sensor.fc1.weight" in capsys.readouterr().err
