"""Training steps of the glimpse model with several rollouts: a worker of bench_rollouts.py.

Network, data, deformation, optimizer and batch size are those of the task's shipped training
(``mnist_param/index.csv``). A step is one of `training.loop.engine.train_one_epoch`, with the
moving average of the weights and with batches that a thread makes ahead, as in a training.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional

from benchmarks.harness.worker import Action, serve, timed
from formats.errors import UserError
from training.compute.thread_choice import take_threads
from training.settings.config import parse
from training.settings.fields import option

FILES = Path(__file__).resolve().parents[2] / "mnist_param"
WEIGHTS = ("trained", "initial")
DATA = ("mnist", "digits")


class Setting(NamedTuple):
    """A network and a task; `file` is what was trained so, None where nothing is shipped."""

    task: str
    model: str
    file: Optional[str]


SETTINGS = {
    "mnist": Setting("mnist", "glimpse_mnist", "glimpse_mnist_0.88_54162b4c.param"),
    "translated": Setting(
        "translated", "glimpse_translated", "glimpse_translated_1.36_90a426a8.param"
    ),
    "cluttered": Setting("cluttered", "glimpse_cluttered", "glimpse_cluttered_3.33_43ad5022.param"),
    "cluttered8": Setting(
        "cluttered", "glimpse_cluttered8", "glimpse_cluttered8_2.91_6f19ef3e.param"
    ),
    "cluttered100": Setting("cluttered100", "glimpse_cluttered100", None),
}


@dataclass(frozen=True)
class Config:
    """Settings of the worker; the number of threads is OMP_NUM_THREADS."""

    setting: str = option("mnist", "what is trained", choices=tuple(SETTINGS))
    weights: str = option("trained", "where the training starts", choices=WEIGHTS)
    rollouts: tuple[int, ...] = option((1, 4, 10), "rollouts of an image, case by case")
    data: str = option("mnist", "images before they are put on a canvas", choices=DATA)
    data_dir: Optional[str] = option(None, "folder with the files of MNIST")
    worker: bool = option(False, "answer requests; without it, one line of figures is printed")

    def check(self) -> None:
        """Refuse weights that there are not."""
        if self.weights == "trained" and not SETTINGS[self.setting].file:
            raise UserError(f"--weights trained: there is no trained file of {self.setting}")


def build(config: Config, rollouts: int) -> Iterator[int]:
    """Return an endless training; its next step is made when it is asked for."""
    import mxnet as mx

    from model import create_model
    from model.hybrid_loss import HybridLoss, LossWeights
    from model.weights.loading import load_parameters
    from training.augmentation.deform import Deformation
    from training.compute.optimizer import build_trainer
    from training.glimpse.batches import GlimpseTrainBatches
    from training.glimpse.canvas import CANVASES
    from training.glimpse.config import TASK_SETTINGS, GlimpseConfig
    from training.glimpse.data import load_task
    from training.glimpse.rollouts import Draw, RolloutTask
    from training.loop.averaging import average_of
    from training.loop.engine import Updater, train_one_epoch
    from training.records.run_progress import Progress

    setting, canvas = SETTINGS[config.setting], CANVASES.get(SETTINGS[config.setting].task)
    run = GlimpseConfig(**TASK_SETTINGS[setting.task], rollouts=rollouts)
    data = load_task(config.data, config.data_dir).dataset.train
    edge = canvas.size if canvas else data.images.shape[1]
    net = create_model(setting.model, 10, height=edge, width=edge)
    if config.weights == "trained":
        load_parameters(net, str(FILES / str(setting.file)), mx.cpu())
    else:
        net.initialize()
    net.use_operator()
    loss = HybridLoss(net, LossWeights(run.baseline_weight, run.reinforce_weight))
    loss.hybridize(static_alloc=True, static_shape=True)
    changes = Deformation(run.rotate, run.scale, run.shear, run.shift, run.elastic)
    batches = GlimpseTrainBatches(data, run.batch_size, canvas=canvas, deformation=changes, seed=0)
    std = run.std if config.weights == "initial" else run.final_std
    task = RolloutTask(
        net,
        build_trainer(net, run),
        [mx.cpu()],
        loss=loss,
        draw=Draw(net.spec.num_glimpses, std),
        rollouts=rollouts,
        std_of=lambda step: std,
    )
    # Weights stay what they are: a benchmark of a few hundred steps is to show one state of them.
    return train_one_epoch(
        Updater(task, clip_gradient=run.clip_gradient),
        (batch for epoch in itertools.count() for batch in batches.epoch(epoch, prefetch=2)),
        lambda step: 0.0,
        Progress(),
        average_of(net, run).update,
    )


def make(config: Config) -> tuple[dict[str, Any], dict[str, Action]]:
    """Build the trainings; see `serve`."""
    import mxnet as mx

    from machine.processor import instructions, limit_onednn
    from model.execution.threads import copy_on_one_thread
    from training.glimpse.config import GlimpseConfig

    limit_onednn()
    copy_on_one_thread()  # as the training does
    mx.random.seed(0)
    trainings = {str(count): build(config, count) for count in config.rollouts}
    steps = {name: training.__next__ for name, training in trainings.items()}
    about = {"instructions": instructions(), "batch_size": GlimpseConfig.batch_size}
    return about, {"time": timed(steps, mx.nd.waitall)}


def main(config: Config) -> None:
    """Serve, or measure a little alone."""
    if config.worker:
        serve(lambda: make(config))
    about, actions = make(config)
    print(about)
    for count in map(str, config.rollouts):
        actions["time"](case=count, repeat=3)
        print(count, {k: round(v, 5) for k, v in actions["time"](case=count, repeat=20).items()})


if __name__ == "__main__":
    take_threads([])  # before MXNet is loaded, which reads it once
    main(parse(Config, sys.argv[1:], "rollout_worker.py", __doc__))
