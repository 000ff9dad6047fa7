"""MXBoard event files of one run, written in the calling thread."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

import numpy as np

from formats.atomic import sync_folder

HISTOGRAM_BINS = 64
# Keys of `training.records.metrics` are <split>_<quantity>; the splits of a quantity share one
# chart.
_SPLITS = ("train", "valid", "test")
_CHARTS = {"loss": "loss", "acc": "accuracy"}
_RENAMED = {"images_per_sec": "throughput"}
_NOT_CHARTED = ("epoch", "step")
_GATES = "gate_"  # keys of `model.execution.gate_report`, charts of a group of their own


class Board:
    """Scalars, histograms, images and the graph of a run, for TensorBoard.

    MXBoard's ``SummaryWriter`` hands its events to a thread. When that thread meets a full disk it
    ends, and the next ``flush()`` waits for it for ever. Here MXBoard makes the same summaries and
    events, the calling thread writes them, and a full disk is an ``OSError``.

    Parameters
    ----------
    folder : str or os.PathLike
        Folder of the event files; a group of curves gets one sub-folder per curve, as MXBoard does
        it (``loss/train``, ``loss/test``), which TensorBoard draws in one chart.
    """

    def __init__(self, folder: Union[str, os.PathLike]) -> None:
        self.folder = Path(folder)
        self._writers: dict[str, Any] = {}
        self._files: list[_EventFile] = []

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Add the numbers of one epoch, a row of `training.records.metrics`, with the epoch as
        step.

        ``loss`` and ``accuracy`` become charts of up to three curves, ``lr``, ``throughput`` and
        every other key a chart of its own; those of gates share the group ``gates``. A value None
        is left out.
        """
        step = row["epoch"]
        groups: dict[str, dict[str, float]] = {}
        for key, value in row.items():
            if key in _NOT_CHARTED or value is None:
                continue
            split, _, quantity = key.partition("_")
            if split in _SPLITS and quantity in _CHARTS:
                groups.setdefault(_CHARTS[quantity], {})[split] = float(value)
            else:
                tag = f"gates/{quantity}" if key.startswith(_GATES) else _RENAMED.get(key, key)
                self.scalar(tag, float(value), step)
        for tag, curves in groups.items():
            self.group(tag, curves, step)

    def scalar(self, tag: str, value: float, step: int) -> None:
        """Add one value of the curve `tag`."""
        from mxboard.summary import scalar_summary

        self._writer("").add_summary(scalar_summary(tag, value), step)

    def group(self, tag: str, values: Mapping[str, float], step: int) -> None:
        """Add one value to each of several curves that share the chart `tag`."""
        from mxboard.summary import scalar_summary

        for name, value in values.items():
            self._writer(f"{tag}/{name}").add_summary(scalar_summary(tag, value), step)

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """Add the histogram of the finite entries of an array; nothing when there are none.

        64 equal bins instead of MXBoard's 1,549: 1 kB instead of 25 kB per parameter and epoch.
        """
        from mxboard.summary import histogram_summary

        finite = np.asarray(values, dtype=np.float64).ravel()
        finite = finite[np.isfinite(finite)]
        if finite.size:
            self._writer("").add_summary(histogram_summary(tag, finite, HISTOGRAM_BINS), step)

    def text(self, tag: str, text: str, step: int) -> None:
        """Add a text, which TensorBoard reads as Markdown."""
        from mxboard.summary import text_summary

        summary = text_summary(tag, text)
        summary.value[0].tag = tag  # MXBoard gives the name of a node alone
        self._writer("").add_summary(summary, step)

    def images(self, tag: str, images: np.ndarray, step: int) -> None:
        """Add uint8 images (N, H, W, C) as one picture, eight in a row."""
        from mxboard.summary import image_summary

        channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        self._writer("").add_summary(image_summary(tag, channels_first), step)

    def graph(self, net: Any) -> None:
        """Add the graph of a hybridized network that has run forward once."""
        from mxboard.summary import _net2pb

        self._writer("").add_graph(_net2pb(net))

    def flush(self) -> None:
        """Wait until everything is on the disk: it outlives a power cut from here on."""
        for file in self._files:
            file.flush()

    def close(self) -> None:
        """Flush and close all event files."""
        with contextlib.ExitStack() as stack:  # closes all, even if the disk is full
            for file in self._files:
                stack.callback(file.close)
            self._files.clear()
            self._writers.clear()

    def _writer(self, name: str) -> Any:
        if name not in self._writers:
            from mxboard.writer import SummaryToEventTransformer

            file = _EventFile(self.folder / name)
            self._files.append(file)
            self._writers[name] = SummaryToEventTransformer(file)
        return self._writers[name]


class _EventFile:
    """One new event file; what MXBoard's transformer calls ``event_writer``."""

    def __init__(self, folder: Path) -> None:
        from mxboard.proto import event_pb2

        folder.mkdir(parents=True, exist_ok=True)
        # MXBoard names a file by the second and opens it with "wb": a run that is resumed within
        # the second in which it was started would wipe its first file. The count keeps names apart
        # and in order.
        count = len(list(folder.glob("events.out.tfevents.*")))
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{count:03d}"
        self._file = open(folder / name, "xb")  # noqa: SIM115 - stays open as long as the run
        sync_folder(folder)
        self.add_event(event_pb2.Event(wall_time=time.time()))  # TensorBoard: start of the run

    def add_event(self, event: Any) -> None:
        from mxboard.record_writer import masked_crc32c

        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        self._file.write(length + struct.pack("<I", masked_crc32c(length)))
        self._file.write(data + struct.pack("<I", masked_crc32c(data)))

    def flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class NoBoard:
    """Takes what `Board` takes and writes nothing."""

    def _nothing(self, *_: Any) -> None:
        return None

    epoch = scalar = group = histogram = text = images = graph = flush = close = _nothing
