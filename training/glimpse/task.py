"""The glimpse model made ready for training, and opened from a parameter file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Optional

from formats.errors import UserError
from formats.images.preprocessing import image_section
from formats.weight_file import TORCH, detect_format, read_weight_shapes, read_weights
from machine.processor import Unavailable
from model import create_model
from model.hybrid_loss import HybridLoss, LossWeights
from model.native.build import GLIMPSE as OPERATORS
from model.native.build import load
from model.recurrent_attention import FAMILY as GLIMPSE
from model.registry import FAMILIES, spec_of
from model.weights.file_match import find_model
from model.weights.known import Known, known_of
from model.weights.loading import check_finite, load_parameters
from model.weights.network_card import network_section, overrides_in, recorded_network
from model.weights.seed_checkpoint import POLICY_STD, WORD, from_seed, is_seed_checkpoint
from training.classifier.finetuning import start_from
from training.classifier.matching import with_labels_of
from training.compute.devices import choose_contexts
from training.compute.optimizer import build_trainer, seed_initializers
from training.data.dataset import FOLDER_PREFIX
from training.glimpse.config import SPEC_FIELDS, GlimpseConfig
from training.glimpse.flags import RESUME_THIS_MODEL
from training.glimpse.loaders import Opened, glimpse_loaders, known_settings, load_data
from training.glimpse.rollouts import Draw, RolloutTask
from training.glimpse.view import keeper
from training.records.cards import data_section
from training.records.run_folder import read_config
from training.records.seed_log import changed_settings

# The network for a data set when --model is not given.
MODELS = dict.fromkeys(("translated", "digits-translated"), "glimpse_translated")
MODELS.update({name: f"glimpse_{name}" for name in ("cluttered", "cluttered100")})
DEFAULT_MODEL = "glimpse_mnist"


def with_run_folder(
    config: GlimpseConfig, given: dict[str, Any]
) -> tuple[GlimpseConfig, dict[str, Any]]:
    """Name the run folder after the network, as the seed does, where that is asked for."""
    again = config.resume == RESUME_THIS_MODEL
    if config.resume and not again and not config.is_train:
        return replace(config, run_dir=config.resume), given
    if config.run_dir or not (config.checkpoint_dir or again or not config.is_train):
        return config, given
    spec = spec_of(model_name(config), **config.spec())
    folder = str(config.named_folder(spec.num_glimpses, spec.patch_size, spec.glimpse_scale))
    if not again or not config.is_train:
        return replace(config, run_dir=folder), given
    # The flags that were given again have named the folder. What the run has otherwise is refused.
    changed = changed_settings(given, read_config(folder))
    return replace(config, resume=folder), {**changed, "resume": folder}


def model_name(config: GlimpseConfig) -> str:
    """Return the name of the network; UserError for one that takes no glimpses."""
    name = config.model or MODELS.get(config.dataset, DEFAULT_MODEL)
    if name in FAMILIES and name not in GLIMPSE:
        known = ", ".join(sorted(GLIMPSE))
        raise UserError(f"{name} is no glimpse model: use train_cifar.py, or one of {known}")
    return name


def prepare_glimpse(config: GlimpseConfig) -> RolloutTask:
    """Return what a training needs; everything that can be wrong fails here."""
    contexts = choose_contexts(config.gpus)
    data = load_data(config)
    loaders = glimpse_loaders(config, data)
    config.check_judged(loaders.valid is not None)
    seed_initializers(config.seed)
    net = _build(config, data)
    net.initialize(ctx=contexts)
    if config.finetune and not config.resume:
        start_from(net, config.finetune, contexts, tuple(data.dataset.class_names))
    _use_operator(net, contexts)
    weights = LossWeights(
        config.baseline_weight,
        config.reinforce_weight,
        config.intermediate_weight,
        config.reward,
        config.policy_baseline,
    )
    loss = HybridLoss(net, weights)
    loss.hybridize(static_alloc=True, static_shape=True)
    net.hybridize(static_alloc=True, static_shape=True)
    glimpses, steps = net.spec.num_glimpses, config.epochs * len(loaders.train)
    shown = loaders.test.data.sample(config.plot_images, config.seed)
    still = Draw(glimpses, 0.0, config.first_radius)
    return RolloutTask(
        net,
        build_trainer(net, config),
        contexts,
        loaders,
        config=replace(config, model=model_name(config)),
        card=_card(config, net, data, loaders.identity),
        loss=loss,
        draw=Draw(glimpses, config.std, config.first_radius, config.seed),
        rollouts=config.rollouts,
        std_of=lambda step: config.std_at(step / steps),
        keep=keeper(config, net, contexts[0], shown, still, data.dataset.class_names),
    )


def _card(config: GlimpseConfig, net: Any, data: Any, identity: Any) -> dict[str, Any]:
    black, white = (0.0,) * data.channels, (1.0,) * data.channels
    return {
        "network": network_section(model_name(config), net, data.dataset.classes),
        "classes": list(data.dataset.class_names),
        "image": image_section(data.image_size, black, white),
        "data": data_section(replace(identity, name=data.name)),
        "glimpse": {"deviation": config.final_std, "first_radius": config.first_radius},
    }


def _use_operator(net: Any, contexts: Sequence[Any]) -> None:
    """Compute glimpses in C++ where that can be built and the network is one that it knows."""
    if any(context.device_type != "cpu" for context in contexts):
        return
    try:
        found = load(OPERATORS)
    except Unavailable as error:
        print(f"glimpses are computed by the graph ({error})")
        return
    if net.use_operator():
        print(f"glimpses are computed by {found}; ATTENTION_NATIVE=0: by the graph")


def _build(
    config: GlimpseConfig, task: Any, settings: Optional[Mapping[str, Any]] = None, **more: Any
) -> Any:
    """Return the network for the images of a task; `settings` are those that flags do not have."""
    height, width = task.image_size
    shape = {"height": height, "width": width, "channels": task.channels}
    chosen = {**(settings or {}), **shape, **config.spec(), **more}
    return create_model(model_name(config), task.dataset.classes, **chosen)


def open_glimpse(path: str, config: GlimpseConfig, given: Mapping[str, Any]) -> Any:
    """Load a parameter file, or a checkpoint of the seed, into the network that it belongs to.

    Network, policy and data are those of the card, the index or the run folder; `given` are the
    settings that the user has named, which go before where they do not change the network.

    Raises
    ------
    UserError, LoadError, formats.param_reader.ParamFileError
        When the file or the data cannot be used, or `given` contradicts the file.
    """
    contexts = choose_contexts(config.gpus)
    arrays, known = None, known_of(path)
    shapes = read_weight_shapes(path)
    source = known.sources.get("network") or known.beside or "its data set"
    stored = read_weights(path) if detect_format(path) == TORCH else {}
    if is_seed_checkpoint(path, stored):
        name, arrays = from_seed(stored)
        settings = {"model": name, "std": POLICY_STD[name]}
        source = "its tensors"
    else:
        if stored:
            print(f"note: {path} has no {WORD}, as kevinzakka's have: taken for one of ours")
        named = {key: given.get(key) for key in ("model", *SPEC_FIELDS)}
        recorded = recorded_network(path, known, shapes, named)
        settings = known_settings(known)
        if not recorded and not settings.get("model") and "model" not in given:
            found = find_model(shapes)[0]
            if found in GLIMPSE and model_name(GlimpseConfig(**{**settings, **given})) != found:
                settings["model"], source = found, "its tensors"
    config = GlimpseConfig(**{**settings, **given})
    model_name(config)  # a classifier's file is refused before its classes are looked at
    task = _matched(path, load_data(config), known)
    more = overrides_in(known.card.get("network", {})) if arrays is None else {}
    net, control = (_build(config, task, more, gaze=gaze) for gaze in ("policy", "noise"))
    for one in (net, control):
        status = load_parameters(one, path, contexts, arrays=arrays)
        one.hybridize(static_alloc=True, static_shape=True)
    check_finite(net, path)
    _use_operator(net, contexts)
    print(f"{path} ({status}): {model_name(config)} on {config.dataset}; network: {source}")
    _tell_differences(config, task, known)
    return Opened(net, control, contexts, config, task)


def _matched(path: str, task: Any, known: Known) -> Any:
    """Return the task with the labels of the network's classes, which are matched by name."""
    dataset = with_labels_of(task.dataset, known.class_names, path)
    return replace(task, dataset=dataset)


def _tell_differences(config: GlimpseConfig, task: Any, known: Known) -> None:
    """Say where flags or data go before what the file says."""
    image, policy = known.card.get("image", {}), known.card.get("glimpse", {})
    trained = (image.get("height"), image.get("width"))
    if None not in trained and trained != task.image_size:
        here = "{}x{}".format(*task.image_size)
        print(f"images of {here}, the network was trained on {trained[0]}x{trained[1]}")
    if policy.get("deviation", config.final_std) != config.final_std:
        print(f"policy with --std {config.final_std}, its own is {policy['deviation']}")


def with_start(config: GlimpseConfig, given: Mapping[str, Any]) -> GlimpseConfig:
    """Return the settings of a finetuning with the network of its file where they name none."""
    path = config.finetune
    if not path or config.resume:
        return config
    known = known_settings(known_of(path))
    model = known.get("model")
    if not model or given.get("model", model) != model:
        return config
    size = ("image_size",) if config.dataset.startswith(FOLDER_PREFIX) else ()
    taken = {
        name: known[name]
        for name in ("model", *size, *SPEC_FIELDS)
        if known.get(name) not in (None, "") and name not in given
    }
    if taken:
        print(f"finetuning {', '.join(f'{name} {value}' for name, value in taken.items())}")
    return replace(config, **taken)
