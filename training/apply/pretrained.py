"""Published weights for ``--model NAME --pretrained`` (see `training.settings.pretrained`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from model.pretrained.store import published_rows, weights_path
from training.settings.pretrained import place_weights


def with_weights(argv: Sequence[str], actions: Sequence[str]) -> list[str]:
    """Return the words of a command with the path of a published file; see `place_weights`.

    ``--dataset`` chooses by the data set of the training where there are weights for it.

    Raises
    ------
    UserError
        When the network or the action is not named, or there are no such weights.
    """
    return place_weights(argv, actions, _find)


def _find(name: str, trained_on: Optional[str], dataset: Optional[str]) -> str:
    known = {row["dataset"] for row in published_rows() if row["model"] == name}
    return str(weights_path(name, trained_on or (dataset if dataset in known else None) or True))
