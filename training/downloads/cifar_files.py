"""Find, read and check the files of CIFAR-10 and CIFAR-100, in every layout they come in.

Each layout ends as the same thing, the records of the binary version: per image the label bytes,
then 1,024 red, 1,024 green and 1,024 blue bytes (https://www.cs.toronto.edu/~kriz/cifar.html).
"""

from __future__ import annotations

import os
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Optional

import numpy as np

from formats.downloads.file_digest import mismatch
from formats.errors import UserError
from training.downloads.batch_pickle import BatchError, read_batch
from training.downloads.digests import TABLE
from training.downloads.tar_members import BoundedTarInfo

PIXELS = 3 * 32 * 32
# The largest file in any layout is the python version of CIFAR-100, 155 MB.
MAX_FILE_BYTES = 256 * 2**20
MAX_ARCHIVE_CONTENT = 512 * 2**20


@dataclass(frozen=True)
class Format:
    """What the files of one data set are called and what is in them.

    ``label_limits`` and ``label_keys`` describe the label bytes of a record, in order.
    ``exact_order``: whether a file whose digest is not the published one is refused.
    """

    name: str
    title: str
    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    bin_folder: str
    python_folder: str
    archives: tuple[str, ...]
    label_limits: tuple[int, ...]
    label_keys: tuple[bytes, ...]
    exact_order: bool

    @property
    def files(self) -> tuple[str, ...]:
        """All ``.bin`` names; the python batches have the same ones without the ending."""
        return self.train_files + self.test_files


# Results on CIFAR-10 depend on which image is where (splits, noisy-label lists, Gluon's own class
# refuses other files), so a wrong digest is an error. CIFAR-100 circulates in re-packed copies with
# the same images in another order, which train equally well: those get a warning.
CIFAR10 = Format(
    name="cifar10",
    title="CIFAR-10",
    train_files=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test_files=("test_batch.bin",),
    bin_folder="cifar-10-batches-bin",
    python_folder="cifar-10-batches-py",
    archives=("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"),
    label_limits=(10,),
    label_keys=(b"labels",),
    exact_order=True,
)
CIFAR100 = Format(
    name="cifar100",
    title="CIFAR-100",
    train_files=("train.bin",),
    test_files=("test.bin",),
    bin_folder="cifar-100-binary",
    python_folder="cifar-100-python",
    archives=("cifar-100-binary.tar.gz", "cifar-100-python.tar.gz"),
    label_limits=(20, 100),
    label_keys=(b"coarse_labels", b"fine_labels"),
    exact_order=False,
)
FORMATS = {"cifar10": CIFAR10, "cifar100": CIFAR100}


@dataclass(frozen=True)
class Source:
    """A complete set of files; ``kind`` is bin, python (``path``: their folder) or archive."""

    kind: str
    path: str


def find_source(form: Format, folder: str) -> tuple[Optional[Source], str]:
    """Look for a complete set of files in ``folder`` itself and in its usual sub-folders.

    Returns
    -------
    tuple
        (source or None, what was found instead: a short note for the error message).
    """
    if not os.path.isdir(folder):
        return None, "no such folder"
    note = f"no {form.title} files"
    for kind, place in _layouts(form, folder):
        if kind == "archive":
            if os.path.isfile(place):
                return Source(kind, place), ""
            continue
        names = [_file_name(kind, name) for name in form.files]
        missing = [name for name in names if not os.path.isfile(os.path.join(place, name))]
        if not missing:
            return Source(kind, place), ""
        if len(missing) < len(names):
            note = f"incomplete: {', '.join(missing)} missing in {place}"
    return None, note


def read_source(form: Format, source: Source) -> dict[str, np.ndarray]:
    """Read and check every file of ``source``.

    Returns
    -------
    dict of np.ndarray
        ``.bin`` name -> uint8 records, (N, label bytes + 3072).

    Raises
    ------
    UserError
        A file is missing, unreadable or damaged.

    Warns
    -----
    UserWarning
        Once, when valid files of CIFAR-100 are not the published ones.
    """
    records, unusual = {}, []
    for name, shown, content in _contents(form, source):
        key = f"{form.name}/{_file_name(source.kind, name)}"
        if source.kind == "archive":
            key = f"{form.name}/{os.path.basename(shown)}"
        records[name], difference = _checked_records(form, name, key, shown, content)
        if difference:
            unusual.append(f"{shown}: {difference}")
    if unusual:
        warnings.warn(
            f"not the published files of {form.title}, probably the same images in another order; "
            f"sizes and labels are valid, so they are used ({'; '.join(unusual)})",
            UserWarning,
            stacklevel=2,
        )
    return records


def advice(form: Format) -> str:
    """What to do about a damaged file."""
    return (
        f"Delete it and run again to download {form.title}, or replace it by the one from "
        f"{' or '.join(form.archives)}. The embedded data set needs no file: --dataset shapes"
    )


def _layouts(form: Format, folder: str) -> Iterator[tuple[str, str]]:
    for kind, name in (("bin", form.bin_folder), ("python", form.python_folder)):
        yield kind, folder
        yield kind, os.path.join(folder, name)
    for archive in form.archives:
        yield "archive", os.path.join(folder, archive)


def _file_name(kind: str, bin_name: str) -> str:
    return bin_name.removesuffix(".bin") if kind == "python" else bin_name


def _contents(form: Format, source: Source) -> Iterator[tuple[str, str, bytes]]:
    """Yield (``.bin`` name, name to show, content) of every file, one at a time."""
    if source.kind == "archive":
        yield from _archive_contents(form, source.path)
        return
    for name in form.files:
        path = os.path.join(source.path, _file_name(source.kind, name))
        try:
            _refuse_large(form, path, os.path.getsize(path))
            with open(path, "rb") as stream:
                yield name, path, stream.read()
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _archive_contents(form: Format, path: str) -> Iterator[tuple[str, str, bytes]]:
    """Members are read in memory by their last name component; nothing is extracted."""
    wanted = {file: name for name in form.files for file in (name, _file_name("python", name))}
    seen = set()
    try:
        with tarfile.open(path, mode="r|gz", tarinfo=BoundedTarInfo) as archive:
            for member in archive:
                if member.offset_data + member.size > MAX_ARCHIVE_CONTENT:
                    raise UserError(f"{path} holds more than {MAX_ARCHIVE_CONTENT:,} bytes")
                name = wanted.get(os.path.basename(member.name))
                stream = archive.extractfile(member) if member.isreg() and name else None
                if name is None or stream is None or name in seen:
                    continue
                shown = f"{path}/{os.path.basename(member.name)}"
                _refuse_large(form, shown, member.size)
                seen.add(name)
                yield name, shown, stream.read()
                if len(seen) == len(form.files):
                    return
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        size = os.path.getsize(path) if os.path.exists(path) else 0
        published = TABLE.get(f"{form.name}/{os.path.basename(path)}", ())
        sizes = " or ".join(f"{version.size:,}" for version in published if version.size)
        raise UserError(
            f"{path} is damaged ({error}): {size:,} bytes, expected {sizes}. {advice(form)}"
        ) from error
    missing = [name for name in form.files if name not in seen]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}. {advice(form)}")


def _refuse_large(form: Format, shown: str, size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise UserError(
            f"{shown} is damaged: {size:,} bytes, more than any file of {form.title} has. "
            f"{advice(form)}"
        )


def _checked_records(
    form: Format, name: str, key: str, shown: str, content: bytes
) -> tuple[np.ndarray, Optional[str]]:
    """The records of one file, and how it differs from the published one (None: not at all)."""
    difference: Optional[str] = None
    published = TABLE[f"{form.name}/{name}"]
    width = len(form.label_limits) + PIXELS
    if key.endswith(".bin"):
        if len(content) not in [version.size for version in published] or len(content) % width:
            raise _damaged(form, shown, mismatch([content], published) or "")
        records = np.frombuffer(content, np.uint8).reshape(-1, width)
        difference = mismatch([content], published)
    else:
        difference = mismatch([content], TABLE[key])
        try:
            records = read_batch(content, form.label_keys)
        except BatchError as error:
            raise _damaged(form, shown, f"{error}; {difference}") from error
        # A batch that was pickled again is as good as the published one when its records are.
        if difference and mismatch([records.tobytes()], published) is None:
            difference = None
        if records.nbytes not in [version.size for version in published]:
            raise _damaged(form, shown, f"{len(records):,} images; {difference}")
    for column, limit in enumerate(form.label_limits):
        largest = int(records[:, column].max())
        if largest >= limit:
            what = f"label {largest} where 0 to {limit - 1} are allowed"
            raise _damaged(form, shown, f"{what}; {difference}")
    if difference and form.exact_order:
        raise _damaged(form, shown, difference)
    return records, difference


def _damaged(form: Format, shown: str, difference: str) -> UserError:
    return UserError(f"{shown} is damaged: {difference}. {advice(form)}")
