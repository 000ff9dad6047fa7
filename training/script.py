"""What the training scripts share: a training from its settings to its end, and exit codes.

A script is wiring: it says which settings it knows and how a network and its data come out of them
(`Script.prepare`); everything else, from a new or resumed run folder to the last line on the
terminal, is `Script.train`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Callable, Generic, NamedTuple, TypeVar

from bridge.param_file import ParamFileError
from training.config import from_dict, to_dict
from training.errors import UserError
from training.run_config import RunConfig
from training.task import Task

WRONG_INPUT_EXIT = 2
INTERRUPTED_EXIT = 130  # what a shell reports for a program that Ctrl-C ended
# Settings that may be another at a resume: where things are, not what is computed.
RESUMABLE = (
    *("data_dir", "mirror", "download", "gpus", "checkpoint_minutes", "keep"),
    *("on_nonfinite", "nonfinite_limit"),  # these change nothing as long as all is finite
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

        `given` are the settings that the user has named: a resume takes only `RESUMABLE` from them.

        Raises
        ------
        UserError
            For settings, data or a run folder that cannot be used.
        """
        from training.announce import (
            announce,
            default_folder,
            report,
            warn_threads,
            warn_unverified,
        )
        from training.checkpoint import Progress, load_state, restore
        from training.environment import describe
        from training.fit import Fit
        from training.plot import plot_runs
        from training.record import Run
        from training.run_folder import has_begun, hold

        check_resume(given)
        progress, state = Progress(), None
        with contextlib.ExitStack() as held:
            if config.resume:
                config = self._saved(Path(config.resume), given)
                # Before anything is read: the process that has it open would go on writing.
                lock = held.enter_context(hold(str(config.resume)))
                if has_begun(str(config.resume)):
                    progress, *state = load_state(str(config.resume))
                    warn_unverified(str(config.resume), state[1])
                else:
                    held.close()
                    config = replace(config, resume=None, run_dir=config.resume)
            task, files, chosen = self.prepare(config)
            config = chosen or config
            if state:
                restore(task.net, task.trainer, *state)
                warn_threads(progress.threads, describe()["threads"]["effective"])
                run = Run.resume(str(config.resume), progress.epoch, lock)
                held.pop_all()  # the run closes it
        if not state:
            folder = Path(config.run_dir or default_folder(config.dataset, config.model))
            run = Run.create(folder, to_dict(config), [self.name, *argv])
            progress.threads = describe()["threads"]["effective"]
        with run, going_on(run.folder):
            for name, content in files.items() if not state else ():
                run.write(name, content)
            announce(config, task.contexts, task.loaders, run.folder, progress)
            result = Fit(task, config, run, progress).run_epochs()
        if result.signal is not None:
            print(f"saved; go on with: python {self.name} --resume {run.folder}")
            return INTERRUPTED_EXIT if result.signal == signal.SIGINT else 0
        report(result, run.folder, plot_runs([run.folder]), config.holds_out())
        self.finish(config, run.folder)
        return 0

    def _saved(self, folder: Path, given: Mapping[str, Any]) -> C:
        """Return the settings of a run, with what may be another at a resume."""
        from training.record import read_config

        saved = from_dict(self.config_class, read_config(folder))
        here = {name: given[name] for name in RESUMABLE if name in given}
        config = replace(saved, **here, resume=str(folder))
        config.check()
        return config


@contextlib.contextmanager
def going_on(folder: Path) -> Iterator[None]:
    """Add to the error of a file that could not be written how the run goes on."""
    try:
        yield
    except ParamFileError as error:
        raise UserError(f"{error} Then go on with --resume {folder}") from error


def check_resume(given: Mapping[str, Any]) -> None:
    """Refuse settings that a resumed run would not heed."""
    ignored = [name for name in given if name not in (*RESUMABLE, "resume")]
    if given.get("resume") and ignored:
        flags = ", ".join("--" + name.replace("_", "-") for name in ignored)
        raise UserError(
            f"--resume keeps the settings of the run; {flags} cannot be changed. Leave them out, "
            "or start a new run"
        )


def exit_code(action: Callable[[], int], *errors: type[Exception]) -> int:
    """Return what `action` returns; for UserError, ParamFileError and `errors` print one line.

    So does what the system refuses (a full disk, a folder that has gone) and nobody has explained.

    Ctrl-C outside of the training loop, which saves first, ends without a word.
    """
    handled: tuple[type[Exception], ...] = (UserError, ParamFileError, *errors)
    try:
        return action()
    except KeyboardInterrupt:
        return INTERRUPTED_EXIT
    except handled as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:
        # Whoever read our words, such as head, has gone; Python would complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        place = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        print(
            f"error: {place}{error.strerror or error}. Check the path, its permissions and the "
            "disk; a run goes on with --resume",
            file=sys.stderr,
        )
    return WRONG_INPUT_EXIT
