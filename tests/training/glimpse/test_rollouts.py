"""First locations and noise, scores over rollouts, and the report, with networks that are known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import mxnet as mx
import numpy as np
import pytest

import train_mnist_glimpse
from formats.errors import UserError
from model import create_model
from training.batches.in_memory import EvalBatches
from training.data.dataset import ImageData
from training.glimpse import rollouts as module
from training.glimpse.report import report_rollouts
from training.glimpse.rollouts import Draw, RolloutTask, score_rollouts
from training.loop.engine import measure

CPU = [mx.cpu()]
STEPS, CLASSES = 3, 4


# -------------------------------------------------------------------------------------------- draws


def test_a_draw_is_a_function_of_seed_and_key() -> None:
    draw = Draw(STEPS, 0.3, seed=5)
    first, noise = draw(4, 2, (1, 7), 0.3)
    assert (first.shape, noise.shape) == ((4, 2, 2), (4, 2, STEPS, 2))
    assert first.dtype == noise.dtype == np.float32
    np.random.seed(1)
    again = draw(4, 2, (1, 7), 0.3)
    assert np.array_equal(first, again[0])
    assert np.array_equal(noise, again[1])
    others = [draw(4, 2, key, 0.3) for key in ((1, 8), (0, 7), (7, 1), (1, 7, 1))]
    others.append(replace(draw, seed=6)(4, 2, (1, 7), 0.3))
    every = [first, *(other[0] for other in others)]
    assert len({array.tobytes() for array in every}) == len(every)
    # Images and rollouts are all different ones.
    assert len(np.unique(first.reshape(-1, 2), axis=0)) == 8


def test_the_distributions() -> None:
    first, noise = Draw(STEPS, 1.0, radius=0.5)(4000, 2, (0,), 0.2)
    assert np.abs(first).max() <= 0.5
    assert first.std() == pytest.approx(0.5 / 3**0.5, rel=0.02)
    assert noise.std() == pytest.approx(0.2, rel=0.02)
    assert abs(noise.mean()) < 0.005
    anywhere = Draw(STEPS, 1.0, uniform=True)(4000, 2, (0,), 1.0)[1]
    assert -1 <= anywhere.min() < -0.99
    assert 0.99 < anywhere.max() <= 1
    still = Draw(STEPS, 0.0, radius=0)(3, 2, (0,), 0.0)
    assert not still[0].any()
    assert not still[1].any()


# ------------------------------------------------------------------------------------------- scores


class Fake:
    """Logits that depend on an image's first pixel and the first location in a known way."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, image: Any, first: Any, noise: Any) -> tuple[Any]:
        pixel, where = image.asnumpy()[:, 0, 0, 0], first.asnumpy()
        assert (len(pixel), STEPS) == (len(where), noise.shape[2])
        self.rows.append(where.shape[0] * where.shape[1])
        return (mx.nd.array(fake_logits(pixel, where, noise.asnumpy())),)


def fake_logits(pixel: np.ndarray, where: np.ndarray, noise: np.ndarray) -> np.ndarray:
    moved = (where[:, :, None] + noise) * np.arange(1, STEPS + 1)[:, None]  # (B, R, T, 2)
    waves = np.sin(np.arange(1, CLASSES + 1) * (3 * moved.sum(axis=3, keepdims=True)))
    own = np.eye(CLASSES)[np.rint(pixel * 255).astype(int) % CLASSES]
    return 2 * waves + own[:, None, None] * np.arange(STEPS)[:, None]


def data_of(count: int) -> ImageData:
    labels = (np.arange(count) % CLASSES).astype(np.int32)
    images = np.zeros((count, 2, 2, 1), np.uint8)
    images[:, 0, 0, 0] = labels
    return ImageData(images, labels)


def batches_of(count: int, size: int) -> EvalBatches:
    return EvalBatches(data_of(count), size, mean=(0.0,), std=(1.0,))


@pytest.mark.parametrize(("rollouts", "max_rows"), [(1, 4096), (3, 4096), (3, 10), (5, 4)])
def test_scores_count_every_image_once(
    rollouts: int, max_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", max_rows)
    draw, net = Draw(STEPS, 0.1, seed=3), Fake()
    seen: list[int] = []
    scores = score_rollouts(net, batches_of(23, 8), CPU, draw, rollouts, seen.append)
    assert seen == [8, 8, 7]
    assert sum(net.rows) == 23 * rollouts
    assert max(net.rows) <= max(max_rows, rollouts)

    singles, logs, probs, losses = [], [], [], []
    for number, count in enumerate(seen):
        label = (8 * number + np.arange(count)) % CLASSES
        first, noise = draw(count, rollouts, (0, number), 0.1)
        logits = fake_logits(label / 255, first, noise)
        p = np.exp(logits) / np.exp(logits).sum(axis=3, keepdims=True)
        for y, one in zip(label, p):
            singles.append((one.argmax(axis=2) == y).mean(axis=0))
            losses.append(-np.log(one[:, -1, y]).mean())
            logs.append(np.prod(one[:, -1], axis=0).argmax() == y)
            probs.append(one[:, -1].mean(axis=0).argmax() == y)
    assert scores.images == 23
    assert scores.loss == pytest.approx(np.mean(losses), rel=1e-5)
    np.testing.assert_allclose(scores.steps, np.mean(singles, axis=0), rtol=1e-12)
    assert scores.single == scores.steps[-1]
    assert (scores.log_mean, scores.prob_mean) == (np.mean(logs), np.mean(probs))
    assert 0.2 < scores.single < 0.95  # neither all right nor all wrong


def test_pairs_of_a_gluon_loader_score_the_same() -> None:
    batches = list(batches_of(9, 4))
    pairs = [[mx.nd.array(b.image), mx.nd.array(b.label)] for b in batches]
    draw = Draw(STEPS, 0.0)
    one, other = (score_rollouts(Fake(), loader, CPU, draw) for loader in (batches, pairs))
    assert one[:4] == other[:4]


def test_what_cannot_be_scored() -> None:
    draw = Draw(STEPS, 0.0)
    with pytest.raises(UserError, match="the loader gave no images"):
        score_rollouts(Fake(), [], CPU, draw)
    with pytest.raises(UserError, match="needed is a pair of images and labels"):
        score_rollouts(Fake(), [3], CPU, draw)
    wrong = ImageData(data_of(3).images, np.array([0, 1, CLASSES], np.int32))
    with pytest.raises(UserError, match="labels from 0 to 4 for a network of 4 classes"):
        score_rollouts(Fake(), EvalBatches(wrong, 3, mean=(0.0,), std=(1.0,)), CPU, draw)


def test_the_evaluation_of_a_training() -> None:
    task = RolloutTask(Fake(), None, CPU, draw=Draw(STEPS, 0.3, radius=0.4, seed=6))
    scores = task.evaluate(batches_of(10, 4))
    whole = score_rollouts(Fake(), batches_of(10, 4), CPU, Draw(STEPS, 0.0, radius=0.4))
    assert (scores.loss, scores.acc, scores.images) == (whole.loss, whole.single, 10)


def test_the_scripts_own_test_takes_a_gluon_loader(capsys: pytest.CaptureFixture[str]) -> None:
    net = create_model("glimpse_mnist", hidden_size=8, glimpse_hidden=8, loc_hidden=8)
    net.initialize()
    rng = np.random.default_rng(0)
    images = rng.uniform(0, 1, (7, 1, 28, 28)).astype(np.float32)
    data = mx.gluon.data.ArrayDataset(images, np.arange(7))
    loader = mx.gluon.data.DataLoader(data, batch_size=3)
    loss, accuracy = train_mnist_glimpse.test(net, mx.cpu(), loader, rollouts=2)
    assert (
        f"test loss {loss:.4f}, test accuracy {accuracy:.5f} (7 images)" in capsys.readouterr().out
    )
    assert 0 <= accuracy <= 1
    assert (loss, accuracy) == train_mnist_glimpse.test(net, [mx.cpu()], loader, rollouts=2)
    assert loss != train_mnist_glimpse.test(net, mx.cpu(), loader, rollouts=2, seed=1)[0]


# ------------------------------------------------------------------------------ report, training


def test_the_report() -> None:
    draw, batches = Draw(STEPS, 0.4, radius=0.8, seed=2), batches_of(40, 16)
    report = report_rollouts(Fake(), Fake(), batches, CPU, draw, rollouts=3, seeds=4)
    seeds = range(2, 6)
    still = [replace(draw, std=0.0, seed=seed) for seed in seeds]
    noisy = [replace(draw, seed=seed) for seed in seeds]
    anywhere = [replace(draw, std=1.0, seed=seed, uniform=True) for seed in seeds]
    found = {
        name: [score_rollouts(Fake(), batches, CPU, one, rollouts) for one in draws]
        for name, draws, rollouts in (
            ("single", still, 1),
            ("single sampled", noisy, 1),
            ("several", still, 3),
            ("sampled", noisy, 3),
            ("random", anywhere, 1),
        )
    }
    for given, name, field in (
        (report.single_mean, "single", "single"),
        (report.single_sampled, "single sampled", "single"),
        (report.log_mean, "several", "log_mean"),
        (report.prob_mean, "several", "prob_mean"),
        (report.sampled_log_mean, "sampled", "log_mean"),
        (report.random_gaze, "random", "single"),
    ):
        values = [getattr(scores, field) for scores in found[name]]
        assert given is not None
        assert given.mean == pytest.approx(np.mean(values))
        assert given.std == pytest.approx(np.std(values, ddof=1))
    np.testing.assert_allclose(report.steps, np.mean([s.steps for s in found["single"]], axis=0))
    assert (report.images, report.seeds, report.rollouts) == (40, 4, 3)
    lines = report.lines()
    assert lines[0].startswith("40 images, error in % (mean ± standard deviation of 4")
    assert lines[1].endswith(report.single_mean.error())
    assert "random gaze" in lines[6]
    assert lines[7].count("%") == STEPS
    alone = report_rollouts(Fake(), None, batches, CPU, draw, rollouts=2, seeds=1)
    assert alone.random_gaze is None
    assert alone.single_mean.std == 0
    assert not any("random" in line for line in alone.lines())


def test_the_objective_draws_by_update_and_part() -> None:
    calls: list[tuple[Any, ...]] = []

    def loss(image: Any, first: Any, noise: Any, std: Any, label: Any) -> tuple[Any, Any]:
        calls.append((first.asnumpy(), noise.asnumpy(), float(std.asscalar())))
        return label * 2, mx.nd.stack(label, label * 0 + 0.5, axis=1)

    members = {"TERMS": ("baseline", "correct"), "__call__": staticmethod(loss)}
    wrapped = type("Loss", (), members)()
    draw = Draw(STEPS, 0.1, radius=0.7, seed=4)
    task = RolloutTask(
        None, None, CPU, loss=wrapped, draw=draw, rollouts=2, std_of=lambda n: 0.1 / (1 + n)
    )
    label = np.array([1, 2, 3])
    part = (mx.nd.zeros((3, 1, 2, 2)), mx.nd.array(label), label)
    results = [task.losses(part, key) for key in ((0, 0), (0, 1), (3, 0), (0, 0))]
    assert [call[2] for call in calls] == pytest.approx([0.1, 0.1, 0.025, 0.1])
    first, noise = draw(3, 2, (1, 3, 0), 0.025)
    assert np.array_equal(calls[2][0], first)
    assert np.array_equal(calls[2][1], noise)
    assert np.array_equal(calls[0][1], calls[3][1])
    assert not np.array_equal(calls[0][1], calls[1][1])
    # Draws of training are never those of an evaluation.
    assert not np.array_equal(calls[0][0], draw(3, 2, (0, 0), 0.1)[0])
    sums = measure(results[:2])
    assert (sums.loss, sums.correct, sums.images) == (24, 3, 6)
    assert sums.terms == {"baseline": 12}
