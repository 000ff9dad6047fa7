"""Smaller images in the first epochs, and a stem that starts with whitening filters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from mxnet.gluon import nn

import train_cifar
from formats.errors import UserError
from formats.param_file import read_params
from model import create_model
from tests.training.loop.test_averaging import DATA, Crash, after, finish, images_of, network
from tests.training.loop.test_epoch_average import CONFIG
from training.augmentation.shrink import shrink
from training.batches.in_memory import EvalBatches
from training.classifier.loaders import build_loaders
from training.classifier.whitening import whiten_stem, whitening_filters
from training.data.dataset import ImageData
from training.loop.checkpoint import parameter_arrays
from training.loop.engine import Updater
from training.records.state_file import load_state

SMALL = replace(CONFIG, small_size=6, small_epochs=2)


def random_images(count: int, height: int, width: int, channels: int = 3) -> np.ndarray:
    rng = np.random.default_rng(4)
    return rng.integers(0, 256, (count, height, width, channels), dtype=np.uint8)


# ---------------------------------------------------------------------------------- smaller images


@pytest.mark.parametrize(("shape", "size"), [((8, 8), 6), ((32, 32), 24), ((9, 5), 5), ((7, 7), 7)])
def test_a_pixel_is_the_mean_of_what_it_covers(shape: tuple[int, int], size: int) -> None:
    images = random_images(3, *shape)
    fine = np.repeat(np.repeat(images, size, axis=1), size, axis=2).astype(np.int64)
    blocks = fine.reshape(3, size, shape[0], size, shape[1], 3)
    expected = np.rint(blocks.sum(axis=(2, 4)) / (shape[0] * shape[1]))
    small = shrink(images, size)
    assert small.dtype == np.uint8
    np.testing.assert_array_equal(small, expected)


def test_large_images_are_summed_exactly() -> None:
    pixels = np.full(300 * 300, 254, np.uint8)
    pixels[:45_001] = 255  # the mean is 254.5 and a bit that float32 has no room for
    for order in (pixels, np.roll(pixels, 1), pixels[::-1]):
        assert shrink(order.reshape(1, 300, 300, 1), 1).item() == 255


def test_the_first_epochs_have_smaller_images_of_the_same_crops() -> None:
    both = (replace(config, mixup_alpha=0.0) for config in (CONFIG, SMALL))
    whole, small = (build_loaders(config, DATA, 3).train for config in both)
    for epoch, size in ((0, 6), (1, 6), (2, 8), (4, 8)):
        for one, other in zip(whole.epoch(epoch), small.epoch(epoch)):
            assert other.image.shape == (4, 3, size, size)
            assert np.array_equal(one.label, other.label)
            std, mean = (np.array(v)[:, None, None] * 255 for v in (whole.std, whole.mean))
            pixels = np.rint(one.image * std + mean).astype(np.uint8).transpose(0, 2, 3, 1)
            levels = np.rint(other.image * std + mean).transpose(0, 2, 3, 1)
            np.testing.assert_array_equal(shrink(pixels, size), levels)


@pytest.mark.parametrize("step", [3, 15])
def test_a_run_with_small_images_goes_on_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    finish(tmp_path / "whole", SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(Updater, "step", after(step, Updater.step))
        with pytest.raises(Crash):
            finish(tmp_path / "cut", SMALL)
    assert load_state(tmp_path / "cut")[0].epoch == (0 if step == 3 else 2)
    finish(tmp_path / "cut", SMALL, resume=True)
    one, other = ((tmp_path / run / "last.param").read_bytes() for run in ("whole", "cut"))
    assert one == other


@pytest.mark.usefixtures("unit_operators")
def test_the_operators_train_on_both_sizes(tmp_path: Path) -> None:
    words = (
        "--recipe short --dataset shapes --model resnet20_basic --depth 8 --train-count 64 -b 32"
    )
    more = "--epochs 2 --small-size 24 --small-epochs 1 --fused on --precision float32"
    assert train_cifar.main([*words.split(), *more.split(), "--run-dir", str(tmp_path / "r")]) == 0
    values = read_params(tmp_path / "r" / "last.param")
    assert all(np.isfinite(value).all() for value in values.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"small_size": 24}, "--small-size and --small-epochs belong together"),
        ({"small_epochs": 2}, "--small-size and --small-epochs belong together"),
        ({"small_size": 6, "small_epochs": 5}, "of --epochs 5 the last must be on images"),
        ({"small_size": -1, "small_epochs": 1}, "--small-size -1: must be 0 or more"),
        ({"stem_init": "whitened", "finetune": "f"}, "--finetune takes all first weights"),
    ],
)
def test_what_does_not_go_together(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(CONFIG, **change).check()


@pytest.mark.parametrize("change", [{"small_size": 8}, {"crop_size": 6}])
def test_small_images_are_smaller(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"--small-size \d: the training images are \dx\d"):
        build_loaders(replace(SMALL, **change), DATA, 3)


# -------------------------------------------------------------------------------- the whitened stem


def test_outputs_of_the_filters_are_white() -> None:
    images = images_of(30, 3).images.astype(np.float64)
    # Neighbours alike, as in pictures: otherwise patches would be white already.
    smooth = (images + np.roll(images, 1, axis=1) + np.roll(images, 1, axis=2)) / 3
    data = replace(DATA, train=ImageData(smooth.astype(np.uint8), DATA.train.labels))
    train = build_loaders(CONFIG, data, 3).train
    filters = whitening_filters(train, 3)
    assert filters.shape == (27, 3, 3, 3)
    batches = EvalBatches(train.data, 10, mean=train.mean, std=train.std)
    pixels = mx.nd.array(np.concatenate([batch.image for batch in batches]))
    outputs = mx.nd.Convolution(
        pixels, mx.nd.array(filters), kernel=(3, 3), num_filter=27, no_bias=True
    )
    flat = outputs.asnumpy().transpose(1, 0, 2, 3).reshape(27, -1)
    covariance = np.cov(flat, ddof=0)
    np.testing.assert_allclose(covariance, np.diag(np.diag(covariance)), atol=1e-3)
    assert (np.diag(covariance) <= 1.0001).all()
    assert np.diag(covariance)[0] > 0.99
    # The most varying first: the whitening divides by their deviation.
    norms = np.linalg.norm(filters.reshape(27, -1), axis=1)
    assert (np.diff(norms) > -1e-4).all()


@pytest.mark.parametrize("count", [3, 40, 64])
def test_filters_then_negatives_then_first_weights(count: int) -> None:
    net = nn.HybridSequential()
    net.add(nn.Conv2D(count, 3, in_channels=3), nn.Conv2D(2, 3, in_channels=count))
    net.initialize(mx.init.Xavier())
    before = net[0].weight.data().asnumpy()
    train = build_loaders(CONFIG, DATA, 3).train
    assert whiten_stem(net, train) == "0.weight"
    weight, filters = net[0].weight.data().asnumpy(), whitening_filters(train, 3)
    np.testing.assert_array_equal(weight[:27], filters[:count])
    np.testing.assert_array_equal(weight[27:54], -filters[: max(count - 27, 0)])
    np.testing.assert_array_equal(weight[54:], before[54:])


def test_only_a_stem_over_the_images_can_be_whitened() -> None:
    train = build_loaders(CONFIG, DATA, 3).train
    for net in (nn.Dense(3, in_units=4), nn.Conv2D(3, 3, in_channels=4)):
        net.initialize()
        with pytest.raises(UserError, match="does not begin with a convolution"):
            whiten_stem(net, train)
    whiten_stem(network(), train)


@pytest.mark.parametrize("name", ["attention56_paper", "attention92", "resnet20_ram"])
def test_the_first_convolution_of_our_networks_is_found(name: str) -> None:
    net = create_model(name, 3)
    net.initialize()
    found = whiten_stem(net, build_loaders(CONFIG, DATA, 3).train)
    graph = net(mx.sym.var("image"))
    graph = graph[0] if isinstance(graph, (list, tuple)) else graph
    first = next(n for n in graph.list_arguments() if n.endswith("weight"))
    assert net._collect_params_with_prefix()[found].name == first


def test_a_training_and_an_export_start_with_it(tmp_path: Path) -> None:
    words = "--dataset shapes --model resnet20_basic --depth 8 --train-count 64 -b 32"
    words += " --stem-init whitened --gpus cpu --precision float32"
    assert train_cifar.main([*words.split(), "--export-start", str(tmp_path / "x")]) == 0
    config = train_cifar.CifarConfig(**train_cifar._given(words.split()))
    exported = first_weight(read_params(tmp_path / "x.param"))
    started = train_cifar._prepare(config)
    filters = whitening_filters(started.loaders.train, 3)[: len(exported)]
    assert np.array_equal(exported, filters)
    assert np.array_equal(first_weight(parameter_arrays(started.net)), filters)
    # A resume takes its weights from the state.
    resumed = train_cifar._prepare(replace(config, resume="runs/x"))
    assert not np.array_equal(first_weight(parameter_arrays(resumed.net)), filters)


def first_weight(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return next(value for value in arrays.values() if value.ndim == 4)
