"""Opening a classifier's file: network, normalization and classes, each from the first that knows.

In this order: the card in the file, the index that has it, the run folder that it lies in
(`model.weights.known`), its tensors and the names that they have, the command line. A flag that
contradicts what is known of the network is refused; one that asks for other images or another
normalization goes before, and `Opened.origin` says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Optional

from formats.errors import UserError
from formats.images.preprocessing import (
    DATASET,
    FIGURES,
    IMAGENET_CROP,
    Figures,
    Preprocessing,
    figures_of,
)
from formats.weight_file import read_weights
from model.registry import create_model, read_settings, settings_words
from model.weights.dialects import TITLES, TORCH, detect_dialect
from model.weights.file_match import LoadError, find_model
from model.weights.known import Known, known_of
from model.weights.loading import check_finite, load_parameters
from model.weights.network_card import recorded_network
from training.classifier.config import (
    ATTENTIONS,
    LEARNINGS,
    OVERRIDES,
    WIRINGS,
)
from training.classifier.loaders import open_dataset
from training.classifier.networks import create_classifier, refuse_glimpses
from training.compute.devices import choose_contexts, hybridize_options, use_precision
from training.data.cifar import CLASS_NAMES, MEAN, STD
from training.data.dataset import FOLDER_PREFIX
from training.records.seed_log import TORCH_ENDINGS

IMAGENET = "imagenet"
TENSORS, FLAGS = "its tensors", "the command line"
CIFAR_SIZE = 32
COLOURS = 3  # channels of a picture
CHOICES = {"wiring": WIRINGS, "learning": LEARNINGS, "attention": ATTENTIONS}


class Network(NamedTuple):
    """What makes the network of a file, and who says so."""

    model: str
    classes: int
    settings: dict[str, Any]
    source: str

    def build(self) -> Any:
        """Return it, uninitialized; UserError for a glimpse model or a flag of another network."""
        refuse_glimpses(self.model)
        # What a card says of a network may be more than flags can.
        create = create_classifier if self.source in (TENSORS, FLAGS) else create_model
        return create(self.model, self.classes, **self.settings)


class Expected(NamedTuple):
    """What a file's network expects of an image and calls its classes, and who says so.

    ``assumed``: nothing says how its images are normalized.
    """

    preprocessing: Preprocessing
    normalization: str
    classes: str
    assumed: bool


class Opened:
    """A parameter file in its network, and the settings that describe it.

    Attributes
    ----------
    net, contexts
        The network, on these devices.
    config
        The script's settings, with model, classes and data set of the file.
    status
        What `load_parameters` returned.
    network, known
        Who says what the network is.
    """

    def __init__(self, path: str, config: Any, given: Mapping[str, Any]) -> None:
        self.path, self.given = path, given
        self.contexts = choose_contexts(config.gpus)
        arrays = read_weights(path)  # once: PyTorch's files have to be unpacked for any of it
        shapes = {name: array.shape for name, array in arrays.items()}
        self.known = known_of(path)
        self.network = _network_of(path, config, given, self.known, shapes)
        own = settings_as_flags(self.network.settings)
        self.config = replace(config, model=self.network.model, classes=self.network.classes, **own)
        use_precision(config.precision, self.contexts)
        self.net = self.network.build()
        try:
            self.status = load_parameters(self.net, path, self.contexts, arrays=arrays)
        except LoadError as error:
            if "network" not in self.known.sources:
                raise
            raise LoadError(f"{error} {self.known.remedy(path)}.") from error
        check_finite(self.net, path)
        self.net.hybridize(**hybridize_options(config.precision))
        dialect, model = detect_dialect(shapes), self.network.model
        self._source = Source(path, self.known, dialect, model, self.net, self.config, given)
        dataset = given.get("dataset") or self._source.trained_on or config.dataset
        self.config = replace(self.config, dataset=dataset)
        self._source = self._source._replace(config=self.config)
        self._expected: Optional[Expected] = None

    def expected(self) -> Expected:
        """Return what the network expects; opens a data set only where nothing else tells."""
        if self._expected is None:
            self._expected = expected_of(self._source)
        return self._expected

    def preprocessing(self) -> Preprocessing:
        """Return how a picture becomes an input, and the names of the classes."""
        return self.expected().preprocessing

    def origin(self) -> str:
        """Return in one line where network, normalization and names of classes are from."""
        expected = self.expected()
        said: dict[str, list[str]] = {}
        for what, source in (
            ("network", self.network.source),
            ("normalization", expected.normalization),
            ("classes", expected.classes),
        ):
            said.setdefault(source, []).append(what)
        return "; ".join(f"{', '.join(what)}: {source}" for source, what in said.items())

    def check_data_is_named(self) -> None:
        """Raise UserError where the data set is a folder of which the card has but the name."""
        name = self.config.dataset
        folder = name[len(FOLDER_PREFIX) :] if name.startswith(FOLDER_PREFIX) else ""
        if folder and "dataset" not in self.given and not Path(folder).expanduser().is_dir():
            raise UserError(
                f"{self.path} was trained on {name}, which is not here: name the images with "
                f"--dataset {FOLDER_PREFIX}PATH"
            )


def open_classifier(path: str, config: Any, given: Mapping[str, Any]) -> Opened:
    """Load a parameter file into the network that it belongs to.

    Parameters
    ----------
    path
        File of weights, of any format.
    config
        The script's settings, a `ClassifierConfig`.
    given
        Those of them that the user has named.

    Raises
    ------
    UserError, LoadError, formats.param_reader.ParamFileError
        When the file cannot be read or no network fits, and where `given` contradicts it.
    """
    return Opened(path, config, given)


def settings_as_flags(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a script's settings that give these fields of a network's spec: flags, and ``set``."""
    flags: dict[str, Any] = dict.fromkeys(OVERRIDES)
    further: dict[str, Any] = {}
    for name, value in settings.items():
        known = name in OVERRIDES and (name not in CHOICES or value in CHOICES[name])
        (flags if known else further)[name] = value
    return {**flags, "set": settings_words(further)}


# ---------------------------------------------------------------------------------- the network


def _network_of(
    path: str,
    config: Any,
    given: Mapping[str, Any],
    known: Known,
    shapes: Mapping[str, tuple[int, ...]],
) -> Network:
    named = {key: given[key] for key in ("model", *OVERRIDES) if given.get(key) is not None}
    named.update(read_settings(given.get("set", ())))
    recorded = recorded_network(path, known, shapes, {**named, "classes": given.get("classes")})
    if recorded:
        return Network(*recorded, known.sources["network"])
    found, classes = find_model(shapes)
    model = named.pop("model", None) or found
    if model is None:
        raise LoadError(
            f"{path}: no network of this project fits its tensors. Name the one that it was made "
            "with: --model NAME (--list-models), with its --depth, --wiring and so on"
        )
    source = FLAGS if "model" in given else TENSORS
    return Network(model, given.get("classes") or classes or 10, named, source)


# ------------------------------------------------------------------------- images and classes


class Source(NamedTuple):
    """A file of which it is asked what its network expects.

    ``config`` has the data set and the normalization that hold where nothing is known, ``given``
    what the user has named of them.
    """

    path: str
    known: Known
    dialect: Optional[str]
    model: str
    net: Any
    config: Any
    given: Mapping[str, Any]

    @property
    def trained_on(self) -> Optional[str]:
        """The data set that it was trained on, as it can be opened here, if that is known."""
        name = self.known.recorded.get("dataset") or self.known.card.get("data", {}).get("name")
        return str(name) if name else None

    @property
    def images(self) -> Mapping[str, Any]:
        """What the code that the file's names belong to does to images; empty: nothing is known."""
        return self.known.usual_images(self.dialect)


def expected_of(source: Source) -> Expected:
    """Return what the network of a file expects of an image and calls its classes.

    A data set is opened only where nothing else tells.
    """
    image = source.known.card.get("image", {})
    figures, normalization, assumed = figures_known(source, image)
    names, classes = _names(source)
    crop = IMAGENET_CROP if source.config.dataset == IMAGENET else source.images.get("crop", 1.0)
    size = source.given.get("size") or image.get("height") or _size(source)
    preprocessing = Preprocessing(size, *figures, names, image.get("crop", crop))
    return Expected(preprocessing, normalization, classes, assumed)


def figures_known(source: Source, image: Mapping[str, Any]) -> tuple[Figures, str, bool]:
    """Return mean and standard deviation, who says so, and whether they are but assumed."""
    known, config, named = source.known, source.config, source.given.get("normalization")
    own = (tuple(image.get("mean", ())), tuple(image.get("deviation", ())))
    if named:
        figures = figures_of(named, COLOURS) or _statistics(config, config.dataset)
        other = f", not that of {known.sources['image']}" if own[0] and own != figures else ""
        return figures, f"--normalization {named}{other}", False
    if own[0]:
        if len(own[0]) != COLOURS:
            raise UserError(
                f"{source.path}: {known.sources['image']} has a normalization of {len(own[0])} "
                f"channel(s), its network takes {COLOURS}. Name another one: --normalization "
                "0.5,0.5,0.5/0.2,0.2,0.2"
            )
        return own, known.sources["image"], False
    recorded = known.recorded.get("normalization")
    if recorded:
        trained = source.trained_on or config.dataset
        return figures_of(recorded, COLOURS) or _statistics(config, trained), known.beside, False
    usual = source.images
    if usual:
        what = "none" if source.dialect == TORCH else "ImageNet's"
        figures = tuple(usual["mean"]), tuple(usual["deviation"])
        return figures, f"{what}, as in {TITLES[str(source.dialect)]} code", False
    if source.path.endswith(TORCH_ENDINGS) and "resnet" in source.model:
        # PyTorch's CIFAR ResNets are those of RAM's authors, with that repository's numbers.
        return FIGURES["ram"], "that of the RAM repository, as for all its files", False
    figures = figures_of(config.normalization, COLOURS) or _statistics(config, config.dataset)
    name = config.dataset if config.normalization == DATASET else config.normalization
    return figures, f"assumed that of {name} (else --normalization)", True


def _statistics(config: Any, dataset: str) -> Figures:
    """Return those of a data set's training images; opened only where they are not known."""
    files, _, labels = dataset.partition("-")
    if files in MEAN and labels in ("", "coarse"):
        return MEAN[files], STD[files]
    if dataset == IMAGENET:
        return FIGURES[IMAGENET]
    data = open_dataset(replace(config, dataset=dataset))
    return data.mean, data.std


def _names(source: Source) -> tuple[tuple[str, ...], str]:
    """Return the names of the classes, and who says so."""
    known, config = source.known, source.config
    if known.class_names:
        return known.class_names, known.sources["classes"]
    recorded = known.recorded.get("dataset")
    dataset = recorded or source.given.get("dataset")
    names = _names_in(config, dataset) if dataset else ()
    if not names or len(names) > config.classes:
        return (), "numbers, for nothing names them"
    return names, known.beside if recorded else f"assumed those of {dataset}"


def _names_in(config: Any, dataset: str) -> tuple[str, ...]:
    files, _, labels = dataset.partition("-")
    if files in CLASS_NAMES and labels in ("", "coarse"):
        return tuple(CLASS_NAMES[files][0 if labels else -1])
    if dataset == IMAGENET:
        return ()
    return tuple(open_dataset(replace(config, dataset=dataset)).class_names)


def _size(source: Source) -> int:
    """Return the edge of the inputs where nothing is on record."""
    if hasattr(source.config, "size"):
        return int(source.config.size)
    dataset = source.known.recorded.get("dataset") or source.given.get("dataset") or ""
    files = dataset.partition("-")[0]
    if not dataset or files in CLASS_NAMES:
        nominal = CIFAR_SIZE if source.net is None else int(source.net.image_shape[1])
        return CIFAR_SIZE if files in CLASS_NAMES else nominal
    return int(open_dataset(replace(source.config, dataset=dataset)).train.images.shape[1])
