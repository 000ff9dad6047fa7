"""Names of the three dialects against lists dumped from the implementations themselves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.dialects import GLUONCV, HEAD, PRE, describe, detect_dialect, rename

GOLDEN = Path(__file__).parent / "golden"
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
    with pytest.raises(ValueError, match="unknown dialect 'torch'"):
        rename(mixed, "torch")


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (
            golden(HEAD, 56),
            "PistonY HEAD Attention-56 (450 tensors, 7,235,690 numbers, 10 classes)",
        ),
        (golden(PRE, 92), "PistonY before 2018-10-15 Attention-92 (750 tensors"),
        (golden(GLUONCV, 92), "gluoncv Attention-92 (750 tensors"),
        ({**golden(HEAD, 92), "conv1.0.weight": (64, 3, 7, 7)}, "Attention-92 for 224x224 images"),
        ({}, "a file without arrays"),
        ({"0": (1,), "1": (2,)}, "a list of arrays without names"),
        ({"features.3.trunk_branch.0.weight": (1,)}, "haoxintong"),
        ({"resnet0_conv0_weight": (1,)}, "block prefixes as names"),
        ({"features.0.weight": (1,)}, "another network"),
    ],
)
def test_descriptions(shapes: dict[str, tuple[int, ...]], words: str) -> None:
    assert words in describe(shapes)
