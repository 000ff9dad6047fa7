"""The small network that chooses what a classifier is trained on, made ready (`--harder-share`)."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace
from typing import Any, Optional

from formats.errors import UserError
from model.registry import FAMILIES, ModelError, overrides_of
from training.classifier.config import OVERRIDES, TrainConfig
from training.classifier.graph_choice import Choice, choose_graph
from training.classifier.networks import build_classifier
from training.classifier.task import check_image_size, check_parts, start_network, start_stem
from training.compute.devices import device_names
from training.compute.optimizer import build_trainer
from training.loop.task import ClassificationTask


def check_proxy(config: TrainConfig) -> None:
    """Raise UserError where the settings ask for a proxy that there is not."""
    if config.harder_share == 1:
        return
    own = _settings(config)
    try:
        build_classifier(replace(own, depth=None), config.classes or 10)
        if own.depth is not None and "depth" not in _fields(config.proxy):
            raise UserError(f"it has one depth; leave --proxy-depth {own.depth} out")
        net = build_classifier(own, config.classes or 10)
        least = getattr(net, "minimum_batch", 1)
        check_parts(own, 1, least)
        drawn = config.drawn_images()
        try:
            check_parts(replace(own, batch_size=drawn), 1, least)
        except UserError as error:
            raise UserError(f"of the {drawn} images that an update draws: {error}") from error
    except (UserError, ModelError) as error:
        raise UserError(f"--proxy {config.proxy}: {error}") from error


def prepare_proxy(config: TrainConfig, task: ClassificationTask) -> Optional[ClassificationTask]:
    """Return the proxy of a classifier that is ready to train; None: the settings ask for none.

    It is computed as the classifier is, in the same precision, and starts from the same seed.

    Raises
    ------
    UserError
        When there are several devices, or the proxy takes no such images.
    """
    if config.harder_share == 1:
        return None
    if len(task.contexts) > 1:
        raise UserError(
            f"--harder-share {config.harder_share:g} is not done on several devices, here "
            f"{device_names(task.contexts)}: name one, such as --gpus 0 or --gpus cpu"
        )
    own, train = _settings(config), task.loaders.train
    own = replace(own, precision=task.config.precision)
    choice = _choose(own, task, train.classes)
    net = start_network(own, train.classes, task.contexts, choice.net)
    check_image_size(net, own, train, config.dataset)
    if not config.resume:
        start_stem(net, own, train)
    choice.apply(net)
    print(f"proxy {config.proxy}: {choice.steps}, {choice.precision}")
    return ClassificationTask(net, build_trainer(net, own), task.contexts, config=own)


def _settings(config: TrainConfig) -> TrainConfig:
    """Return the settings of the proxy: those of the classifier but for what names a network."""
    plain: dict[str, Any] = {**dict.fromkeys(OVERRIDES), "depth": config.proxy_depth, "set": ()}
    return replace(config, model=config.proxy, finetune=None, freeze="none", **plain)


def _choose(own: TrainConfig, task: ClassificationTask, classes: int) -> Choice:
    """Return how the proxy's steps are computed.

    By fused operators only where the classifier's are: MXNet itself is set to one precision, which
    is that of a classifier that it computes.
    """
    if getattr(task.net, "fused", None) is None:
        return Choice(None, "as the network", own.precision)
    try:
        choice = choose_graph(own, list(task.contexts), classes)
    except UserError as error:
        raise UserError(f"--proxy {own.model}: {error}") from error
    return choice if choice.fused else choice._replace(precision="float32")


def _fields(name: str) -> Container[str]:
    """Return the names of what a network's spec takes; nothing where there is no such network."""
    return overrides_of(name)[0] if name in FAMILIES else ()
