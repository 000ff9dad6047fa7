"""PyTorch's files of CIFAR ResNets: names, loading, and the forward pass against NumPy's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest

import train_cifar
from model.registry import create_model
from model.weights.dialects import HEAD, RESNET, TORCH_RESNET, describe, detect_dialect, rename
from model.weights.file_match import LoadError, find_model
from model.weights.loading import load_parameters

CHANNELS = (4, 8, 8)
Arrays = dict[str, np.ndarray]


def _saved(torch_files: Any, folder: Path, state: Arrays, form: str) -> Path:
    """A file as the authors' script writes it."""
    tensors = {
        name: torch_files.tensor(array, "Float" if array.dtype.kind == "f" else "Long")
        for name, array in state.items()
    }
    content = {
        "epoch": 164,
        "state_dict": tensors,
        "acc": 76.59,
        "best_acc": 76.77,
        "optimizer": {},
    }
    path: Path = torch_files.checkpoint(folder, content, form)
    return path


def _norm(arrays: Arrays, name: str, channels: int, random: np.random.RandomState) -> None:
    arrays[f"{name}.weight"] = random.uniform(0.5, 1.5, channels)
    arrays[f"{name}.bias"] = random.normal(0, 0.3, channels)
    arrays[f"{name}.running_mean"] = random.normal(0, 0.3, channels)
    arrays[f"{name}.running_var"] = random.uniform(0.5, 2, channels)
    arrays[f"{name}.num_batches_tracked"] = np.array(391)


def authors_state(depth: int = 20, channels: tuple[int, ...] = CHANNELS) -> Arrays:
    """A state dict as zhongshsh/RAM's network gives it, written down from its description."""
    random = np.random.RandomState(7)
    arrays: Arrays = {"conv1.weight": random.normal(0, 0.3, (channels[0], 3, 3, 3))}
    _norm(arrays, "bn1", channels[0], random)
    width = channels[0]
    for stage, planes in enumerate(channels, 1):
        for index in range((depth - 2) // 9):
            unit = f"layer{stage}.{index}"
            arrays[f"{unit}.w"] = random.normal(0, 1, (1, 4 * planes, 1, 1))
            arrays[f"{unit}.b"] = random.normal(-1, 0.5, (1, 4 * planes, 1, 1))
            shapes = ((planes, width, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1))
            for number, shape in enumerate(shapes, 1):
                fan = shape[1] * shape[2] * shape[3]
                arrays[f"{unit}.conv{number}.weight"] = random.normal(0, fan**-0.5, shape)
                _norm(arrays, f"{unit}.bn{number}", shape[0], random)
            _norm(arrays, f"{unit}.bn4", 4 * planes, random)
            if index == 0:
                shape = (4 * planes, width, 1, 1)
                arrays[f"{unit}.downsample.0.weight"] = random.normal(0, width**-0.5, shape)
                _norm(arrays, f"{unit}.downsample.1", 4 * planes, random)
            width = 4 * planes
    arrays["fc.weight"] = random.normal(0, width**-0.5, (10, width))
    arrays["fc.bias"] = random.normal(0, 0.1, 10)
    return {
        f"module.{name}": a if a.dtype.kind == "i" else a.astype(np.float32)
        for name, a in arrays.items()
    }


def _convolve(x: np.ndarray, weight: np.ndarray, stride: int = 1) -> np.ndarray:
    size = weight.shape[2]
    pad = size // 2
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(
        x,
        (size, size),
        axis=(2, 3),  # type: ignore[call-overload]  # its stub takes one axis
    )
    return np.einsum("nchwij,ocij->nohw", windows[:, :, ::stride, ::stride], weight)


def _normalize(x: np.ndarray, arrays: Arrays, name: str) -> np.ndarray:
    values = {
        word: arrays[f"{name}.{word}"].reshape(1, -1, 1, 1)
        for word in ("weight", "bias", "running_mean", "running_var")
    }
    deviation = np.sqrt(values["running_var"] + 1e-5)
    return (x - values["running_mean"]) / deviation * values["weight"] + values["bias"]


def authors_forward(state: Arrays, image: np.ndarray) -> np.ndarray:
    """The released network in evaluation mode, in NumPy and float64, from its formulas."""
    arrays = {name[len("module.") :]: array.astype(np.float64) for name, array in state.items()}
    x = np.maximum(_normalize(_convolve(image, arrays["conv1.weight"]), arrays, "bn1"), 0)
    units = dict.fromkeys(n.rsplit(".", 1)[0] for n in arrays if n.endswith(".w"))
    for unit in units:
        stride = 2 if unit in ("layer2.0", "layer3.0") else 1
        y = np.maximum(
            _normalize(_convolve(x, arrays[f"{unit}.conv1.weight"]), arrays, f"{unit}.bn1"), 0
        )
        y = _convolve(y, arrays[f"{unit}.conv2.weight"], stride)
        y = np.maximum(_normalize(y, arrays, f"{unit}.bn2"), 0)
        y = _normalize(_convolve(y, arrays[f"{unit}.conv3.weight"]), arrays, f"{unit}.bn3")
        w, b = arrays[f"{unit}.w"], arrays[f"{unit}.b"]
        g = w * y.mean((2, 3), keepdims=True) + b
        g = w * _normalize(g, arrays, f"{unit}.bn4") + b
        if f"{unit}.downsample.0.weight" in arrays:
            x = _convolve(x, arrays[f"{unit}.downsample.0.weight"], stride)
            x = _normalize(x, arrays, f"{unit}.downsample.1")
        x = np.maximum(y / (1 + np.exp(-g)) + x, 0)
    return x.mean((2, 3)) @ arrays["fc.weight"].T + arrays["fc.bias"]


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_the_authors_file_computes_the_same(tmp_path: Path, torch_files: Any, form: str) -> None:
    state = authors_state()
    path = _saved(torch_files, tmp_path, state, form)
    net = create_model("resnet20_ram", channels=CHANNELS)
    result = load_parameters(net, path)
    assert result.renamed_from == TORCH_RESNET
    image = np.random.RandomState(1).normal(size=(3, 3, 16, 16)).astype(np.float32)
    expected = authors_forward(state, image)
    found = net(mx.nd.array(image)).asnumpy()
    assert np.ptp(expected, axis=0).min() > 0.01  # images matter
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_the_network_of_a_file_is_found(tmp_path: Path, torch_files: Any) -> None:
    path = _saved(torch_files, tmp_path, authors_state(channels=(16, 32, 64)), "zip")
    assert find_model(path) == ("resnet20_ram", 10)
    with pytest.raises(LoadError, match=r"PyTorch ResNet-20.*--model resnet20_ram"):
        load_parameters(create_model("resnet29_ram"), path)


def test_the_script_normalizes_as_the_authors_do(
    tmp_path: Path, torch_files: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    path = _saved(torch_files, tmp_path, authors_state(channels=(16, 32, 64)), "zip")
    path = path.rename(tmp_path / "model_best.pth.tar")
    assert train_cifar.main(["--test", str(path), "--dataset", "shapes"]) == 0
    shown = capsys.readouterr().out
    assert "resnet20_ram on shapes; network: its tensors; normalization: that of the RAM" in shown
    words = ["--test", str(path), "--dataset", "shapes", "--normalization", "dataset"]
    assert train_cifar.main(words) == 0
    assert "normalization: --normalization dataset" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "overrides", "shown"),
    [
        ("resnet20_ram", {}, "layer1.0.bn4.weight"),
        ("resnet20_ram", {"steps": 3}, "layer1.0.bn5.weight"),
        ("resnet20_basic_ram", {}, "layer1.0.bn3.running_var"),
        ("resnet20_ram", {"steps": 1}, "layer1.0.w"),
        ("resnet20", {}, "layer1.0.downsample.1.bias"),
        ("resnet20_srm", {}, "layer1.0.gate.bn.weight"),
    ],
)
def test_there_and_back(name: str, overrides: dict[str, int], shown: str) -> None:
    net = create_model(name, **overrides)
    own = {key: p.shape for key, p in net._collect_params_with_prefix().items()}
    assert detect_dialect(own) == RESNET
    theirs = rename(own, TORCH_RESNET)
    assert shown in theirs
    assert detect_dialect(theirs) == TORCH_RESNET
    assert rename(theirs, HEAD) == own
    assert describe(theirs).startswith("zhongshsh/RAM's PyTorch ResNet-20 (")


def test_names_of_the_authors() -> None:
    own = {
        key: p.shape
        for key, p in create_model("resnet20_ram")._collect_params_with_prefix().items()
    }
    listed = {
        name[len("module.") :]: array.shape
        for name, array in authors_state(channels=(16, 32, 64)).items()
        if not name.endswith("num_batches_tracked")
    }
    renamed = rename(own, TORCH_RESNET)
    assert renamed == listed
    assert set(renamed) == set(listed)


def test_other_networks_are_not_taken_for_these() -> None:
    version2 = {
        key: p.shape for key, p in create_model("preresnet20")._collect_params_with_prefix().items()
    }
    assert rename(version2, TORCH_RESNET) == version2
    torchvision = {f"layer{k}.0.conv1.weight": (1,) for k in (1, 2, 3, 4)}
    torchvision.update({"conv1.weight": (1,), "fc.weight": (1,), "layer1.0.bn1.gamma": (1,)})
    assert detect_dialect(torchvision) is None
    golden = Path(__file__).parents[2] / "golden" / "head_attention56.json"
    assert detect_dialect(json.loads(golden.read_text(encoding="utf-8"))) == HEAD
