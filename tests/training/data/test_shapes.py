"""The embedded data set: fixed to the bit, balanced, with true masks, and no class leaks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
import pytest

from formats.errors import UserError
from training.data import shapes, shapes_draw
from training.data.dataset import Dataset, ImageData

# A class must not show in single pixels, colours or nearest neighbours.
SIMPLE_CLASSIFIER_LIMIT = 0.60

TEST_IMAGES_SHA256 = "8072afc74179f1bd89199cbd4e7af7e5a25b87ee6c78351fc2846429be328656"
TEST_LABELS_SHA256 = "0c307e8a9dc39e2a83ee27bc39271ce394945cba28dcb0f9cdf6c643017935ad"
TEST_MASKS_SHA256 = "aa506a1c01cd645b119be37ccc2d97051073ef35ae625646d3eda8f269f88940"


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return shapes.load_shapes()


def _sha256(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def _centred_moments(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Area, centre x, centre y and mean of (x - cx)(y - cy) of every mask, in pixels."""
    grid = np.arange(masks.shape[1])
    area = masks.sum(axis=(1, 2), dtype=np.int64)
    x = (masks * grid).sum(axis=(1, 2)) / area
    y = (masks * grid[:, None]).sum(axis=(1, 2)) / area
    xy = (masks * (grid * grid[:, None])).sum(axis=(1, 2)) / area - x * y
    return area, x, y, xy


# --- What is drawn ----------------------------------------------------------------------------


def test_default_sizes_types_and_names(dataset: Dataset) -> None:
    assert dataset.name == "shapes"
    assert dataset.classes == len(set(dataset.class_names)) == 10
    for data, count in ((dataset.train, 10000), (dataset.test, 2000)):
        assert (data.images.shape, data.images.dtype) == ((count, 32, 32, 3), np.uint8)
        assert (data.labels.shape, data.labels.dtype) == ((count,), np.int32)
        assert data.masks is not None
        assert (data.masks.shape, data.masks.dtype) == ((count, 32, 32), np.uint8)
        assert set(np.unique(data.masks)) == {0, 1}
        assert np.bincount(data.labels).tolist() == [count // 10] * 10


def test_test_set_is_fixed_to_the_bit(dataset: Dataset) -> None:
    """A change of these digests makes every recorded accuracy on ``shapes`` incomparable."""
    assert dataset.test.masks is not None
    assert _sha256(dataset.test.labels.astype("<i4")) == TEST_LABELS_SHA256
    assert _sha256(dataset.test.masks) == TEST_MASKS_SHA256
    assert _sha256(dataset.test.images) == TEST_IMAGES_SHA256


def test_fewer_pictures_are_the_first_of_more() -> None:
    few, more = shapes.draw_shapes(103, seed=5), shapes.draw_shapes(200, seed=5)
    for one, other in zip(
        (few.images, few.labels, few.masks), (more.images, more.labels, more.masks)
    ):
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(one, other[:103])


def test_global_random_state_has_no_say() -> None:
    state = np.random.get_state()
    first = shapes.draw_shapes(10, seed=5).images
    np.random.random(3)
    second = shapes.draw_shapes(10, seed=5).images
    np.random.set_state(state)
    np.testing.assert_array_equal(first, second)


def test_no_picture_occurs_twice(dataset: Dataset) -> None:
    other = shapes.load_shapes(100, 100, seed=1)
    images = [dataset.train.images, dataset.test.images, other.train.images, other.test.images]
    every = np.concatenate(images)
    assert len({image.tobytes() for image in every}) == len(every)


def test_odd_counts_are_balanced_to_one() -> None:
    counts = np.bincount(shapes.draw_shapes(117, seed=2).labels, minlength=10)
    assert counts.max() - counts.min() <= 1


def test_statistics_are_those_of_the_training_pictures(dataset: Dataset) -> None:
    scaled = dataset.train.images.reshape(-1, 3) / 255
    np.testing.assert_allclose(dataset.mean, scaled.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(dataset.std, scaled.std(axis=0), rtol=1e-9)


@pytest.mark.parametrize(("counts", "seed"), [((0, 10), 0), ((10, -1), 0), ((10, 10), -1)])
def test_bad_arguments_are_named(counts: tuple[int, int], seed: int) -> None:
    with pytest.raises(UserError, match=r"shapes: .*(0 pictures|-1)"):
        shapes.load_shapes(*counts, seed=seed)


# --- Outlines and masks -----------------------------------------------------------------------


@pytest.mark.parametrize("name", shapes_draw.OUTLINES)
def test_outline_has_area_one_and_is_centred(name: str) -> None:
    step = 1 / 160
    axis = (np.arange(-180, 180, dtype=np.float32) + np.float32(0.5)) * np.float32(step)
    distance = shapes_draw.OUTLINES[name](*np.meshgrid(axis, axis))
    inside = distance < 0
    # 160 cells per unit: an edge along the grid is off by up to half a cell.
    assert inside.sum() * step**2 == pytest.approx(1, abs=0.02)
    assert (inside * axis).sum() * step**2 == pytest.approx(0, abs=0.005)
    assert (inside * axis[:, None]).sum() * step**2 == pytest.approx(0, abs=0.005)
    # A signed distance changes by no more than the way between two points.
    assert np.abs(np.diff(distance, axis=0)).max() <= step * 1.001
    assert np.abs(np.diff(distance, axis=1)).max() <= step * 1.001


def test_polygon_distance_by_hand() -> None:
    x = np.array([[0.0, 0.5, 1.5, 0.25, 0.8]], np.float32)
    y = np.array([[0.0, 0.2, 0.0, 0.0, 0.9]], np.float32)
    expected = [[-0.5, 0.0, 1.0, -0.25, 0.5]]  # the last one from the corner (0.5, 0.5)
    np.testing.assert_allclose(shapes_draw.OUTLINES["square"](x, y), expected, atol=1e-6)


def test_rotation_by_half_tangent() -> None:
    angle = 0.4
    half_tangent = np.array([math.tan(angle / 2)])
    x, y = shapes_draw.rotate(np.array([2.0]), np.array([1.0]), half_tangent)
    assert x[0] == pytest.approx(2 * math.cos(angle) + math.sin(angle))
    assert y[0] == pytest.approx(math.cos(angle) - 2 * math.sin(angle))


def test_size_and_position_are_independent_of_the_class(dataset: Dataset) -> None:
    assert dataset.train.masks is not None
    area, x, y, _ = _centred_moments(dataset.train.masks)
    assert area.min() > 60  # at least a seventeenth of the picture
    assert area.max() < 240
    assert x.std() > 2
    assert y.std() > 2
    for label in range(10):
        chosen = dataset.train.labels == label
        # 1,000 pictures a class: 3 standard errors are about 3.5 pixels of area, 0.3 of position.
        assert abs(area[chosen].mean() - area.mean()) < 8
        assert abs(x[chosen].mean() - 15.5) < 0.4
        assert abs(y[chosen].mean() - 15.5) < 0.4


def test_classes_are_drawn_mirrored_as_often_as_not(dataset: Dataset) -> None:
    """Training flips pictures; the letter-like corner shows whether the test set does too."""
    assert dataset.train.masks is not None
    corners = dataset.train.masks[dataset.train.labels == dataset.class_names.index("corner")]
    _, _, _, xy = _centred_moments(corners)
    assert 0.45 < (xy > 0).mean() < 0.55


def _grown(masks: np.ndarray, radius: int) -> np.ndarray:
    """Dilate (N, H, W) masks by ``radius`` pixels in every direction."""
    height, width = masks.shape[1:]
    padded = np.pad(masks, ((0, 0), (radius, radius), (radius, radius)))
    grown = np.zeros_like(masks)
    for top, left in np.ndindex(2 * radius + 1, 2 * radius + 1):
        grown |= padded[:, top : top + height, left : left + width]
    return grown


def test_mask_separates_contrasting_colours(dataset: Dataset) -> None:
    """Just inside and just outside the mask the mean colours differ, in every picture."""
    assert dataset.test.masks is not None
    masks = dataset.test.masks[:500].astype(bool)
    images = dataset.test.images[:500] / 255
    outside = _grown(masks, 3) & ~_grown(masks, 1)
    inside = masks & ~_grown(~masks, 1)

    def mean_colour(pixels: np.ndarray) -> np.ndarray:
        total = (images * pixels[..., None]).sum(axis=(1, 2))
        return total / pixels.sum(axis=(1, 2))[:, None]

    difference = np.sqrt(((mean_colour(inside) - mean_colour(outside)) ** 2).sum(axis=1))
    assert difference.min() > 0.35  # 1.73 from black to white
    assert np.median(difference) > 0.6


# --- Simple classifiers, on the default sizes ---------------------------------------------------


def _ridge_accuracy(dataset: Dataset, train: np.ndarray, test: np.ndarray, wd: float) -> float:
    """Test accuracy of linear least squares on one-hot labels with weight penalty ``wd``."""
    centre = train.mean(axis=0)
    train, test = train - centre, test - centre
    targets = np.eye(10, dtype=np.float32)[dataset.train.labels] - np.float32(0.1)
    gram = train.T @ train + np.float32(wd) * np.eye(train.shape[1], dtype=np.float32)
    scores = test @ np.linalg.solve(gram, train.T @ targets)
    return float((scores.argmax(axis=1) == dataset.test.labels).mean())


def _nearest_accuracy(dataset: Dataset, train: np.ndarray, test: np.ndarray) -> float:
    """Test accuracy of the label of the nearest training vector."""
    squares = (train * train).sum(axis=1) - 2 * test @ train.T
    return float((dataset.train.labels[squares.argmin(axis=1)] == dataset.test.labels).mean())


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float32) / 255


def _grey(images: np.ndarray) -> np.ndarray:
    return images.mean(axis=3, dtype=np.float32).reshape(len(images), -1) / 255


def _colour_histogram(images: np.ndarray) -> np.ndarray:
    """Share of the pixels in each of 6x6x6 cells of RGB: (N, 216)."""
    cells = (images // 43).astype(np.int64) @ np.array([36, 6, 1])
    cells += 216 * np.arange(len(images))[:, None, None]
    counts = np.bincount(cells.ravel(), minlength=216 * len(images))
    return (counts.reshape(len(images), 216) / 1024).astype(np.float32)


def test_linear_classifier_fails(dataset: Dataset) -> None:
    train, test = _flat(dataset.train.images), _flat(dataset.test.images)
    assert _ridge_accuracy(dataset, train, test, wd=1e3) < SIMPLE_CLASSIFIER_LIMIT


def test_colour_histogram_fails(dataset: Dataset) -> None:
    train = _colour_histogram(dataset.train.images)
    test = _colour_histogram(dataset.test.images)
    assert _ridge_accuracy(dataset, train, test, wd=1e-2) < SIMPLE_CLASSIFIER_LIMIT
    assert _nearest_accuracy(dataset, train, test) < SIMPLE_CLASSIFIER_LIMIT


@pytest.mark.parametrize("features", [_flat, _grey])
def test_nearest_neighbour_fails(
    dataset: Dataset, features: Callable[[np.ndarray], np.ndarray]
) -> None:
    train, test = features(dataset.train.images), features(dataset.test.images)
    assert _nearest_accuracy(dataset, train, test) < SIMPLE_CLASSIFIER_LIMIT


def test_the_same_classifiers_succeed_when_the_class_leaks(dataset: Dataset) -> None:
    """The control: the measures above notice a class that shows in pixels and colours."""

    def leak(data: ImageData) -> np.ndarray:
        images = data.images.copy()
        # Red and green give ten different cells of the histogram.
        images[:, :16, :16, 0] = (85 * (data.labels % 4))[:, None, None]
        images[:, :16, :16, 1] = (85 * (data.labels // 4))[:, None, None]
        return images

    train, test = leak(dataset.train), leak(dataset.test)
    assert _nearest_accuracy(dataset, _flat(train), _flat(test)) > 0.6
    train, test = _colour_histogram(train), _colour_histogram(test)
    assert _ridge_accuracy(dataset, train, test, wd=1e-2) > 0.6
