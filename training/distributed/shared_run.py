"""What the workers of one training have to agree on: settings, first weights, files, next steps."""

from __future__ import annotations

import json
import socket
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

import mxnet as mx
import numpy as np

from formats.atomic import PathLike
from formats.errors import UserError
from training.compute.devices import gpu_count
from training.distributed.group import Group, open_group
from training.records.run import Run
from training.records.run_folder import CONFIG_FILE, STATE_FILE
from training.settings.config import to_dict
from training.settings.run_config import NONE

T = TypeVar("T")
C = TypeVar("C", bound=Any)
RESUME_FILES = (CONFIG_FILE, STATE_FILE, f"{STATE_FILE}.sha256")
# Settings that may be another on each machine.
PLACES = ("data_dir", "mirror", "download", "gpus", "run_dir", "resume", "finetune")


class OtherWorkerFailed(Exception):
    """Another worker has failed and has said why."""


@contextmanager
def joined(config: Any) -> Iterator[Group]:
    """Be one of the workers that the setting ``distributed`` asks for, while the block runs.

    Raises
    ------
    UserError
        As `training.distributed.group.open_group`; and when another worker is lost while it runs.
    """
    group = open_group(getattr(config, "distributed", NONE))
    try:
        yield group
    except BaseException as error:
        group.abandon()
        if not (isinstance(error, mx.MXNetError) and group.lost(error)):
            raise
        raise UserError(
            "another worker of this training is no longer there; what it has said, or its machine, "
            "tells why. The last checkpoint is kept: go on with --resume and the run folder"
        ) from error
    else:
        group.close()


def together(group: Group, action: Callable[[], T]) -> T:
    """Return ``action()``, which calls no method of `group`; when it fails anywhere, all stop.

    Raises
    ------
    Exception
        What the first worker that failed got.
    OtherWorkerFailed
        On all others.
    """
    result, failure = None, None
    try:
        result = action()
    except Exception as error:
        failure = error
    failed = group.gather([float(failure is not None)])[:, 0]
    if failure and not failed[: group.rank].any():
        raise failure
    if failed.any():
        raise OtherWorkerFailed
    return result  # type: ignore[return-value]


def scaled(config: C, group: Group) -> C:
    """Return the settings for the whole group: ``scale_batch`` multiplies batch and learning rate.

    Source: Goyal et al. 2017, section 2.1, the linear scaling rule.
    """
    if not getattr(config, "scale_batch", False):
        return config
    config = replace(config, scale_batch=False)
    if group.size == 1:
        return config
    if not config.warmup_epochs and config.epochs > 1:
        raise UserError(
            f"--scale-batch multiplies the learning rate by {group.size}, the number of workers, "
            "which needs a warm-up: add --warmup-epochs 5"
        )
    names = ("batch_size", "lr", "final_lr")
    changed = {name: getattr(config, name) * group.size for name in names}
    if not group.rank:
        print(
            f"{group.size} workers: batch size {config.batch_size} -> {changed['batch_size']}, "
            f"learning rate {config.lr:g} -> {changed['lr']:g}"
        )
    return replace(config, **changed)


def own_devices(config: C, group: Group) -> C:
    """Return the settings with this worker's share of the machine's GPUs.

    Raises
    ------
    UserError
        When the GPUs cannot be dealt out evenly to the workers of a machine.
    """
    gpus = config.gpus
    if group.local_size == 1 or (gpus is not None and gpus.strip().lower().startswith("cpu")):
        return config
    if gpus is None:
        gpus = ",".join(map(str, range(gpu_count())))
    indices = [word for word in gpus.split(",") if word]
    if not indices:
        return config
    if len(indices) % group.local_size:
        raise UserError(
            f"{len(indices)} GPU(s) cannot be dealt out to {group.local_size} workers on this "
            "machine: name as many --gpus as workers, or a multiple of that"
        )
    return replace(config, gpus=",".join(indices[group.local_rank :: group.local_size]))


def agree(group: Group, config: Any, task: Any) -> None:
    """Compare the workers, so that they are of one training; let each read its own images alone.

    Raises
    ------
    UserError
        When settings, data or number of devices differ, or a batch is too small for all devices.
    """
    if group.size == 1:
        return
    settings = {k: v for k, v in to_dict(config).items() if k not in PLACES}
    loaders = task.loaders
    counts = [len(loaders.train.data), len(loaders.test.data), len(task.contexts)]
    names = ("training images", "test images", "devices", "settings (digest)", "images (digest)")
    images = loaders.identity.digest if loaders.identity else ""
    mine = [*counts, zlib.crc32(json.dumps(settings, sort_keys=True).encode())]
    mine.append(zlib.crc32(images.encode()))
    for worker, row in enumerate(found := group.gather(mine)):
        for name, value, first in zip(names, row, found[0]):
            if value != first:
                raise UserError(
                    f"worker {worker} has {value:.0f} {name}, worker 0 has {first:.0f}: start all "
                    f"workers with the same command and data (this is worker {group.rank} on "
                    f"{socket.gethostname()})"
                )
    devices = group.size * len(task.contexts)
    if config.batch_size < devices:
        raise UserError(
            f"--batch-size {config.batch_size}: {group.size} workers with {len(task.contexts)} "
            f"device(s) each need at least one image each; use a batch size of at least {devices}, "
            "or fewer workers"
        )
    if hasattr(loaders.train, "keep"):  # reads its images one by one
        loaders.train.keep(group.rank * len(task.contexts), len(task.contexts), devices)


def share_weights(group: Group, net: Any) -> None:
    """Give every worker the parameters of worker 0."""
    if group.size == 1:
        return
    for parameter in net._collect_params_with_prefix().values():
        value = parameter.list_data()[0].asnumpy()
        parameter.set_data(mx.nd.array(group.first(value), dtype=value.dtype))
    mx.nd.waitall()


class Follower(Run):
    """In place of a `training.records.run.Run` on the workers that keep no record."""

    def __init__(self, folder: PathLike) -> None:
        self.folder = Path(folder)

    def scalars(self, epoch: int, values: Mapping[str, Any]) -> None:
        """Do nothing, as every method here."""

    def histograms(
        self, epoch: int, arrays: Mapping[str, np.ndarray], group: str = "weights"
    ) -> None:
        """Do nothing."""

    def images(self, tag: str, epoch: int, images: np.ndarray) -> None:
        """Do nothing."""

    def graph(self, net: Any) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


@contextmanager
def shared_folder(group: Group, folder: Optional[str]) -> Iterator[Optional[Path]]:
    """Give every worker the files that a resume reads from the run folder of worker 0.

    They lie in a folder of its own on the other workers, which may be on other machines. None, for
    a new run, gives them an empty one, and None to worker 0.
    """
    if not group.rank:
        for name in RESUME_FILES if group.size > 1 else ():
            path = Path(folder or "", name)
            group.broadcast(path.read_bytes() if folder and path.is_file() else b"")
        yield Path(folder) if folder else None
        return
    with tempfile.TemporaryDirectory(prefix="worker-") as own:
        for name in RESUME_FILES:
            content = group.broadcast(b"")
            if content:
                Path(own, name).write_bytes(content)
        yield Path(own)
