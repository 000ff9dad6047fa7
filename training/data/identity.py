"""What a data set is: the names of its classes, counts, statistics and a digest of its images.

A checkpoint keeps it, so that a run that goes on, and whoever opens a file, can tell other data.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from formats.errors import UserError, printable
from training.data.dataset import ImageData
from training.records.environment import remember

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


def compare_with_record(progress: Any, now: DataIdentity, changed: bool) -> bool:
    """Compare the data of a run that goes on with what it was trained on, and record a difference.

    Parameters
    ----------
    progress
        `training.records.run_progress.Progress` as it was saved; its ``data`` is what
        `DataIdentity.to_dict` gave, or None where that is not on record.
    now
        The data that is there.
    changed
        Whether the user has agreed to go on with other data.

    Returns
    -------
    bool
        Whether it is other data.

    Raises
    ------
    UserError
        When the data differs and the user has not agreed, or there are other classes.
    """
    if progress.data is None:
        print("note: this run has no record of its data, so that it cannot be compared")
        return False
    try:
        old = DataIdentity.from_dict(progress.data)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"the record of this run's data is damaged: {error!r}") from error
    found = "; ".join(_differences(old, now))
    if not found and changed:
        print("note: --data-changed: the data is what it was")
    if found and old.classes != now.classes:
        raise UserError(
            f"the data of this run has other classes: {found}. Restore them, or start a new run "
            "from its weights with --finetune RUN/last.param"
        )
    if found and not changed:
        raise UserError(
            f"the data of this run is not what it was trained on: {found}. Restore it, or go on "
            "all the same with --data-changed, which is recorded"
        )
    if found:
        print(f"warning: the data has changed: {found}", file=sys.stderr)
        remember("data_changed", found)
    return bool(found)


def _differences(old: DataIdentity, now: DataIdentity) -> list[str]:
    """Return what differs, for a user; the names of the data sets may."""
    found = [f"class {printable(name)} is gone" for name in old.classes if name not in now.classes]
    found += [f"class {printable(name)} is new" for name in now.classes if name not in old.classes]
    if not found and old.classes != now.classes:
        found.append("the classes are in another order")
    what = {"train": "training", "test": "test", "valid": "held-out"}
    for split in SPLITS:
        counts = old.counts.get(split, 0), now.counts.get(split, 0)
        if counts[0] != counts[1]:
            found.append(f"{counts[0]} {what[split]} images then, {counts[1]} now")
    if not found and old.digest != now.digest:
        found.append(
            "as many images of the same classes, but other pixels or labels (so may another "
            "version of Pillow decode JPEG files)"
        )
    return found


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
