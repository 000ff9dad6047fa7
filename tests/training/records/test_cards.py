"""The card of a run's files: where the run began, how far it is, what its weights score."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from formats.card import check_card
from training.records.cards import Cards, data_section

CONFIG = SimpleNamespace(recipe="quick", seed=3, precision="float32")


@pytest.mark.parametrize(
    ("env", "commit"),
    [
        ({"git": {"commit": "a" * 40, "dirty": False}, "resumes": []}, "a" * 40),
        ({"git": None, "resumes": []}, None),
        ({"git": "a", "resumes": []}, None),
        ({}, None),
    ],
)
def test_the_commit_is_the_one_that_the_run_began_with(
    tmp_path: Path, env: Any, commit: Any
) -> None:
    (tmp_path / "env.json").write_text(json.dumps(env))
    card = Cards({"classes": ["a", "b"]}, CONFIG, tmp_path).at(2)
    assert card["training"].get("commit") == commit
    assert check_card(card)["classes"] == ["a", "b"]


def test_a_run_without_a_record_has_no_commit(tmp_path: Path) -> None:
    card = Cards({}, SimpleNamespace(), tmp_path).at(0)
    assert card == {"card": 1, "training": {"epochs": 0}}


def test_scores_are_those_of_the_row_that_are_finite(tmp_path: Path) -> None:
    cards = Cards({}, CONFIG, tmp_path)
    row = {"test_acc": 0.5, "test_loss": float("nan"), "train_acc": 0.9}
    assert cards.at(7, row)["scores"] == {"test_acc": 0.5}
    assert cards.at(7, row)["training"]["epochs"] == 7
    assert "scores" not in cards.at(8)


def test_of_a_folder_only_its_own_name_is_kept() -> None:
    identity = SimpleNamespace(name="folder:/home/me/birds/", counts={"train": 4}, digest="ab")
    assert data_section(identity) == {"name": "folder:birds", "train": 4, "digest": "ab"}
