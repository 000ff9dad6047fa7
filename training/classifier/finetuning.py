"""What a training that starts from a file takes from it, and from the number of its images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional, TypeVar

import mxnet as mx
import numpy as np

from formats.images.preprocessing import FIGURES, normalization_text
from formats.weight_file import read_weight_shapes
from model.layers.gluoncv_zoo import PREFIX as GLUONCV
from model.registry import FAMILIES, read_settings
from model.weights.dialects import CLASS_LAYERS, detect_dialect
from model.weights.file_match import find_model
from model.weights.known import known_of
from model.weights.loading import load_parameters
from model.weights.network_card import overrides_in
from training.classifier.config import OVERRIDES, ClassifierConfig
from training.classifier.imagenet import RECORDS
from training.classifier.matching import some
from training.classifier.opening import COLOURS, Source, figures_known, settings_as_flags
from training.classifier.recipes import FINETUNE, NO_MIXUP
from training.data.dataset import FOLDER_PREFIX
from training.data.image_folder import list_image_folder

LEAST_BATCH = 8
STEPS = 8  # of an epoch, at least, where the images allow it
NAME = "finetune"  # of the recipe

C = TypeVar("C", bound=ClassifierConfig)


def is_finetuning(given: Mapping[str, Any]) -> bool:
    """Tell whether a command line starts a training from a file."""
    return bool(given.get("finetune")) and not given.get("resume")


def gentle_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a finetuning takes where a command line names nothing else.

    Few epochs, a small rate, no regularization that needs long training; as the recipe, whose name
    comes first in the record.
    """
    settings = {**NO_MIXUP, **FINETUNE}
    if given.get("epochs", settings["epochs"]) <= settings["warmup_epochs"]:
        settings["warmup_epochs"] = 0
    if given.get("lr_steps"):
        settings["schedule"] = "step"
    if given.get("schedule", settings["schedule"]) == "step":
        settings["warmup_epochs"] = 0
    return settings


def with_start(config: C, given: Mapping[str, Any], gentle: bool = False) -> C:
    """Return the settings of a finetuning with what they do not name as its file has it.

    That is the network, and the size and normalization that the weights were trained with. What is
    taken is printed.

    Parameters
    ----------
    config, given
        The script's settings, and those of them that the user has named.
    gentle
        The others are those of `gentle_settings`: the batch is cut for few images.

    Raises
    ------
    UserError, formats.param_reader.ParamFileError
        When the file cannot be read, or what is taken does not go with the other settings.
    """
    path = config.finetune
    if not path or config.resume:
        return config
    shapes, known = read_weight_shapes(path), known_of(path)
    section = known.card.get("network", {})
    model, settings = section.get("model"), overrides_in(section)
    if model is None:
        model, settings = find_model(shapes)[0], {}
    taken: dict[str, Any] = {}
    known_name = model in FAMILIES or str(model).startswith(GLUONCV)
    if known_name and given.get("model", model) == model:
        named = {*given, *read_settings(config.set)}
        flags = settings_as_flags({n: v for n, v in settings.items() if n not in named})
        taken = {"model": model, **{n: v for n, v in flags.items() if v not in (None, ())}}
        if "set" in taken:
            taken["set"] = (*taken["set"], *config.set)
    image = known.card.get("image", {})
    source = Source(path, known, detect_dialect(shapes), model or "", None, config, given)
    figures, origin, assumed = figures_known(source, image)
    if not assumed and len(figures[0]) == COLOURS:
        names = (name for name, known_figures in FIGURES.items() if known_figures == figures)
        taken["normalization"] = next(names, normalization_text(*figures))
    if hasattr(config, "size") and image.get("height"):
        taken["size"] = image["height"]
    taken = {name: value for name, value in taken.items() if name == "set" or name not in given}
    if taken:
        fields = ("model", *OVERRIDES, "set", "size")
        what = [f"{n} {_text(taken[n])}" for n in fields if n in taken]
        what += [f"the normalization of {path} ({origin})"] * ("normalization" in taken)
        print(f"finetuning {', '.join(what)}; --model and --normalization name others")
    if gentle and "batch_size" not in given:
        taken["batch_size"] = batch_for(training_images(config), config.batch_size)
    if gentle:
        batch = taken.get("batch_size", config.batch_size)
        print(
            f"the settings are those of a short finetuning: {config.epochs} epochs, batches of "
            f"{batch}, learning rate {config.lr:g}; flags change them"
        )
    changed = replace(config, **taken)
    changed.check()
    return changed


def _text(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


def batch_for(images: Optional[int], most: int) -> int:
    """Return a batch of which an epoch has `STEPS` or more, not below `LEAST_BATCH` if it can be.

    `most` where the number of images is not known.
    """
    if images is None:
        return most
    batch = most
    while batch // 2 >= LEAST_BATCH and batch * STEPS > images:
        batch //= 2
    return max(1, min(batch, images))


def training_images(config: Any) -> Optional[int]:
    """Return how many images a folder has for a training; None for other data."""
    folder = config.dataset[len(FOLDER_PREFIX) :]
    if not config.dataset.startswith(FOLDER_PREFIX):
        records = Path(config.data_dir or "", RECORDS[0]).expanduser()
        if not hasattr(config, "size") or not config.data_dir or records.is_file():
            return None
        folder = config.data_dir
    listing = list_image_folder(folder, tell=False)
    count = len(listing.train.paths)
    if not listing.valid.paths:
        count -= config.valid_count
    return min(count, getattr(config, "train_count", 0) or count)


# ------------------------------------------------------------------- rows of the classifier


def start_from(net: Any, path: str, contexts: Sequence[Any], names: tuple[str, ...]) -> None:
    """Load a file into an initialized network for the data's classes, and say what is new.

    Rows of the classifier are those of the classes with the same names, where file and data have
    names; without them all of its rows, if there are as many.

    Raises
    ------
    UserError, LoadError, formats.param_reader.ParamFileError
        When the file does not fit but for the number of classes.
    """
    own = known_of(path).class_names
    rows = rows_by_name(own, names)
    classifier = None if rows is None else _Classifier(net, contexts)
    status = load_parameters(net, path, contexts, allow_classes_mismatch=True)
    if status.seed:
        print(f"{path}: {status.seed}; its normalization of images is now part of its first layer")
    if rows is None or classifier is None or (own == names and not status.fresh):
        print(f"started from {path} ({status}); fresh: {', '.join(status.fresh) or '-'}")
        return
    classifier.take(rows, status.classifier)
    kept, new = ([n for row, n in enumerate(names) if (row in rows) == known] for known in (1, 0))
    print(
        f"started from {path} ({status}); classes that it knows: {some(kept)}; fresh: {some(new)}"
    )


def rows_by_name(own: tuple[str, ...], names: tuple[str, ...]) -> Optional[dict[int, int]]:
    """Return which class of a file each class of the data is, number to number.

    None where one side has no names.
    """
    if not own or not names:
        return None
    places = {name: place for place, name in enumerate(own)}
    return {row: places[name] for row, name in enumerate(names) if name in places}


class _Classifier:
    """The first weights of a network's last layer, so that rows of a file can be laid over them."""

    def __init__(self, net: Any, contexts: Sequence[Any]) -> None:
        parameters = net._collect_params_with_prefix()
        if any(parameter._data is None for parameter in parameters.values()):
            # Of gluoncv's networks, whose layers learn from a first image how many inputs they get.
            net(mx.nd.zeros((1, *net.image_shape), ctx=contexts[0]))
        self.parameters = {
            name: parameter
            for name, parameter in parameters.items()
            if name.rpartition(".")[0] in CLASS_LAYERS
        }
        self.fresh = {
            name: parameter.data(contexts[0]).asnumpy()
            for name, parameter in self.parameters.items()
        }

    def take(self, rows: Mapping[int, int], stored: Mapping[str, np.ndarray]) -> None:
        """Give a row the weights that its class has in a file, and all others the first ones."""
        for name, parameter in self.parameters.items():
            values = self.fresh[name].copy()
            for row, place in rows.items():
                values[row] = stored[name][place]
            parameter.set_data(values)
