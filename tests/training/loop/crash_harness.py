"""Kill a training at every write, flush and rename and at random moments, and resume it each time.

    PYTHONPATH=. python tests/training/loop/crash_harness.py      all places, and 200 random moments
    PYTHONPATH=. python tests/training/loop/crash_harness.py --every 10     every tenth place

Each trial is a process of its own, forked from one that has imported everything but started
nothing, which trains a tiny network with images made here. The first one is left alone; it counts
the calls that change the disk. Then, for each call: a process that is killed by SIGKILL right
before it, for a write one that is killed in the middle of its bytes, and for what needs room one
that finds the disk full from there on. After each, the files that are there must be whole; the run
is resumed in the same folder, and what it leaves must be the first run's, bit for bit.
"""

from __future__ import annotations

import argparse
import builtins
import contextlib
import errno
import importlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import numpy as np

from formats.digest import verify_digest
from formats.param_file import read_params
from training.classifier.config import TrainConfig
from training.classifier.loaders import build_loaders
from training.compute.optimizer import build_trainer
from training.data.dataset import Dataset, ImageData
from training.loop import train as train_module
from training.loop.task import ClassificationTask
from training.records import environment
from training.records.metrics import METRICS_FILE, read_metrics
from training.records.run_folder import STATE_FILE
from training.records.state_file import load_state

TIMES = ("images_per_sec", "wall_sec")
WRITE, KILL, HALF, FULL, RANDOM = "write", "before", "in the middle", "full disk", "random"
NEEDS_ROOM = (WRITE, "create", "mkdir")
SHOWN_ERRORS = 4000
CONFIG = TrainConfig(
    dataset="tiny",
    model="tiny",
    gpus="cpu",
    epochs=2,
    batch_size=10,
    micro_batch=5,
    lr=0.5,
    warmup_epochs=0,
    pad=1,
    mixup_off_epochs=1,
    histogram_every=2,
    checkpoint_minutes=1e-9,  # after every step
    ema=0.9,
    keep=1,
)


class Failure(Exception):
    """A trial did not end as it has to."""


class Fault(NamedTuple):
    """What happens to a process: at which call (0: never), and how."""

    at: int = 0
    how: str = KILL


# ---------------------------------------------------------------------------------- in the children


class Disk:
    """Counts the calls that change the disk, and lets one of them go wrong."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.calls: list[str] = []
        self._full = False

    def call(self, kind: str) -> bool:
        """Count a call; return whether it is the write that is to be cut in its middle."""
        self.calls.append(kind)
        now = len(self.calls) == self.fault.at
        if now and self.fault.how == KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        self._full = self._full or (now and self.fault.how == FULL)
        if self._full and kind in NEEDS_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return now and self.fault.how == HALF

    def install(self) -> None:
        """Replace the functions of `os` and `io` that the project writes with."""
        disk = self

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                if disk.call(WRITE):
                    super().write(bytes(data)[: len(data) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().write(data)

        plain_open = io.open

        def opened(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            if "b" not in mode or not set("wax+") & set(mode):
                return plain_open(file, mode, *rest, **named)
            if not isinstance(file, int):
                disk.call("create")
            raw = File(file, mode.replace("b", ""))
            return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

        builtins.open = io.open = opened
        for name in ("fsync", "replace", "unlink", "mkdir"):
            setattr(os, name, _counted(disk, name, getattr(os, name)))
        plain_os_open = os.open

        def os_open(path: Any, flags: int, *rest: Any, **named: Any) -> int:
            if flags & os.O_CREAT:
                disk.call("create")
            return plain_os_open(path, flags, *rest, **named)

        os.open = os_open


def _counted(disk: Disk, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*arguments: Any, **named: Any) -> Any:
        disk.call(name)
        return function(*arguments, **named)

    return counted


def images_of(count: int, seed: int) -> ImageData:
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % 3).astype(np.int32)
    images = rng.integers(0, 256, (count, 8, 8, 3)) // 3 + labels[:, None, None, None] * 40
    return ImageData(images.astype(np.uint8), labels)


def prepare(config: TrainConfig) -> ClassificationTask:
    """A small network with batch normalization, and its data."""
    import mxnet as mx
    from mxnet.gluon import nn

    np.random.seed(config.seed)
    mx.random.seed(config.seed)
    net = nn.HybridSequential()
    net.add(nn.Conv2D(4, 3, in_channels=3), nn.BatchNorm(in_channels=4), nn.Activation("relu"))
    net.add(nn.GlobalAvgPool2D(), nn.Flatten(), nn.Dense(3, in_units=4))
    net.initialize(mx.init.Xavier(), ctx=[mx.cpu()])
    net.hybridize(static_alloc=True, static_shape=True)
    names, grey = ("a", "b", "c"), ((0.5,) * 3, (0.2,) * 3)
    data = Dataset("tiny", images_of(20, 1), images_of(7, 2), names, *grey)
    loaders, files = build_loaders(config, data, 3), {"preprocessing.json": b"{}\n"}
    return ClassificationTask(net, build_trainer(net, config), [mx.cpu()], loaders, files)


def train(folder: Path) -> int:
    """Start the run in `folder`, or go on with the one that is there; return the exit code."""
    from training.settings.exit_code import exit_code

    if (folder / "config.json").exists():
        given: dict[str, Any] = {"resume": str(folder)}
        config = replace(CONFIG, resume=str(folder))
    else:
        given, config = {}, replace(CONFIG, run_dir=str(folder))
    return exit_code(lambda: train_module.train("train_tiny.py", config, given, (), prepare))


def child(folder: Path, fault: Fault, log: Path) -> int:
    """Train in a forked process; `log` gets what it says and then, as JSON, the calls it made."""
    # What is not looked at here and costs time: curves, and the state of the repository.
    train_module.plot_runs = lambda folders, *_: Path(folders[0]) / "curves.png"
    environment._git_state = lambda *_: None
    text = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(text, 1)
    os.dup2(text, 2)
    disk = Disk(fault)
    if fault.how != RANDOM:
        disk.install()
    code = train(folder)
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(text, b"\n" + json.dumps(disk.calls).encode())
    return code


# ----------------------------------------------------------------------------------- in the parent


def run(folder: Path, fault: Fault, after: Optional[float] = None) -> tuple[int, str]:
    """Fork a child, kill it `after` so many seconds; return its exit code (or -signal) and log."""
    log = folder.parent / "log.txt"
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if not process:
        code = 70
        try:
            code = child(folder, fault, log)
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    if after is not None:
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
    return code, log.read_text(errors="replace") if log.exists() else ""


def import_everything() -> None:
    """Import what a training does, once and before the forks."""
    for name in ("gluoncv", "mxboard.writer", "PIL.Image", "tqdm", "training.loop.fit"):
        importlib.import_module(name)


def require(condition: object, message: str) -> None:
    if not condition:
        raise Failure(message)


def events(folder: Path) -> Counter:
    """Every scalar in the event files but times: (chart, tag, step, value), and how often."""
    from mxboard.proto import event_pb2

    found: Counter = Counter()
    for path in folder.rglob("events.out.tfevents.*"):
        data, start = path.read_bytes(), 0
        while start < len(data):
            length = int.from_bytes(data[start : start + 8], "little")
            event = event_pb2.Event.FromString(data[start + 12 : start + 12 + length])
            start += 16 + length
            for value in event.summary.value:
                if value.tag not in ("throughput", "wall_sec"):
                    key = (path.parent.name, value.tag, event.step, value.simple_value)
                    found[key] += 1
        require(start == len(data), f"{path} ends in the middle of a record")
    return found


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that a run leaves but times, comparable bit for bit."""
    progress, arrays, meta = load_state(folder)
    rows = read_metrics(folder)
    names = {p.name for p in folder.iterdir()} - {".lock", "env.json", "config.json", METRICS_FILE}
    names = {n for n in names if not n.startswith(("events.", STATE_FILE))}
    files = {n: (folder / n).read_bytes() for n in sorted(names) if (folder / n).is_file()}
    return {
        "progress": replace(progress, wall_sec=0.0),
        "arrays": {name: (value.dtype, value.tobytes()) for name, value in arrays.items()},
        "counts": (meta["counts"], meta["num_update"], meta["verified"]),
        "rows": [{k: v for k, v in row.items() if k not in TIMES} for row in rows],
        "files": files,
        "digests": [verify_digest(path) for path in sorted(folder.glob("*.param"))],
        "events": events(folder),
    }


def check_what_is_there(folder: Path) -> None:
    """Require every file under a proper name to be whole, and to have its digest or none."""
    if folder.exists():
        for path in [*folder.glob("*.param"), *folder.glob(STATE_FILE)]:
            verify_digest(path)
            read_params(path)
        for name in ("config.json", "env.json"):
            if (folder / name).exists():
                json.loads((folder / name).read_bytes())


class Trials:
    """The uninterrupted run, and trials against it."""

    def __init__(self, place: Path, seed: int = 0) -> None:
        self.folder, self.done = place / "run", Counter[str]()
        self._rng = np.random.default_rng(seed)
        import_everything()
        begin = time.monotonic()
        code, log = run(self.folder, Fault())
        self.seconds = time.monotonic() - begin
        require(code == 0, f"the uninterrupted run ended with {code}:\n{log[-SHOWN_ERRORS:]}")
        self.calls: list[str] = json.loads(log.splitlines()[-1])
        self.whole = outcome(self.folder)

    def trial(self, fault: Fault) -> bool:
        """Run, fail, resume, compare. Returns False when a random kill came too late."""
        shutil.rmtree(self.folder, ignore_errors=True)
        after = self._rng.uniform(0, self.seconds) if fault.how == RANDOM else None
        code, log = run(self.folder, fault, after)
        if code == 0 and fault.how == RANDOM:
            return False
        name = f"{fault.how}, call {fault.at} of {len(self.calls)}"
        self._check_end(name, fault, code, log)
        check_what_is_there(self.folder)
        code, log = run(self.folder, Fault(how=RANDOM))
        require(code == 0, f"{name}: the resumed run ended with {code}:\n{log[-SHOWN_ERRORS:]}")
        found = outcome(self.folder)
        wrong = [part for part, expected in self.whole.items() if found[part] != expected]
        require(not wrong, f"{name}: after the resume these differ: {', '.join(wrong)}")
        self.done[fault.how] += 1
        return True

    def _check_end(self, name: str, fault: Fault, code: int, log: str) -> None:
        if fault.how != FULL:
            require(code == -signal.SIGKILL, f"{name}: ended with {code}:\n{log[-SHOWN_ERRORS:]}")
            return
        errors = [line for line in log.splitlines() if line.startswith("error: ")]
        clear = len(errors) == 1 and "No space left on device" in errors[0]
        require(code == 2 and clear, f"{name}: ended with {code}:\n{log[-SHOWN_ERRORS:]}")

    def places(self, every: int, part: int, parts: int) -> Iterator[Fault]:
        """Each `every`-th place at which something can happen; of these, one of several parts."""
        faults = []
        for number, kind in enumerate(self.calls, 1):
            faults.append(Fault(number, KILL))
            faults += [Fault(number, HALF)] if kind == WRITE else []
            faults += [Fault(number, FULL)] if kind in NEEDS_ROOM else []
        yield from faults[every // 2 :: every][part - 1 :: parts]

    def random(self, count: int) -> None:
        """Kill at so many random moments."""
        while self.done[RANDOM] < count:
            self.trial(Fault(how=RANDOM))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="only every so many places")
    parser.add_argument("--part", default="1/1", help="1/4: the first of four processes")
    parser.add_argument("--random", type=int, default=200, help="kills at random moments")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    arguments = parser.parse_args()
    part, parts = map(int, arguments.part.split("/"))
    # In memory where that can be: a disk would make it slow, and a killed process loses neither.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as place:
        trials = Trials(Path(place), arguments.seed + part)
        kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(trials.calls).items())
        print(f"the uninterrupted run changes the disk in {len(trials.calls)} calls: {kinds}")
        for fault in trials.places(arguments.every, part, parts):
            trials.trial(fault)
            if sum(trials.done.values()) % 50 == 0:
                print(f"{sum(trials.done.values())} trials done", flush=True)
        trials.random(arguments.random // parts)
    done = trials.done
    kills = done[KILL] + done[HALF] + done[RANDOM]
    used = sum(map(_cpu_seconds, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
    print(
        f"{kills} kills survived ({done[KILL]} before a call, {done[HALF]} in the middle of a "
        f"write, {done[RANDOM]} at random moments) and {done[FULL]} full disks: every run was "
        f"resumed and ended bit for bit as the uninterrupted one; {used:.0f} s of processor time"
    )
    return 0


def _cpu_seconds(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())
