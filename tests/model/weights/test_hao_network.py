"""haoxintong's networks: his names, built here from Gluon's own units, against this project's.

The class below has the children that his sources give them and the authors' wiring; it shares no
code with `model/`. It shows that the renamed weights compute the same.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn
from mxnet.gluon.model_zoo.vision.resnet import BottleneckV2

from model.layers.attention_presets import AttentionSpec
from model.registry import create_model
from model.residual_attention_network import ResidualAttentionNetwork
from model.weights.convert import convert
from model.weights.dialects import HAO, HEAD, detect_dialect, rename
from model.weights.file_match import LoadError, find_model, network_shapes
from model.weights.loading import load_parameters


def row(channels: int, count: int) -> nn.HybridSequential:
    units = nn.HybridSequential()
    units.add(*(BottleneckV2(channels, 1, in_channels=channels) for _ in range(count)))
    return units


def up(F: Any, small: Any, large: Any) -> Any:
    return F.contrib.BilinearResize2D(small, large, mode="like")


class Mask(nn.HybridBlock):
    def __init__(self, channels: int, depth: int, r: int) -> None:
        super().__init__()
        self.depth = depth
        for level in range(1, depth + 1):
            setattr(self, f"down_res_unit_{level}", row(channels, r))
            if level < depth:
                setattr(self, f"skip_connection_{level}", BottleneckV2(channels, 1))
            setattr(self, f"up_res_unit_{level}", row(channels, r))
        self.pool = nn.MaxPool2D(3, 2, 1)
        self.output = nn.HybridSequential()
        for _ in range(2):
            self.output.add(
                nn.BatchNorm(),
                nn.Activation("relu"),
                nn.Conv2D(channels, kernel_size=1, use_bias=False),
            )

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        sizes, skips = [x], []
        for level in range(1, self.depth + 1):
            x = getattr(self, f"down_res_unit_{level}")(self.pool(x))
            if level < self.depth:
                sizes.append(x)
                skips.append(getattr(self, f"skip_connection_{level}")(x))
        for level in range(self.depth, 0, -1):
            if level < self.depth:
                x = x + skips[level - 1]
            x = up(F, getattr(self, f"up_res_unit_{level}")(x), sizes[level - 1])
        return F.sigmoid(self.output(x))


class Module(nn.HybridBlock):
    def __init__(self, channels: int, depth: int, p: int, t: int, r: int) -> None:
        super().__init__()
        self.pre, self.trunk_branch = row(channels, p), row(channels, t)
        self.mask_branch, self.post = Mask(channels, depth, r), row(channels, p)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        x = self.pre(x)
        return self.post((1 + self.mask_branch(x)) * self.trunk_branch(x))


class HaoNetwork(nn.HybridBlock):
    def __init__(self, spec: AttentionSpec, classes: int) -> None:
        super().__init__()
        self.features = nn.HybridSequential()
        stem = nn.Conv2D(spec.stem_channels, 3, 1, 1, use_bias=False)
        self.features.add(stem, nn.BatchNorm(), nn.Activation("relu"))
        known = spec.stem_channels
        for stage, channels in enumerate(spec.channels):
            self.features.add(BottleneckV2(channels, 1 + (stage > 0), True, known))
            for _ in range(spec.modules[stage]):
                self.features.add(Module(channels, spec.mask_depths[stage], *spec.ptr))
            known = channels
        self.features.add(BottleneckV2(spec.tail_channels, 1, True, known))
        self.features.add(*(BottleneckV2(spec.tail_channels, 1) for _ in range(2)))
        self.features.add(nn.BatchNorm(), nn.Activation("relu"), nn.GlobalAvgPool2D(), nn.Flatten())
        self.output = nn.Dense(classes)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return self.output(self.features(x))


def small(ptr: tuple[int, int, int] = (1, 2, 1), wiring: str = "paper") -> AttentionSpec:
    return AttentionSpec(
        (1, 2, 1), 8, (16, 24, 32), 40, mask_depths=(3, 2, 1), ptr=ptr, wiring=wiring
    )


def trained(net: nn.HybridBlock) -> nn.HybridBlock:
    """Give every parameter values of its own, running statistics as well."""
    net.initialize()
    net(mx.nd.zeros((1, 3, 16, 16)))
    rng = np.random.RandomState(7)
    for name, parameter in net._collect_params_with_prefix().items():
        low, high = (0.5, 1.5) if name.endswith(("gamma", "var")) else (-0.3, 0.3)
        parameter.set_data(mx.nd.array(rng.uniform(low, high, parameter.shape)))
    return net


@pytest.mark.parametrize("ptr", [(1, 2, 1), (2, 3, 2)])
def test_the_same_weights_compute_the_same(tmp_path: Path, ptr: tuple[int, int, int]) -> None:
    theirs = trained(HaoNetwork(small(ptr), 5))
    theirs.save_parameters(str(tmp_path / "hao.params"))
    ours = ResidualAttentionNetwork(small(ptr), 5)
    assert load_parameters(ours, tmp_path / "hao.params").renamed_from == HAO
    image = mx.nd.random.uniform(shape=(2, 3, 16, 24))
    expected = theirs(image).asnumpy()
    np.testing.assert_allclose(ours(image).asnumpy(), expected, rtol=0, atol=1e-6)
    assert expected.std() > 1e-3


def test_another_wiring_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "hao.params"
    trained(HaoNetwork(small(), 5)).save_parameters(str(path))
    net = ResidualAttentionNetwork(small(wiring="legacy"), 5)
    with pytest.raises(LoadError, match=r"paper wiring.*network has legacy.*wiring='paper'"):
        load_parameters(net, path)
    assert net.fc.weight._data is None
    for form in ("gluoncv", "torch-names"):
        with pytest.raises(LoadError, match=f"cannot become {form}.*has paper wiring"):
            convert(path, tmp_path / "out", form)
    with pytest.raises(LoadError, match="only networks whose first stage has two poolings"):
        convert(path, tmp_path / "out", "pistony-old")
    assert not (tmp_path / "out").exists()
    done = convert(path, tmp_path / "out", "pistony")
    assert "network: one with paper wiring" in " ".join(done.notes)
    load_parameters(ResidualAttentionNetwork(small(), 5), tmp_path / "out")


@pytest.mark.parametrize(("depth", "count"), [(56, 7_467_370), (92, 12_646_506)])
def test_counts_of_his_networks_for_32x32_images(depth: int, count: int) -> None:
    """His totals, with the widths of this project's networks and masks of 3, 2 and 1 poolings."""
    net = create_model(f"attention{depth}", mask_depths=(3, 2, 1), wiring="paper")
    shapes = {n: p.shape for n, p in net._collect_params_with_prefix().items()}
    assert sum(np.prod(s) for n, s in shapes.items() if "running" not in n) == count
    theirs = HaoNetwork(net.spec, 10)
    names = {n: (1,) for n in theirs._collect_params_with_prefix()}
    assert detect_dialect(names) == HAO
    assert rename(names, HEAD).keys() == shapes.keys()


def test_his_weights_in_a_model_of_the_registry() -> None:
    """The model with his wiring is found, though another one has the same tensors."""
    # With the shapes of a network that the registry has in both wirings, under his names.
    spec = create_model("attention56_imagenet").spec
    theirs = HaoNetwork(spec, 7)
    shapes = network_shapes("attention56_imagenet", 7)
    head = rename({name: name for name in theirs._collect_params_with_prefix()}, HEAD)
    assert head.keys() == shapes.keys()
    his = {old: shapes[new] for new, old in head.items()}
    his["output.weight"] = (7, 2048)
    assert find_model(his) == ("attention56_imagenet_paper", 7)  # type: ignore[arg-type]
    assert find_model(shapes) == ("attention56_imagenet", 7)  # type: ignore[arg-type]
