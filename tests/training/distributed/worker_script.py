"""What one of several workers does in the tests: started by `training.launch` and by horovodrun.

    worker_script.py FOLDER --distributed dist_sync

Writes ``FOLDER/RANK.npz``. The tests import it too, for what a single process gets.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from training.augmentation.augment import Augmentation
from training.batches.in_memory import Batch, EvalBatches, Loaders, TrainBatches
from training.data.dataset import ImageData
from training.distributed.group import ALONE, Group
from training.distributed.shared_run import (
    Follower,
    OtherWorkerFailed,
    joined,
    share_weights,
    shared_folder,
    together,
)
from training.distributed.shared_steps import evaluate_together, statistics_everywhere
from training.loop.checkpoint import restore
from training.loop.engine import Updater, measure
from training.loop.fit import Fit
from training.loop.task import ClassificationTask
from training.records.run import Run
from training.records.run_progress import Progress
from training.records.state_file import load_state
from training.settings.run_config import RunConfig

CLASSES, STEPS, IMAGES, TEST_IMAGES = 3, 4, 7, 10


def build(contexts: Sequence[Any], frozen: bool, seed: int = 3) -> tuple[Any, Any]:
    """A small convolutional network with batch norm, and its trainer."""
    import mxnet as mx
    from mxnet import gluon
    from mxnet.gluon import nn

    net = nn.HybridSequential()
    for width, before in ((8, 3), (16, 8)):
        net.add(nn.Conv2D(width, 3, padding=1, use_bias=False, in_channels=before))
        net.add(nn.BatchNorm(in_channels=width, use_global_stats=frozen), nn.Activation("relu"))
    net.add(nn.GlobalAvgPool2D(), nn.Flatten(), nn.Dense(CLASSES, in_units=16))
    mx.random.seed(seed)
    np.random.seed(seed)
    net.initialize(mx.init.MSRAPrelu(), ctx=list(contexts))
    rng = np.random.default_rng(seed)
    for name, parameter in net._collect_params_with_prefix().items():
        if "running" in name:
            parameter.set_data(mx.nd.array(rng.uniform(0.5, 1.5, parameter.shape)))
    net.hybridize(static_alloc=True, static_shape=True)
    trained = {k: p for k, p in net.collect_params().items() if p.grad_req != "null"}
    settings = {"learning_rate": 0.1, "momentum": 0.9, "wd": 1e-3}
    return net, gluon.Trainer(trained, "nag", settings, update_on_kvstore=False)


def pictures(count: int, seed: int) -> ImageData:
    """Images of classes that can be told apart."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, count).astype(np.int32)
    image = rng.integers(0, 128, (count, 6, 6, 3)) + 60 * label[:, None, None, None]
    return ImageData(image.astype(np.uint8), label)


def parameters(net: Any) -> dict[str, np.ndarray]:
    """The parameters on the first device."""
    found = net._collect_params_with_prefix()
    return {name: parameter.list_data()[0].asnumpy() for name, parameter in found.items()}


def steps(
    contexts: Sequence[Any], group: Group = ALONE, micro_batch: int = 0, clip: float = 0.0
) -> dict[str, np.ndarray]:
    """Parameters after some steps with frozen statistics, on batches that divide unevenly."""
    # Another seed on the other workers: they must take the weights of the first one.
    net, trainer = build(contexts, frozen=True, seed=3 + group.rank)
    share_weights(group, net)
    updater = Updater(ClassificationTask(net, trainer, contexts), micro_batch, clip, group)
    rng = np.random.default_rng(5)
    for number in range(STEPS):
        image = rng.normal(size=(IMAGES, 3, 6, 6)).astype(np.float32)
        label = rng.integers(0, CLASSES, IMAGES).astype(np.int32)
        measure(updater.step(Batch(image, label), number))
    for parameter in net.collect_params().values():
        copies = [data.asnumpy() for data in parameter.list_data()]
        assert all(np.array_equal(copies[0], copy) for copy in copies)
    return parameters(net)


@dataclass(frozen=True)
class Config(RunConfig):
    """A training of seconds."""

    epochs: int = 2
    batch_size: int = 5
    micro_batch: int = 0
    lr: float = 0.1
    warmup_epochs: int = 0
    checkpoint_minutes: float = 1e-9  # after every step
    ema: float = 0.5


def fit(group: Group, contexts: Sequence[Any], folder: Path, stop_at: int = 0) -> dict[str, Any]:
    """Train to the end in `folder`, from where a run there stands; return the parameters.

    `stop_at` sends the last worker, and nobody else, a SIGTERM after that step.
    """
    config = Config()
    going = group.any((folder / "resume.state").exists())
    net, trainer = build(contexts, frozen=False)
    kinds = {"mean": (0.5,) * 3, "std": (0.3,) * 3}
    train = TrainBatches(
        pictures(21, 1),
        config.batch_size,
        augmentation=Augmentation(pad=1, mixup_alpha=1.0),
        classes=CLASSES,
        seed=0,
        **kinds,
    )
    task = ClassificationTask(
        net, trainer, list(contexts), Loaders(train, None, EvalBatches(data(), 4, **kinds))
    )
    progress = Progress()
    with shared_folder(group, str(folder) if going else None) as source:
        if going:
            progress, arrays, meta = load_state(str(source))
            first, devices = group.rank * len(contexts), group.size * len(contexts)
            restore(net, trainer, arrays, meta, first, devices)
        if group.rank:
            run: Run = Follower(str(source))
        else:
            run = Run.resume(folder, progress.epoch) if going else Run.create(folder, {}, [])
        with run:
            fitting = Fit(task, config, run, progress, group)
            if stop_at and group.rank == group.size - 1:
                note_update = fitting.average.update

                def update(step: int) -> None:
                    note_update(step)
                    if step == stop_at:
                        os.kill(os.getpid(), signal.SIGTERM)

                fitting.average.update = update  # type: ignore[method-assign]
            result = fitting.run_epochs()
    scores = result.scores
    return {
        **{f"param:{name}": value for name, value in parameters(net).items()},
        **{f"average:{name}": value for name, value in fitting.average.arrays().items()},
        "step": result.progress.step,
        "signal": result.signal or 0,
        "test": [scores.loss, scores.acc, scores.images] if scores else [0, 0, 0],
        "train": [result.progress.best_acc, result.progress.workers],
    }


def data() -> ImageData:
    """The test images."""
    return pictures(TEST_IMAGES, 2)


def scored(group: Group, contexts: Sequence[Any], images: int) -> list[float]:
    """Loss, accuracy and number of the first test images, scored by all workers together."""
    net, _ = build(contexts, frozen=True)
    task = ClassificationTask(net, None, contexts)
    test = data()
    some = ImageData(test.images[:images], test.labels[:images])
    batches = EvalBatches(some, 3, mean=(0.5,) * 3, std=(0.3,) * 3)
    return list(evaluate_together(group, task.evaluate, batches, lambda images: None))


def failing(group: Group) -> str:
    """What each worker gets when the last one fails."""

    def action() -> None:
        if group.rank == group.size - 1:
            raise RuntimeError("as planned")

    try:
        together(group, action)
    except (RuntimeError, OtherWorkerFailed) as error:
        return type(error).__name__
    return "nothing"


def work(group: Group, folder: Path) -> dict[str, Any]:
    """Do everything once and return what it gave."""
    import mxnet as mx

    contexts = [mx.cpu(0), mx.cpu(1)]
    net, _ = build(contexts, frozen=False)
    for name, parameter in net._collect_params_with_prefix().items():
        if "running" in name:
            for device, copy in enumerate(parameter.list_data()):
                copy[:] = 10 * group.rank + device
    mean = next(v for k, v in statistics_everywhere(group, net).items() if "running_mean" in k)
    word = bytes(range(256)) * 3
    return {
        "sum": group.sum([[0.1 * (group.rank + 1)], [np.nan if group.rank else 1.0]]),
        "gather": group.gather([group.rank, 1 / 3]),
        "any": [group.any(False), group.any(group.rank == group.size - 1)],
        "broadcast": np.frombuffer(group.broadcast(b"" if group.rank else word), np.uint8),
        "statistics": mean[:, 0],
        **{f"one:{k}": v for k, v in steps(contexts[:1], group).items()},
        **{f"two:{k}": v for k, v in steps(contexts, group, 1, 0.5).items()},
        "all images": scored(group, contexts, TEST_IMAGES),
        "one image": scored(group, contexts[:1], 1),
        "failing": failing(group),
        **{f"straight:{k}": v for k, v in fit(group, contexts, folder / "a").items()},
        **{f"stopped:{k}": v for k, v in fit(group, contexts, folder / "b", stop_at=2).items()},
        **{f"again:{k}": v for k, v in fit(group, contexts, folder / "b").items()},
    }


@dataclass(frozen=True)
class Asked:
    """The one setting that `joined` looks at."""

    distributed: str


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Work as one of the workers."""
    folder, _, engine = list(sys.argv[1:] if argv is None else argv)
    with joined(Asked(engine)) as group:
        np.savez(Path(folder, f"{group.rank}.npz"), **work(group, Path(folder)))


if __name__ == "__main__":
    main()
