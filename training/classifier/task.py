"""Classifiers of whole images, made ready for training."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Callable, Optional

import mxnet as mx

from formats.errors import UserError
from formats.images.preprocessing import PREPROCESSING_FILE, Preprocessing
from formats.weight_file import read_weight_shapes
from model.execution.gate_report import watch_gates
from model.layers.gluoncv_zoo import PREFIX as GLUONCV
from model.layers.gluoncv_zoo import check_size
from model.registry import FAMILIES, spec_of
from model.weights.dialects import CLASS_LAYERS
from model.weights.known import known_of
from model.weights.network_card import network_section, overrides_in
from training.batches.in_memory import parts_of_batch
from training.classifier.config import VARIANT, ClassifierConfig
from training.classifier.finetuning import start_from
from training.classifier.graph_choice import choose_graph
from training.classifier.networks import build_classifier
from training.classifier.whitening import whiten_stem
from training.compute.devices import (
    choose_contexts,
    norm_arguments,
    use_precision,
)
from training.compute.loss_scaling import with_loss_scaling
from training.compute.optimizer import build_trainer, freeze_except, initializer, seed_initializers
from training.loop.task import ClassificationTask
from training.records.cards import data_section

MASKED_IMAGES = 16  # whose masks are shown as histograms; more of a large network would fill memory


def prepare_classifier(
    config: Any,
    open_data: Callable[[Any], Any],
    build_loaders: Callable[[Any, Any, int], Any],
) -> ClassificationTask:
    """Return an initialized network with its trainer and batches.

    Parameters
    ----------
    config
        The script's settings, a `ClassifierConfig`. ``finetune`` is not looked at when ``resume``
        is set.
    open_data
        Gives the data set, with its ``name``, ``classes`` and ``class_names``.
    build_loaders
        Gives `training.batches.in_memory.Loaders` from settings, data set and number of classes.

    Raises
    ------
    UserError
        For data, classes or devices that cannot be used; and whatever the network raises.
    """
    contexts = choose_contexts(config.gpus)
    # Looked at before the data is loaded, so that a wrong name does not first download a data set.
    norms = norm_arguments(config.sync_batch_norm, contexts)
    unused = build_classifier(config, config.classes or 10, **norms)
    check_parts(config, len(contexts), getattr(unused, "minimum_batch", 1))
    start = None if config.resume else config.finetune
    check_start(start, config)
    data = open_data(config)
    classes = config.classes or data.classes
    if classes < data.classes:
        raise UserError(f"--classes {classes}: {data.name} has {data.classes}; leave --classes out")
    loaders = build_loaders(config, data, classes)
    config.check_judged(loaders.valid is not None)
    if len(loaders.train.mean) != unused.image_shape[0]:
        raise UserError(
            f"{data.name} has images of {len(loaders.train.mean)} channel, {config.model} takes "
            f"{unused.image_shape[0]}: choose a data set in colour, or train_mnist_glimpse.py"
        )
    check_image_size(unused, config, loaders.train, data.name)
    choice = choose_graph(config, contexts, classes)
    config = replace(config, **choice.settings)
    choice.tell()
    use_precision(choice.amp, contexts)
    net = start_network(config, classes, contexts, choice.net)
    if not config.resume:
        _start(net, config, contexts, loaders.train, tuple(data.class_names))
    if config.freeze == "trunk":
        freeze_except(net, _classifier_of(net, config.model))
    choice.apply(net)
    expected = _preprocessing(data, loaders)
    files = {PREPROCESSING_FILE: expected.to_json()}
    watch = _for_a_batch(watch_gates(net), loaders, contexts[0])
    masks = _for_a_batch(_masks_of(net), loaders, contexts[0], MASKED_IMAGES)
    trainer = with_loss_scaling(build_trainer(net, config), config.precision)
    card = {"network": network_section(config.model, net, classes), **expected.card_sections()}
    card["data"] = data_section(loaders.identity)
    of_run = (loaders, files, config, card)
    return ClassificationTask(net, trainer, contexts, *of_run, watch=watch, masks=masks)


def check_image_size(net: Any, config: Any, train: Any, data: str) -> None:
    """Raise UserError when the network takes no images as large as those of the data."""
    if config.model.startswith(GLUONCV):
        try:
            check_size(net, _size_of(train), config.classes or 10)
        except ValueError as error:
            raise UserError(f"{config.model} {error}; choose another network for {data}") from None


def _classifier_of(net: Any, name: str) -> str:
    """Return how the names of the last layer's parameters start; UserError where it has no name."""
    names = net._collect_params_with_prefix()
    for layer in CLASS_LAYERS:
        if any(one.startswith(f"{layer}.") for one in names):
            return f"{layer}."
    raise UserError(
        f"--freeze trunk: {name} has no layer called {' or '.join(CLASS_LAYERS)}; leave it out"
    )


def check_parts(config: ClassifierConfig, devices: int, least: int) -> None:
    """Raise UserError when a device would train on fewer than `least` images at a time.

    Of several workers only this one's devices are counted.
    """
    parts = parts_of_batch(config.batch_size, devices, config.micro_batch)
    smallest = config.batch_size // devices // parts
    if smallest < least:
        raise UserError(
            f"{config.model} normalises its gates over images and trains on {least} or more at a "
            f"time on each device: --batch-size {config.batch_size}, --micro-batch "
            f"{config.micro_batch} and {devices} device(s) leave {smallest}. Use a batch of "
            f"{least * devices} or more{' and --micro-batch 0' if config.micro_batch else ''}"
        )


def check_start(path: Optional[str], config: ClassifierConfig) -> None:
    """Raise where a file to start from cannot be read; warn of a variant with the same tensors."""
    if not path:
        return
    read_weight_shapes(path)
    section = known_of(path).card.get("network", {})
    if section.get("model") not in FAMILIES:
        return
    trained = spec_of(section["model"], **overrides_in(section))
    here = build_classifier(config, config.classes or 10).spec
    for name in VARIANT:
        before, now = getattr(trained, name, None), getattr(here, name, None)
        if before != now and None not in (before, now):
            print(
                f"warning: {path} was trained with --{name} {before}, this network has {now}; "
                f"name the same --{name} for the network that was trained",
                file=sys.stderr,
            )


def start_network(
    config: ClassifierConfig, classes: int, contexts: Sequence[Any], net: Any = None
) -> Any:
    """Return a network with the first weights that the settings and their seed give.

    `net` is one that was built by these settings; None: a new one.
    """
    seed_initializers(config.seed)
    if net is None:
        norms = norm_arguments(config.sync_batch_norm, contexts)
        net = build_classifier(config, classes, **norms)
    net.initialize(initializer(config.init), ctx=list(contexts), force_reinit=True)
    return net


def _start(
    net: Any, config: Any, contexts: Sequence[Any], train: Any, names: tuple[str, ...]
) -> None:
    """Give an initialized network the first weights that are not the initializer's."""
    if config.finetune:
        start_from(net, config.finetune, contexts, names)
    else:
        start_stem(net, config, train)


def start_stem(net: Any, config: Any, train: Any) -> None:
    """Give the first convolution the first weights that the settings ask for, if they do.

    `train` are the `training.batches.in_memory.TrainBatches` that it will be trained on.
    """
    if getattr(config, "stem_init", "usual") == "whitened":
        print(f"{whiten_stem(net, train)} starts with filters that whiten training images")


def _for_a_batch(
    watch: Optional[Callable[[Any], Mapping[str, Any]]],
    loaders: Any,
    context: Any,
    most: Optional[int] = None,
) -> Callable[[], Mapping[str, Any]]:
    """Return what gives `watch` of a batch of images that are not trained on, at `most` so many."""
    if watch is None:
        return dict
    batches = loaders.valid or loaders.test
    # One batch from all over, because folders are sorted by class.
    image = next(iter(batches.share(0, len(batches)))).image[:most]

    def watched() -> Mapping[str, Any]:
        return watch(mx.nd.array(image, ctx=context))

    return watched


def _masks_of(net: Any) -> Optional[Callable[[Any], Mapping[str, Any]]]:
    """Return what gives the soft masks of images as arrays; None for a network without them."""
    if not hasattr(net, "attention_maps"):
        return None
    return lambda image: {name: m.asnumpy() for name, m in net.attention_maps(image).items()}


def _size_of(train: Any) -> int:
    """Return the edge of the images that training batches have."""
    return int(train.size if hasattr(train, "size") else train.data.images.shape[1])


def _preprocessing(data: Any, loaders: Any) -> Preprocessing:
    train, size = loaders.train, _size_of(loaders.train)
    crop = getattr(loaders.test, "crop", 1.0)
    return Preprocessing(size, train.mean, train.std, tuple(data.class_names), crop)
