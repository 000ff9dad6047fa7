"""Variants of the attention network: counts, layers and names of each row of the spec table."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mxnet as mx
import numpy as np
import pytest
from gluoncv import model_zoo
from mxnet import gluon

from model import create_model
from model.layers.attention_presets import SPECS, AttentionSpec
from model.residual_attention_network import (
    ResidualAttentionModel,
    ResidualAttentionModel_448input,
    ResidualAttentionNetwork,
)
from model.summary import summarize, summary_rows
from model.weights.dialects import rename
from tests.model.counts import parameter_count, trunk_layers

GOLDEN = Path(__file__).parents[1] / "golden"

# Trainable parameters, parameters with the statistics of batch normalisations, tensors, MACs. The
# rows of public implementations were measured on those; of `_paper`, `_tf` and `448` on ours.
SIZES = {
    "attention56": (7_202_794, 7_235_690, 450, 694_396_928),
    "attention92": (12_170_730, 12_231_786, 750, 1_089_185_792),
    "attention452_gluoncv": (41_647_722, 41_920_874, 4320, 4_268_206_080),
    "attention56_imagenet": (31_810_728, 31_883_432, 540, 6_270_836_736),
    "attention92_imagenet": (52_466_344, 52_599_976, 885, 10_533_789_696),
    "attention128_imagenet": (65_294_504, 65_476_776, 1320, 14_899_101_696),
    "attention56_imagenet_paper": (31_810_728, 31_883_432, 540, 6_270_836_736),
    "attention92_imagenet_paper": (52_466_344, 52_599_976, 885, 10_533_789_696),
    "attention56_paper": (1_135_226, 1_150_522, 494, 122_407_424),
    "attention92_paper": (1_932_474, 1_959_354, 884, 211_077_632),
    "attention236_paper": (5_121_466, 5_194_682, 2444, 565_758_464),
    "attention56_tf": (2_163_082, 2_182_986, 554, 51_506_176),
    "attention92_tf": (3_465_482, 3_500_618, 899, 73_255_936),
    # PistonY's has 32,137,512 without its unused unit of 128 channels, which has 17,792.
    "attention56_imagenet448": (32_137_512 + 17_792, 32_234_664, 791, 8_562_776_064),
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name: str) -> None:
    parameters, with_statistics, tensors, macs = SIZES[name]
    net = create_model(name)
    assert parameter_count(net) == (parameters, tensors)
    shapes = [p.shape for p in net.collect_params().values()]
    assert sum(math.prod(shape) for shape in shapes) == with_statistics
    rows = summary_rows(net)
    assert sum(row.parameters for row in rows) == parameters
    assert sum(row.tensors for row in rows) == tensors
    assert sum(row.macs for row in rows) == macs


def test_attentionnext_has_the_size_of_the_authors_model() -> None:
    """6.419 GMAC is what 32 groups in half-wide bottlenecks cost; others differ in all numbers."""
    net = create_model("attentionnext56_imagenet")
    assert parameter_count(net)[0] == 31_318_824
    assert sum(math.prod(p.shape) for p in net.collect_params().values()) == 31_417_256
    assert round(sum(row.macs for row in summary_rows(net)) / 1e9, 3) == 6.419
    assert {type(b).__name__ for b in _units(net)} == {"ResNeXtUnit"}


def _units(net: gluon.HybridBlock) -> list[gluon.HybridBlock]:
    found: list[gluon.HybridBlock] = []
    net.apply(lambda b: found.append(b) if hasattr(b, "conv3") else None)
    return found


@pytest.mark.parametrize(
    ("name", "millions"), [("attention92_paper", 1.9), ("attention236_paper", 5.1)]
)
def test_paper_presets_have_the_published_number_of_parameters(name: str, millions: float) -> None:
    assert parameter_count(create_model(name))[0] == pytest.approx(millions * 1e6, rel=0.02)


def test_summary_uses_the_size_that_the_variant_is_for() -> None:
    net = create_model("attention56_imagenet")
    assert net.image_shape == (3, 224, 224)
    assert net.classes == 1000
    assert summarize(net).splitlines()[-1].startswith("total, one image 3 x 224 x 224")
    outputs = {row.block: row.output for row in summary_rows(net)}
    assert outputs["conv1"] == (64, 112, 112)
    assert outputs["attention_module1"] == (256, 56, 56)
    assert outputs["residual_block6"] == (2048, 7, 7)
    assert "3 x 32 x 32" in summarize(net, (3, 32, 32))


def test_the_tf_variant_ends_at_4x4_after_four_units() -> None:
    outputs = {row.block: row.output for row in summary_rows(create_model("attention92_tf"))}
    assert outputs["conv1"] == (64, 32, 32)
    assert outputs["attention_module1"] == (64, 16, 16)
    assert outputs["attention_module3_3"] == (256, 4, 4)
    assert [outputs[f"residual_block{i}"] for i in (4, 5, 6, 7)] == [(512, 4, 4)] * 4


@pytest.mark.parametrize("name", SPECS)
def test_names_count_the_layers_of_the_trunk(name: str) -> None:
    layers = trunk_layers(SPECS[name])
    if "452" in name and "gluoncv" in name:
        assert layers == 398
    elif name.endswith("_tf"):
        assert layers == int(name[9:11]) + 3  # one unit more in the tail
    elif name.endswith("448"):
        assert layers == int(name[9:11]) + 15  # a stage more: one unit and a module of four
    else:
        assert layers == int("".join(c for c in name.split("_")[0] if c.isdigit()))


@pytest.mark.parametrize("m", [1, 2, 3, 4, 6])
def test_trunk_layers_follow_the_papers_formula(m: int) -> None:
    assert trunk_layers(AttentionSpec((m, m, m))) == 36 * m + 20


def test_trunk_layers_are_the_convolutions_of_a_built_network() -> None:
    net = create_model("attention452", channels=(8, 8, 8), tail_channels=8)
    names = net._collect_params_with_prefix()
    masked = ("softmax", "skip")
    trunk = [n for n, p in names.items() if len(p.shape) == 4 and not any(m in n for m in masked)]
    shortcuts = [n for n in trunk if n.endswith("conv4.weight")]
    assert len(trunk) - len(shortcuts) == 452


@pytest.mark.parametrize("depth", [56, 92])
def test_imagenet_names_are_the_file_format(depth: int) -> None:
    path = GOLDEN / f"head_attention{depth}_imagenet.json"
    expected = json.loads(path.read_text(encoding="utf-8"))
    for net in (
        ResidualAttentionModel(additional_stage=depth == 92),
        create_model(f"attention{depth}_imagenet_paper"),
    ):
        found = {name: list(p.shape) for name, p in net._collect_params_with_prefix().items()}
        assert list(found.items()) == list(expected.items())


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("attention128_imagenet", "residualattentionnet128"),
        ("attention200_imagenet", "residualattentionnet200"),
        ("attention452_imagenet_gluoncv", "residualattentionnet452"),
    ],
)
def test_names_are_gluoncvs_after_renaming(ours: str, theirs: str) -> None:
    names = getattr(model_zoo, theirs)()._collect_params_with_prefix()
    found = create_model(ours)._collect_params_with_prefix()
    assert list(rename(dict.fromkeys(names), "head")) == list(found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ours", "theirs", "size"),
    [
        ("attention452_gluoncv", "cifar_residualattentionnet452", 32),
        ("attention56_imagenet", "residualattentionnet56", 224),
    ],
)
def test_forward_equals_gluoncv(ours: str, theirs: str, size: int) -> None:
    expected_net = getattr(model_zoo, theirs)(classes=10)
    # Small residual branches: larger ones multiply rounding differences in 398 layers to 10 %.
    expected_net.initialize(mx.init.Normal(0.03))
    image = mx.nd.random.normal(shape=(2 if size == 32 else 1, 3, size, size))
    expected = expected_net(image).asnumpy()
    values = {n: p.data() for n, p in expected_net._collect_params_with_prefix().items()}
    net = create_model(ours, classes=10)
    parameters = net._collect_params_with_prefix()
    renamed = rename(values, "head")
    assert list(parameters) == list(renamed)
    for name, parameter in parameters.items():
        parameter.initialize(ctx=mx.cpu())
        parameter.set_data(renamed[name])
    scale = np.abs(expected).max()
    assert scale > 1e-3
    np.testing.assert_allclose(net(image).asnumpy(), expected, atol=2e-5 * scale)


def test_448_has_a_stage_0_and_every_tensor_takes_part() -> None:
    net = ResidualAttentionModel_448input(classes=3)
    assert isinstance(net, ResidualAttentionNetwork)
    assert net.module_names() == tuple(f"attention_module{stage}" for stage in range(4))
    used = set(net(mx.sym.var("image")).list_inputs()) - {"image"}
    assert used == set(net.collect_params())
