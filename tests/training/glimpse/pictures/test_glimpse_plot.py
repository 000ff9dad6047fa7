"""Pictures of the gaze: where boxes lie, what the files hold, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from formats.errors import UserError
from training.glimpse.pictures import plot as glimpse_plot
from training.glimpse.pictures.gif import animate_paths
from training.glimpse.pictures.overlay import (
    OUTSIDE,
    choose_view,
    dimmed,
    draw_glimpses,
    glimpse_images,
    step_colours,
)
from training.glimpse.pictures.path import GlimpsePath
from training.glimpse.pictures.plot import plot_paths

# A location, and the pixel at the middle of its box, for an axis of 20 and one of 30 pixels.
CORNERS_AND_CENTRE = [
    ((-1, -1), (0, 0)),
    ((1, -1), (30, 0)),
    ((-1, 1), (0, 20)),
    ((1, 1), (30, 20)),
    ((0, 0), (15, 10)),
]


def make_path(locations: Any, channels: int = 1, classes: int = 10, **changes: Any) -> GlimpsePath:
    """A path over images of 20 rows and 30 columns, 3 scales of 5, 10 and 20 pixels."""
    where = np.asarray(locations, np.float32)
    count, steps = where.shape[:2]
    rng = np.random.RandomState(3)
    scores = rng.rand(count, steps, classes).astype(np.float32)
    values: dict[str, Any] = {
        "images": 0.4 * rng.rand(count, channels, 20, 30).astype(np.float32),
        "labels": np.arange(count) % classes,
        "locations": where,
        "patches": rng.rand(count, steps, 3, channels, 5, 5).astype(np.float32),
        "probabilities": scores / scores.sum(axis=2, keepdims=True),
        "patch_size": 5,
        "scale": 2,
        "class_names": tuple(map(str, range(classes))),
    }
    return GlimpsePath(**{**values, **changes})


def outline(size: tuple[int, int], box: list[int], zoom: int, width: int) -> np.ndarray:
    """bool (height, width): the outermost pixels within a box, from its edges in image pixels."""
    left, top, right, bottom = (zoom * edge for edge in box)
    rows, columns = np.arange(size[0])[:, None], np.arange(size[1])
    away = np.minimum(
        np.minimum(rows - top, bottom - 1 - rows), np.minimum(columns - left, right - 1 - columns)
    )
    return (away >= 0) & (away < width)


@pytest.mark.parametrize(("location", "middle"), CORNERS_AND_CENTRE)
def test_boxes_lie_around_the_pixel_that_is_looked_at(
    location: tuple[int, int], middle: tuple[int, int]
) -> None:
    path = make_path([[location]])
    x, y = middle
    expected = [[x - 2, y - 2, x + 3, y + 3], [x - 5, y - 5, x + 5, y + 5]]
    expected.append([x - 10, y - 10, x + 10, y + 10])
    assert path.boxes()[0, 0].tolist() == expected


def test_a_location_between_pixels_is_truncated_in_float32() -> None:
    # 0.5 * (0.3 + 1) * 30 = 19.5. The last float32 below 0.4 leads to 20.9999996, which float32
    # does not have: a sensor that computes in it looks at pixel 21.
    below = np.nextafter(np.float32(0.4), np.float32(0))
    boxes = make_path([[(0.3, 0), (below, 0)]]).boxes()
    assert boxes[0, :, 0, 0].tolist() == [19 - 2, 21 - 2]


def test_sizes_follow_the_seed_for_a_scale_that_is_not_whole() -> None:
    path = make_path([[(0, 0)]], scale=1.5)
    assert path.box_sizes() == (5, 7, 11)
    assert path.boxes()[0, 0, :, 0].tolist() == [15 - 2, 15 - 3, 15 - 5]
    assert path.overhang() == 0
    assert make_path([[(1, 0)]], scale=1.5).overhang() == path.largest_overhang() == 6


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("location", "middle"), CORNERS_AND_CENTRE)
def test_the_overlay_draws_boxes_at_their_pixel_edges(
    location: tuple[int, int], middle: tuple[int, int], channels: int
) -> None:
    path = make_path([[location]], channels)
    view = choose_view(path, path.largest_overhang())
    picture = draw_glimpses(path, 0, 1, None, view)
    assert (view.margin, view.zoom) == (6, 256 // 42)
    assert picture.shape == (32 * view.zoom, 42 * view.zoom, 3)
    boxes = (path.boxes()[0, 0] + view.margin).tolist()
    colour = step_colours(1)[0]
    # The dot in the middle and the tag with the number hide lines.
    left, top, right, bottom = (view.zoom * edge for edge in boxes[0])
    free = np.ones(picture.shape[:2], bool)
    free[max(top - 11, 0) : max(top, 11), max(left, 0) : left + 9] = False
    x, y = (left + right) // 2, (top + bottom) // 2
    free[y - 6 : y + 7, x - 6 : x + 7] = False
    size = (picture.shape[0], picture.shape[1])
    small = outline(size, boxes[0], view.zoom, 2)
    large = outline(size, boxes[1], view.zoom, 1) | outline(size, boxes[2], view.zoom, 1)
    for ring, drawn in [(small, colour), (large, dimmed(colour, 0.6))]:
        seen = (picture == np.array(drawn)).all(axis=2)
        assert ring.sum() > 80
        np.testing.assert_array_equal(seen[free], ring[free])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_overlay_shows_the_image_and_what_is_outside(channels: int) -> None:
    path = make_path([[(-1, -1)]], channels)
    picture = glimpse_images(path)
    view = choose_view(path, path.largest_overhang())
    assert picture.dtype == np.uint8
    zoom, margin = view.zoom, view.margin
    centres = picture[0, zoom // 2 :: zoom, zoom // 2 :: zoom]
    expected = np.round(path.images[0] * 255).transpose(1, 2, 0)
    # The right half, which no box reaches.
    np.testing.assert_array_equal(
        centres[margin : margin + 20, margin + 15 : margin + 30],
        np.broadcast_to(expected, (20, 30, 3))[:, 15:],
    )
    assert (centres[:, margin + 30 :] == OUTSIDE).all()


def test_pictures_of_all_epochs_have_one_size() -> None:
    near, far = make_path([[(0, 0)]] * 2), make_path([[(1, 1)]] * 2)
    assert glimpse_images(near).shape == glimpse_images(far).shape == (2, 192, 252, 3)


def test_the_current_glimpse_is_bright_and_the_others_are_dark() -> None:
    path = make_path([[(-0.6, -0.5), (0.6, 0.5)]])
    view = choose_view(path, 6)
    picture = draw_glimpses(path, 0, 2, 1, view)
    first, second = step_colours(2)
    zoom = view.zoom
    for scale in range(3):
        right, bottom = path.boxes()[0, 1, scale, 2:]
        row, column = (bottom + 6) * zoom - 1, (right + 6) * zoom - 1
        assert tuple(picture[row, column - 20]) == second
    left, _, _, bottom = path.boxes()[0, 0, 0]
    assert tuple(picture[(bottom + 6) * zoom - 1, (left + 6) * zoom]) == dimmed(first, 0.65)


@pytest.mark.parametrize(("channels", "classes"), [(1, 10), (3, 3), (1, 40)])
def test_the_animation_has_a_frame_per_glimpse(tmp_path: Path, channels: int, classes: int) -> None:
    path = make_path(np.random.RandomState(0).uniform(-1, 1, (5, 4, 2)), channels, classes)
    file = animate_paths(path, tmp_path / "gaze.gif", 4.0)
    with Image.open(file) as image:
        durations, frames = [], []
        for number in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(number)
            durations.append(image.info["duration"])
            frames.append(np.asarray(image.convert("RGB")))
        assert image.info["loop"] == 0
    assert durations == [250, 250, 250, 750]
    assert [entry.name for entry in tmp_path.iterdir()] == ["gaze.gif"]
    # The lines of the current glimpse are there in every frame, in their very colour.
    for step, colour in enumerate(step_colours(4)):
        shown = [int((frame == np.array(colour)).all(axis=2).sum()) for frame in frames]
        assert shown[step] > 500
        assert all(count < 0.5 * shown[step] for count in shown[:step] + shown[step + 1 :])


def test_boxes_of_the_animation_lie_at_their_pixel_edges(tmp_path: Path) -> None:
    path = make_path([[(0, 0)]], patches=np.zeros((1, 1, 1, 1, 5, 5)))
    with Image.open(animate_paths(path, tmp_path / "gaze.gif")) as image:
        frame = np.asarray(image.convert("RGB"))
    zoom = choose_view(path, 0).zoom
    corner = np.array([12 + 13 * zoom, 26 + 8 * zoom])  # x, y: gap and header come before
    line = (frame == np.array(step_colours(1)[0])).all(axis=2)
    line[: corner[1]] = False  # the tag, and the dot of the header
    rows, columns = np.nonzero(line)
    assert (columns.min(), columns.max()) == (corner[0], corner[0] + 5 * zoom - 1)
    assert (rows.min(), rows.max()) == (corner[1], corner[1] + 5 * zoom - 1)


def test_a_picture_of_many_colours_keeps_the_colours_of_lines(tmp_path: Path) -> None:
    path = make_path([[(0, 0), (0.5, 0.5)]] * 6, 3)
    path.images[:] = np.random.RandomState(1).rand(*path.images.shape)
    with Image.open(animate_paths(path, tmp_path / "a.gif")) as image:
        frame = np.asarray(image.convert("RGB")).astype(int)
    view = choose_view(path, path.overhang())
    true = draw_glimpses(path, 0, 1, 0, view).astype(int)
    given = frame[26 : 26 + true.shape[0], 12 : 12 + true.shape[1]]
    line = (true == np.array(step_colours(2)[0])).all(axis=2)
    assert line.sum() > 500
    assert (given[line] == step_colours(2)[0]).all()
    assert np.abs(given - true).mean() < 12  # of 255; 256 colours for 3,600 random ones


def test_an_animation_of_six_images_is_small(tmp_path: Path) -> None:
    rng = np.random.RandomState(2)
    path = make_path(
        rng.uniform(-1, 1, (6, 6, 2)),
        images=rng.rand(6, 1, 60, 60),
        patches=rng.rand(6, 6, 3, 1, 12, 12),
        patch_size=12,
    )
    assert animate_paths(path, tmp_path / "a.gif").stat().st_size < 1_000_000


def test_the_figure_shows_boxes_patches_and_predictions() -> None:
    path = make_path([[(-1, -1), (0.2, 0.3)], [(0, 0), (1, 1)]], class_names=tuple("0123456$89"))
    path.probabilities[0, 1] = np.eye(10)[4]
    path.probabilities[1, 1] = np.eye(10)[1]
    figure = glimpse_plot._figure(path)
    assert len(figure.axes) == 6
    axes: list[Any] = figure.axes
    image, patches, table = axes[:3]
    drawn = [
        (*patch.get_xy(), patch.get_width(), patch.get_height())
        for patch in image.patches
        if not patch.get_fill()
    ]
    for left, top, right, bottom in path.boxes()[0].reshape(-1, 4).tolist():
        assert (left, top, right - left, bottom - top) in drawn
    assert image.images[0].get_extent() == [0, 30, 20, 0]
    assert {"1", "2"} <= {text.get_text() for text in image.texts}
    assert image.get_title("left") == "label 0, prediction 4 (100%): wrong"
    assert axes[3].get_title("left") == "label 1, prediction 1 (100%): right"
    wrong, right = (axes[i]._left_title for i in (0, 3))
    assert wrong.get_color() == glimpse_plot._share(glimpse_plot.WRONG)
    assert right.get_color() == glimpse_plot._share(glimpse_plot.RIGHT)
    assert len(patches.images) == 6
    np.testing.assert_array_equal(
        patches.images[4].get_array()[..., 0], np.round(path.patches[0, 1, 1, 0] * 255)
    )
    np.testing.assert_allclose(table.images[0].get_array(), path.probabilities[0].T, rtol=1e-6)
    frames = [patch.get_xy() for patch in table.patches]
    assert frames == [(-0.46, path.predictions[0, 0] - 0.46), (0.54, 4 - 0.46)]
    bold = [t.get_text() for t in table.get_yticklabels() if t.get_fontweight() == "bold"]
    assert bold == ["0"]


def test_the_table_keeps_the_classes_that_matter() -> None:
    path = make_path([[(0, 0)] * 12], classes=40, labels=np.array([39]))
    path.probabilities[0] = 0
    path.probabilities[0, np.arange(12), np.arange(12) * 3] = 1
    assert glimpse_plot._shown_classes(path, 0) == [*range(0, 36, 3), 39]
    path.probabilities[0] = np.eye(40)[5]
    shown = glimpse_plot._shown_classes(path, 0)
    assert len(shown) == 10
    assert {5, 39} <= set(shown)


@pytest.mark.parametrize(("channels", "size"), [(1, (28, 28)), (3, (100, 60))])
def test_the_figure_is_a_png(tmp_path: Path, channels: int, size: tuple[int, int]) -> None:
    images = np.random.RandomState(0).rand(2, channels, *size)
    names = ("$x_{$", "$$", *map(str, range(8)))  # no formulas
    path = make_path([[(0, 0), (1, 1)]] * 2, channels, images=images, class_names=names)
    with Image.open(plot_paths(path, tmp_path / "gaze.png")) as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("L")).std() > 20  # not blank
    assert [entry.name for entry in tmp_path.iterdir()] == ["gaze.png"]


def test_normalized_patches_are_stretched_and_others_are_not() -> None:
    path = make_path([[(0, 0)]])
    np.testing.assert_array_equal(
        path.rgb_patches()[..., 0], np.round(path.patches[:, :, :, 0] * 255)
    )
    normalized = dataclasses.replace(path, patches=(path.patches - 0.1307) / 0.3081)
    shown = normalized.rgb_patches()
    assert (shown.min(), shown.max()) == (0, 255)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("images", np.zeros((2, 2, 20, 30)), r"images have the shape \(2, 2, 20, 30\)"),
        ("images", np.full((2, 1, 20, 30), 2.8), r"images go from 2.8 .* undo the norm"),
        ("images", np.full((2, 1, 20, 30), np.nan), "images are not all finite"),
        ("labels", np.zeros(2), "labels are float64"),
        ("labels", np.array([0, 10]), "labels go from 0 to 10; .* 0 to 9"),
        ("labels", np.zeros(3, int), r"one whole number per image, \(2,\)"),
        ("locations", np.zeros((2, 3)), r"needed is \(2, T, 2\)"),
        ("locations", np.full((2, 3, 2), 1.0001), "locations go from 1.0001 .* -1 to 1"),
        ("locations", np.full((2, 3, 2), np.inf), "locations are not all finite"),
        ("patches", np.zeros((2, 3, 3, 1, 5, 4)), r"needed is \(2, 3, K, 1, 5, 5\)"),
        ("patches", np.zeros((2, 3, 0, 1, 5, 5)), "K scales"),
        ("patches", np.full((2, 3, 3, 1, 5, 5), np.nan), "patches are not all finite"),
        ("probabilities", np.full((2, 3, 9), 1 / 9), r"needed is \(2, 3, 10\)"),
        ("probabilities", np.full((2, 3, 10), -0.5), "softmax, not logits"),
        ("probabilities", np.full((2, 3, 10), 0.2), "sum to 1 with an error of 1"),
        ("patch_size", 0, "patch_size is 0"),
        ("scale", 0.5, "scale is 0.5"),
    ],
)
def test_wrong_arrays_are_refused(name: str, value: Any, words: str) -> None:
    path = make_path(np.zeros((2, 3, 2)))
    with pytest.raises(UserError, match=words):
        dataclasses.replace(path, **{name: value})


def test_wrong_files_and_rates_are_refused(tmp_path: Path) -> None:
    path = make_path([[(0, 0)]])
    for write, name in [(plot_paths, "a.png"), (animate_paths, "a.gif")]:
        with pytest.raises(UserError, match="name a file that ends in"):
            write(path, tmp_path / "a.jpg")
        with pytest.raises(UserError, match=r"cannot write .*No such file"):
            write(path, tmp_path / "no" / name)
        with pytest.raises(UserError, match="30 images do not fit"):
            write(make_path([[(0, 0)]] * 30), tmp_path / name)
    for rate in (0, -1, 51, float("nan")):
        with pytest.raises(UserError, match="frames per second"):
            animate_paths(path, tmp_path / "a.gif", rate)
    assert not list(tmp_path.iterdir())
