"""Where a glimpse model looks when it is right and when it is wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

import train_mnist_glimpse
from model import create_model
from training.glimpse import gaze, loaders
from training.glimpse.config import GlimpseConfig
from training.glimpse.data import load_task
from training.glimpse.gaze import Gaze, measure_gaze, placed_digits, surest_wrong
from training.glimpse.loaders import Opened
from training.glimpse.rollouts import score_rollouts

SMALL: dict[str, Any] = {
    "hidden_size": 12,
    "glimpse_hidden": 12,
    "loc_hidden": 8,
    "locator_hidden": 6,
}


@pytest.fixture(scope="module")
def opened() -> Opened:
    """A new network on digits that lie anywhere."""
    task = load_task("digits-translated")
    height, width = task.image_size
    shape: dict[str, Any] = {
        "height": height,
        "width": width,
        "channels": 1,
        "num_glimpses": 3,
        **SMALL,
    }
    mx.random.seed(0)
    np.random.seed(0)
    net, control = (
        create_model("glimpse_translated", 10, **shape, gaze=kind) for kind in ("policy", "noise")
    )
    for one in (net, control):
        one.initialize()
    config = GlimpseConfig(dataset="digits-translated")
    return Opened(net, control, [mx.cpu()], config, task)


def gaze_of(right: list[bool], confidence: list[float]) -> Gaze:
    count = len(right)
    hits = np.array([[False, answer] for answer in right])
    offset = np.tile(np.array([[3.0, 4.0], [0.0, 0.0]]), (count, 1, 1))
    seen = np.tile([0.25, 0.5], (count, 1))
    first = np.zeros((count, 2))
    return Gaze(hits, offset, seen, np.array(confidence), first, np.array([0.1, 0.2]), 8)


def test_offsets_and_shares_by_hand() -> None:
    digit = np.zeros((1, 4, 5), np.uint8)
    digit[0, 1, 1], digit[0, 3, 3] = 100, 50  # the middle is row 5/3, column 5/3
    net = SimpleNamespace(spec=SimpleNamespace(patch_size=4))
    opened: Any = SimpleNamespace(task=SimpleNamespace(image_size=(20, 10)), net=net)
    # The digit's image begins at row 6, column 2. A location is (x, y); -1 and 1 are the borders.
    look_at = [(7, 3), (10, 6), (0, 0)]  # rows, columns: its pixels, then neither
    places = [[((column + 0.5) / 10 * 2 - 1, (row + 0.5) / 20 * 2 - 1) for row, column in look_at]]
    offset, seen = gaze._against_digits(opened, np.array(places), digit, np.array([[6, 2]]))
    wanted = [(row - 6 - 5 / 3, column - 2 - 5 / 3) for row, column in look_at]
    np.testing.assert_allclose(offset[0], wanted)
    np.testing.assert_allclose(seen[0], [2 / 3, 1, 1])
    _, seen = gaze._against_digits(opened, np.array(places)[:, ::-1], digit, np.array([[6, 2]]))
    np.testing.assert_allclose(seen[0], [0, 1 / 3, 1])


def test_it_looks_as_the_scores_do(opened: Opened) -> None:
    found = measure_gaze(opened, *placed_digits(opened), 2)
    scores, anywhere = [], []
    for seed in (0, 1):
        still = replace(opened.draw(), std=0.0, seed=seed)
        loose = replace(still, std=1.0, uniform=True)
        batches = loaders.test_batches(opened.task)
        scores.append(score_rollouts(opened.net, batches, opened.contexts, still).steps)
        anywhere.append(score_rollouts(opened.control, batches, opened.contexts, loose).steps)
    np.testing.assert_allclose(found.hits.mean(axis=0), np.mean(scores, axis=0))
    np.testing.assert_allclose(found.anywhere, np.mean(anywhere, axis=0))
    assert (np.diff(found.seen, axis=1) >= 0).all()
    assert 0 < found.seen.mean() < 1
    assert (found.first[:500] != found.first[500:]).all()  # of another evaluation seed
    assert found.distance.shape == found.hits.shape == (1000, 3)
    # Uniform first looks: on average as far from a digit anywhere as two places on the canvas are.
    assert 18 < found.distance[:, 0].mean() < 32
    lines = found.lines()
    assert lines[0].startswith(f"1000 rollouts with mean locations, {(~found.right).sum()} of them")
    assert len(lines) == 2 + 3


def test_the_surest_wrong_answers_of_the_first_seed() -> None:
    right = [True, False, False, True, False, False]
    found = gaze_of(right, [0.99, 0.3, 0.8, 0.9, 0.5, 0.95])
    assert surest_wrong(found, 5, 9).tolist() == [2, 4, 1]
    assert surest_wrong(found, 5, 2).tolist() == [2, 4]
    assert surest_wrong(found, 1, 2).tolist() == []


def test_the_table_has_right_and_wrong_apart() -> None:
    found = gaze_of([True, False], [0.5, 0.5])
    found.seen[0] = 1
    assert found.lines()[2].split() == [
        *("1", "0.00%", "10.00%", "5.0", "/", "5.0", "100.0%", "/", "25.0%")
    ]
    assert "nan" in gaze_of([True], [0.5]).lines()[2]


def test_a_file_is_told_and_drawn(
    opened: Opened, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "net.param"
    opened.net.save_parameters(str(file))
    words = ["--gaze", str(file), "--dataset", "digits-translated", "--num-glimpses", "3"]
    words += ["--model", "glimpse_translated", "--eval-seeds", "1", "--plot-images", "2"]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    output = tmp_path / "pictures"
    assert train_mnist_glimpse.main([*words, "--output", str(output), "--gpus", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "500 rollouts with mean locations" in shown
    assert sorted(path.name for path in output.iterdir()) == ["net_gaze.png", "net_wrong.png"]
    for path in output.iterdir():
        with Image.open(path) as picture:
            assert min(picture.size) > 200
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_images_without_a_digit_are_refused(opened: Opened) -> None:
    task = replace(opened.task, name="folder:photos")
    with pytest.raises(gaze.UserError, match="folder:photos have no digit to look for"):
        placed_digits(opened._replace(task=task))
