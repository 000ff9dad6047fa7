"""How a step is run: eagerly, as a CUDA graph, compiled, or both; the fastest one is measured.

A CUDA graph is captured once and replayed: the parts of a network on small images are so short that
launching them one by one would take longer than they do. ``torch.compile`` joins batch norms,
activations and additions. Both are optional, and none of them changes what is computed but for
rounding.
"""

from __future__ import annotations

import gc
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Optional

import torch  # type: ignore[import-not-found]

from bridge.loop.updater import Updater
from formats.errors import UserError, first_line

Tensor = Any
Step = Callable[[Tensor, Tensor], None]
WARM_STEPS, TIMED_STEPS = 4, 12


def build_step(updater: Updater, engine: str, batch: tuple[Tensor, Tensor]) -> Step:
    """Return the step of `updater` as `engine` runs it.

    Parameters
    ----------
    updater
        Its tensors change here: captured graphs are warmed up by steps on `batch`.
    engine
        ``eager``, ``graph``, ``compile`` or ``compile-graph``.
    batch
        Images and labels as all steps will have them.

    Raises
    ------
    UserError
        When a CUDA graph is asked for without CUDA, or with float16, whose loss scaling decides on
        the processor.
    """
    compiled = engine.startswith("compile")
    if engine.endswith("graph") and (updater.device.type != "cuda" or updater.scaling):
        found = "float16" if updater.scaling else f"the device {updater.device.type}"
        raise UserError(
            f"--compile {engine} does not work with {found}; use --compile eager or compile"
        )
    updater.forward = torch.compile(updater.module) if compiled else updater.module
    if not engine.endswith("graph"):
        return updater.step
    return _captured(updater, batch)


def _captured(updater: Updater, batch: tuple[Tensor, Tensor]) -> Step:
    image, label = (tensor.clone() for tensor in batch)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # capturing needs everything allocated and tuned before
        for _ in range(WARM_STEPS):
            updater.step(image, label)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        updater.step(image, label)

    def step(new_image: Tensor, new_label: Tensor) -> None:
        image.copy_(new_image)
        label.copy_(new_label)
        graph.replay()

    return step


def candidates(updater: Updater) -> Sequence[str]:
    """Return the engines that are worth measuring on this device."""
    if updater.device.type != "cuda":
        return ("eager",)
    if updater.scaling:
        return ("eager", "compile")
    return ("eager", "graph", "compile", "compile-graph")


def choose_step(
    updater: Updater,
    engine: str,
    batch: tuple[Tensor, Tensor],
    until: float,
    before: Optional[str] = None,
) -> tuple[Step, str, dict[str, float]]:
    """Return the step, the name of its engine, and the images/s of every engine measured.

    ``auto`` takes `before`, which a run that goes on had, where that works here; else it measures.
    An engine that fails is left out with a line on standard error. No engine is begun after the
    time `until` (of `time.monotonic`). Parameters, state and sums are afterwards as they were.
    """
    with unchanged(updater):
        if before and (before == "eager" or _rate(updater, before, batch)):
            return build_step(updater, before, batch), before, {}
        if engine != "auto":
            return build_step(updater, engine, batch), engine, {}
        names = candidates(updater)
        if len(names) == 1:
            return build_step(updater, names[0], batch), names[0], {}
        names = [name for name in names if name != before]  # which does not work here
        rates: dict[str, float] = {}
        for name in names:
            if rates and time.monotonic() > until:
                break
            if rate := _rate(updater, name, batch):
                rates[name] = rate
        if not rates:
            raise UserError("no way of running a step works here; the reasons are above")
        best = max(rates, key=lambda name: rates[name])
        return build_step(updater, best, batch), best, rates


def _rate(updater: Updater, name: str, batch: tuple[Tensor, Tensor]) -> Optional[float]:
    """Return the images/s of an engine; None where it does not work here, which is told."""
    try:
        return measure_step(build_step(updater, name, batch), batch)
    except Exception as error:
        print(f"note: --compile {name} does not work here: {first_line(error)}", file=sys.stderr)
        return None
    finally:
        gc.collect()  # a graph keeps its memory


@contextmanager
def unchanged(updater: Updater) -> Iterator[None]:
    """Give everything that steps change its values back at the end, in the same memory."""
    tensors = updater.tensors()
    with torch.no_grad():
        saved = [tensor.detach().clone() for tensor in tensors]
    scale = updater.scale, updater.sound_steps
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, saved):
                tensor.copy_(value)
        updater.scale, updater.sound_steps = scale


class Pace:
    """Keeps the processor at most `STEPS` steps ahead of the GPU, so that it can stop in time.

    Without it seconds of work would be waiting at the GPU when a signal comes.
    """

    STEPS = 4

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._events: deque[Any] = deque()

    def step(self) -> None:
        """Count a step that was handed to the device; wait for an older one."""
        if self.device.type != "cuda":
            return
        event = torch.cuda.Event()
        event.record()
        self._events.append(event)
        if len(self._events) > self.STEPS:
            self._events.popleft().synchronize()


def measure_step(step: Step, batch: tuple[Tensor, Tensor]) -> float:
    """Return images/s of a step."""
    for _ in range(WARM_STEPS):
        step(*batch)
    _wait(batch[0])
    begin = time.perf_counter()
    for _ in range(TIMED_STEPS):
        step(*batch)
    _wait(batch[0])
    return TIMED_STEPS * len(batch[0]) / (time.perf_counter() - begin)


def _wait(tensor: Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)
