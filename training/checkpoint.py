"""Everything that a training run needs to go on, in one file without pickle.

``resume.state`` has the format of parameter files. A run killed at any moment leaves either the old
file or the new one, because there is only one and it is replaced at once; ``last.param`` and
``best.param`` are for users and are never read by a resume.

============================  =========================================================
``param:NAME``                a parameter, by its structural name
``state:PART:NAME``           a tensor of the optimizer's state for that parameter
``meta``                      JSON as uint8: counters, metric sums, thread count
============================  =========================================================
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import numpy as np

from bridge.param_file import ParamFileError, read_params, verify_digest, write_params
from training.errors import UserError

PathLike = Union[str, "os.PathLike[str]"]

STATE_FILE = "resume.state"
LAST_FILE = "last.param"
BEST_FILE = "best.param"
FORMAT = 1


@dataclass
class Progress:
    """Where a training stands.

    ``epoch`` counts finished epochs and ``batch`` the updates made in the unfinished one; ``step``
    counts all updates. The sums are over the images of the unfinished epoch.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    images: int = 0
    loss_sum: float = 0.0
    correct_sum: float = 0.0
    epoch_sec: float = 0.0
    wall_sec: float = 0.0
    best_acc: float = -1.0
    best_epoch: int = 0
    threads: Optional[int] = None
    extra: Dict[str, Any] = field(default_factory=dict)


def parameter_arrays(net: Any) -> Dict[str, np.ndarray]:
    """Return the net's parameters (structural name to array, float32) from its first device."""
    return {
        name: parameter.data(parameter.list_ctx()[0]).asnumpy()
        for name, parameter in net._collect_params_with_prefix().items()
    }


def save_parameters(net: Any, path: PathLike) -> str:
    """Write a ``.param`` file and its ``.sha256`` atomically; return the digest in hex."""
    return write_params(path, parameter_arrays(net))


def save_state(folder: PathLike, net: Any, trainer: Any, progress: Progress) -> None:
    """Write ``resume.state`` into `folder`, atomically."""
    arrays = {f"param:{name}": value for name, value in parameter_arrays(net).items()}
    names = _names_by_index(net, trainer)
    for index, state in _updaters(trainer)[0].states.items():  # all devices hold the same
        parts = state if isinstance(state, (tuple, list)) else (state,)
        for part, tensor in enumerate(parts):
            if tensor is not None:  # plain SGD keeps none
                arrays[f"state:{part}:{names[index]}"] = tensor.asnumpy()
    counts = trainer._optimizer._all_index_update_counts[0]
    meta = {
        "format": FORMAT,
        "progress": asdict(progress),
        "num_update": trainer._optimizer.num_update,
        "counts": {names[index]: count for index, count in counts.items()},
    }
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    write_params(Path(folder) / STATE_FILE, arrays)


def load_state(folder: PathLike) -> Tuple[Progress, Dict[str, np.ndarray], Dict[str, Any]]:
    """Read ``resume.state``: where the run stood, its arrays, and the meta object.

    Raises
    ------
    UserError
        When there is no such file, or it is damaged or of another format.
    """
    path = Path(folder) / STATE_FILE
    if not path.is_file():
        raise UserError(
            f"{folder} has no {STATE_FILE} to continue from: give the folder of a run that "
            "finished at least one checkpoint"
        )
    try:
        verify_digest(path)
        arrays = read_params(path)
        meta = json.loads(arrays.pop("meta").tobytes())
        known = {item.name for item in fields(Progress)}
        progress = Progress(**{k: v for k, v in meta["progress"].items() if k in known})
        if meta["format"] != FORMAT:
            raise ValueError(f"format {meta['format']}, this version reads {FORMAT}")
    except ParamFileError as error:
        raise UserError(f"cannot continue {folder}: {error}") from error
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"cannot continue {folder}: {path} is damaged ({error})") from error
    return progress, arrays, meta


def restore(net: Any, trainer: Any, arrays: Mapping[str, np.ndarray], meta: Mapping) -> None:
    """Put the arrays of `load_state` into an initialized net and its trainer.

    Raises
    ------
    UserError
        When the file belongs to another network or optimizer.
    """
    import mxnet as mx

    parameters = net._collect_params_with_prefix()
    saved = {name[6:]: value for name, value in arrays.items() if name.startswith("param:")}
    if set(saved) != set(parameters) or any(
        tuple(saved[name].shape) != tuple(parameters[name].shape) for name in saved
    ):
        raise UserError("the state in the run folder is of another network; nothing was loaded")
    for name, parameter in parameters.items():
        parameter.set_data(mx.nd.array(saved[name], dtype=saved[name].dtype))
    states = _grouped_states(arrays)
    counts = {}
    names = _names_by_index(net, trainer)
    for device, updater in enumerate(_updaters(trainer)):
        for index, parameter in enumerate(trainer._params):
            parts = states.get(names[index], [])
            context = parameter.list_ctx()[device]
            tensors = [mx.nd.array(part, ctx=context, dtype=part.dtype) for part in parts]
            if tensors:
                updater.states[index] = tensors[0] if len(tensors) == 1 else tuple(tensors)
                updater.states_synced[index] = True
            if names[index] in meta["counts"]:
                counts[index] = meta["counts"][names[index]]
        trainer._optimizer._all_index_update_counts.setdefault(device, {}).update(counts)
    trainer._optimizer.num_update = meta["num_update"]


def _names_by_index(net: Any, trainer: Any) -> List[str]:
    """Return the structural name of each of the trainer's parameters."""
    names = {id(parameter): name for name, parameter in net._collect_params_with_prefix().items()}
    return [names[id(parameter)] for parameter in trainer._params]


def _grouped_states(arrays: Mapping[str, np.ndarray]) -> Dict[str, List[np.ndarray]]:
    """Return the state tensors of each parameter, in order of their part."""
    states: Dict[str, Dict[int, np.ndarray]] = {}
    for key, value in arrays.items():
        if key.startswith("state:"):
            part, name = key.split(":", 2)[1:]
            states.setdefault(name, {})[int(part)] = value
    return {name: [parts[part] for part in sorted(parts)] for name, parts in states.items()}


def _updaters(trainer: Any) -> List[Any]:
    if not trainer._kv_initialized:
        trainer._init_kvstore()
    if trainer._update_on_kvstore:
        raise ValueError("create the Trainer with update_on_kvstore=False")
    updaters: List[Any] = trainer._updaters
    return updaters
