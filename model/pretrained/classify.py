"""Classify pictures with a trained network: ``load_classifier("attention56_paper")("cat.png")``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import mxnet as mx
import numpy as np

from formats.atomic import PathLike
from formats.card import MAX_SIZE
from formats.errors import UserError
from formats.images.decode import centre_square, decode_image, to_rgb
from formats.images.outputs import require_finite, softmax
from formats.images.preprocessing import Preprocessing
from formats.weight_file import read_weights
from model.layers.gluoncv_zoo import check_size
from model.pretrained.store import published_names, weights_path
from model.recurrent_attention import FAMILY as GLIMPSE
from model.registry import DEFAULT_CLASSES, FAMILIES, create_model
from model.weights.dialects import detect_dialect
from model.weights.file_match import LoadError, find_model
from model.weights.known import Known, known_of
from model.weights.loading import check_finite, load_parameters
from model.weights.network_card import recorded_network

TOP = 5
BATCH = 32
Picture = Union[PathLike, np.ndarray, Any]  # or a Pillow image


class Prediction(NamedTuple):
    """A class and its probability, 0 to 1."""

    name: str
    probability: float


class Classifier:
    """A trained network that takes pictures; `load_classifier` makes it.

    Attributes
    ----------
    net
        The network, a hybridized Gluon block on `context`: float32 (N, 3, H, W) to logits.
    preprocessing
        Size, normalization and names of the classes (`formats.images.preprocessing`).
    model
        Name of the network.
    """

    def __init__(self, net: Any, context: Any, preprocessing: Preprocessing, model: str) -> None:
        self.net, self.context = net, context
        self.preprocessing, self.model = preprocessing, model

    def __call__(self, pictures: Any, top: int = TOP) -> Any:
        """Return the most probable classes, the first one first.

        Parameters
        ----------
        pictures
            Path of a PNG, JPEG, WebP or BMP file, a Pillow image, or a uint8 array (H, W, 3) in
            RGB; or a list of them. Of any size: the central square is resized, as ``--predict``
            does.
        top
            At most so many classes.

        Returns
        -------
        list of Prediction
            For one picture; for a list of pictures a list of such lists.

        Raises
        ------
        UserError
            When a picture cannot be read, or the network's outputs are not finite.
        """
        several = isinstance(pictures, (list, tuple))
        if top < 1:
            raise UserError(f"top is {top}; ask for 1 class or more")
        found = [self._best(share, top) for share in self.probabilities(pictures)]
        return found if several else found[0]

    def probabilities(self, pictures: Any) -> np.ndarray:
        """Return the probabilities of all classes, float64 (pictures, classes)."""
        listed = pictures if isinstance(pictures, (list, tuple)) else [pictures]
        images = [self._pixels(picture) for picture in listed]
        names = [_name_of(picture) for picture in listed]
        return probabilities(self.net, self.context, images, names, self.preprocessing)

    def _best(self, share: np.ndarray, top: int) -> list[Prediction]:
        order = np.argsort(-share, kind="stable")[:top]
        return [
            Prediction(self.preprocessing.name_of(int(label)), float(share[label]))
            for label in order
        ]

    def _pixels(self, picture: Picture) -> np.ndarray:
        size, crop = self.preprocessing.size, self.preprocessing.crop
        if isinstance(picture, (str, os.PathLike)):
            return decode_image(os.fspath(picture), size, crop)
        return np.asarray(centre_square(to_rgb(picture), size, crop))


def probabilities(
    net: Any,
    context: Any,
    images: Sequence[np.ndarray],
    names: Sequence[str],
    preprocessing: Preprocessing,
) -> np.ndarray:
    """Return the softmax of a network's logits, float64 (N, classes).

    Parameters
    ----------
    net, context
        The network and the context that it is on.
    images
        uint8 (H, W, 3), all of one size.
    names
        What a message calls each.
    preprocessing
        Its normalization is applied.

    Raises
    ------
    UserError
        When an output is not finite.
    """
    parts = []
    for start in range(0, len(images), BATCH):
        batch = preprocessing.normalize(images[start : start + BATCH])
        logits = net(mx.nd.array(batch, ctx=context))
        parts.append(logits.astype("float32").asnumpy().astype(np.float64))
    logits = np.concatenate(parts) if parts else np.empty((0, 0))
    for name, row in zip(names, logits):
        require_finite(row, name)
    return softmax(logits)


def load_classifier(
    source: PathLike,
    *,
    pretrained: Union[bool, str] = True,
    ctx: Any = None,
    classes: Sequence[str] = (),
    mean: Sequence[float] = (),
    deviation: Sequence[float] = (),
    size: Optional[int] = None,
) -> Classifier:
    """Return a classifier of pictures from a parameter file or the name of a network.

    Parameters
    ----------
    source
        A file of weights of any format that the project reads, or a name of
        ``list_models(pretrained=True)``, whose published weights are taken.
    pretrained
        With a name: the data set of the weights, such as ``"cifar100"``; True: the usual one.
    ctx
        MXNet context; default: ``mx.cpu()``.
    classes, mean, deviation, size
        Names of the classes, mean and standard deviation per channel of pixels from 0 to 1, edge of
        the input in pixels. They go before what the file says of itself (its card, or its run
        folder); one without a card needs mean and deviation.

    Raises
    ------
    UserError, LoadError, formats.param_reader.ParamFileError
        When there is no such file or name, no network fits the file, or nothing says how its images
        are normalized.
    """
    path = _path_of(source, pretrained)
    known, arrays = known_of(path), read_weights(path)
    shapes = {name: array.shape for name, array in arrays.items()}
    recorded = recorded_network(path, known, shapes, {})
    model, count, settings = recorded or (*find_model(shapes), {})
    if model is None:
        raise LoadError(
            f"{path}: no network of this project fits its tensors. Write down which it is: "
            f"python -m model.weights.card {path} --set network.model=NAME"
        )
    if model in GLIMPSE:
        raise UserError(
            f"{path}: {model} is a glimpse model, which is no classifier of whole pictures; use "
            "train_mnist_glimpse.py for it"
        )
    count = count or DEFAULT_CLASSES
    if len(classes) > count:
        raise UserError(f"{path}: {len(classes)} classes are named, the network has {count}")
    net = create_model(model, count, **settings)
    context = mx.cpu() if ctx is None else ctx
    load_parameters(net, path, context, arrays=arrays)
    check_finite(net, path)
    net.hybridize(static_alloc=True, static_shape=True)
    dialect = detect_dialect(shapes)
    expected = _preprocessing(path, known, net, dialect, (tuple(mean), tuple(deviation)))
    if classes:
        expected = replace(expected, class_names=tuple(map(str, classes)))
    expected = replace(expected, size=expected.size if size is None else size)
    _check_input(path, net, count, expected)
    return Classifier(net, context, expected, model)


def _path_of(source: PathLike, pretrained: Union[bool, str]) -> Path:
    path = Path(source)
    if isinstance(source, str) and not path.exists():
        if source in FAMILIES:
            return weights_path(source, pretrained)
        raise UserError(
            f"{source}: there is no such file, and no network of that name. Give the path of a "
            f"parameter file, or one of {', '.join(_classifiers())}"
        )
    return path


def _classifiers() -> list[str]:
    return [name for name in published_names() if name not in GLIMPSE]


def _preprocessing(
    path: Path,
    known: Known,
    net: Any,
    dialect: Optional[str],
    named: tuple[tuple[float, ...], tuple[float, ...]],
) -> Preprocessing:
    """Return what the network expects: as named, else as the file says, else as its names tell."""
    image = {**known.usual_images(dialect), **known.card.get("image", {})}
    figures = named
    if bool(named[0]) != bool(named[1]):
        raise UserError("mean and deviation belong together: give both, a number per channel")
    if not named[0] and "mean" in image:
        figures = (tuple(image["mean"]), tuple(image["deviation"]))
    if not figures[0]:
        raise UserError(
            f"{path}: nothing says how its images are normalized. Give mean=(...) and "
            "deviation=(...), a number per channel for pixels from 0 to 1, or write them into its "
            f"card: python -m model.weights.card {path} --set image.mean=0.5,0.5,0.5 --set "
            "image.deviation=0.2,0.2,0.2"
        )
    channels = int(net.image_shape[0])
    if not len(figures[0]) == len(figures[1]) == channels:
        raise UserError(
            f"{path}: mean {figures[0]} and deviation {figures[1]} of images; the network takes "
            f"{channels} channels and needs a number for each in both"
        )
    size = image.get("height") or int(net.image_shape[1])
    return Preprocessing(size, *figures, known.class_names, image.get("crop", 1.0))


def _check_input(path: Path, net: Any, classes: int, expected: Preprocessing) -> None:
    """Raise UserError for images that cannot be: of this size, or normalized by these figures."""
    if not 1 <= expected.size <= MAX_SIZE:
        raise UserError(f"size is {expected.size}; give the images' edge, 1 to {MAX_SIZE} pixels")
    if not np.isfinite([*expected.mean, *expected.std]).all() or min(expected.std) <= 0:
        raise UserError(
            f"mean {tuple(expected.mean)} and deviation {tuple(expected.std)} of pixels: give "
            "finite numbers, deviations above 0"
        )
    try:
        check_size(net, expected.size, classes)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _name_of(picture: Picture) -> str:
    if isinstance(picture, (str, os.PathLike)):
        return os.fspath(picture)
    return "an array" if isinstance(picture, np.ndarray) else "an image"
