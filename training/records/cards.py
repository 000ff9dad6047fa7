"""The cards of the files that a run writes (see `formats.card`)."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, Optional

from formats.atomic import PathLike
from formats.card import VERSION
from training.records.run_folder import read_env

SCORES = ("test_acc", "test_loss", "valid_acc", "valid_loss")
FOLDER = "folder:"


def data_section(identity: Any) -> dict[str, Any]:
    """Return what a card says of a `training.data.identity.DataIdentity`.

    Of a folder only its own name is kept: the card travels, and where it lay is nobody's business.
    """
    name = identity.name
    if name.startswith(FOLDER):
        name = FOLDER + os.path.basename(os.path.normpath(name[len(FOLDER) :]))
    return {"name": name, **identity.counts, "digest": identity.digest}


class Cards:
    """Gives the card of every file that a run writes.

    Parameters
    ----------
    start
        What does not change: the sections ``network``, ``classes``, ``image``, ``data``.
    config
        The settings of the run.
    folder
        The run's, whose record has the commit that it began with.
    """

    def __init__(self, start: Mapping[str, Any], config: Any, folder: PathLike) -> None:
        git = read_env(folder).get("git")
        training = {
            "recipe": getattr(config, "recipe", None),
            "seed": getattr(config, "seed", None),
            "precision": getattr(config, "precision", None),
            "commit": git.get("commit") if isinstance(git, dict) else None,
        }
        known = {name: value for name, value in training.items() if value is not None}
        self._card = {"card": VERSION, **start, "training": known}

    def at(self, epochs: int, row: Optional[Mapping[str, Any]] = None) -> dict[str, Any]:
        """Return the card after so many whole epochs; `row` has the scores of these weights."""
        scores = {name: (row or {}).get(name) for name in SCORES}
        finite = {n: float(v) for n, v in scores.items() if v is not None and math.isfinite(v)}
        card = {**self._card, "training": {**self._card["training"], "epochs": epochs}}
        return {**card, "scores": finite} if finite else card
