"""Soft masks against the object: known maps, the bootstrap, the table and the drawing."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from training.apply.mask_plot import MaskRow, draw_masks
from training.apply.mask_score import (
    MaskScores,
    channel_map,
    join_scores,
    mean_interval,
    resize_maps,
    score_masks,
    score_table,
)


def objects(count: int = 3) -> np.ndarray:
    """Return images of 8x8 in which the object is the upper left quarter."""
    marked = np.zeros((count, 8, 8), np.uint8)
    marked[:, :4, :4] = 1
    return marked


def test_known_masks() -> None:
    masks = np.zeros((3, 2, 8, 8))
    masks[0] = objects()[0]  # all on the object
    masks[1] = 0.5  # uniform
    masks[2] = 1 - objects()[0]  # all elsewhere
    scores = score_masks(masks, objects())
    np.testing.assert_allclose(scores.mass, [4, 1, 0])
    # The weights 1 + M: 32 of 80, 1/4, 16 of 112.
    np.testing.assert_allclose(scores.weight, [32 / 80 * 4, 1, 16 / 112 * 4])
    assert scores.mass_hit[[0, 2]].tolist() == [1, 0]


def test_the_change_is_relative_to_each_channels_average() -> None:
    masks = np.full((2, 2, 8, 8), 0.9)
    masks[0, 0, :4, :4] = 0.1  # switched off on the object: a quarter of the image
    scores = score_masks(masks, objects(2))
    # The channel's average is 0.7: 0.6 away on the object, 0.2 elsewhere, so half of it each.
    np.testing.assert_allclose(scores.change[0], 2)
    assert scores.change_hit[0] == 1
    assert scores.mass[0] < 1
    assert scores.mass_hit[0] == 0
    np.testing.assert_allclose(scores.change[1], 1)  # a mask that is the same everywhere


def test_channels_are_averaged_and_signs_do_not_cancel() -> None:
    masks = np.zeros((1, 2, 8, 8))
    masks[0, 0, :4, :4], masks[0, 1, 4:, 4:] = -1.0, 0.5
    np.testing.assert_allclose(channel_map(masks)[0, [0, 7], [0, 7]], [0.5, 0.25])
    scores = score_masks(masks, objects(1))
    np.testing.assert_allclose(scores.mass, 4 * 2 / 3)
    assert scores.mass_hit == 1


def test_a_small_mask_is_resized_about_the_centres_of_its_pixels() -> None:
    small = np.array([[[0.0, 1.0], [0.0, 1.0]]])
    large = resize_maps(small, (4, 8))
    assert large.shape == (1, 4, 8)
    # Centres lie at a quarter and three quarters; beyond them the value stays.
    expected = np.clip(((np.arange(8) + 0.5) / 8 - 0.25) * 2, 0, 1)
    np.testing.assert_allclose(large[0], np.tile(expected, (4, 1)), atol=1e-6)
    one = score_masks(np.eye(2)[None, None], objects(1))
    assert one.mass[0] > 1.3
    assert one.mass_hit[0] == 1


def test_the_interval_covers_the_mean() -> None:
    rng = np.random.default_rng(5)
    inside = 0
    for _ in range(100):
        mean, low, high = mean_interval(rng.exponential(2.0, 60))
        assert low < mean < high
        inside += low <= 2.0 <= high
    # 95 expected; the percentile bootstrap of 60 skewed values falls a little short.
    assert 85 <= inside <= 99
    values = rng.normal(3.0, 1.0, 400)
    mean, low, high = mean_interval(values)
    assert mean == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)


def test_the_table() -> None:
    rng = np.random.default_rng(1)
    parts = [score_masks(rng.random((4, 2, 4, 4)), objects(4)) for _ in range(2)]
    scores = join_scores(parts)
    assert scores.mass_hit.shape == (8,)
    flat = MaskScores(np.ones(8), np.ones(8), np.ones(8), np.zeros(8), np.ones(8))
    text = score_table({"m1": scores}, {"m1": flat}, {"m1": (4, 4)}, objects(8))
    lines = text.splitlines()
    assert lines[0].startswith("8 images; the object covers 25.0% of them")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:]]
    assert rows[0][:3] == ["m1", "4x4", "trained"]
    assert rows[0][3].startswith(f"{scores.mass.mean():.3f} [")
    assert rows[0][5].startswith(f"{scores.change.mean():.3f} [")
    one = "1.000 [1.000, 1.000]"
    assert rows[1][2:] == ["untrained", one, one, one, "0.0% [0.0, 0.0]", "100.0% [100.0, 100.0]"]
    assert rows[2][3:] == ["1.000", "1.000", "1.000", "25.0%", "25.0%"]
    # The centre of 8x8 is pixel 4, 4, which is not on the object.
    assert rows[3][6:] == ["0.0% [0.0, 0.0]"] * 2
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_the_drawing_shows_image_and_map() -> None:
    image = np.zeros((16, 16, 3), np.uint8)
    image[:8] = (0, 255, 0)
    bright = np.zeros((4, 4))
    bright[:, 2:] = 1
    row = MaskRow(image, {"module1": np.zeros((8, 8)), "module2": bright}, "a $name\ncat\n99%")
    with Image.open(io.BytesIO(draw_masks([row]))) as one:
        pixels = np.asarray(one.convert("RGB")).astype(int)
    green = (pixels == (0, 255, 0)).all(axis=2)
    assert green.sum() > 5000
    assert green.any(axis=0).argmax() < pixels.shape[1] / 2  # the image comes before the maps
    with Image.open(io.BytesIO(draw_masks([row, row]))) as two:
        assert two.height > 1.5 * pixels.shape[0]
