"""What a run needs to go on, in the format of `training.loop.checkpoint`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Optional

import numpy as np
import torch  # type: ignore[import-not-found]

from bridge.loop.average import TensorAverage
from bridge.loop.updater import Updater
from formats.errors import UserError
from training.records.epochs import START_ANEW
from training.records.run_folder import STATE_FILE
from training.records.run_progress import Progress
from training.records.state_file import FORMAT

Tensor = Any


def named_tensors(module: Any) -> dict[str, Tensor]:
    """Return parameters and running statistics by structural name."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def trained_tensors(module: Any) -> dict[str, Tensor]:
    """Return the parameters that an optimizer changes, by structural name.

    Raises
    ------
    UserError
        When there are none.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not trained:
        raise UserError("there is nothing to train: the symbol has no parameters with gradients")
    return trained


def collect_state(
    updater: Updater, progress: Progress, average: Optional[TensorAverage], engine: str
) -> dict[str, np.ndarray]:
    """Return the arrays of ``resume.state``.

    Raises
    ------
    UserError
        When a parameter or a state is not finite.
    """
    optimizer = updater.optimizer
    # In the order of the first file, so that a resumed run writes the same bytes.
    arrays = {f"param:{name}": value for name, value in updater.module.param_arrays().items()}
    for part, tensors in enumerate(optimizer.states):
        for name, tensor in zip(optimizer.names, tensors):
            arrays[f"state:{part}:{name}"] = tensor.cpu().numpy()
    if average:
        arrays.update({f"average:{name}": value for name, value in average.arrays().items()})
    bad = next((name for name, value in arrays.items() if not np.isfinite(value).all()), None)
    if bad:
        raise UserError(
            f"the training diverged: {bad.split(':')[-1]} is no longer finite after step "
            f"{progress.step}; {START_ANEW}"
        )
    meta = {
        "format": FORMAT,
        "optimizer": optimizer.NAME,
        "progress": asdict(progress),
        "num_update": progress.step,
        "counts": dict.fromkeys(optimizer.names, progress.step) if progress.step else {},
        "engine": engine,
        "scale": [updater.scale, updater.sound_steps],
    }
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    return arrays


@torch.no_grad()
def restore(updater: Updater, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Put the arrays of `training.records.state_file.load_state` into a network and its optimizer.

    Raises
    ------
    UserError
        When the file belongs to another network or optimizer. Nothing is changed then.
    """
    optimizer = updater.optimizer
    targets = {f"param:{name}": t for name, t in named_tensors(updater.module).items()}
    for part, tensors in enumerate(optimizer.states):
        names = (f"state:{part}:{name}" for name in optimizer.names)
        targets.update(zip(names, tensors))
    saved = {name: value for name, value in arrays.items() if not name.startswith("average:")}
    wrong = sorted(set(saved) ^ set(targets)) or [
        name for name, value in saved.items() if value.shape != tuple(targets[name].shape)
    ]
    if wrong or meta.get("optimizer") != optimizer.NAME:
        differs = wrong[0] if wrong else f"optimizer {meta.get('optimizer')}"
        raise UserError(
            f"the {STATE_FILE} of this run is of another network or optimizer: {differs} differs. "
            "Restore the config.json and the symbol that the run was started with"
        )
    for name, value in saved.items():
        targets[name].copy_(torch.from_numpy(value))
    scale = meta.get("scale", [updater.scale, 0])
    updater.scale, updater.sound_steps = float(scale[0]), int(scale[1])
