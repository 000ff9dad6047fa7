"""Names of the dialects against lists dumped from the implementations themselves.

`golden/torch_attention92.json` was derived from tengshaofeng's source: his names in the order of
`golden/head_attention92.json`, and those that his network has but never uses.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gluoncv import model_zoo

from model.weights.dialects import GLUONCV, HAO, HEAD, PRE, TORCH, describe, detect_dialect, rename

GOLDEN = Path(__file__).parents[2] / "golden"
LISTS = {
    (HEAD, 56): "head_attention56",
    (HEAD, 92): "head_attention92",
    (PRE, 92): "pre_attention92",
    (GLUONCV, 56): "gluoncv_attention56",
    (GLUONCV, 92): "gluoncv_attention92",
}


def golden(dialect: str, depth: int) -> dict[str, tuple[int, ...]]:
    listed = json.loads((GOLDEN / f"{LISTS[dialect, depth]}.json").read_text(encoding="utf-8"))
    return {name: tuple(shape) for name, shape in listed.items()}


@pytest.mark.parametrize(("dialect", "depth"), LISTS)
def test_golden_lists_are_detected(dialect: str, depth: int) -> None:
    names = golden(dialect, depth)
    assert len(names) == {56: 450, 92: 750}[depth]
    assert detect_dialect(names) == dialect


@pytest.mark.parametrize(
    ("source", "target", "depth"),
    [(source, target, depth) for source, depth in LISTS for target, d in LISTS if d == depth],
)
def test_renaming_gives_the_other_list(source: str, target: str, depth: int) -> None:
    renamed = rename(golden(source, depth), target)
    # Each implementation registers its blocks in the same order: the order shows that every tensor
    # got its own name and not that of another one of the same shape.
    assert list(renamed.items()) == list(golden(target, depth).items())


def test_groups_of_one_unit_and_of_several() -> None:
    several = {
        "attention_module1.0.first_residual_blocks.0.bn1.gamma": 0,
        "attention_module1.0.first_residual_blocks.1.bn1.gamma": 1,
        "attention_module1.1.first_residual_blocks.0.conv1.weight": 2,
    }
    assert list(rename(several, HEAD)) == [
        "attention_module1.first_residual_blocks.0.bn1.gamma",
        "attention_module1.first_residual_blocks.1.bn1.gamma",
        "attention_module1_2.first_residual_blocks.conv1.weight",
    ]
    assert rename(rename(several, HEAD), GLUONCV) == several


def test_other_networks_are_left_alone() -> None:
    names = {"features.0.weight": 1, "output.bias": 2}
    assert detect_dialect(names) is None
    assert rename(names, GLUONCV) == names


def test_colliding_names_and_unknown_dialects_are_refused() -> None:
    mixed = {
        "attention_module1.down_residual_blocks1.bn1.gamma": 1,
        "attention_module1.softmax1_blocks.bn1.gamma": 2,
    }
    with pytest.raises(ValueError, match=r"attention_module1\.softmax1_blocks\.bn1\.gamma"):
        rename({**mixed}, HEAD)
    for target in ("keras", HAO):
        with pytest.raises(ValueError, match=f"unknown dialect '{target}'"):
            rename(mixed, target)


def golden_torch() -> dict[str, tuple[int, ...]]:
    """Shapes under the names that a state dict of tengshaofeng's network has, all of them."""
    text = (GOLDEN / "torch_attention92.json").read_text(encoding="utf-8")
    listed = json.loads(text)
    shapes = dict(zip(listed["names"], golden(HEAD, 92).values()))
    shapes["fc.weight"] = (10, 1024)
    counters = {f"{name[:-12]}num_batches_tracked": () for name in shapes if "running_mean" in name}
    assert len(listed["unused"]) == 41
    assert len(counters) == 149
    return {**shapes, **{name: (1,) for name in listed["unused"]}, **counters}


def test_torch_names_become_those_of_every_dialect() -> None:
    shapes = golden_torch()
    assert detect_dialect(shapes) == TORCH
    for target in (HEAD, PRE, GLUONCV):
        assert list(rename(shapes, target).items()) == list(golden(target, 92).items())


@pytest.mark.parametrize("source", [HEAD, PRE, GLUONCV])
def test_names_become_torch_names(source: str) -> None:
    full, renamed = golden_torch(), rename(golden(source, 92), TORCH)
    assert list(renamed.items()) == list(full.items())[:750]


def test_a_projection_that_is_used_is_kept() -> None:
    shapes = golden_torch()
    used = [f"residual_block{index}.conv4.weight" for index in range(1, 5)]
    assert [name for name in rename(shapes, HEAD) if "conv4" in name] == used


def test_the_classifier_alone_changes_its_shape() -> None:
    weight = np.arange(6, dtype="f4").reshape(2, 3, 1, 1)
    arrays = {"attention_module1.softmax2_blocks.0.running_mean": weight, "fc.weight": weight}
    arrays["attention_module1.softmax2_blocks.0.gamma"] = weight
    renamed = rename(arrays, TORCH)
    assert renamed["fc.weight"].shape == (2, 3)
    assert renamed["attention_module1.softmax2_blocks.0.weight"] is weight
    np.testing.assert_array_equal(rename(renamed, HEAD)["fc.weight"], weight)
    flat = {**arrays, "fc.weight": np.ones((2, 3, 2, 2))}
    assert rename(flat, TORCH)["fc.weight"].shape == (2, 3, 2, 2)


def gluoncv_names(name: str) -> dict[str, tuple[int, ...]]:
    """Names and the shapes that are known before the first forward pass."""
    net = getattr(model_zoo, name)()
    return {n: p.shape for n, p in net._collect_params_with_prefix().items()}


@pytest.mark.parametrize("name", ["residualattentionnet56", "cifar_residualattentionnet452"])
def test_other_networks_of_gluoncv(name: str) -> None:
    shapes = gluoncv_names(name)
    for target in (HEAD, TORCH):
        renamed = rename(shapes, target)
        assert rename(renamed, GLUONCV) == shapes
        assert len(renamed) == len(shapes)
    # Only networks for 32x32 images had older names.
    assert (detect_dialect(rename(shapes, PRE)) == PRE) == name.startswith("cifar")
    # The torch names inside the modules of a network for 224x224 images are HEAD's.
    renamed = rename(shapes, TORCH)
    assert any("middle_2r_blocks" in n for n in renamed) == name.startswith("cifar")


def test_depths_are_those_of_the_names() -> None:
    assert "gluoncv Attention-56 for 224x224" in describe(gluoncv_names("residualattentionnet56"))
    assert "gluoncv Attention-398 (" in describe(gluoncv_names("cifar_residualattentionnet452"))


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (
            golden(HEAD, 56),
            "PistonY HEAD Attention-56 (450 tensors, 7,235,690 numbers, 10 classes)",
        ),
        (
            {**golden(HEAD, 56), "fc.weight": (10, 256, 1, 1)},
            "this project's Attention-56, with PistonY's names (450 tensors",
        ),
        (golden(PRE, 92), "PistonY before 2018-10-15 Attention-92 (750 tensors"),
        (golden(GLUONCV, 92), "gluoncv Attention-92 (750 tensors"),
        ({**golden(HEAD, 92), "conv1.0.weight": (64, 3, 7, 7)}, "Attention-92 for 224x224 images"),
        ({}, "a file without arrays"),
        ({"0": (1,), "1": (2,)}, "a list of arrays without names"),
        (golden_torch(), "tengshaofeng's PyTorch Attention-92 (940 tensors"),
        ({"features.3.trunk_branch.0.weight": (1,)}, "haoxintong's Gluon"),
        ({"bn.weight": (2,), "bn.running_mean": (2,)}, "another network, saved by PyTorch"),
        ({"resnet0_conv0_weight": (1,)}, "block prefixes as names"),
        ({"features.0.weight": (1,)}, "another network"),
    ],
)
def test_descriptions(shapes: dict[str, tuple[int, ...]], words: str) -> None:
    assert words in describe(shapes)
