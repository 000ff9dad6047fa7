"""Initializers and the ``gluon.Trainer`` of a run."""

from __future__ import annotations

from typing import Any

import mxnet as mx
import numpy as np
from mxnet import gluon
from mxnet.gluon import nn

from formats.errors import UserError
from training.compute.devices import check_kvstore
from training.compute.joint_optimizer import joint_optimizer
from training.settings.run_config import UNDECAYED, RunConfig


def initializer(name: str) -> Any:
    """Return the initializer of weights: MSRAPrelu (He et al. 2015) or Xavier (Glorot 2010)."""
    # MXNet's default slope, 0.25, is the published recipe's, although the units are plain ReLU.
    return mx.init.MSRAPrelu() if name == "msra" else mx.init.Xavier()


def seed_initializers(seed: int) -> None:
    """Begin the random numbers that initializers draw anew: MXNet's take from both generators."""
    np.random.seed(seed)
    mx.random.seed(seed)


def freeze_except(net: Any, kept: str) -> None:
    """Train only the parameters whose structural name starts with `kept`.

    Batch normalisation then uses its stored statistics in training too: otherwise the frozen part
    would go on changing through them.
    """
    for name, parameter in net._collect_params_with_prefix().items():
        if not name.startswith(kept):
            parameter.grad_req = "null"

    def use_stored_statistics(block: Any) -> None:
        if isinstance(block, nn.BatchNorm):
            block._kwargs["use_global_stats"] = True

    net.apply(use_stored_statistics)


def build_trainer(net: Any, config: RunConfig) -> Any:
    """Return the trainer of an initialized network; unless ``decay_bias``, only weights decay.

    Raises
    ------
    UserError
        When every parameter is frozen, a batch has fewer images than there are devices, or they
        cannot use the kvstore.
    """
    for parameter in net.collect_params().values():
        if not config.decay_bias and parameter.name.endswith(UNDECAYED):
            parameter.wd_mult = 0.0
    trained = {
        name: parameter
        for name, parameter in net.collect_params().items()
        if parameter.grad_req != "null"
    }
    if not trained:
        raise UserError("there is nothing to train: every parameter is frozen")
    contexts = next(iter(trained.values())).list_ctx()
    check_kvstore(config.kvstore, contexts)
    devices = len(contexts)
    if config.batch_size < devices:
        raise UserError(
            f"--batch-size {config.batch_size}: {devices} devices need at least one image each; "
            "use a larger batch, or name fewer --gpus"
        )
    arguments = {"learning_rate": config.lr, "wd": config.wd}
    if config.optimizer != "adam":
        arguments["momentum"] = config.momentum
    update = getattr(getattr(net, "fused", None), "update", None)
    joint = joint_optimizer(config.optimizer, arguments, update) if update else None
    # Updates happen on the devices, where the optimizer's state can be read and saved.
    return gluon.Trainer(
        trained,
        joint or config.optimizer,
        None if joint else arguments,
        kvstore=config.kvstore,
        update_on_kvstore=False,
    )
