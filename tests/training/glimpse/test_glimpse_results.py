"""What docs/glimpse.md and mnist_param/index.csv say about trained glimpse models is so."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from formats.card import without_block
from formats.digest import verify_digest
from formats.param_file import read_shapes
from formats.weight_file import read_card
from model.registry import create_model
from model.weights.known import known_of
from model.weights.published import GLIMPSE_INDEX, find_row, read_index
from training.glimpse import (
    loaders as glimpse_loaders,  # its `test_batches` by name would be taken for a test
)
from training.glimpse import task
from training.glimpse.config import TASK_SETTINGS, GlimpseConfig
from training.glimpse.rollouts import score_rollouts
from training.glimpse.task import open_glimpse
from training.reports.results_table import glimpse_table
from training.settings.config import parse_overrides

ROOT = Path(__file__).resolve().parents[3]
ROWS = read_index(GLIMPSE_INDEX)
FILES = [row["file"] for row in ROWS]
SAMPLE = 500  # test images that are scored in every run of the tests


def test_index_names_every_file_once() -> None:
    assert ROWS
    assert sorted(FILES) == sorted(path.name for path in GLIMPSE_INDEX.parent.glob("*.param"))


@pytest.mark.parametrize("row", ROWS, ids=FILES)
def test_rows_describe_their_files(row: dict[str, str]) -> None:
    path = GLIMPSE_INDEX.parent / row["file"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == row["sha256"]
    assert hashlib.sha256(without_block(path.read_bytes())).hexdigest() == row["arrays"]
    assert path.stem.endswith(f"_{row['arrays'][:8]}")
    assert verify_digest(path)
    assert find_row(path, GLIMPSE_INDEX) == row
    assert glimpse_loaders.known_settings(known_of(path))["model"] == row["model"]
    net = create_model(row["model"], int(row["classes"]))
    expected = {n: tuple(p.shape) for n, p in net._collect_params_with_prefix().items()}
    assert {name: shape for name, (shape, _) in read_shapes(path).items()} == expected
    assert re.fullmatch(r"[0-9a-f]{7,40}", row["commit"])
    assert path.stat().st_size < 10e6


@pytest.mark.parametrize("row", ROWS, ids=FILES)
def test_cards_say_what_the_rows_say(row: dict[str, str]) -> None:
    card = read_card(GLIMPSE_INDEX.parent / row["file"])
    assert card
    assert card["network"] == {"model": row["model"], "classes": 10, "settings": {}}
    assert card["classes"] == list("0123456789")
    size = create_model(row["model"]).image_shape[1]
    assert (card["image"]["height"], card["image"]["width"]) == (size, size)
    assert card["data"]["name"] == row["dataset"]
    assert card["glimpse"]["deviation"] == float(row["std"])
    trained = {name: str(value) for name, value in card["training"].items()}
    assert trained == {name: row[name] for name in ("epochs", "seed", "commit", "command")}
    names = ("single_error", "m10_error", "test_loss")
    assert card["scores"] == {name: float(row[name]) for name in names}


@pytest.mark.parametrize("row", ROWS, ids=FILES)
def test_commands_are_understood_today(row: dict[str, str]) -> None:
    words = shlex.split(row["command"])
    assert words[:2] == ["python", "train_mnist_glimpse.py"]
    given = parse_overrides(GlimpseConfig, words[2:])
    config = GlimpseConfig(**{**TASK_SETTINGS[row["dataset"]], **given})
    config.check()
    assert (config.model or task.MODELS.get(config.dataset, "glimpse_mnist")) == row["model"]
    assert config.dataset == row["dataset"]
    assert config.epochs == int(row["epochs"])
    assert config.seed == int(row["seed"])
    assert config.final_std == float(row["std"])
    assert not config.may_hold_out()
    if config.finetune:
        assert Path(config.finetune).name in FILES


def test_the_page_of_glimpses_shows_the_index() -> None:
    assert glimpse_table() in (ROOT / "docs" / "glimpse.md").read_text(encoding="utf-8")


@pytest.mark.data
@pytest.mark.parametrize("row", ROWS, ids=FILES)
def test_a_sample_scores_what_the_index_says(row: dict[str, str], data_dir: Path) -> None:
    (error,) = _errors(row, data_dir, seeds=1, images=SAMPLE)
    expected = float(row["single_error"]) / 100
    # Four standard deviations of a sample's error.
    assert abs(error / 100 - expected) < 4 * math.sqrt(expected * (1 - expected) / SAMPLE)


@pytest.mark.data
@pytest.mark.results
@pytest.mark.parametrize("row", ROWS, ids=FILES)
def test_files_score_what_the_index_says(row: dict[str, str], data_dir: Path) -> None:
    errors = _errors(row, data_dir, seeds=5, images=10000)
    assert sum(errors) / 5 == pytest.approx(float(row["single_error"]), abs=0.0011)


def _errors(row: dict[str, str], data_dir: Path, seeds: int, images: int) -> list[float]:
    """Return the error in percent on the first test images with each of the evaluation seeds."""
    path = str(GLIMPSE_INDEX.parent / row["file"])
    opened = open_glimpse(path, GlimpseConfig(), {"data_dir": str(data_dir)})
    batches = list(glimpse_loaders.test_batches(opened.task))
    assert sum(len(batch.label) for batch in batches) == 10000
    kept = list(itertools.islice(batches, math.ceil(images / len(batches[0].label))))
    last = images - sum(len(batch.label) for batch in kept[:-1])
    kept[-1] = kept[-1]._replace(image=kept[-1].image[:last], label=kept[-1].label[:last])
    draws = [replace(opened.draw(), std=0.0, seed=seed) for seed in range(seeds)]
    scores = [score_rollouts(opened.net, kept, opened.contexts, draw) for draw in draws]
    assert sum(len(batch.label) for batch in kept) == images
    return [100 * (1 - score.single) for score in scores]
