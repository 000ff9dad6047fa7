"""Our recurrent attention model as it is trained and scored: a worker of bench_glimpse.py.

It takes the operator in C++ where that was compiled (`model.native.build`), as the training does.
A training step is `training.loop.engine.Updater.step` with the objective that
``train_mnist_glimpse.py`` minimizes, and the reading of its sums; an evaluation is
`training.glimpse.rollouts.score_rollouts` of one batch, one rollout of each image with mean
locations.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.glimpse import glimpse_inputs
from benchmarks.glimpse.glimpse_inputs import TASKS
from benchmarks.harness.worker import Action, timed
from training.compute.thread_choice import take_threads
from training.settings.config import parse
from training.settings.fields import option

TRAIN_BATCHES = 8


@dataclass(frozen=True)
class Config:
    """Settings of the worker; the number of threads is OMP_NUM_THREADS."""

    task: str = option("mnist", "what is learned", choices=tuple(TASKS))
    operator: bool = option(True, "use the operator in C++ where it was compiled")
    worker: bool = option(False, "answer requests; without it, one line of figures is printed")


def build(config: Config) -> tuple[Any, Any]:
    """Return the network and its loss, both one graph."""
    from model import create_model
    from model.hybrid_loss import HybridLoss, LossWeights

    task = TASKS[config.task]
    # The seed's sizes and gradient flow, as in the PyTorch model; other presets are larger.
    net = create_model(
        "glimpse_mnist_242317",
        glimpse_inputs.CLASSES,
        height=task.size,
        width=task.size,
        patch_size=task.patch_size,
        num_patches=task.num_patches,
        glimpse_scale=2.0,
        num_glimpses=task.num_glimpses,
        pad_value=0.0,
    )
    net.initialize()
    if config.operator:
        net.use_operator()  # the graph where it was not compiled
    loss = HybridLoss(net, LossWeights(reinforce=glimpse_inputs.REINFORCE_WEIGHT))
    loss.hybridize(static_alloc=True, static_shape=True)
    net.hybridize(static_alloc=True, static_shape=True)
    return net, loss


def build_steps(config: Config, net: Any, loss: Any) -> dict[str, Callable[[], object]]:
    """The two things that are timed: a training step and the evaluation of a batch."""
    import mxnet as mx
    from mxnet import gluon

    from training.batches.in_memory import Batch
    from training.glimpse.rollouts import Draw, RolloutTask, score_rollouts
    from training.loop.engine import Updater, measure

    task = TASKS[config.task]
    images, labels = glimpse_inputs.random_images(task, TRAIN_BATCHES * task.batch_size, 0)
    labels = labels.astype(np.int32)
    parts = (np.split(array, TRAIN_BATCHES) for array in (images, labels))
    batches = [Batch(image, label) for image, label in zip(*parts)]
    trainer = gluon.Trainer(
        net.collect_params(),
        "adam",
        {"learning_rate": glimpse_inputs.LEARNING_RATE},
        kvstore="device",
        update_on_kvstore=False,
    )
    std = glimpse_inputs.STD
    draw, contexts = Draw(task.num_glimpses, std), [mx.cpu()]
    training = RolloutTask(net, trainer, contexts, loss=loss, draw=draw, std_of=lambda step: std)
    updater = Updater(training)
    mean_locations = Draw(task.num_glimpses, 0.0)
    turn = {"train": 0, "evaluate": 0}

    def train() -> None:
        turn["train"] += 1
        measure(updater.step(batches[turn["train"] % TRAIN_BATCHES], turn["train"]))

    def evaluate() -> None:
        turn["evaluate"] += 1
        batch = batches[turn["evaluate"] % TRAIN_BATCHES]
        score_rollouts(net, [batch], contexts, mean_locations)

    return {"train": train, "evaluate": evaluate}


def forward_action(config: Config) -> Action:
    """Return the action ``forward``: parameters and inputs from one .npz, outputs to another."""

    def action(inputs: str, outputs: str) -> dict[str, Any]:
        import mxnet as mx

        from model.recurrent_attention import Rollouts

        with np.load(inputs) as file:
            arrays = {name: mx.nd.array(file[name]) for name in file.files}
        given = [arrays.pop(name) for name in ("image", "first_location", "noise")]
        net, _ = build(config)
        parameters = net._collect_params_with_prefix()
        if set(parameters) != set(arrays):
            raise ValueError(f"other parameters: {sorted(set(parameters) ^ set(arrays))}")
        for name, parameter in parameters.items():
            parameter.set_data(arrays[name])
        image, first, noise = given
        rollouts = Rollouts(*net(image, first.expand_dims(1), noise.expand_dims(1)))
        results = {name: getattr(rollouts, name)[:, 0] for name in glimpse_inputs.OUTPUTS}
        results["logits"] = results["logits"][:, -1]
        np.savez(outputs, **{name: value.asnumpy() for name, value in results.items()})
        return {"written": outputs}

    return action


def make(config: Config) -> tuple[dict[str, Any], dict[str, Action]]:
    """Build the network; see `serve`."""
    import mxnet as mx

    from machine.processor import limit_onednn
    from model.execution.threads import copy_on_one_thread

    limit_onednn()
    copy_on_one_thread()  # as the training does
    mx.random.seed(0)
    net, loss = build(config)
    about = {
        "versions": {"mxnet": mx.__version__, "numpy": np.__version__},
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "parameters": sum(int(np.prod(p.shape)) for p in net.collect_params().values()),
        "operator": net.uses_operator,
    }
    steps = build_steps(config, net, loss)
    return about, {"time": timed(steps, mx.nd.waitall), "forward": forward_action(config)}


if __name__ == "__main__":
    take_threads([])  # before MXNet is loaded, which reads it once
    glimpse_inputs.work(make, parse(Config, sys.argv[1:], "mxnet_glimpse.py", __doc__))
