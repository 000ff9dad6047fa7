"""Digits on canvases: ranges with both ends, saturation, and where the clutter comes from."""

from __future__ import annotations

import numpy as np
import pytest

from formats.errors import UserError
from training.glimpse.canvas import CANVASES, Canvas, draw_canvases, draw_places


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def flat(count: int, value: int, size: int = 28) -> np.ndarray:
    return np.full((count, size, size, 1), value, np.uint8)


def offsets(drawn: np.ndarray, axis: int) -> np.ndarray:
    """First row (axis 1) or column (axis 2) of each image that is not black."""
    return (drawn[..., 0] > 0).any(axis=3 - axis).argmax(axis=1)


def test_every_place_occurs_equally_often() -> None:
    drawn = draw_canvases(flat(3300, 200), flat(1, 0), Canvas(60), rng())
    assert drawn.shape == (3300, 60, 60, 1)
    assert drawn.dtype == np.uint8
    assert (drawn.sum(axis=(1, 2, 3), dtype=np.int64) == 200 * 28**2).all()  # whole digits
    places = [offsets(drawn, axis) for axis in (1, 2)]
    for place in places:
        counts = np.bincount(place, minlength=33)
        assert len(counts) == 33
        assert abs(counts - 100).max() < 50  # 5 standard deviations
    assert abs(np.corrcoef(places)[0, 1]) < 0.08


def test_the_image_arrives_unchanged() -> None:
    sources = rng(1).integers(1, 256, (50, 28, 20, 1), dtype=np.uint8)
    drawn = draw_canvases(sources, sources, Canvas(40), rng())
    for image, source, top, left in zip(drawn, sources, offsets(drawn, 1), offsets(drawn, 2)):
        np.testing.assert_array_equal(image[top : top + 28, left : left + 20], source)


def test_it_tells_where_the_image_lies() -> None:
    sources = rng(1).integers(1, 256, (50, 28, 20, 1), dtype=np.uint8)
    drawn, places = draw_places(sources, sources, Canvas(40), rng())
    np.testing.assert_array_equal(places.T, [offsets(drawn, 1), offsets(drawn, 2)])
    clutter = draw_places(sources, sources, Canvas(40, pieces=4), rng())
    np.testing.assert_array_equal(clutter[1], places)


def test_every_place_of_a_piece_occurs() -> None:
    pool = flat(1, 9, 8)  # the one possible piece
    drawn = draw_canvases(flat(5300, 0), pool, Canvas(60, pieces=1), rng())
    assert (drawn.sum(axis=(1, 2, 3), dtype=np.int64) == 9 * 64).all()
    for axis in (1, 2):
        counts = np.bincount(offsets(drawn, axis), minlength=53)
        assert len(counts) == 53
        assert abs(counts - 100).max() < 50


def test_pieces_are_cut_from_every_place() -> None:
    # The value of a pixel says where it is: row * 14 + column, below 14 * 14.
    pool = np.arange(196, dtype=np.uint8).reshape(1, 14, 14, 1) + np.uint8(1)
    canvas = Canvas(8, pieces=1)  # as large as a piece, so that the piece covers it
    drawn = draw_canvases(flat(5000, 0, 8), pool, canvas, rng())
    corner = drawn[:, 0, 0, 0].astype(int) - 1
    assert set(corner) == {row * 14 + column for row in range(7) for column in range(7)}
    for image, place in zip(drawn[:50], corner[:50]):
        row, column = divmod(place, 14)
        np.testing.assert_array_equal(image, pool[0, row : row + 8, column : column + 8])


def test_overlap_is_added_and_saturates() -> None:
    canvas = Canvas(28, pieces=2, piece_size=28)  # everything covers everything
    assert (draw_canvases(flat(3, 100), flat(2, 50), canvas, rng()) == 200).all()
    assert (draw_canvases(flat(3, 100), flat(2, 90), canvas, rng()) == 255).all()
    many = Canvas(28, pieces=256, piece_size=28)
    assert (draw_canvases(flat(1, 255), flat(2, 255), many, rng()) == 255).all()


@pytest.mark.parametrize(
    ("name", "size", "pieces"), [("cluttered", 60, 4), ("cluttered100", 100, 8)]
)
def test_number_of_pieces(name: str, size: int, pieces: int) -> None:
    drawn = draw_canvases(flat(400, 0), flat(2, 1), CANVASES[name], rng())
    assert drawn.shape[1:] == (size, size, 1)
    # Each piece adds 64 ones; black digits, and nothing near saturation.
    assert (drawn.sum(axis=(1, 2, 3), dtype=np.int64) == 64 * pieces).all()


def test_pieces_come_from_the_other_images() -> None:
    values = np.array([1, 10, 100], np.uint8)
    pool = np.repeat(values, 784).reshape(3, 28, 28, 1)
    canvas = Canvas(28, pieces=1, piece_size=28)
    own = np.repeat(np.arange(3), 1000)
    pieces = draw_canvases(flat(3000, 0), pool, canvas, rng(), own=own)[:, 0, 0, 0]
    for index, value in enumerate(values):
        found, counts = np.unique(pieces[own == index], return_counts=True)
        assert value not in found
        assert len(found) == 2
        assert abs(counts - 500).max() < 90
    anything = draw_canvases(flat(3000, 0), pool, canvas, rng())[:, 0, 0, 0]
    assert set(anything) == set(values)


def test_draws_do_not_depend_on_pixels() -> None:
    sources = rng(1).integers(1, 256, (20, 28, 28, 1), dtype=np.uint8)
    before = sources.copy()
    first = draw_canvases(sources, flat(4, 0), CANVASES["cluttered"], rng())
    np.testing.assert_array_equal(sources, before)
    other = sources.copy()
    other[0] = 7
    second = draw_canvases(other, flat(4, 0), CANVASES["cluttered"], rng())
    np.testing.assert_array_equal(first[1:], second[1:])
    assert (first[0] != second[0]).any()


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="28x28 do not fit on a canvas of 20x20"):
        draw_canvases(flat(1, 0), flat(1, 0), Canvas(20), rng())
    with pytest.raises(UserError, match="3 channels"):
        draw_canvases(np.zeros((1, 8, 8, 3), np.uint8), flat(1, 0), Canvas(20), rng())
    with pytest.raises(UserError, match="clutter from 1 images; at least 2"):
        draw_canvases(flat(1, 0), flat(1, 0), Canvas(60, 4), rng(), own=np.zeros(1, int))
    with pytest.raises(UserError, match="pieces of 30 pixels from images of 28x28"):
        draw_canvases(flat(1, 0), flat(2, 0), Canvas(60, 4, 30), rng())
    for size, pieces, piece_size in ((0, 0, 1), (60, -1, 8), (60, 257, 8), (60, 1, 61), (60, 1, 0)):
        with pytest.raises(UserError, match=f"canvas of {size} pixels with {pieces} pieces"):
            Canvas(size, pieces, piece_size)
