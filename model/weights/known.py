"""What is known of a file of weights beside its arrays: its card, or else what lies beside it.

Asked are, for each section of the card by itself: the card in the file, an index of published files
that has these very arrays, the run folder that the file lies in. What none of them says is found
out from the tensors, or told by flags, by whoever opens the file.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional

from formats.atomic import PathLike
from formats.card import VERSION, CardError, check_card, is_newer
from formats.images.preprocessing import PREPROCESSING_FILE
from formats.param_reader import ParamFileError
from formats.weight_file import read_card
from model.registry import FAMILIES, ModelError, read_settings
from model.weights.dialects import IMAGES
from model.weights.published import GLIMPSE_INDEX, INDEX, find_row

RUN_SETTINGS = "config.json"  # in a run folder
NEEDED = ("network", "classes", "image")
ITS_CARD, THE_INDEX, ITS_RUN = "its card", "the index", "its run folder"
# Settings of a run that are the data's and not the network's.
NOT_OF_THE_SPEC = ("classes", "image_size")


class Known(NamedTuple):
    """What is known of a file.

    Attributes
    ----------
    card
        Sections of a card, without the version.
    sources
        Where each section is from: `ITS_CARD`, `THE_INDEX` or `ITS_RUN`.
    recorded, beside
        The file's row of the index, or the settings of its run, and which of the two; empty where
        there is neither.
    """

    card: dict[str, Any]
    sources: dict[str, str]
    recorded: dict[str, Any]
    beside: str

    @property
    def model(self) -> Optional[str]:
        """Name of the network."""
        name: Optional[str] = self.card.get("network", {}).get("model")
        return name

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; none where they are not known."""
        return tuple(self.card.get("classes", ()))

    def usual_images(self, dialect: Optional[str]) -> Mapping[str, Any]:
        """Return what the code that a file's names belong to does to images; empty: not known."""
        # Names of others in a file with a card are those of a network of this project, converted.
        own = ITS_CARD in self.sources.values()
        return {} if own else IMAGES.get(dialect or "", {})

    def remedy(self, path: PathLike) -> str:
        """Return what to do where the section ``network`` is wrong."""
        if self.sources.get("network") == ITS_CARD:
            return (
                "If the card is wrong, correct it: "
                f"python -m model.weights.card {path} --set FIELD=VALUE"
            )
        return "If that is wrong, copy the file elsewhere"


def known_of(path: PathLike) -> Known:
    """Return what is known of a file.

    Raises
    ------
    ParamFileError
        When the file cannot be read, or its card or its run folder is damaged.
    """
    path = Path(path)
    card = own_card(path)
    sources = dict.fromkeys(card, ITS_CARD)
    found: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    complete = all(section in card for section in NEEDED)
    row = None if complete else find_row(path, INDEX, GLIMPSE_INDEX)
    if row:
        found.append((THE_INDEX, _of_row(row), dict(row)))
    try:
        run = read_run(path)
    except ParamFileError:
        if not complete:
            raise
        run = {}  # nothing is taken from it
    beside = {} if complete else _of_run(path, run)
    if run or beside:
        found.append((ITS_RUN, beside, run))
    for source, sections, _ in found:
        for name, section in sections.items():
            if name not in card:
                card[name], sources[name] = section, source
    place, _, recorded = found[0] if found else ("", {}, {})
    return Known(card, sources, recorded, place)


def own_card(path: PathLike) -> dict[str, Any]:
    """Return the sections of the card in a file; none where there is no card.

    One of a later version is told on the standard error, and is as if it were not there.
    """
    card = read_card(path) or {}
    if card and is_newer(card):
        print(
            f"warning: {path} has a card of version {card['card']}; this project reads version "
            f"{VERSION} and goes on as if there were none. Get a later version of the project",
            file=sys.stderr,
        )
        return {}
    return {name: section for name, section in card.items() if name != "card"}


def read_run(path: Path) -> dict[str, Any]:
    """Return the settings of the run whose folder a file lies in; {} where there is none.

    Raises
    ------
    ParamFileError
        When ``config.json`` beside the file is damaged.
    """
    return _read_json(path.with_name(RUN_SETTINGS), path)


def _read_json(path: Path, weights: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        saved = json.loads(path.read_bytes())
        if not isinstance(saved, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, weights, error) from error
    return saved


def _damaged(path: Path, weights: Path, error: Exception) -> ParamFileError:
    return ParamFileError(
        f"{path}: cannot be read: {error}. Expected what the run that wrote {weights.name} left. "
        "Restore it, or move the parameter file out of this folder."
    )


def _of_row(row: Mapping[str, str]) -> dict[str, Any]:
    sections: dict[str, Any] = {
        "network": {"model": row["model"], "classes": int(row["classes"]), "settings": {}}
    }
    if "std" in row:
        sections["glimpse"] = {"deviation": float(row["std"])}
    return sections


def _of_run(path: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    sections: dict[str, Any] = {}
    model = run.get("model")
    if model:
        sections["network"] = {"model": model, "settings": _settings(model, run)}
    if "first_radius" in run:
        final = run.get("std_final")
        deviation = run.get("std") if final is None else final
        sections["glimpse"] = {"deviation": deviation, "first_radius": run["first_radius"]}
    beside = path.with_name(PREPROCESSING_FILE)
    saved = _read_json(beside, path)
    if saved:
        try:
            sections["classes"] = saved["class_names"]
            sections["image"] = {
                **dict.fromkeys(("height", "width"), saved["size"]),
                "mean": saved["mean"],
                "deviation": saved["std"],
                "crop": saved.get("crop", 1.0),
            }
        except KeyError as error:
            raise _damaged(beside, path, KeyError(f"it has no {error}")) from error
    try:
        check_card({"card": VERSION, **sections})
    except CardError as error:
        wrong = path.with_name(RUN_SETTINGS) if "image" not in str(error) else beside
        raise _damaged(wrong, path, error) from error
    return sections


def _settings(model: str, run: Mapping[str, Any]) -> dict[str, Any]:
    if model not in FAMILIES:
        return {}
    fields = {field.name for field in dataclasses.fields(FAMILIES[model][0])}
    named = fields.difference(NOT_OF_THE_SPEC)
    settings = {name: run[name] for name in sorted(named) if run.get(name) not in (None, "")}
    try:
        words = run.get("set") or ()
        # As JSON has them: a card's lists.
        further = json.loads(json.dumps(read_settings([str(word) for word in words])))
    except (ModelError, TypeError, ValueError):
        further = {}  # a damaged record; the tensors then differ, which is told
    settings.update({name: further[name] for name in further if name in named})
    return settings
