"""What a data set is: the names of its classes, counts, statistics and a digest of its images.

A checkpoint keeps it, so that a run that goes on, and whoever opens a file, can tell other data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from training.data.dataset import ImageData

SPLITS = ("train", "test", "valid")


@dataclass(frozen=True)
class DataIdentity:
    """One data set.

    Parameters
    ----------
    name : str
        As it was named; a folder may have another name elsewhere and hold the same.
    classes : tuple of str
        Names in the order of the labels; empty where the data has none (record files).
    counts : dict
        Images of each split.
    digest : str
        SHA-256 in hex of class names, labels and pixels, in their order. Of images that stay in
        files: of the names of the files in place of the pixels; of record files, of the index and
        of records spread over the file.
    mean, deviation : tuple of float
        Per channel, of the training images, in units where 0 is black and 1 is white.
    """

    name: str
    classes: tuple[str, ...]
    counts: dict[str, int]
    digest: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataIdentity:
        """Return what `to_dict` gave.

        Raises
        ------
        ValueError, TypeError, KeyError
            When `values` are something else.
        """
        return cls(
            str(values["name"]),
            tuple(map(str, values["classes"])),
            {str(split): int(count) for split, count in dict(values["counts"]).items()},
            str(values["digest"]),
            tuple(map(float, values["mean"])),
            tuple(map(float, values["deviation"])),
        )


def identity_of(dataset: Any) -> DataIdentity:
    """Return what identifies a data set.

    `dataset` is a `training.data.dataset.Dataset`, or has its ``name``, ``class_names`` and splits
    that know their ``__len__`` and ``identity()``, the bytes that tell them from others.
    """
    digest = hashlib.sha256()
    for name in dataset.class_names:
        _add(digest, name.encode("utf-8", "surrogateescape"))
    counts = {}
    for split in SPLITS:
        data = getattr(dataset, split, None)
        if data is None:
            continue
        counts[split] = len(data)
        _add(digest, split.encode())
        for part in _parts(data):
            _add(digest, part)
    return DataIdentity(
        dataset.name,
        tuple(dataset.class_names),
        counts,
        digest.hexdigest(),
        tuple(map(float, dataset.mean)),
        tuple(map(float, dataset.std)),
    )


def _parts(data: Any) -> Iterable[Any]:
    if isinstance(data, ImageData):
        yield str(data.images.shape).encode()
        yield np.ascontiguousarray(data.labels, "<i4").tobytes()
        yield np.ascontiguousarray(data.images)
    else:
        yield from data.identity()


def _add(digest: Any, content: Any) -> None:
    """Add bytes and their number, so that no two sequences of parts read the same."""
    view = memoryview(content).cast("B")
    digest.update(len(view).to_bytes(8, "little"))
    digest.update(view)
