"""Labels of a data set as those of a network: classes are the same when their names are."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from formats.errors import UserError
from training.batches.photos import FolderSource
from training.data.dataset import FOLDER_PREFIX, ImageData
from training.data.identity import SPLITS, identity_of
from training.data.image_folder import has_test
from training.records.cards import data_section

SHOWN = 5  # names in a message


def labels_by_name(own: Sequence[str], names: Sequence[str], what: str, data: str) -> np.ndarray:
    """Return the network's number of each class of a data set, int32.

    Parameters
    ----------
    own
        Names of the network's classes, in the order of its outputs.
    names
        Names of the data's classes, in the order of its labels.
    what, data
        What the two are called in the message.

    Raises
    ------
    UserError
        When a name is on one side alone.
    """
    places = {name: place for place, name in enumerate(own)}
    further = [name for name in names if name not in places]
    missing = [name for name in own if name not in set(names)]
    if further or missing:
        parts = []
        if further:
            parts.append(f"unknown to the network: {some(further)}")
        if missing:
            parts.append(f"without images: {some(missing)}")
        raise UserError(
            f"{what} and {data} have other classes: {'; '.join(parts)}. Give data with the classes "
            f"{some(own)}; if those names are wrong, correct them: "
            f"python -m model.weights.card {what} --set classes=NAME,NAME"
        )
    return np.array([places[name] for name in names], np.int32)


def some(names: Sequence[str]) -> str:
    """Return the first of some names, and how many there are of more; a dash for none."""
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more or "-"


def with_labels_of(data: Any, own: Sequence[str], what: str) -> Any:
    """Return a data set whose labels are the numbers of a network's classes.

    Parameters
    ----------
    data
        A `training.data.dataset.Dataset` or `training.classifier.imagenet.Photographs`.
    own
        Names of the network's classes; none where they are not known.
    what
        The network's file, for messages.

    Raises
    ------
    UserError
        When both have names and a name is on one side alone.
    """
    if not own or not data.class_names or tuple(own) == tuple(data.class_names):
        return data
    labels = labels_by_name(own, data.class_names, what, data.name)
    splits = {split: _relabelled(getattr(data, split), labels) for split in SPLITS}
    return replace(data, class_names=tuple(own), **splits)


def warn_of_more_classes(classes: int, data: Any) -> None:
    """Warn when a network has more outputs than a data set has classes."""
    if classes > data.classes:
        print(
            f"warning: a network of {classes} classes, {data.name} has {data.classes}. If it was "
            "trained on other data, name that",
            file=sys.stderr,
        )


def warn_of_other_images(card: Mapping[str, Any], data: Any, what: str) -> None:
    """Warn where the test images may be some that a file was trained on.

    Those of a folder without a test are chosen by name; of another state of the folder, or by an
    older version, others were.
    """
    if not data.name.startswith(FOLDER_PREFIX) or has_test(data.name[len(FOLDER_PREFIX) :]):
        return
    trained, now = card.get("data", {}), data_section(identity_of(data))
    if trained.get("name") == now["name"] and trained.get("digest") not in (None, now["digest"]):
        name = now["name"][len(FOLDER_PREFIX) :]
        print(
            f"warning: {what} was trained on a folder {name} with other images in its parts: it "
            "may have been trained on some of these. A folder test beside train keeps them apart",
            file=sys.stderr,
        )


def warn_of_other_rows(own: Sequence[str], data: Any, what: str) -> None:
    """Warn where a classifier's rows are those of other classes than the data's, by number."""
    if own and data.class_names and tuple(own) != tuple(data.class_names):
        print(
            f"warning: {what} has the classes {some(own)}, {data.name} has "
            f"{some(data.class_names)}: rows of the classifier are taken by their numbers. "
            "train_cifar.py --finetune takes them by name",
            file=sys.stderr,
        )


def _relabelled(split: Any, labels: np.ndarray) -> Any:
    """Return a split with other labels; None, where there is no such split, stays."""
    if isinstance(split, ImageData):
        return replace(split, labels=labels[split.labels])
    if isinstance(split, FolderSource):
        return FolderSource(split.files._replace(labels=labels[split.files.labels]))
    return split
