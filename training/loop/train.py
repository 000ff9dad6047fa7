"""A training from its settings to its end.

A script is wiring: it says how a network and its data come out of its settings; everything else,
from a new or resumed run folder to the last line on the terminal, is `train`.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Callable, NamedTuple, Optional, TypeVar

from formats.errors import UserError, quoted
from formats.param_reader import ParamFileError
from training.data.identity import compare_with_record
from training.distributed.group import Group
from training.distributed.shared_run import (
    Follower,
    OtherWorkerFailed,
    agree,
    joined,
    own_devices,
    scaled,
    share_weights,
    shared_folder,
    together,
)
from training.loop.announce import (
    announce,
    report,
    restart_command,
    warn_of_changes,
    warn_unverified,
)
from training.loop.checkpoint import restore, restore_proxy
from training.loop.fit import Fit, Result
from training.loop.task import Task
from training.records.environment import describe
from training.records.interruption import lasting_streams
from training.records.run import Run
from training.records.run_folder import (
    default_folder,
    has_begun,
    hold,
    read_config,
    refuse_begun,
)
from training.records.run_progress import Progress
from training.records.state_file import devices_of, load_state, normalization_before
from training.reports.plot import plot_runs
from training.settings.config import from_dict, to_dict
from training.settings.exit_code import (
    INTERRUPTED_EXIT,
    WRONG_INPUT_EXIT,
)
from training.settings.run_config import (
    AT_RESUME,
    NONE,
    REPEATED,
    RunConfig,
    check_resume,
)

C = TypeVar("C", bound=RunConfig)


class ResumedRun(NamedTuple):
    """Where a worker reads a run from that goes on, and the lock that worker 0 has on it.

    ``begun`` is False where the run has nothing yet to go on from.
    """

    source: Optional[Path]
    lock: Optional[IO[bytes]]
    begun: bool


@lasting_streams()
def train(
    script: str,
    config: C,
    given: Mapping[str, Any],
    argv: Sequence[str],
    prepare: Callable[[C], Task],
    finish: Callable[[C, Path], None] = lambda config, folder: None,
) -> int:
    """Train by `config`, or go on with the run ``config.resume``; return the exit code.

    Parameters
    ----------
    script
        The file, as users start it: ``train_cifar.py``.
    config
        Its settings.
    given
        Those that the user has named: a resume takes only `AT_RESUME` from them.
    argv
        The command line, for the record.
    prepare
        Builds network and data from the settings. Everything that can be wrong fails here, before
        a run folder is made. It leaves ``config.finetune`` alone when ``config.resume`` is set.
    finish
        Called at the end of a complete training, with its settings and folder.

    Raises
    ------
    UserError
        For settings, data or a run folder that cannot be used.
    """
    check_resume(given, AT_RESUME)
    try:
        with joined(config) as group, contextlib.ExitStack() as held:
            mine = config.resume if not group.rank else None
            lock = together(group, lambda: held.enter_context(lock_run(mine)) if mine else None)
            source = held.enter_context(shared_folder(group, config.resume))
            resumed = ResumedRun(source, lock, group.any(bool(mine and has_begun(mine))))
            task, state = together(group, lambda: ready(config, given, prepare, group, resumed))
            config = task.config
            result, folder = run_task(task, state, [script, *argv], group, resumed)
            if group.rank:
                pass  # the first worker says it for all
            elif result.signal is not None:
                told = {k: v for k, v in given.items() if config.resume and k in REPEATED}
                command = restart_command(script, config, group, folder, told)
                print(f"saved; go on with: {command}")
            else:
                report(result, folder, plot_runs([folder]), bool(task.loaders.valid))
                finish(config, folder)
    except OtherWorkerFailed:
        return WRONG_INPUT_EXIT
    return INTERRUPTED_EXIT if result.signal == signal.SIGINT else 0


def ready(
    config: C,
    given: Mapping[str, Any],
    prepare: Callable[[C], Task],
    group: Group,
    resumed: ResumedRun,
) -> tuple[Task, Optional[tuple]]:
    """Return what is trained, with its settings, and the state of a run that goes on."""
    chosen, state = scaled(config, group), None
    if config.run_dir and not config.resume and not group.rank:
        refuse_begun(config.run_dir)  # before data is read and steps are timed
    if config.resume:
        chosen = saved_settings(type(config), Path(str(resumed.source)), given)
        if resumed.begun:
            state = load_state(str(resumed.source))
        else:
            chosen = replace(chosen, resume=None, run_dir=config.resume)
    if group.size > 1 and chosen.precision == "auto":
        chosen = one_precision(chosen, group)
    task = prepare(own_devices(as_before(chosen, resumed) if state else chosen, group))
    if state:
        if task.loaders.identity:
            now = task.loaders.identity
            if compare_with_record(state[0], now, chosen.data_changed):
                state[0].take_other_data(len(task.loaders.train), chosen.epochs)
        first = group.rank * len(task.contexts)
        restore(task.net, task.trainer, *state[1:], first, group.size * len(task.contexts))
        restore_proxy(task.proxy, *state[1:])
    own = {n: getattr(chosen, n) for n in ("gpus", "normalization") if hasattr(chosen, n)}
    task.config = replace(task.config, **own) if task.config else chosen
    return task, state


def as_before(config: C, resumed: ResumedRun) -> C:
    """Return the settings with the figures that the run has normalized its images by."""
    named = getattr(config, "normalization", None)
    found = normalization_before(str(resumed.source), named)
    return config if found == named else replace(config, normalization=found)  # type: ignore[call-arg]


def run_task(
    task: Task, state: Optional[tuple], command: Sequence[str], group: Group, resumed: ResumedRun
) -> tuple[Result, Path]:
    """Train as one of the workers of `group`; return how it ended, and the run folder."""
    config, progress = task.config, state[0] if state else Progress()
    if task.loaders.identity:
        progress.data = task.loaders.identity.to_dict()
    agree(group, config, task)
    if not state:
        share_weights(group, task.net)
    devices = group.size * len(task.contexts)
    opened = together(
        group, lambda: open_run(config, command, group, resumed, state, progress, devices)
    )
    progress.devices = devices
    with opened as run, telling_how_to_resume(run.folder):
        if not group.rank:
            for name, content in ({} if state else task.files).items():
                run.write(name, content)
            announce(config, task.contexts, task.loaders, run.folder, progress, group.size)
        return Fit(task, config, run, progress, group).run_epochs(), run.folder


def open_run(
    config: RunConfig,
    command: Sequence[str],
    group: Group,
    resumed: ResumedRun,
    state: Optional[tuple],
    progress: Progress,
    devices: int,
) -> Run:
    """Return the open record of a new or resumed run; the first worker alone keeps one."""
    if group.rank:
        return Follower(str(resumed.source))
    now = describe()
    if state:
        # A state of an older version does not count them.
        progress.devices = progress.devices or devices_of(state[1])
        warn_unverified(str(resumed.source), state[2])
        warn_of_changes(str(resumed.source), progress, now, group.size, devices)
        return Run.resume(str(resumed.source), progress.epoch, resumed.lock)
    if resumed.lock:
        resumed.lock.close()
    progress.threads, progress.workers = now["threads"]["effective"], group.size
    folder = Path(config.run_dir or default_folder(config.dataset, config.model))
    return Run.create(folder, to_dict(config), command)


def saved_settings(config_class: type[C], folder: Path, given: Mapping[str, Any]) -> C:
    """Return the settings of a run, with what may be another at a resume."""
    saved = from_dict(config_class, read_config(folder))
    here = {name: given[name] for name in REPEATED if name in given}
    here["data_changed"] = given.get("data_changed", False)
    if hasattr(saved, "distributed"):
        here["distributed"] = given.get("distributed", NONE)
    here.setdefault("threads", None)  # `take_threads` knows from env.json what the run had
    config = replace(saved, **here, resume=str(folder))
    config.check()
    return config


@contextlib.contextmanager
def telling_how_to_resume(folder: Path) -> Iterator[None]:
    """Add to the error of a file that could not be written how the run goes on."""
    try:
        yield
    except ParamFileError as error:
        raise UserError(f"{error} Then go on with --resume {quoted(folder)}") from error


def one_precision(config: C, group: Group) -> C:
    """Return the settings with the precision that workers have who must not measure by themselves.

    Each would have another timing.
    """
    if not group.rank:
        print("float32: several workers do not measure; --precision bfloat16 may be faster")
    return replace(config, precision="float32")


def lock_run(folder: str) -> IO[bytes]:
    """Return the lock of a run that goes on."""
    read_config(folder)  # which says best that there is no run
    # Before all else is read: the process that has it open would go on writing.
    return hold(folder)
