"""Several processes that train one network together: who they are, and sums over them.

Two engines, Horovod and MXNet's own parameter server (``dist_sync``), give one thing: the sum of an
array over all workers. Everything else here is made of it. `Group` itself is the single process.
"""

from __future__ import annotations

import importlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import mxnet as mx
import numpy as np

from formats.errors import UserError
from training.settings.run_config import (
    DIST_SYNC,
    HOROVOD,
    LOCAL_RANK,
    LOCAL_SIZE,
    NONE,
    RANK,
    SIZE,
)

HOW_TO_START = {
    HOROVOD: "horovodrun -np 2 python train_cifar.py --distributed horovod ARGS...",
    DIST_SYNC: "python -m training.launch -n 2 -- ARGS...",
}
# How an error of Horovod's looks when another worker is no longer there.
LOST = ("horovod has been shut down", "connection closed by peer", "connection reset", "gloo")
LAST_SEC = 10  # for a worker to end after an error, before SIGALRM ends it
CHUNK = 1 << 22  # numbers in one sum, where more are handed around


class Group:
    """The workers of one training. This class is the only worker of a training without others.

    Attributes
    ----------
    rank, size
        Number of this worker, from 0, and of all.
    local_rank, local_size
        The same among the workers on this machine.
    """

    rank, size, local_rank, local_size = 0, 1, 0, 1

    def sum_arrays(self, arrays: Sequence[Sequence[Any]], key: str) -> None:
        """Replace arrays by their sums over all workers, behind what is queued for them.

        Parameters
        ----------
        arrays
            NDArrays, each as a list of its copies on this worker's devices, which are equal.
        key
            Name of the purpose; shapes and types are the same at every call.
        """

    def first(self, values: np.ndarray) -> np.ndarray:
        """Return the float32 `values` of worker 0; those of the others have the same shape."""
        result = np.array(values, np.float32)
        if self.size > 1:
            flat = result.reshape(-1)
            flat *= not self.rank
            for begin in range(0, flat.size, CHUNK):
                part = flat[begin : begin + CHUNK]
                array = mx.nd.array(part, ctx=mx.cpu(), dtype="float32")
                self.sum_arrays([[array]], f"host{part.size}")
                part[:] = array.asnumpy()
        return result

    def gather(self, values: Any) -> np.ndarray:
        """Return float64 `values` of all workers as (size, ...), to the last bit.

        They travel as sums of three float32, so that the engines need no other type; beyond
        float32's range they become infinite.
        """
        values = np.asarray(values, np.float64)
        if self.size == 1 or not values.size:
            return np.stack([values] * self.size)
        slots: np.ndarray = np.zeros((self.size, 3, *values.shape), np.float32)
        rest = values
        for place in range(3):
            slots[self.rank, place] = rest
            finite = np.isfinite(slots[self.rank, place])
            rest = np.where(finite, rest - np.where(finite, slots[self.rank, place], 0), 0)
        array = mx.nd.array(slots.reshape(-1), ctx=mx.cpu(), dtype="float32")
        self.sum_arrays([[array]], f"host{slots.size}")
        return array.asnumpy().reshape(slots.shape).astype(np.float64).sum(axis=1)

    def sum(self, values: Any) -> np.ndarray:
        """Return the float64 sums of `values` over all workers, the same bits on each."""
        total: np.ndarray = self.gather(values).sum(axis=0)
        return total

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is up on any worker; it also waits for all of them."""
        return bool(self.gather([float(flag)]).any())

    def broadcast(self, content: bytes) -> bytes:
        """Return what worker 0 has as `content`."""
        if self.size == 1:
            return content
        length = int(self.gather([float(len(content))])[0, 0])
        whole = self.first(np.frombuffer(bytes(length) if self.rank else content, np.uint8))
        return whole.astype(np.uint8).tobytes()

    def lost(self, error: BaseException) -> bool:
        """Return whether `error` means that another worker is no longer there."""
        return False

    def close(self) -> None:
        """Leave the group at the end, when all others do."""

    def abandon(self) -> None:
        """Leave the group because of an error, without waiting for anybody."""


ALONE = Group()


class HorovodGroup(Group):
    """Workers that ``horovodrun`` has started."""

    def __init__(self) -> None:
        hvd = _load_horovod()
        hvd.init()
        self._hvd = hvd
        self.rank, self.size = hvd.rank(), hvd.size()
        self.local_rank, self.local_size = hvd.local_rank(), hvd.local_size()

    def sum_arrays(self, arrays: Sequence[Sequence[Any]], key: str) -> None:
        """See `Group.sum_arrays`."""
        for index, (first, *others) in enumerate(arrays):
            on_gpu = first.context.device_type == "gpu" and not self._hvd.nccl_built()
            host = first.as_in_context(mx.cpu()) if on_gpu else first
            name = f"{key}:{index}"
            self._hvd.allreduce_(host, op=self._hvd.Sum, name=name, priority=-index)
            for copy in [first, *others] if on_gpu else others:
                host.copyto(copy)

    def lost(self, error: BaseException) -> bool:
        """See `Group.lost`."""
        return any(words in str(error).lower() for words in LOST)

    def close(self) -> None:
        """See `Group.close`."""
        self._hvd.shutdown()

    def abandon(self) -> None:
        """See `Group.abandon`."""
        signal.alarm(LAST_SEC)


class KVStoreGroup(Group):
    """Workers that ``python -m training.launch`` has started, around MXNet's parameter server."""

    def __init__(self) -> None:
        self.rank, self.size = int(os.environ[RANK]), int(os.environ[SIZE])
        self.local_rank = int(os.environ[LOCAL_RANK])
        self.local_size = int(os.environ[LOCAL_SIZE])
        self._store = mx.kv.create("dist_sync")
        self._known: set[str] = set()

    def sum_arrays(self, arrays: Sequence[Sequence[Any]], key: str) -> None:
        """See `Group.sum_arrays`."""
        names = [f"{key}:{index}" for index in range(len(arrays))]
        new = [name for name in names if name not in self._known]
        if new:
            self._announce(dict(zip(names, arrays)), new)
        # Without an optimizer a server keeps the sum of what all workers have sent.
        for index, (name, copies) in enumerate(zip(names, arrays)):
            self._store.push(name, copies[0], priority=-index)
            self._store.pull(name, out=list(copies), priority=-index)

    def _announce(self, arrays: Mapping[str, Sequence[Any]], names: Sequence[str]) -> None:
        """Make keys. A push must not meet a key that another worker is still making."""
        for name in names:
            first = arrays[name][0]
            zeros = mx.nd.zeros(first.shape, ctx=mx.cpu(), dtype=first.dtype)
            self._store.init(name, zeros)
            self._known.add(name)
        mx.nd.waitall()
        self._store._barrier()

    def close(self) -> None:
        """See `Group.close`."""
        self._store = None  # waits for the others and stops the servers

    def abandon(self) -> None:
        """See `Group.abandon`. What is queued would wait for good; the launcher ends the others."""
        mx.base.check_call(mx.base._LIB.MXKVStoreSetBarrierBeforeExit(self._store.handle, 0))
        signal.alarm(LAST_SEC)


def open_group(engine: str) -> Group:
    """Return the workers that this process is one of.

    Raises
    ------
    UserError
        When the process was not started as one of several workers of `engine`, or was although
        `engine` is ``none``, or the engine is not installed.
    """
    started = started_by(os.environ)
    if engine == NONE:
        if started:
            raise UserError(
                f"this process is one of several workers, but was not told so: add --distributed "
                f"{started}. Otherwise each of them would train alone"
            )
        return ALONE
    if engine == HOROVOD:
        _load_horovod()
    if started != engine:
        raise UserError(
            f"--distributed {engine} trains with several processes, which one command starts: "
            f"{HOW_TO_START[engine]}"
        )
    return HorovodGroup() if engine == HOROVOD else KVStoreGroup()


def started_by(variables: Mapping[str, str]) -> Optional[str]:
    """Return the engine whose launcher has set the environment `variables`, or None."""
    if "HOROVOD_RANK" in variables and "HOROVOD_SIZE" in variables:
        return HOROVOD
    if variables.get("DMLC_ROLE") == "worker" and RANK in variables:
        return DIST_SYNC
    return None


def _load_horovod() -> Any:
    """Return ``horovod.mxnet``."""
    # Horovod makes the symbols of libmxnet.so global, an old protobuf among them. MXBoard's
    # protobuf would crash with these, unless it has found its own before.
    importlib.import_module("google.protobuf.descriptor")
    try:
        return importlib.import_module("horovod.mxnet")
    except ImportError as error:
        raise UserError(
            f"--distributed horovod needs Horovod built for MXNet ({error}): make horovod builds "
            "it into .venv-horovod; start with .venv-horovod/bin/horovodrun. --distributed "
            "dist_sync needs nothing further"
        ) from error
