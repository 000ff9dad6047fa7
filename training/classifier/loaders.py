"""From a data set and a configuration to the batches of a run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from formats.errors import UserError
from formats.images.preprocessing import figures_of
from training.augmentation.augment import check_crop
from training.augmentation.label_noise import add_label_noise
from training.batches.in_memory import EvalBatches, Loaders, TrainBatches
from training.classifier.config import TrainConfig
from training.data.catalogue import load_dataset
from training.data.dataset import Dataset, ImageData, hold_out
from training.data.identity import identity_of

EVAL_BATCH = 128


def open_dataset(config: TrainConfig) -> Dataset:
    """Return the data set that a configuration names."""
    return load_dataset(
        config.dataset, config.data_dir, mirror=config.mirror, download=config.download
    )


def build_loaders(config: TrainConfig, dataset: Dataset, classes: int) -> Loaders:
    """Return training, held-out (or None) and test batches.

    Label noise is in the training images alone: what judges a run, held-out images too, keeps its
    true labels.

    Raises
    ------
    UserError
        When fewer training images are left than one batch needs, or a crop or its border is too
        large for them.
    """
    _, height, width, _ = dataset.train.images.shape
    edge = config.crop_size or min(height, width)
    if config.pad >= edge:
        raise UserError(
            f"--pad {config.pad}: crops of training images have {edge} pixels on a side and could "
            f"have nothing of an image; choose at most {edge - 1}"
        )
    check_crop(config.crop_size, config.pad, (height, width), config.pad_mode)
    _check_small(config, (height, width))
    identity = identity_of(dataset)
    dataset = normalized(dataset, config.normalization)
    rest, held_out = hold_out(dataset, config.valid_count)
    valid = None if held_out is None else evaluation_batches(held_out, dataset)
    if config.train_count:
        if config.train_count > len(rest.images):
            raise UserError(
                f"--train-count {config.train_count}: there are {len(rest.images)} images to train"
            )
        order = np.random.default_rng(config.seed).permutation(len(rest.images))
        rest = rest.take(order[: config.train_count])
    if config.label_noise < 1:
        rest = add_label_noise(rest, classes, config.label_noise, config.seed)
    drawn = config.drawn_images()
    if config.batch_size <= len(rest.images) < drawn:
        raise UserError(
            f"--harder-share {config.harder_share:g}: an update draws {drawn} images, there are "
            f"{len(rest.images)} to train; choose a smaller --batch-size, or a larger share"
        )
    train = TrainBatches(
        rest,
        drawn,
        augmentation=config.augmentation(),
        mean=dataset.mean,
        std=dataset.std,
        classes=classes,
        seed=config.seed,
    )
    return Loaders(train, valid, evaluation_batches(dataset.test, dataset), identity)


def _check_small(config: TrainConfig, shape: tuple[int, int]) -> None:
    height, width = (config.crop_size,) * 2 if config.crop_size else shape
    if config.small_epochs and not config.small_size < height == width:
        raise UserError(
            f"--small-size {config.small_size}: the training images are {height}x{width}; they "
            "must be square and larger than that. --small-size 0 leaves out what a recipe has"
        )


def normalized(dataset: Dataset, normalization: str) -> Dataset:
    """Return the data set with the mean and std that `normalization` names; see `figures_of`."""
    figures = figures_of(normalization, dataset.train.images.shape[-1])
    return replace(dataset, mean=figures[0], std=figures[1]) if figures else dataset


def evaluation_batches(data: ImageData, dataset: Dataset) -> EvalBatches:
    """Return batches of `data` normalised as `dataset` says."""
    return EvalBatches(data, EVAL_BATCH, mean=dataset.mean, std=dataset.std)
