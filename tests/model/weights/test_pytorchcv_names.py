"""pytorchcv's attention networks: its names, built here from Gluon's layers, against ours.

`golden/pytorchcv_resattnet56.json` was dumped from pytorchcv 0.0.74, without counters of batches.
The class below has the children that its source gives a network and shares no code with `model/`:
it shows that the renamed weights compute the same.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn
from PIL import Image

import train_imagenet
from model.layers.attention_presets import AttentionSpec
from model.registry import create_model
from model.residual_attention_network import ResidualAttentionNetwork
from model.weights import card
from model.weights.convert import convert
from model.weights.dialects import HEAD, PYTORCHCV, describe, detect_dialect, rename
from model.weights.file_match import LoadError, find_model, network_shapes
from model.weights.loading import load_parameters

GOLDEN = Path(__file__).parents[2] / "golden" / "pytorchcv_resattnet56.json"
SMALL: dict[str, Any] = {
    "modules": (1, 2, 1),
    "stem_channels": 8,
    "channels": (16, 24, 32),
    "tail_channels": 40,
    "mask_depths": (3, 2, 1),
    "stem": "7x7",
    "tail_stride": 2,
    "post_units": 1,
}


class Children(nn.HybridBlock):
    """Children by name, run in a row."""

    def __init__(self, **children: nn.HybridBlock) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        for child in self._children.values():
            x = child(x)
        return x


def convolved(channels: int, known: int, kernel: int = 1, stride: int = 1) -> Children:
    convolution = nn.Conv2D(
        channels, kernel, stride, kernel // 2, use_bias=False, in_channels=known
    )
    return Children(
        bn=nn.BatchNorm(in_channels=known), relu=nn.Activation("relu"), conv=convolution
    )


class Unit(nn.HybridBlock):
    def __init__(self, channels: int, known: int, stride: int = 1) -> None:
        super().__init__()
        inner = channels // 4
        self.body = Children(
            conv1=convolved(inner, known),
            conv2=convolved(inner, inner, 3, stride),
            conv3=convolved(channels, inner),
        )
        self.identity_conv = None
        if stride > 1 or channels != known:
            self.identity_conv = nn.Conv2D(channels, 1, stride, use_bias=False, in_channels=known)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        active = F.relu(self.body.conv1.bn(x))
        shortcut = x if self.identity_conv is None else self.identity_conv(active)
        return self.body(x) + shortcut


def units(channels: int, count: int) -> Children:
    row = {f"block{index + 1}": Unit(channels, channels) for index in range(count)}
    return Children(blocks=Children(**row))


class Attention(nn.HybridBlock):
    def __init__(self, channels: int, depth: int, ptr: tuple[int, int, int]) -> None:
        super().__init__()
        p, t, r = ptr
        self.init_blocks = units(channels, p)
        levels = range(1, depth + 1)
        skips = {1: units(channels, t)}
        skips.update({level: Children(skip1=Unit(channels, channels)) for level in levels[1:]})
        self.hg = Children(
            **{
                f"{kind}_seq": Children(**{f"{kind}{level}": made(level) for level in levels})
                for kind, made in (
                    ("down", lambda level: Children(res_blocks=units(channels, r))),
                    ("up", lambda level: Children(res_blocks=units(channels, r))),
                    ("skip", lambda level: skips[level]),
                )
            }
        )
        self.pool = nn.MaxPool2D(3, 2, 1)
        self.middle_block = Children(
            conv1=convolved(channels, channels), conv2=convolved(channels, channels)
        )
        self.final_block = Unit(channels, channels)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        x = self.init_blocks(x)
        trunk = self.hg.skip_seq.skip1(x)
        down, up = (list(s._children.values()) for s in (self.hg.down_seq, self.hg.up_seq))
        maps = [x]
        for block in down:
            maps.append(block(self.pool(maps[-1])))
        y = maps.pop()
        for level in range(len(up), 0, -1):
            y = F.contrib.BilinearResize2D(up[level - 1](y), maps[-1], mode="like")
            before = maps.pop()
            if level > 1:
                y = y + before + getattr(self.hg.skip_seq, f"skip{level}")(before)
        mask = F.sigmoid(self.middle_block(y + trunk))
        return self.final_block((1 + mask) * trunk)


def network(spec: AttentionSpec, classes: int) -> Children:
    stem = Children(
        conv=nn.Conv2D(spec.stem_channels, 7, 2, 3, use_bias=False, in_channels=3),
        bn=nn.BatchNorm(in_channels=spec.stem_channels),
        relu=nn.Activation("relu"),
    )
    features = {"init_block": Children(conv=stem, pool=nn.MaxPool2D(3, 2, 1))}
    known = spec.stem_channels
    for stage, (channels, depth) in enumerate(zip(spec.channels, spec.mask_depths), 1):
        rest = {
            f"unit{number + 2}": Attention(channels, depth, spec.ptr)
            for number in range(spec.modules[stage - 1])
        }
        features[f"stage{stage}"] = Children(unit1=Unit(channels, known, 1 + (stage > 1)), **rest)
        known = channels
    last = spec.tail_channels
    tail = {f"unit{number}": Unit(last, last) for number in (2, 3)}
    features["stage4"] = Children(unit1=Unit(last, known, 2), **tail)
    features["post_activ"] = Children(bn=nn.BatchNorm(in_channels=last), relu=nn.Activation("relu"))
    features["final_pool"] = nn.GlobalAvgPool2D()
    return Children(features=Children(**features), output=nn.Dense(classes, in_units=last))


def saved(net: Any, torch_files: Any, folder: Path, form: str = "zip") -> Path:
    """Give every parameter values of its own; write the file that PyTorch's `save` would."""
    net.initialize()
    rng = np.random.RandomState(7)
    tensors = {}
    for name, parameter in net._collect_params_with_prefix().items():
        low, high = (0.5, 1.5) if name.endswith(("gamma", "var")) else (-0.3, 0.3)
        values = rng.uniform(low, high, parameter.shape).astype(np.float32)
        parameter.set_data(mx.nd.array(values))
        word = name.replace(".gamma", ".weight").replace(".beta", ".bias")
        tensors[word] = torch_files.tensor(values, "Float")
        if word.endswith("running_var"):
            counter = word.replace("running_var", "num_batches_tracked")
            tensors[counter] = torch_files.tensor(np.array(391), "Long")
    path: Path = torch_files.checkpoint(folder, tensors, form)
    return path


def golden() -> dict[str, tuple[int, ...]]:
    listed = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return {name: tuple(shape) for name, shape in listed.items()}


def test_the_names_of_the_package_become_ours() -> None:
    names = golden()
    assert len(names) == 540
    assert detect_dialect(names) == PYTORCHCV
    assert rename(names, HEAD) == network_shapes("attention56_imagenet", 1000)
    assert find_model(names) == ("attention56_imagenet", 1000)
    assert "pytorchcv's Attention-56 for 224x224 images (540 tensors" in describe(names)


def test_the_network_below_has_the_names_of_the_package() -> None:
    net = network(create_model("attention56_imagenet").spec, 1000)
    found = {
        name.replace(".gamma", ".weight").replace(".beta", ".bias"): parameter.shape
        for name, parameter in net._collect_params_with_prefix().items()
    }
    assert found == golden()


@pytest.mark.parametrize("ptr", [(1, 2, 1), (2, 3, 2)])
def test_the_same_weights_compute_the_same(
    torch_files: Any, tmp_path: Path, ptr: tuple[int, int, int]
) -> None:
    spec = AttentionSpec(**SMALL, ptr=ptr)
    theirs = network(spec, 5)
    path = saved(theirs, torch_files, tmp_path)
    ours = ResidualAttentionNetwork(spec, 5)
    assert load_parameters(ours, path).renamed_from == PYTORCHCV
    image = mx.nd.random.uniform(shape=(2, 3, 64, 96))
    expected = theirs(image).asnumpy()
    np.testing.assert_allclose(ours(image).asnumpy(), expected, rtol=0, atol=1e-6)
    assert expected.std() > 1e-3


def test_another_wiring_is_refused(torch_files: Any, tmp_path: Path) -> None:
    path = saved(network(AttentionSpec(**SMALL), 5), torch_files, tmp_path)
    net = ResidualAttentionNetwork(AttentionSpec(**SMALL, wiring="paper"), 5)
    with pytest.raises(LoadError, match=r"pytorchcv's names come from code with legacy wiring"):
        load_parameters(net, path)


@pytest.fixture(scope="module")
def whole(torch_files: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of Attention-56 for ImageNet with 3 classes."""
    net = network(create_model("attention56_imagenet").spec, 3)
    return saved(net, torch_files, tmp_path_factory.mktemp("pytorchcv"))


def test_the_scripts_know_such_a_file(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture.png"
    Image.fromarray(np.arange(48 * 40 * 3, dtype=np.uint8).reshape(48, 40, 3)).save(picture)
    assert train_imagenet.main(["--predict", str(whole), str(picture), "--gpus", "cpu"]) == 0
    printed = capsys.readouterr()
    assert "normalization: ImageNet's, as in pytorchcv's code" in printed.err
    assert "class 2" in printed.out

    done = convert(whole, tmp_path / "net.param", "pistony")
    assert "normalization: ImageNet's, as in that code" in done.notes
    found = card.run(str(tmp_path / "net.param"), [], [], False, False)
    assert found["network"] == {"model": "attention56_imagenet", "classes": 3, "settings": {}}
    assert found["image"]["mean"] == [0.485, 0.456, 0.406]
    assert found["image"]["crop"] == 0.875


def test_more_classes_than_the_data_has_are_told(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cat", "dog"):
        for split in ("train", "val"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(tmp_path / split / name / "0.png")
    command = ["--test", str(whole), "--data-dir", str(tmp_path), "--size", "32", "--gpus", "cpu"]
    assert train_imagenet.main(command) == 0
    shown = capsys.readouterr()
    assert f"warning: a network of 3 classes, {tmp_path} has 2" in shown.err
    assert f"attention56_imagenet on {tmp_path}, 32x32" in shown.out
