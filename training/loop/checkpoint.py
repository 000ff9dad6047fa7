"""Everything that a training run needs to go on, in one file without pickle.

``resume.state`` has the format of parameter files. A run killed at any moment leaves either the old
file or the new one, because there is only one and it is replaced at once; ``last.param`` and
``best.param`` are for users and are never read by a resume.

============================  =========================================================
``param:NAME``                a parameter, by its structural name
``device:INDEX:NAME``         the same on a further device, where that differs (running statistics);
                              devices count over all workers
``state:PART:NAME``           a tensor of the optimizer's state for that parameter
``average:NAME``              the parameter's moving average, where one is kept
``proxy:...``                 the same of the network that chooses images, where there is one
``meta``                      JSON as uint8: counters, metric sums, thread count
============================  =========================================================
"""

from __future__ import annotations

import contextlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional

import mxnet as mx
import numpy as np

from formats.atomic import PathLike
from formats.errors import UserError
from formats.param_file import write_params
from training.records.epochs import START_ANEW
from training.records.run_folder import STATE_FILE
from training.records.run_progress import Progress
from training.records.state_file import FORMAT, devices_of

PROXY = "proxy:"
EPOCH_FILE = "epoch-{:04d}.param"
_EPOCH_FILES = re.compile(r"epoch-(\d{4,})\.param(\.sha256)?")


def parameter_arrays(net: Any) -> dict[str, np.ndarray]:
    """Return the net's parameters (structural name to array) from its first device."""
    # A backward pass that still runs would change running statistics while they are read: MXNet's
    # BatchNorm writes them in an operator that is said to read them only.
    mx.nd.waitall()
    return {
        name: parameter.data(parameter.list_ctx()[0]).asnumpy()
        for name, parameter in net._collect_params_with_prefix().items()
    }


def save_parameters(net: Any, path: PathLike, card: Optional[Mapping[str, Any]] = None) -> str:
    """Write a ``.param`` file and its ``.sha256`` atomically; return the digest in hex.

    `card` says what the network is (see `formats.card`).
    """
    return write_params(path, parameter_arrays(net), card=card)


def collect_state(
    net: Any,
    trainer: Any,
    progress: Progress,
    average: Optional[Mapping[str, np.ndarray]] = None,
    everywhere: Optional[Mapping[str, np.ndarray]] = None,
    proxy: Any = None,
) -> dict[str, np.ndarray]:
    """Return the arrays of ``resume.state``.

    `average` are the moving averages of the parameters by structural name. `everywhere` are the
    running statistics on the devices of all workers, where there are several. `proxy` is the
    `training.loop.task.Task` of the network that chooses images, on one device, if there is one.

    Raises
    ------
    UserError
        When a parameter or a state is not finite: then nothing may be saved over older files.
    """
    arrays, counted = _own_state(net, trainer)
    arrays.update({f"average:{name}": value for name, value in (average or {}).items()})
    if proxy:
        chooser, counted["proxy"] = _own_state(proxy.net, proxy.trainer)
        arrays.update({PROXY + name: value for name, value in chooser.items()})
    bad = next((name for name, value in arrays.items() if not np.isfinite(value).all()), None)
    if bad:
        epoch = progress.epoch + bool(progress.batch)
        whose = "the proxy's " if bad.startswith(PROXY) else ""
        raise UserError(
            f"the training diverged: {whose}{bad.split(':')[-1]} is no longer finite after step "
            f"{progress.step} in epoch {epoch}, learning rate {trainer.learning_rate:.4g}; "
            f"{START_ANEW}"
        )
    arrays.update(_other_devices(net, everywhere))
    meta = {"format": FORMAT, "progress": asdict(progress), **counted}
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    return arrays


def _own_state(net: Any, trainer: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return parameters and optimizer's tensors by their names in the file, and its counters."""
    arrays = {f"param:{name}": value for name, value in parameter_arrays(net).items()}
    names = _names_by_index(net, trainer)
    for index, state in _updaters(trainer)[0].states.items():  # all devices hold the same
        for part, tensor in enumerate(_parts(state)):
            arrays[f"state:{part}:{names[index]}"] = tensor.asnumpy()
    return arrays, {
        "optimizer": type(trainer._optimizer).__name__,
        "num_update": trainer._optimizer.num_update,
        "counts": {names[index]: count for index, count in _counts(trainer).items()},
    }


def _other_devices(
    net: Any, everywhere: Optional[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return what differs from the first device: statistics of the images that each has seen."""
    arrays = {}
    for name, parameter in net._collect_params_with_prefix().items():
        if parameter.grad_req == "null":
            own = [data.asnumpy() for data in parameter.list_data()]
            first, *others = (everywhere or {}).get(name, own)
            for device, value in enumerate(others, 1):
                if not np.array_equal(first, value):
                    arrays[f"device:{device}:{name}"] = value
    return arrays


def restore(
    net: Any,
    trainer: Any,
    arrays: Mapping[str, np.ndarray],
    meta: Mapping,
    first_device: int = 0,
    devices: Optional[int] = None,
) -> None:
    """Put the arrays of `load_state` into an initialized net and its trainer.

    `first_device` is the number of this worker's first device among the `devices` of all workers;
    None: there is no other worker. Where there were more devices before, running statistics are the
    means over all of them.

    Raises
    ------
    UserError
        When the file belongs to another network or optimizer. Nothing is changed then.
    """
    parameters = net._collect_params_with_prefix()
    saved = {name[6:]: value for name, value in arrays.items() if name.startswith("param:")}
    _check_parameters(saved, parameters)
    for name, array in arrays.items():
        if name.startswith("device:"):
            own = name.split(":", 2)[2]
            _check_parameters({own: array}, {own: parameters.get(own)})
    names, states = _names_by_index(net, trainer), _grouped_states(arrays)
    _check_optimizer(trainer, names, states, meta)
    devices = len(trainer._contexts) if devices is None else devices
    before = meta.get("progress", {}).get("devices") or devices_of(arrays) or 1
    for name, parameter in parameters.items():
        if before > devices and parameter.grad_req == "null":
            places = (f"device:{number}:{name}" for number in range(before))
            values = [arrays.get(place, saved[name]) for place in places]
            mean = np.mean(values, axis=0, dtype=np.float64).astype(saved[name].dtype)
            parameter.set_data(mx.nd.array(mean, dtype=mean.dtype))
            continue
        parameter.set_data(mx.nd.array(saved[name], dtype=saved[name].dtype))
        for device, data in enumerate(parameter.list_data(), first_device):
            value = arrays.get(f"device:{device}:{name}")
            if value is not None:
                data[:] = mx.nd.array(value, ctx=data.context, dtype=value.dtype)
    counts = {i: meta["counts"][name] for i, name in enumerate(names) if name in meta["counts"]}
    for device, updater in enumerate(_updaters(trainer)):
        for index, parameter in enumerate(trainer._params):
            context = parameter.list_ctx()[device]
            tensors = [mx.nd.array(p, ctx=context, dtype=p.dtype) for p in states[names[index]]]
            if tensors:
                updater.states[index] = tensors[0] if len(tensors) == 1 else tuple(tensors)
                updater.states_synced[index] = True
    for context in trainer._contexts:
        trainer._optimizer._all_index_update_counts[context.device_id] = dict(counts)
    trainer._optimizer._set_current_context(trainer._contexts[0].device_id)
    trainer._optimizer.num_update = meta["num_update"]


def restore_proxy(proxy: Any, arrays: Mapping[str, np.ndarray], meta: Mapping) -> None:
    """Put what `load_state` has of the network that chooses images into its `Task`, or None.

    Raises
    ------
    UserError
        When the file belongs to another one, or only one of the two is there.
    """
    if bool(proxy) != ("proxy" in meta):
        found = "has no proxy" if proxy else "has a proxy, which these settings do not"
        raise UserError(
            f"the {STATE_FILE} of this run {found}. Restore the config.json that the run was "
            "started with"
        )
    if proxy:
        own = {n[len(PROXY) :]: value for n, value in arrays.items() if n.startswith(PROXY)}
        restore(proxy.net, proxy.trainer, own, meta["proxy"])


def _check_parameters(saved: Mapping[str, np.ndarray], parameters: Mapping[str, Any]) -> None:
    wrong = sorted(set(saved) ^ set(parameters)) or [
        name
        for name, value in saved.items()
        if parameters[name] is None
        or (value.shape, value.dtype) != (tuple(parameters[name].shape), parameters[name].dtype)
    ]
    if wrong:
        raise UserError(
            f"the {STATE_FILE} of this run is of another network: {wrong[0]} differs. Restore the "
            "config.json that the run was started with"
        )


def _check_optimizer(
    trainer: Any, names: list[str], states: Mapping[str, list[np.ndarray]], meta: Mapping
) -> None:
    """Compare with what the optimizer itself would make; it makes a state at the first update."""
    optimizer = trainer._optimizer
    fits = meta.get("optimizer", type(optimizer).__name__) == type(optimizer).__name__
    fits = fits and set(meta["counts"]) <= set(names) and set(states) <= set(names)
    for index, parameter in enumerate(trainer._params):
        expected: list[Any] = []
        if names[index] in meta["counts"]:
            weight = parameter.list_data()[0]
            expected = _parts(optimizer.create_state_multi_precision(index, weight))
        found = [(part.shape, part.dtype) for part in states[names[index]]]
        fits = fits and found == [(part.shape, part.dtype) for part in expected]
    if not fits:
        raise UserError(
            f"the {STATE_FILE} of this run is of another optimizer than {type(optimizer).__name__}"
            " with these settings, or other parameters were frozen. Restore the config.json that "
            "the run was started with"
        )


def _parts(state: Any) -> list[Any]:
    """Return the tensors of one parameter's state; plain SGD keeps none, Adam a pair."""
    parts = state if isinstance(state, (tuple, list)) else (state,)
    return [part for part in parts if part is not None]


def _counts(trainer: Any) -> dict[int, int]:
    """Return the number of updates per parameter, which Adam corrects its bias by."""
    counts = trainer._optimizer._all_index_update_counts
    first: dict[int, int] = counts.get(trainer._contexts[0].device_id, {})
    return first


def _names_by_index(net: Any, trainer: Any) -> list[str]:
    """Return the structural name of each of the trainer's parameters."""
    names = {id(parameter): name for name, parameter in net._collect_params_with_prefix().items()}
    return [names[id(parameter)] for parameter in trainer._params]


def _grouped_states(arrays: Mapping[str, np.ndarray]) -> defaultdict[str, list[np.ndarray]]:
    """Return the state tensors of each parameter, in order of their part."""
    states: dict[str, dict[int, np.ndarray]] = {}
    for key, value in arrays.items():
        if key.startswith("state:"):
            part, name = key.split(":", 2)[1:]
            states.setdefault(name, {})[int(part)] = value
    # A part that is missing makes the list shorter than the optimizer's.
    grouped = {n: [p[part] for part in range(len(p)) if part in p] for n, p in states.items()}
    return defaultdict(list, grouped)


def _updaters(trainer: Any) -> list[Any]:
    if not trainer._kv_initialized:
        trainer._init_kvstore()
    if trainer._update_on_kvstore:
        raise ValueError("create the Trainer with update_on_kvstore=False")
    updaters: list[Any] = trainer._updaters
    return updaters


def keep_last(
    folder: Path, net: Any, epoch: int, count: int, card: Optional[Mapping[str, Any]] = None
) -> None:
    """Write the file of an epoch and remove those that are not of the last `count` epochs.

    `card` is the one of `save_parameters`. With `count` 0 nothing is written and nothing removed.
    """
    if not count:
        return
    save_parameters(net, folder / EPOCH_FILE.format(epoch), card)
    # Sorted, a file goes before its digest: in between it must not look unverified. A digest alone
    # is what a process leaves that is killed in between.
    for path in sorted(folder.iterdir()):
        match = _EPOCH_FILES.fullmatch(path.name)
        if match and not epoch - count < int(match[1]) <= epoch:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
