"""Batches: what an epoch visits, reproducibility, soft labels, the background thread."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import UserError
from training.augmentation.augment import Augmentation
from training.batches.in_memory import Batch, EvalBatches, TrainBatches, prefetched
from training.data.dataset import ImageData

PLAIN = Augmentation(pad=0, flip=False)
RECIPE = Augmentation(pad=2, cutout="erasing", mixup_alpha=1.0, label_smoothing=0.1)
UNIT: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def numbered(count: int, height: int = 4, width: int = 5) -> ImageData:
    """Image i is filled with the value i, its label is i modulo 10."""
    images = np.zeros((count, height, width, 3), np.uint8)
    images += np.arange(count, dtype=np.uint8)[:, None, None, None]
    return ImageData(images, (np.arange(count) % 10).astype(np.int32), None)


def textured(count: int = 20) -> ImageData:
    images = np.random.default_rng(3).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return ImageData(images, (np.arange(count) % 10).astype(np.int32), None)


def train_batches(
    data: ImageData, batch_size: int, augmentation: Augmentation = PLAIN, seed: int = 0
) -> TrainBatches:
    return TrainBatches(data, batch_size, augmentation=augmentation, classes=10, seed=seed, **UNIT)


def image_numbers(batches: Iterator[Batch]) -> list[int]:
    return [round(float(image[0, 0, 0]) * 255) for batch in batches for image in batch.image]


def assert_equal_batches(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for a, b in zip(first, second):
        for x, y in zip(a, b):
            if x is None or y is None:
                assert x is y
            else:
                np.testing.assert_array_equal(x, y)


@settings(deadline=None, max_examples=25)
@given(count=st.integers(1, 60), batch_size=st.integers(1, 20), epoch=st.integers(0, 3))
def test_an_epoch_visits_no_image_twice_and_drops_less_than_a_batch(
    count: int, batch_size: int, epoch: int
) -> None:
    if batch_size > count:
        with pytest.raises(
            UserError, match=f"batch of {batch_size} images .* {count} training images"
        ):
            train_batches(numbered(count), batch_size)
        return
    batches = train_batches(numbered(count), batch_size)
    made = list(batches.epoch(epoch))

    assert len(made) == len(batches) == count // batch_size
    assert all(batch.image.shape == (batch_size, 3, 4, 5) for batch in made)
    seen = image_numbers(iter(made))
    assert len(set(seen)) == len(seen) == len(made) * batch_size
    assert [int(label) for batch in made for label in batch.label] == [i % 10 for i in seen]


def test_batches_have_the_promised_types() -> None:
    for batch in itertools.chain(
        train_batches(textured(), 6, RECIPE).epoch(0),
        EvalBatches(textured(), 6, **UNIT),
        prefetched([]),
    ):
        assert batch.image.dtype == np.float32
        assert batch.image.flags.c_contiguous
        assert batch.label.dtype == np.int32
        assert batch.label.shape == (len(batch.image),)


def test_epochs_and_seeds_differ_and_both_repeat() -> None:
    orders: dict[tuple[int, int], tuple[int, ...]] = {}
    for seed, epoch in itertools.product((0, 1), (0, 1)):
        batches = train_batches(numbered(50), 10, seed=seed)
        orders[seed, epoch] = tuple(image_numbers(batches.epoch(epoch)))
        assert orders[seed, epoch] == tuple(image_numbers(batches.epoch(epoch)))
    assert len(set(orders.values())) == 4


def test_the_global_random_state_is_neither_read_nor_changed() -> None:
    np.random.seed(1)
    first = list(train_batches(textured(), 6, RECIPE).epoch(0))
    np.random.seed(2)
    assert_equal_batches(first, list(train_batches(textured(), 6, RECIPE).epoch(0)))
    assert np.random.random() == np.random.RandomState(2).random()


@pytest.mark.parametrize("start", [0, 1, 2, 3])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_epoch_can_start_at_any_batch(start: int, prefetch: int) -> None:
    batches = train_batches(textured(), 6, RECIPE, seed=7)
    whole = list(batches.epoch(4))
    assert len(whole) == 3
    assert_equal_batches(whole[start:], list(batches.epoch(4, start=start, prefetch=prefetch)))


def test_batches_of_an_epoch_are_augmented_independently() -> None:
    same = ImageData(np.repeat(textured(1).images, 40, axis=0), np.zeros(40, np.int32), None)
    made = list(train_batches(same, 20, Augmentation(pad=4)).epoch(0))
    assert not np.array_equal(made[0].image, made[1].image)


def test_soft_labels_only_when_something_makes_them_soft() -> None:
    data = textured()
    smooth = Augmentation(label_smoothing=0.1)
    mixed = Augmentation(mixup_alpha=1.0)
    assert all(b.soft_label is None for b in train_batches(data, 6, Augmentation()).epoch(0))
    assert all(b.soft_label is None for b in train_batches(data, 6, mixed).epoch(0, mixup=False))
    for augmentation, flag in (
        (smooth, True),
        (smooth, False),
        (mixed, True),
        (RECIPE, True),
        (RECIPE, False),
    ):
        for batch in train_batches(data, 6, augmentation).epoch(0, mixup=flag):
            assert batch.soft_label is not None
            assert batch.soft_label.shape == (6, 10)
            assert batch.soft_label.dtype == np.float32
            np.testing.assert_allclose(batch.soft_label.sum(axis=1), 1, atol=1e-6)


def test_switching_mixup_off_changes_nothing_else() -> None:
    data = textured()
    with_mixup = Augmentation(pad=2, mixup_alpha=1.0)
    plain = list(train_batches(data, 6, Augmentation(pad=2)).epoch(0))
    assert_equal_batches(plain, list(train_batches(data, 6, with_mixup).epoch(0, mixup=False)))
    mixed = list(train_batches(data, 6, with_mixup).epoch(0))
    for before, after in zip(plain, mixed):
        np.testing.assert_array_equal(before.label, after.label)
        assert not np.array_equal(before.image, after.image)


@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 50), batch_size=st.integers(1, 60))
def test_evaluation_sees_every_image_once_in_order(count: int, batch_size: int) -> None:
    batches = EvalBatches(numbered(count), batch_size, **UNIT)
    for _ in range(2):
        made = list(batches)
        assert len(made) == len(batches)
        assert image_numbers(iter(made)) == list(range(count))
        assert [int(label) for batch in made for label in batch.label] == [
            i % 10 for i in range(count)
        ]


def test_means_and_deviations_reach_the_pixels() -> None:
    data = ImageData(np.full((2, 4, 4, 1), 255, np.uint8), np.zeros(2, np.int32), None)
    (batch,) = EvalBatches(data, 2, mean=(0.5,), std=(0.25,))
    np.testing.assert_allclose(batch.image, 2.0, atol=1e-6)
    train = TrainBatches(data, 2, augmentation=PLAIN, mean=(0.5,), std=(0.25,), classes=1, seed=0)
    np.testing.assert_array_equal(next(train.epoch(0)).image, batch.image)


def test_bad_arguments_are_refused() -> None:
    data = numbered(20)
    empty = ImageData(data.images[:0], data.labels[:0], None)
    good: dict[str, Any] = {"augmentation": PLAIN, "classes": 10, "seed": 0, **UNIT}
    with pytest.raises(UserError, match="no images"):
        EvalBatches(empty, 4, **UNIT)
    with pytest.raises(UserError, match="batch size 0"):
        EvalBatches(data, 0, **UNIT)
    with pytest.raises(UserError, match="1 means and 3 deviations for images of 3 channels"):
        EvalBatches(data, 4, mean=(0.5,), std=UNIT["std"])
    with pytest.raises(UserError, match="must be positive"):
        EvalBatches(data, 4, mean=UNIT["mean"], std=(1.0, 0.0, 1.0))
    with pytest.raises(UserError, match="labels from 0 to 9 for a network of 9 classes"):
        TrainBatches(data, 4, **{**good, "classes": 9})
    with pytest.raises(UserError, match="seed -1"):
        TrainBatches(data, 4, **{**good, "seed": -1})
    batches = TrainBatches(data, 4, **good)
    with pytest.raises(UserError, match="epoch -1"):
        batches.epoch(-1)
    with pytest.raises(UserError, match="choose 0 to 5"):
        batches.epoch(0, start=6)


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_prefetch_gives_the_same_items_and_ends_its_thread() -> None:
    assert list(prefetched(iter(range(20)), 2)) == list(range(20))
    assert prefetch_threads() == []


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_an_abandoned_prefetch_leaves_no_thread(taken: int) -> None:
    iterator = prefetched(itertools.count(), 2)
    assert list(itertools.islice(iterator, taken)) == list(range(taken))
    assert len(prefetch_threads()) == (1 if taken else 0)
    del iterator
    gc.collect()
    assert prefetch_threads() == []


def test_prefetch_makes_only_its_depth_ahead() -> None:
    made: list[int] = []

    def source() -> Iterator[int]:
        for item in range(100):
            made.append(item)
            yield item

    iterator = prefetched(source(), 3)
    next(iterator)
    for _ in range(200):
        if len(made) >= 5:
            break
        time.sleep(0.01)
    time.sleep(0.1)  # time to run further ahead than it should
    assert len(made) == 5  # one taken, three in the buffer, one in the thread's hand
    iterator.close()


def test_prefetch_raises_the_error_of_its_source_after_the_items_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise FloatingPointError("in the source")

    iterator = prefetched(source(), 2)
    assert next(iterator) == 1
    with pytest.raises(FloatingPointError, match="in the source"):
        next(iterator)
    assert prefetch_threads() == []


def test_an_error_in_the_consumer_ends_the_thread() -> None:
    def consume() -> None:
        for item in prefetched(itertools.count(), 2):
            if item == 3:
                raise KeyError("consumer")

    with pytest.raises(KeyError):
        consume()
    gc.collect()
    assert prefetch_threads() == []


# --------------------------------------------------------------------------------- alternating flip

ALTERNATING = Augmentation(pad=0, flip_mode="alternating")


def mirrored_images(batches: TrainBatches, epoch: int, start: int = 0) -> dict[int, bool]:
    """Return by number of the image whether it was mirrored; its columns rise where it was not."""
    made = [image for batch in batches.epoch(epoch, start=start) for image in batch.image]
    return {round(float(i[0].min()) * 255): bool(i[0, 0, 0] > i[0, 0, -1]) for i in made}


def rising(count: int) -> ImageData:
    """Image i has the columns i to i + 4."""
    data = numbered(count)
    return ImageData(data.images + np.arange(5, dtype=np.uint8)[:, None], data.labels, None)


def test_alternating_flips_mirror_half_and_then_the_others() -> None:
    batches = train_batches(rising(200), 20, ALTERNATING)
    epochs = [mirrored_images(batches, epoch) for epoch in range(4)]
    assert sorted(epochs[0]) == list(range(200))
    assert 80 < sum(epochs[0].values()) < 120
    for epoch in (1, 2, 3):
        assert epochs[epoch] == {i: m ^ bool(epoch % 2) for i, m in epochs[0].items()}
    other = mirrored_images(train_batches(rising(200), 20, ALTERNATING, seed=1), 0)
    assert 60 < sum(other[i] ^ epochs[0][i] for i in other) < 140
    later = mirrored_images(batches, 3, start=7)
    assert later == {image: epochs[3][image] for image in later}
    plans = {int(r): bool(f) for p in batches.plans(3) for r, f in zip(p.rows, p.draws.flip)}  # type: ignore[arg-type]
    assert plans == epochs[3]


def test_without_flips_none_alternate() -> None:
    never = Augmentation(pad=0, flip=False, flip_mode="alternating")
    assert not any(mirrored_images(train_batches(rising(40), 20, never), 1).values())
    with pytest.raises(UserError, match="augmentation flip_mode = 'some'"):
        Augmentation(flip_mode="some")
