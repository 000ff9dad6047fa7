"""Data set names, the arrays of a split, their statistics and the validation split."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formats.errors import UserError
from training.data import cifar
from training.data import dataset as datasets
from training.data.catalogue import load_dataset
from training.data.dataset import ImageData, split_validation, stratified_mask


def test_unknown_name_suggests_a_known_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown data set 'cifar-10'; known: .*mean 'cifar10'"):
        load_dataset("cifar-10")
    with pytest.raises(UserError, match=rf"write folder:{tmp_path}"):
        load_dataset(str(tmp_path))


def test_class_names_are_complete_and_unique() -> None:
    for names, count in (
        (cifar.CIFAR10_CLASSES, 10),
        (cifar.CIFAR100_CLASSES, 100),
        (cifar.CIFAR100_COARSE_CLASSES, 20),
    ):
        assert len(set(names)) == len(names) == count
    assert list(cifar.CIFAR100_CLASSES) == sorted(cifar.CIFAR100_CLASSES)


@given(
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=200),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_stratified_choice_is_exact(labels: list[int], share: float, seed: int) -> None:
    array = np.array(labels, np.int32)
    count = round(share * len(array))
    chosen = stratified_mask(array, count, seed)
    assert chosen.sum() == count
    for value in np.unique(array):
        exact = count * (array == value).sum() / len(array)
        assert abs(chosen[array == value].sum() - exact) < 1
    np.testing.assert_array_equal(chosen, stratified_mask(array, count, seed))


def test_a_sample_has_all_classes() -> None:
    labels = np.repeat(np.arange(5, dtype=np.int32), [40, 20, 20, 10, 10])  # as in a sorted folder
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    data = ImageData(images, labels, images[..., 0] % 2)
    sample = data.sample(10, seed=3)
    np.testing.assert_array_equal(np.bincount(sample.labels), [4, 2, 2, 1, 1])
    np.testing.assert_array_equal(sample.labels, labels[sample.images.ravel()])
    assert sample.masks is not None
    np.testing.assert_array_equal(data.sample(10, seed=3).images, sample.images)
    assert (data.sample(10, seed=4).images != sample.images).any()
    assert len(data.sample(3, seed=0)) == 3
    assert data.sample(100, seed=0) is data
    assert data.sample(101, seed=0) is data


def test_validation_split() -> None:
    labels = np.arange(100, dtype=np.int32) % 4
    images = np.arange(100, dtype=np.uint8).reshape(100, 1, 1, 1)
    data = ImageData(images, labels, images[..., 0] % 2)
    rest, held = split_validation(data, 20, seed=1)
    assert (len(rest), len(held)) == (80, 20)
    np.testing.assert_array_equal(np.bincount(held.labels), [5, 5, 5, 5])
    together = np.concatenate([rest.images, held.images]).ravel()
    np.testing.assert_array_equal(np.sort(together), np.arange(100))
    for part in (rest, held):
        np.testing.assert_array_equal(part.labels, part.images.ravel() % 4)
        assert part.masks is not None
        np.testing.assert_array_equal(part.masks, part.images[..., 0] % 2)
    assert not np.array_equal(held.images, split_validation(data, 20, seed=2)[1].images)
    for count in (0, 100, -1):
        with pytest.raises(UserError, match=r"give 1 to 99"):
            split_validation(data, count, seed=1)


def test_image_data_refuses_other_arrays() -> None:
    images, labels = np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.int32)
    ImageData(images, labels)
    with pytest.raises(ValueError, match="images must be uint8"):
        ImageData(images.astype(np.float32), labels)
    with pytest.raises(ValueError, match="labels must be int32"):
        ImageData(images, labels.astype(np.int64))
    with pytest.raises(ValueError, match="masks must be uint8"):
        ImageData(images, labels, np.zeros((2, 4), np.uint8))


def test_channel_statistics_equal_numpy() -> None:
    images = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (7, 5, 6, 3)).astype(np.uint8)
    mean, std = datasets.channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (images / 255).std(axis=(0, 1, 2)), rtol=1e-12)
