"""Where data sets are looked for, and what is said of one that is not there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Optional

from formats.downloads.fetch import DownloadFailed, exclusive
from formats.errors import UserError


@dataclass(frozen=True)
class Wanted:
    """A data set in the words of messages.

    Parameters
    ----------
    title
        As its authors write it.
    files
        What is looked for.
    room
        How much of the disk it takes.
    embedded
        What needs no file, with the option that names it.
    """

    title: str
    files: str
    room: str
    embedded: str

    @contextmanager
    def downloading(self, folder: str, notes: Sequence[str], download: bool) -> Iterator[None]:
        """Make `folder` and let one process at a time download into it.

        Raises
        ------
        UserError
            For what goes wrong within, and where nothing is to be downloaded; `notes` are what was
            found instead in each place that was looked into.
        """
        if not download:
            raise self._not_found(folder, notes, "Downloading is switched off.")
        try:
            os.makedirs(folder, exist_ok=True)
            with exclusive(folder):
                yield
        except DownloadFailed as error:
            tried = "\n".join(f"  {url}: {reason}" for url, reason in error.attempts)
            text = f"Tried to download {error.file_name} from:\n{tried}"
            raise self._not_found(folder, notes, text) from error
        except OSError as error:
            raise self.cannot_store(folder, error) from error

    def cannot_store(self, folder: str, error: OSError) -> UserError:
        """Return the error of a folder that cannot be written."""
        return UserError(
            f"cannot store {self.title} in {folder}: {error.strerror or error}. Give a folder that "
            f"you can write to with about {self.room}: --data-dir FOLDER"
        )

    def _not_found(self, folder: str, notes: Sequence[str], text: str) -> UserError:
        looked = "\n".join(notes)
        return UserError(
            f"{self.title} was not found.\nLooked in:\n{looked}\n{text}\nWhat to do: put "
            f"{self.files} into {folder}; or say where they are: --data-dir FOLDER or --mirror "
            f"URL; or use the {self.embedded}"
        )


def base_folder(data_dir: Optional[str], expected: str, title: str) -> str:
    """The folder that a search begins in: ``data_dir``, or ``data`` in the working directory.

    Raises
    ------
    UserError
        ``data_dir`` is given and is no folder; the message says what is ``expected`` in it. Nothing
        is downloaded into a mistyped name.
    """
    if not data_dir:
        return "data"
    base = os.path.expanduser(data_dir)
    if not os.path.isdir(base):
        state = "is not a folder" if os.path.exists(base) else "does not exist"
        raise UserError(
            f"the data folder {data_dir} {state}; expected a folder with {expected}. Create it to "
            f"download {title} there, or leave the option out"
        )
    return base


def gluon_folder(name: str) -> str:
    """Where Gluon keeps the data set: ``$MXNET_HOME/datasets/<name>``, ``~/.mxnet`` by default."""
    home = os.environ.get("MXNET_HOME") or os.path.join("~", ".mxnet")
    return os.path.join(os.path.expanduser(home), "datasets", name)
