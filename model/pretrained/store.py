"""Published parameter files by the name of their network.

A file is looked for in the checkout, in the folder that ``ATTENTION_WEIGHTS`` names, and in a cache
folder, into which it is downloaded where ``ATTENTION_WEIGHTS`` is an address. Wherever it is from,
its SHA-256 must be that of the index (``cifar_param/index.csv``, ``mnist_param/index.csv``).
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Union

from formats.atomic import write_atomically
from formats.digest import digest_line, digest_path, sha256_hex
from formats.downloads.fetch import DownloadFailed, exclusive, fetch, shown
from formats.downloads.file_digest import FileDigest
from formats.errors import UserError
from model.weights.published import GLIMPSE_INDEX, INDEX, read_index

VARIABLE = "ATTENTION_WEIGHTS"
CACHE = "attention-networks-gluon"  # in $XDG_CACHE_HOME, else in ~/.cache
FIRST_CHOICE = "cifar10"  # of several data sets that a network has weights for
Row = dict[str, str]


def published_rows() -> list[Row]:
    """Return the rows of both indexes, with the folder of each file as ``folder``."""
    return [
        {**row, "folder": index.parent.name}
        for index in (INDEX, GLIMPSE_INDEX)
        for row in read_index(index)
    ]


def published_names() -> list[str]:
    """Return the names of the networks that weights are published for, sorted."""
    return sorted({row["model"] for row in published_rows()})


def choose_row(name: str, pretrained: Union[bool, str] = True) -> Row:
    """Return the row of the best published file of a network.

    Parameters
    ----------
    name
        Name of the network, as `model.create_model` takes it.
    pretrained
        Data set that it was trained on. True: the one in the network's name, else CIFAR-10, else
        the only one.

    Raises
    ------
    UserError
        When there are no weights for the name or for the data set; the message says which there
        are.
    """
    rows = [row for row in published_rows() if row["model"] == name]
    if not rows:
        raise UserError(
            f"no weights are published for {name!r}{_nearest(name)}; there are some for "
            f"{', '.join(published_names())}. Train it, or give the path of a parameter file"
        )
    datasets = sorted({row["dataset"] for row in rows})
    if pretrained is True:
        own = [d for d in datasets if name.partition("_")[2].startswith(d)]
        pretrained = (own or [d for d in datasets if d == FIRST_CHOICE] or datasets)[0]
    if pretrained not in datasets:
        raise UserError(
            f"no weights of {name} are published for the data set {pretrained!r}; there are some "
            f"for {', '.join(datasets)}"
        )
    return min((row for row in rows if row["dataset"] == pretrained), key=_error_of)


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, published_names(), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _error_of(row: Row) -> float:
    return float(row["single_error"]) if "single_error" in row else -float(row["test_acc"])


def weights_path(name: str, pretrained: Union[bool, str] = True) -> Path:
    """Return the path of a network's published weights, downloaded if need be.

    Parameters
    ----------
    name, pretrained
        As `choose_row` takes them.

    Raises
    ------
    UserError
        When there are none, or the file is nowhere, or what is there is another; the message lists
        where it was looked for.
    """
    return find_file(choose_row(name, pretrained))


def find_file(row: Row) -> Path:
    """Return the path of a row's file; UserError as `weights_path`."""
    looked = []
    for place in _places(row):
        state = _state(place, row)
        if not state:
            return place
        looked.append(f"  {place}: {state}")
    address = os.environ.get(VARIABLE, "")
    if "://" in address:
        try:
            return _download(row, address)
        except DownloadFailed as error:
            looked += [f"  {place}: {reason}" for place, reason in error.attempts]
        except OSError as error:
            looked.append(f"  {cache_folder()}: cannot be written: {error.strerror or error}")
    places = "\n".join(looked)
    raise UserError(
        f"the weights {row['file']} were not found. Looked for them in\n{places}\nWhat to do: get "
        f"the file from the project's folder {row['folder']}/ and set {VARIABLE} to its folder, or "
        "to the http:// or https:// address of a folder that has it"
    )


def cache_folder() -> Path:
    """Return where downloaded weights are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return Path(base).expanduser() / CACHE


def _places(row: Row) -> Iterator[Path]:
    yield INDEX.parents[1] / row["folder"] / row["file"]
    named = os.environ.get(VARIABLE, "")
    if named and "://" not in named:
        folder = Path(named).expanduser()
        yield folder / row["file"]
        yield folder / row["folder"] / row["file"]
    yield cache_folder() / row["file"]


def _state(path: Path, row: Row) -> str:
    """Return what is wrong with a place; nothing where the file is there and right."""
    try:
        digest = sha256_hex(path.read_bytes())
    except FileNotFoundError:
        return "not there"
    except OSError as error:
        return error.strerror or str(error)
    return "" if digest == row["sha256"] else f"another file (SHA-256 {digest[:16]}...)"


def _download(row: Row, address: str) -> Path:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    base = address.rstrip("/")
    places = [f"{base}/{row['file']}", f"{base}/{row['folder']}/{row['file']}"]
    with exclusive(str(folder)):
        target = folder / row["file"]
        if _state(target, row):  # else another process was faster
            print(f"downloading {row['file']} from {shown(base)} to {folder}")
            # That of an older file would make this one a damaged one, if it ended in between.
            Path(digest_path(target)).unlink(missing_ok=True)
            fetch(row["file"], places, [FileDigest(None, sha256=row["sha256"])], str(folder))
            write_atomically(digest_path(target), digest_line(target, row["sha256"]))
    return target
