"""What a training script says on the terminal at its start and end."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from formats.atomic import PathLike
from formats.errors import quoted
from machine.processor import cpu_name, instructions
from training.batches.in_memory import Loaders
from training.compute.devices import device_names
from training.compute.gpu_info import gpu_lines, has_cuda, list_gpus, visible_gpus
from training.compute.thread_choice import recorded_threads
from training.distributed.group import Group
from training.loop.fit import Result
from training.records.environment import describe_threads, threads_text, warn, warn_threads
from training.records.run_folder import LAST_FILE, STATE_FILE, read_env, weight_files
from training.records.run_progress import Progress
from training.settings.config import diff_from_default
from training.settings.run_config import DIST_SYNC, HOROVOD, NONE, RunConfig, words_of

SAID = ("precision", "threads")  # by the line itself, before it says what is not the default


def announce(
    config: RunConfig,
    contexts: Sequence[Any],
    loaders: Loaders,
    folder: Path,
    progress: Progress,
    workers: int = 1,
) -> None:
    """Say what is trained on what, where, by how many, and what is not the default."""
    held_out = f", {len(loaders.valid.data)} held out" if loaders.valid else ""
    print(
        f"{config.model} on {config.dataset}: {len(loaders.train.data)} images to train{held_out}, "
        f"{len(loaders.test.data)} to test"
    )
    _tell_batches(config, len(loaders.train.data))
    gpus = visible_gpus(list_gpus())
    for line in gpu_lines(gpus, bool(gpus) and has_cuda()):
        print(line)
    print(f"processor: {cpu_name()}, {instructions()}")
    each = f"{workers} workers, each on " if workers > 1 else "on "
    print(
        f"{each}{device_names(contexts)}, {config.precision}, {threads_text()}; "
        f"changed from default: {diff_from_default(config, but=SAID) or 'nothing'}"
    )
    warn_late_threads(config.threads)
    where = f"goes on after epoch {progress.epoch}, batch {progress.batch}"
    print(f"run folder {folder}, {where if progress.step else 'starts'}", flush=True)
    if progress.epoch >= config.epochs:
        print(
            f"all {config.epochs} epochs are done; a new run from its weights: "
            f"--finetune {quoted(folder / LAST_FILE)}"
        )


def _tell_batches(config: Any, images: int) -> None:
    """Say what the updates of an epoch of so many images leave out, if anything."""
    drawn, chooses = config.drawn_images(), config.drawn_images() > config.batch_size
    share = f", --harder-share {config.harder_share:g}" if chooses else ""
    if left := images % drawn:
        print(
            f"each epoch leaves out {left} of the images to train, drawn anew: batches are whole "
            f"(--batch-size {config.batch_size}{share})"
        )
    if chooses:
        print(
            f"each update draws {drawn} images and trains on the {config.batch_size} with the "
            f"largest loss in the proxy {config.proxy}; train loss and accuracy are over these "
            "harder images, images/s and the bar over all that are drawn"
        )


def warn_of_changes(
    folder: PathLike, progress: Progress, now: Mapping[str, Any], workers: int, devices: int
) -> None:
    """Warn when a resumed run is computed otherwise than before, which its numbers will show.

    `now` is what `training.records.environment.describe` says of this process; `devices` are those
    of all workers.
    """
    env = read_env(folder)
    warn_threads(recorded_threads(env) or progress.threads, now["threads"]["effective"])
    if progress.workers != workers:
        warn(
            f"this run was made with {progress.workers} worker(s) and goes on with {workers}; "
            "batch-norm statistics are then over other images."
        )
    elif progress.devices not in (None, devices):
        warn(
            f"this run was made on {progress.devices} device(s) and goes on on {devices}; "
            "batch-norm statistics are then over other images."
        )
    for name in ("training_steps", "precision"):
        # Without what it is followed by in brackets or after a colon: versions and reasons.
        before, here = (re.split(r" \(|: ", str(f.get(name) or ""))[0] for f in (env, now))
        if before and here and before != here:
            warn(
                f"this run was made by {before} and goes on by {here}; numbers are then rounded "
                "differently."
            )


def warn_late_threads(wanted: Optional[int]) -> None:
    """Warn where --threads was given to a process that had loaded OpenMP before."""
    effective = describe_threads()["effective"]
    if wanted not in (None, effective):
        warn(
            f"--threads {wanted} came too late, this process has {effective}: start the script as "
            "a program, or set OMP_NUM_THREADS before it"
        )


def restart_command(
    script: str, config: Any, group: Group, folder: Path, told: Mapping[str, Any]
) -> str:
    """Return the command that goes on with a run; `told` are settings that it must name again."""
    engine = getattr(config, "distributed", NONE)
    place = " ".join([quoted(folder), *(word for name in told for word in words_of(name, told))])
    if engine == HOROVOD:
        words = f"horovodrun -np {group.size} {python_word()} {script} --distributed horovod"
        return f"{words} --resume {place}"
    if engine == DIST_SYNC:
        chosen = "" if script == "train_cifar.py" else f"--script {script} "
        return f"{python_word()} -m training.launch -n {group.size} {chosen}-- --resume {place}"
    return f"{started_as(script)} --resume {place}"


def started_as(script: str) -> str:
    """Return how a user starts a script: by the wheel's command, where that started this one."""
    command = Path(sys.argv[0]).name
    if command.startswith("attention-"):
        return command
    return f"{python_word()} {quoted(sys.argv[0]) if command == script else script}"


def python_word() -> str:
    """Return how a shell in this folder starts this Python: by its name where that finds it."""
    found = shutil.which("python")
    if found and os.path.abspath(found) == os.path.abspath(sys.executable):
        return "python"
    near = os.path.relpath(sys.executable)
    return quoted(sys.executable if near.startswith(os.pardir) else near)


def warn_unverified(folder: str, meta: Mapping[str, Any]) -> None:
    """Say that the checkpoint of a run has no digest beside it; only its structure was checked."""
    if not meta["verified"]:
        print(
            f"warning: {folder}/{STATE_FILE} is unverified: there is no {STATE_FILE}.sha256 beside "
            "it, so only its structure could be checked",
            file=sys.stderr,
        )


def report(result: Result, folder: Path, curves: Path, held_out: bool) -> None:
    """Say how a finished run scored and what it wrote."""
    if result.scores:
        print(
            f"last epoch: test loss {result.scores.loss:.4f}, accuracy {result.scores.acc:.5f} "
            f"over {result.scores.images} images"
        )
    print(result.progress.best_line(held_out))
    print(f"wrote {', '.join([*weight_files(folder), str(curves)])}")
