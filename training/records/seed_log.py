"""The files and lines of the RAM-ResNet repository, made from what a run records anyway.

``log.txt`` has its columns: learning rate, training loss, test loss, training accuracy and test
accuracy in percent; a tab behind each, the last one too, and no column for the epoch.
``checkpoint.param`` and ``model_best.param`` are links to ``last.param`` and ``best.param``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from formats.atomic import PathLike, write_atomically
from formats.errors import UserError
from training.records.metrics import read_metrics
from training.records.run_folder import CONFIG_FILE

LOG_FILE = "log.txt"
COLUMNS = ("Learning Rate", "Train Loss", "Valid Loss", "Train Acc.", "Valid Acc.")
LINKS = {
    "checkpoint.param": "last.param",
    "checkpoint.param.sha256": "last.param.sha256",
    "model_best.param": "best.param",
    "model_best.param.sha256": "best.param.sha256",
}
# The seed's names of checkpoints, which PyTorch wrote; ours have the same stem.
TORCH_ENDINGS = (".pth.tar", ".pth")


def refuse_torch_file(folder: str, argv: Sequence[str]) -> None:
    """Raise UserError when the run to go on with is a PyTorch checkpoint in no run's folder."""
    files = [word for word in argv if word.endswith(TORCH_ENDINGS) and os.path.isfile(word)]
    if files and not os.path.exists(os.path.join(folder, CONFIG_FILE)):
        raise UserError(
            f"--resume {files[0]}: a PyTorch checkpoint, without the run that it belongs to. Score "
            "it with --e added, or start a new training from it with --finetune FILE"
        )


def seed_log(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of ``log.txt`` for the rows of ``metrics.jsonl``; no value becomes nan."""
    lines = ["".join(f"{name}\t" for name in COLUMNS)]
    for row in rows:
        values = [_number(row, "lr"), _number(row, "train_loss"), _number(row, "test_loss")]
        values += [100 * _number(row, "train_acc"), 100 * _number(row, "test_acc")]
        lines.append("".join(f"{value:.6f}\t" for value in values))
    return "\n".join(lines) + "\n"


def write_seed_files(folder: PathLike) -> None:
    """Write ``log.txt`` of a run anew from its ``metrics.jsonl``, and the links if need be.

    Raises
    ------
    UserError
        When ``metrics.jsonl`` is missing or damaged.
    OSError
        When the folder cannot be written.
    """
    write_atomically(Path(folder) / LOG_FILE, seed_log(read_metrics(folder)).encode())
    for name, target in LINKS.items():
        path = Path(folder) / name
        if not os.path.lexists(path):
            path.symlink_to(target)


def checkpoint_file(path: str) -> str:
    """Return the file that a name of the seed's means: itself, or ours where it is not there."""
    if not os.path.exists(path):
        for ending in TORCH_ENDINGS:
            own = path[: -len(ending)] + ".param"
            if path.endswith(ending) and os.path.exists(own):
                return own
    return path


def changed_settings(given: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of `given` is not what a run was started with.

    The seed's command line repeats all settings at a resume; ``config.json`` holds tuples as lists.
    """
    plain = {key: list(v) if isinstance(v, tuple) else v for key, v in given.items()}
    return {key: given[key] for key, v in plain.items() if key not in saved or saved[key] != v}


def evaluation_lines(loss: float, acc: float) -> str:
    """Return what the seed prints for ``--e``; the accuracy is given in 0 to 1."""
    return f"\nEvaluation only\n Test Loss:  {loss:.8f}, Test Acc:  {100 * acc:.2f}"


def _number(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    return float("nan") if value is None else float(value)
