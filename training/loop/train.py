"""What the training scripts share: a training from its settings to its end, and exit codes.

A script is wiring: it says which settings it knows and how a network and its data come out of them
(`Script.prepare`); everything else, from a new or resumed run folder to the last line on the
terminal, is `Script.train`.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Callable, Generic, NamedTuple, Optional, TypeVar

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
from training.loop.checkpoint import restore
from training.loop.fit import Fit
from training.loop.task import Task
from training.records.environment import describe
from training.records.run import Run
from training.records.run_folder import default_folder, has_begun, hold, read_config
from training.records.run_progress import Progress
from training.records.state_file import load_state
from training.reports.plot import plot_runs
from training.settings.config import from_dict, to_dict
from training.settings.errors import UserError, quoted
from training.settings.exit_code import (
    INTERRUPTED_EXIT,
    WRONG_INPUT_EXIT,
)
from training.settings.run_config import (
    AT_RESUME,
    NONE,
    RESUMABLE,
    RunConfig,
    check_resume,
)

C = TypeVar("C", bound=RunConfig)


class Prepared(NamedTuple):
    """What a training needs beside its settings.

    ``files`` go into the folder of a new run; ``config`` are the settings with what was chosen for
    those that left it open, None: nothing was.
    """

    task: Task
    files: Mapping[str, bytes] = {}
    config: Any = None


class Place(NamedTuple):
    """Where a worker reads a run from that goes on, and the lock that worker 0 has on it.

    ``begun`` is False where the run has nothing yet to go on from.
    """

    source: Optional[Path]
    lock: Optional[IO[bytes]]
    begun: bool


@dataclass(frozen=True)
class Script(Generic[C]):
    """One training script.

    Parameters
    ----------
    name
        The file, as users start it: ``train_cifar.py``.
    config_class
        Its settings; ``check()`` raises UserError.
    prepare
        Builds network and data from the settings. Everything that can be wrong fails here, before
        a run folder is made. It leaves ``config.finetune`` alone when ``config.resume`` is set.
    finish
        Called at the end of a complete training, with its settings and folder.
    """

    name: str
    config_class: type[C]
    prepare: Callable[[C], Prepared]
    finish: Callable[[C, Path], None] = lambda config, folder: None

    def train(self, config: C, given: Mapping[str, Any], argv: Sequence[str] = ()) -> int:
        """Train by `config`, or go on with the run ``config.resume``; return the exit code.

        `given` are the settings that the user has named: a resume takes only `AT_RESUME` from them.

        Raises
        ------
        UserError
            For settings, data or a run folder that cannot be used.
        """
        check_resume(given, AT_RESUME)
        try:
            with joined(config) as group, contextlib.ExitStack() as held:
                mine = config.resume if not group.rank else None
                lock = together(group, lambda: held.enter_context(take(mine)) if mine else None)
                source = held.enter_context(shared_folder(group, config.resume))
                place = Place(source, lock, group.any(bool(mine and has_begun(mine))))
                return self._train(config, given, argv, group, place)
        except OtherWorkerFailed:
            return WRONG_INPUT_EXIT

    def _train(
        self, config: C, given: Mapping[str, Any], argv: Sequence[str], group: Group, place: Place
    ) -> int:
        """Train as one of the workers of `group`; a resume reads the run from `place`."""

        def ready() -> tuple[C, Prepared, Optional[tuple]]:
            chosen, state = scaled(config, group), None
            if config.resume:
                chosen = self._saved(Path(str(place.source)), given)
                if place.begun:
                    state = load_state(str(place.source))
                else:
                    chosen = replace(chosen, resume=None, run_dir=config.resume)
            if group.size > 1 and chosen.precision == "auto":
                chosen = one_precision(chosen, group)
            prepared = self.prepare(own_devices(chosen, group))
            task = prepared.task
            if state and task.loaders.identity:
                compare_with_record(state[0], task.loaders.identity, chosen.data_changed)
                state[0].batch = min(state[0].batch, len(task.loaders.train))
                restore(task.net, task.trainer, *state[1:], group.rank * len(task.contexts))
            if prepared.config:
                chosen = replace(prepared.config, gpus=chosen.gpus)
            return chosen, prepared, state

        config, (task, files, _), state = together(group, ready)
        progress = state[0] if state else Progress()
        if identity := task.loaders.identity:
            progress.data = identity.to_dict()
        agree(group, config, task)
        if not state:
            share_weights(group, task.net)
        opened = together(group, lambda: self._record(config, argv, group, place, state, progress))
        with opened as run, going_on(run.folder):
            if not group.rank:
                for name, content in ({} if state else files).items():
                    run.write(name, content)
                announce(config, task.contexts, task.loaders, run.folder, progress, group.size)
            result = Fit(task, config, run, progress, group).run_epochs()
        if result.signal is not None:
            if not group.rank:
                print(f"saved; go on with: {restart_command(self.name, config, group, run.folder)}")
            return INTERRUPTED_EXIT if result.signal == signal.SIGINT else 0
        if not group.rank:
            report(result, run.folder, plot_runs([run.folder]), bool(task.loaders.valid))
            self.finish(config, run.folder)
        return 0

    def _record(
        self,
        config: C,
        argv: Sequence[str],
        group: Group,
        place: Place,
        state: Optional[tuple],
        progress: Progress,
    ) -> Run:
        """Return the open record of a new or resumed run; the first worker alone keeps one."""
        if group.rank:
            return Follower(str(place.source))
        now = describe()
        if state:
            warn_unverified(str(place.source), state[2])
            warn_of_changes(str(place.source), progress, now, group.size)
            return Run.resume(str(place.source), progress.epoch, place.lock)
        if place.lock:
            place.lock.close()
        progress.threads, progress.workers = now["threads"]["effective"], group.size
        folder = Path(config.run_dir or default_folder(config.dataset, config.model))
        return Run.create(folder, to_dict(config), [self.name, *argv])

    def _saved(self, folder: Path, given: Mapping[str, Any]) -> C:
        """Return the settings of a run, with what may be another at a resume."""
        saved = from_dict(self.config_class, read_config(folder))
        here = {name: given[name] for name in (*RESUMABLE, "precision") if name in given}
        here["data_changed"] = given.get("data_changed", False)
        if hasattr(saved, "distributed"):
            here["distributed"] = given.get("distributed", NONE)
        here.setdefault("threads", None)  # `take_threads` knows from env.json what the run had
        config = replace(saved, **here, resume=str(folder))
        config.check()
        return config


@contextlib.contextmanager
def going_on(folder: Path) -> Iterator[None]:
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


def take(folder: str) -> IO[bytes]:
    """Return the lock of a run that goes on."""
    read_config(folder)  # which says best that there is no run
    # Before all else is read: the process that has it open would go on writing.
    return hold(folder)
