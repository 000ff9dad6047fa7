"""Evaluation against NumPy, and optimizer steps that do not depend on how a batch is split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Optional

import mxnet as mx
import numpy as np
import pytest
from mxnet import gluon
from mxnet.gluon import nn

from formats.errors import UserError
from training.augmentation.augment import smooth_labels
from training.batches.in_memory import Batch, EvalBatches
from training.classifier.config import TrainConfig
from training.data.dataset import ImageData
from training.distributed.group import Group
from training.loop.engine import Updater, measure, train_one_epoch
from training.loop.evaluation import evaluate
from training.loop.parameters import average_statistics, plain_layout
from training.loop.task import ClassificationTask, Measured, count_right
from training.records.run_progress import Progress

ONE, TWO = [mx.cpu(0)], [mx.cpu(0), mx.cpu(1)]
SHAPE, CLASSES = (2, 4, 4), 3
FEATURES = 2 * 4 * 4


def linear_net(contexts: Sequence[mx.Context], batch_norm: bool = False) -> Any:
    """A network whose logits NumPy can compute; the same parameters at every call."""
    net = nn.HybridSequential()
    if batch_norm:
        net.add(nn.BatchNorm(in_channels=2))
    net.add(nn.Flatten(), nn.Dense(CLASSES, in_units=FEATURES))
    net.initialize(ctx=list(contexts))
    rng = np.random.default_rng(1)
    net[-1].weight.set_data(mx.nd.array(rng.normal(0, 0.3, (CLASSES, FEATURES))))
    net[-1].bias.set_data(mx.nd.array(rng.normal(0, 0.3, CLASSES)))
    net.hybridize(static_alloc=True, static_shape=True)
    return net


def logits_of(net: Any, image: np.ndarray) -> np.ndarray:
    weight, bias = (p.data(ONE[0]).asnumpy().astype(np.float64) for p in weights(net))
    return image.reshape(len(image), -1).astype(np.float64) @ weight.T + bias


def weights(net: Any) -> tuple[Any, Any]:
    return net[-1].weight, net[-1].bias


def probabilities(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return result


def examples(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(count, *SHAPE)).astype(np.float32)
    return image, rng.integers(0, CLASSES, count).astype(np.int32)


def parts(image: np.ndarray, label: np.ndarray, size: int) -> list[Batch]:
    starts = range(0, len(image), size)
    return [Batch(image[i : i + size], label[i : i + size]) for i in starts]


# ---------------------------------------------------------------------------------------- evaluate


@pytest.mark.parametrize("contexts", [ONE, TWO], ids=["one", "two"])
@pytest.mark.parametrize("size", [1, 4, 5, 11, 20])
def test_every_image_counts_once(contexts: list[mx.Context], size: int) -> None:
    net, (image, label) = linear_net(contexts), examples(11)
    chance = probabilities(logits_of(net, image))
    done: list[int] = []
    scores = evaluate(net, parts(image, label, size), contexts, done.append)
    assert scores.images == sum(done) == 11
    assert scores.loss == pytest.approx(-np.log(chance[np.arange(11), label]).mean(), rel=1e-6)
    assert scores.acc == (chance.argmax(axis=1) == label).mean()
    assert 0 < scores.acc < 1


def test_a_gluon_loader_gives_the_same_as_own_batches() -> None:
    pixels, label = np.random.default_rng(3).integers(0, 256, (11, 4, 4, 2)), examples(11)[1]
    data = ImageData(pixels.astype(np.uint8), label)
    own = EvalBatches(data, 4, mean=(0.4, 0.5), std=(0.2, 0.3))
    image = np.concatenate([batch.image for batch in own])
    net = linear_net(TWO)
    expected = evaluate(net, own, TWO)
    assert expected.images == 11
    for labels in (label, label.astype(np.float32)[:, None]):
        dataset = gluon.data.ArrayDataset(mx.nd.array(image), labels)
        loader = gluon.data.DataLoader(dataset, batch_size=3, last_batch="keep")
        scores = evaluate(net, loader, TWO)
        assert scores.images == 11
        assert (scores.loss, scores.acc) == pytest.approx(expected[:2], rel=1e-6)


class Spy:
    """Calls a network and notes the batch sizes that it gets."""

    def __init__(self, net: Any) -> None:
        self.net, self.sizes = net, []  # type: ignore[var-annotated]

    def __call__(self, image: Any) -> Any:
        self.sizes.append(len(image))
        return self.net(image)


def test_a_device_computes_its_share_in_one_static_size() -> None:
    spy = Spy(linear_net(TWO))
    evaluate(spy, parts(*examples(10), 4), TWO)
    assert spy.sizes == [2] * 6  # 4 + 4 + 2 images, halved, the last filled up


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "gave no images"),
        ([Batch(np.zeros((0, *SHAPE), np.float32), np.zeros(0, np.int32))], "gave no images"),
        ([Batch(*examples(4)), 3], "a batch is a int; needed is a pair"),
        ([(np.zeros((4, 32)), np.zeros(4))], r"images \(4, 32\) and labels \(4,\); needed"),
        ([(np.zeros((4, *SHAPE)), np.zeros(3))], r"and labels \(3,\); needed are"),
        ([(np.zeros((4, *SHAPE)), np.zeros((4, 3)))], r"and labels \(4, 3\); needed are"),
        ([(np.zeros((2, *SHAPE)), [0, 3])], "labels from 0 to 3 for a network of 3 classes"),
        ([(np.zeros((2, *SHAPE)), [-1, 1])], "labels from -1 to 1 for"),
        ([(np.zeros((2, 5, 4, 4)), [0, 1])], r"cannot compute images \(2, 5, 4, 4\)"),
    ],
)
def test_what_cannot_be_scored(batches: list[Any], message: str) -> None:
    net = linear_net(ONE)
    with pytest.raises(UserError, match=message) as caught:
        evaluate(net, batches, ONE)
    assert "\n" not in str(caught.value)


def test_logits_of_other_dimensions_are_refused() -> None:
    with pytest.raises(UserError, match=r"gives \(4, 2, 4, 4\); needed are logits"):
        evaluate(lambda image: image, parts(*examples(4), 4), ONE)


def test_a_network_that_is_not_finite_scores_so() -> None:
    net = linear_net(ONE)
    net[-1].bias.set_data(mx.nd.array([math.nan, 0, 0]))
    assert math.isnan(evaluate(net, parts(*examples(4), 4), ONE).loss)


# ------------------------------------------------------------------------------------------- steps


def after_step(
    batch: Batch,
    contexts: Sequence[mx.Context] = ONE,
    micro_batch: int = 0,
    net: Optional[Any] = None,
) -> tuple[list[np.ndarray], tuple[float, float, int]]:
    """Parameters after one SGD step, and what was measured."""
    net = net or linear_net(contexts)
    # Only what is trained: a Trainer hands all devices the first one's values at its first step.
    trained = {k: p for k, p in net.collect_params().items() if p.grad_req != "null"}
    trainer = gluon.Trainer(trained, "sgd", {"learning_rate": 0.5}, update_on_kvstore=False)
    measured = measure(Updater(ClassificationTask(net, trainer, contexts), micro_batch).step(batch))
    for parameter in weights(net):
        copies = [data.asnumpy() for data in parameter.list_data()]
        np.testing.assert_array_equal(copies[0], copies[-1])
    return [parameter.data(contexts[0]).asnumpy() for parameter in weights(net)], measured[:3]


@pytest.mark.parametrize("contexts", [ONE, TWO], ids=["one", "two"])
@pytest.mark.parametrize(("count", "micro"), [(8, 0), (7, 2), (7, 1), (9, 1), (2, 1), (9, 4)])
def test_a_step_is_that_of_the_whole_batch(
    contexts: list[mx.Context], count: int, micro: int
) -> None:
    image, label = examples(count)
    net = linear_net(ONE)
    chance = probabilities(logits_of(net, image))
    slope = (chance - np.eye(CLASSES)[label]) / count
    weight, bias = (p.data().asnumpy().astype(np.float64) for p in weights(net))
    expected = [weight - 0.5 * slope.T @ image.reshape(count, -1), bias - 0.5 * slope.sum(axis=0)]
    found, (loss_sum, correct, images) = after_step(Batch(image, label), contexts, micro)
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert images == count
    assert correct == (chance.argmax(axis=1) == label).sum()
    assert loss_sum == pytest.approx(-np.log(chance[np.arange(count), label]).sum(), rel=1e-5)


class Keys(ClassificationTask):
    """Notes the keys that it is to draw random numbers from."""

    def losses(self, part: Any, key: tuple[int, ...]) -> Any:
        self.__dict__.setdefault("keys", []).append(key)
        return super().losses(part, key)


class Others(Group):
    """A worker of several, whose gradients nobody adds up."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def sum_arrays(self, arrays: Any, key: str) -> None:
        """Leave them."""


@pytest.mark.parametrize("micro", [0, 1, 2])
def test_no_two_parts_of_an_update_draw_the_same_numbers(micro: int) -> None:
    """Neither on the devices of a worker, nor on those of all, nor in the micro-batches."""
    keys = []
    image, label = examples(12)
    for rank in range(2):
        net = linear_net(TWO)
        trainer = gluon.Trainer(net.collect_params(), "sgd", {}, update_on_kvstore=False)
        task = Keys(net, trainer, TWO)
        Updater(task, micro, group=Others(rank, 2)).step(Batch(image, label), 5)
        keys += task.__dict__["keys"]
    assert len(set(keys)) == len(keys) == {0: 4, 1: 12, 2: 8}[micro]
    assert {number for number, _ in keys} == {5}


def test_gradients_do_not_pile_up_over_steps() -> None:
    batch, other = Batch(*examples(6)), Batch(*examples(6, seed=5))
    found = []
    for micro in (0, 2):
        net = linear_net(TWO)
        trainer = gluon.Trainer(
            net.collect_params(), "sgd", {"learning_rate": 0.5}, update_on_kvstore=False
        )
        updater = Updater(ClassificationTask(net, trainer, TWO), micro)
        for one in (batch, other, batch):
            measure(updater.step(one))
        found.append(net[-1].weight.data(TWO[1]).asnumpy())
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_soft_labels_of_one_class_are_hard_labels() -> None:
    image, label = examples(7)
    one_hot = np.eye(CLASSES, dtype=np.float32)[label]
    hard, measured = after_step(Batch(image, label), TWO, 2)
    soft, measured_soft = after_step(Batch(image, (label + 1) % CLASSES, one_hot), TWO, 2)
    for one, other in zip(hard, soft):
        np.testing.assert_allclose(one, other, atol=1e-7)
    assert measured_soft == pytest.approx(measured, rel=1e-6)


def test_fewer_images_than_devices() -> None:
    with pytest.raises(UserError, match="1 images cannot be split over 2 devices"):
        after_step(Batch(*examples(1)), TWO)


def test_measure_counts_soft_labels_by_their_share() -> None:
    losses, logits = [[1.5, 0.25], [2.0]], [[[0.0, 3.0, 1.0], [5.0, 0.0, 1.0]], [[0.0, 1.0, 0.5]]]
    labels = [np.array([[0.3, 0.7, 0.0], [0.0, 0.4, 0.6]], np.float32), np.array([1], np.int32)]
    steps = [
        Measured(mx.nd.array(one), len(label), partial(count_right, mx.nd.array(two), label))
        for one, two, label in zip(losses, logits, labels)
    ]
    loss_sum, correct, images, terms = measure(steps)
    assert (loss_sum, images, terms) == (3.75, 3, {})
    assert correct == pytest.approx(0.7 + 0.0 + 1.0)


def test_smoothing_makes_no_image_less_right() -> None:
    image, label = examples(8)
    soft = smooth_labels(label, CLASSES, 0.2)
    soft[0] = 0.25 * soft[0] + 0.75 * smooth_labels((label[:1] + 1) % CLASSES, CLASSES, 0.2)
    hard = np.eye(CLASSES)[label]
    hard[0] = 0.25 * hard[0] + 0.75 * np.eye(CLASSES)[(label[0] + 1) % CLASSES]
    found = []
    for smoothing, labels in ((0.2, soft), (0.0, hard)):
        task = ClassificationTask(
            linear_net(ONE), None, ONE, config=TrainConfig(label_smoothing=smoothing)
        )
        part = (mx.nd.array(image), mx.nd.array(labels), labels.astype(np.float32))
        found.append(task.losses(part, (0, 0)).sums()["correct"])
    assert found[0] == pytest.approx(found[1], abs=1e-5)
    assert found[1] > 0


def test_devices_become_one_network_again() -> None:
    net = linear_net(TWO, batch_norm=True)
    after_step(Batch(*examples(8)), TWO, net=net)
    running = net[0].running_mean
    first, second = (data.asnumpy() for data in running.list_data())
    assert not np.array_equal(first, second)
    average_statistics(net)
    for data in running.list_data():
        np.testing.assert_allclose(data.asnumpy(), (first + second) / 2, rtol=1e-6)


def steps_with_nag(evaluations: bool) -> list[bytes]:
    """Parameters and momenta of a convolutional network after a few steps, bit for bit."""
    net = nn.HybridSequential()
    for _ in range(6):
        net.add(nn.Conv2D(16, 3, padding=1, use_bias=False, in_channels=16), nn.Activation("relu"))
    net.add(nn.GlobalAvgPool2D(), nn.Flatten(), nn.Dense(CLASSES, in_units=16))
    mx.random.seed(1)
    np.random.seed(1)
    net.initialize(mx.init.MSRAPrelu())
    net.hybridize(static_alloc=True, static_shape=True)
    settings = {"learning_rate": 0.1, "momentum": 0.9, "wd": 0.1}
    trainer = gluon.Trainer(net.collect_params(), "nag", settings, update_on_kvstore=False)
    updater, rng = Updater(ClassificationTask(net, trainer, ONE)), np.random.default_rng(2)
    for _ in range(12):  # without `plain_layout` some of these differ, by chance
        image = rng.normal(size=(8, 16, 8, 8)).astype(np.float32)
        batch = Batch(image, rng.integers(0, CLASSES, 8).astype(np.int32))
        if evaluations:
            evaluate(net, [batch], ONE)
            plain_layout(net)
        measure(updater.step(batch))
    momenta = {p.name: trainer._updaters[0].states[i] for i, p in enumerate(trainer._params)}
    parameters = net._collect_params_with_prefix().values()
    tensors = [tensor for p in parameters for tensor in (p.data(), momenta[p.name])]
    return [tensor.asnumpy().tobytes() for tensor in tensors]


def test_an_evaluation_leaves_no_trace_in_the_training() -> None:
    assert steps_with_nag(evaluations=True) == steps_with_nag(evaluations=False)


# ------------------------------------------------------------------------------------------- epoch


def epoch_of(batches: list[Batch], progress: Progress, stop_after: int = 99) -> tuple[Any, ...]:
    net = linear_net(ONE)
    trainer = gluon.Trainer(net.collect_params(), "sgd", {}, update_on_kvstore=False)
    rates, seen = [], []

    def schedule(update: int) -> float:
        return 0.01 * update

    updater = Updater(ClassificationTask(net, trainer, ONE))
    for images in train_one_epoch(updater, iter(batches), schedule, progress):
        rates.append(trainer.learning_rate)
        seen.append((progress.step, progress.batch, progress.images, images))
        if len(seen) >= stop_after:
            return False, rates, seen
    return True, rates, seen


def test_progress_and_rates_of_an_epoch() -> None:
    progress = Progress(epoch=1, step=10)
    finished, rates, seen = epoch_of(parts(*examples(12), 4), progress)
    assert finished
    assert rates == pytest.approx([0.11, 0.12, 0.13])  # updates 11 to 13, counted from 1
    assert seen == [(11, 1, 4, 4), (12, 2, 8, 4), (13, 3, 12, 4)]
    assert progress.images == 12
    assert 0 < progress.loss_sum / 12 < 10
    assert 0 <= progress.correct_sum <= 12
    assert progress.epoch_sec > 0


def test_a_stop_ends_the_epoch_after_the_step() -> None:
    progress = Progress()
    finished, _, seen = epoch_of(parts(*examples(12), 4), progress, stop_after=2)
    assert not finished
    assert len(seen) == progress.batch == 2


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    image, label = examples(8)
    image[5] = math.nan
    progress = Progress(epoch=2, batch=7, step=40)
    with pytest.raises(
        UserError, match=r"became nan in epoch 3 at step 42, learning rate 0\.42; .*--lr"
    ):
        epoch_of(parts(image, label, 4), progress)
    assert (progress.step, progress.batch) == (41, 8)


def test_a_full_device_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise mx.MXNetError("stack\nCheck failed: cudaMalloc retry failed: out of memory")

    monkeypatch.setattr(Updater, "step", fail)
    with pytest.raises(UserError, match="out of memory: lower --micro-batch"):
        epoch_of(parts(*examples(4), 4), Progress())
