"""Reading and writing ``resume.state``: arrays and counters, without any network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Optional

import numpy as np

from formats.atomic import PathLike
from formats.digest import verify_digest
from formats.errors import UserError, quoted
from formats.images.preprocessing import DATASET, normalization_text
from formats.param_file import read_params, write_params
from formats.param_reader import ParamFileError
from formats.weight_file import read_card
from training.records.run_folder import LAST_FILE, STATE_FILE
from training.records.run_progress import Progress, check_counters

FORMAT = 1
_NAME = re.compile(r"(proxy:)?(param|average|(state|device):(0|[1-9]\d{0,8})):.+", re.ASCII)


def write_state(
    folder: PathLike, arrays: Mapping[str, np.ndarray], card: Optional[Mapping[str, Any]] = None
) -> None:
    """Write what `collect_state` has returned, atomically, with the card of the parameters."""
    write_params(Path(folder) / STATE_FILE, arrays, card=card)


def normalization_before(folder: PathLike, named: Optional[str]) -> Optional[str]:
    """Return by what the images of a run have been normalized so far, if not as `named`.

    The data set's own mean and deviation may be others since then (``--data-changed``). A state
    without a card, of an older version, does not say it.
    """
    if named != DATASET or not (Path(folder) / STATE_FILE).is_file():
        return named
    image = (read_card(Path(folder) / STATE_FILE) or {}).get("image", {})
    return normalization_text(image["mean"], image["deviation"]) if image.get("mean") else named


def devices_of(arrays: Mapping[str, np.ndarray]) -> Optional[int]:
    """Return of how many devices a state has statistics; None where one has those of all."""
    numbers = [int(name.split(":", 2)[1]) for name in arrays if name.startswith("device:")]
    return 1 + max(numbers) if numbers else None


def saved_average(
    arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]
) -> np.ndarray:
    """Return the average of a parameter from the arrays of a state.

    Raises
    ------
    UserError
        When it has none of this shape.
    """
    saved = arrays.get(f"average:{name}")
    if saved is None or saved.shape != shape:
        raise UserError(
            f"the state of this run has no average of {name}. Restore the config.json that the run "
            "was started with"
        )
    return saved


def load_state(folder: PathLike) -> tuple[Progress, dict[str, np.ndarray], dict[str, Any]]:
    """Read ``resume.state``: where the run stood, its arrays, and the meta object.

    ``meta["verified"]`` says whether there was a digest that it was compared with.

    Raises
    ------
    UserError
        When there is no such file, or it is damaged or of another format.
    """
    path = Path(folder) / STATE_FILE
    anew = f"start a new run from its parameters: --finetune {quoted(Path(folder) / LAST_FILE)}"
    if not path.is_file():
        raise UserError(
            f"{folder} has no {STATE_FILE} to continue from. Restore it from a copy, or {anew}"
        )
    try:
        verified = verify_digest(path)
        arrays = read_params(path)
        meta = json.loads(arrays.pop("meta").tobytes())
        wrong = [name for name in arrays if not _NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"an array is called {wrong[0][:80]!r}")
        if meta["format"] != FORMAT:
            raise ValueError(f"format {meta['format']}, this version reads {FORMAT}")
        known = {item.name for item in fields(Progress)}
        progress = Progress(**{k: v for k, v in meta["progress"].items() if k in known})
        progress.check()
        for counted in (meta, *([meta["proxy"]] if "proxy" in meta else [])):
            check_counters([counted["num_update"], *counted["counts"].values()])
        meta["verified"] = verified
    except ParamFileError as error:
        raise UserError(f"cannot continue {folder}: {error} Or {anew}") from error
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"cannot continue {folder}: {path} is damaged ({error}). Restore it from a copy, or "
            f"{anew}"
        ) from error
    return progress, arrays, meta
