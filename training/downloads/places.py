"""Where data sets are looked for, and what is said of one that is not there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Optional, TypeVar

from formats.downloads.fetch import DownloadFailed, exclusive
from formats.errors import UserError

T = TypeVar("T")


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
    folder
        What Gluon calls its folder.
    inside
        Where in a folder that is named it may lie, for people.
    below
        The same as paths; the folder itself is looked at first.
    """

    title: str
    files: str
    room: str
    embedded: str
    folder: str
    inside: str
    below: tuple[str, ...]

    def places(self, data_dir: Optional[str] = None) -> list[str]:
        """Folders to look in, in order: below ``data_dir`` (by default ``data``) or Gluon's.

        Raises
        ------
        UserError
            ``data_dir`` is given and is no folder. Nothing is downloaded into a mistyped name.
        """
        base = self._base(data_dir)
        home = os.path.expanduser(os.environ.get("MXNET_HOME") or os.path.join("~", ".mxnet"))
        own = [base, *(os.path.join(base, name) for name in self.below)]
        return own if data_dir else [*own, os.path.join(home, "datasets", self.folder)]

    def _base(self, data_dir: Optional[str]) -> str:
        if not data_dir:
            return "data"
        base = os.path.expanduser(data_dir)
        if not os.path.isdir(base):
            state = "is not a folder" if os.path.exists(base) else "does not exist"
            raise UserError(
                f"the data folder {data_dir} {state}; expected a folder with {self.files}, "
                f"{self.inside}. Create it to download {self.title} there, or leave the option out"
            )
        return base

    def locate(
        self,
        data_dir: Optional[str],
        download: bool,
        find: Callable[[str], tuple[Optional[T], str]],
        fetch: Callable[[str], object],
    ) -> T:
        """Return what `find` gives for the first place that has the data set, downloaded or not.

        Parameters
        ----------
        data_dir
            As for `places`.
        download
            Whether to download what is in none of them, into the first of ``data_dir``, else the
            last.
        find
            Gives what is in a folder, and in words what is there instead where that is nothing.
        fetch
            Downloads into a folder; one process at a time does.
        """
        places, notes = self.places(data_dir), []
        for place in places:
            found, note = find(place)
            if found:
                return found
            notes.append(f"  {place}: {note}")
        folder = places[0] if data_dir else places[-1]
        with self.downloading(folder, notes, download):
            fetch(folder)
        found, _ = find(folder)
        assert found is not None
        return found

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
