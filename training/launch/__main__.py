"""Start the workers of a training with MXNet's parameter server, watch them, end them together.

    python -m training.launch -n 2 -- --recipe quick --epochs 8
    python -m training.launch -n 2 -- --resume runs/NAME

What follows ``--`` goes to ``train_cifar.py``, or another ``--script``. With several machines,
start the same command on each, the first one with its address, and say how many of all workers are
its own::

    python -m training.launch -n 4 --local 2 --address 10.0.0.1 --port 9091 -- ARGS...
    python -m training.launch -n 4 --local 2 --join 10.0.0.1:9091 -- ARGS...

When a worker ends before its time, all of them are ended. SIGTERM, SIGHUP and Ctrl-C are handed on
to the workers, which save; a second Ctrl-C ends them at once. Exit code: that of the first one that
failed; 0 when all came to their end, or saved because of SIGTERM or SIGHUP; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Optional

from formats.errors import UserError, quoted
from machine.cores import physical_cores
from training.compute.thread_choice import VARIABLE, set_threads, share_of
from training.launch.peers import Plan, gather_machines, join_first_machine
from training.launch.processes import Crew, Ended
from training.records.interruption import stop_signals
from training.settings.exit_code import exits
from training.settings.run_config import DIST_SYNC, LOCAL_RANK, LOCAL_SIZE, RANK, SIZE

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "train_cifar.py"
GRACE_SEC = 3.0  # for the others to end by themselves after one has failed
LAST_SEC = 15.0  # for scheduler and servers after the last worker
# `import mxnet` runs a scheduler or server to its end. A server would take pickled commands from
# whoever reaches its port; this project sends none.
# A signal to all processes at once, as a batch system sends it, ends the workers only: they save
# through the servers.
SERVER = """
import pickle, signal
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
def refuse(*_):
    raise RuntimeError("no pickled commands here")
pickle.loads = refuse
import mxnet
"""


class Supervisor:
    """The processes of this machine, until they have ended.

    Parameters
    ----------
    plan
        Which processes, and how they find each other.
    command
        Of a worker.
    """

    def __init__(self, plan: Plan, command: Sequence[str]) -> None:
        self.plan, self.command = plan, command
        self.folder: Optional[str] = None
        self._signals: list[int] = []
        self._workers: list[str] = []
        self._gone: Optional[str] = None
        self._unsaved = False  # a signal has ended workers that could not save

    def run(self) -> int:
        """Start everything, and return the exit code when all has ended."""
        old = {number: signal.signal(number, self._handle) for number in stop_signals()}
        try:
            with Crew() as crew:
                self._start(crew)
                failed = self._watch(crew)
                crew.wait(GRACE_SEC if failed or self._gone else LAST_SEC)
            self.plan.close(done=not (failed or self._gone or self._unsaved))
            return self._report(failed)
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _start(self, crew: Crew) -> None:
        plan = self.plan
        for role, count in (("scheduler", plan.first), ("server", plan.servers)):
            for index in range(count):
                name = role if role == "scheduler" else f"server {index}"
                variables = {**plan.variables(role), "OMP_NUM_THREADS": "1"}
                crew.start(name, [sys.executable, "-c", SERVER], variables, f"[{name}] ")
        threads = self._thread_variables()
        for index in range(plan.local):
            rank = plan.first_rank + index
            variables = {
                **threads,
                "PYTHONUNBUFFERED": "1",
                **plan.variables("worker"),
                RANK: str(rank),
                SIZE: str(plan.workers),
                LOCAL_RANK: str(index),
                LOCAL_SIZE: str(plan.local),
            }
            name = f"worker {rank}"
            crew.start(name, self.command, variables, f"[{rank}] ", self._note)
            self._workers.append(name)
        for peer in plan.peers:
            crew.watch(peer, lambda peer=peer: self._peer_says(crew, peer))  # type: ignore[misc]

    def _thread_variables(self) -> dict[str, str]:
        """Return what gives a worker its share of the cores, where the user has not given one."""
        variables: dict[str, str] = {}
        if not os.environ.get(VARIABLE):
            # Scripts that are none of this project's get it as well.
            set_threads(share_of(physical_cores(), self.plan.local), variables, {})
        return variables

    def _watch(self, crew: Crew) -> Optional[Ended]:
        """Return the first process that failed; None when the workers came to their end."""
        sent, latest = 0, math.inf
        while any(name in crew.running for name in self._workers):
            for ended in crew.step():
                if -ended.code in self._signals and ended.name in self._workers:
                    # Before its training had begun; others may wait for it.
                    self._unsaved, latest = True, min(latest, time.monotonic() + GRACE_SEC)
                elif ended.code and not (self._signals and ended.code == 128 + signal.SIGINT):
                    return ended
            if self._gone:
                return None
            for number in self._signals[sent:]:
                crew.signal(number, self._workers)
                sent += 1
            if signal.SIGINT in self._signals[1:]:  # asked twice, as in one process alone
                self._unsaved, latest = True, -math.inf
            if time.monotonic() >= latest:
                crew.kill()
        return None

    def _peer_says(self, crew: Crew, peer: Any) -> None:
        """Another machine is done (a word), or is gone (the end of the connection)."""
        word = self.plan.hear(peer)
        crew.unwatch(peer)
        if word is None:
            self._gone = f"the launcher on {self.plan.name(peer)} is gone or has failed"

    def _note(self, line: str) -> None:
        found = re.search(r"run folder (.+), (?:starts|goes on)", line)
        if found:
            self.folder = found[1]

    def _handle(self, number: int, _: Optional[FrameType]) -> None:
        self._signals.append(number)

    def _report(self, failed: Optional[Ended]) -> int:
        if not failed and not self._gone:
            if signal.SIGINT in self._signals:
                return 128 + signal.SIGINT
            return 128 + self._signals[0] if self._unsaved else 0
        what = str(failed) if failed else self._gone
        hint = "what it said is above"
        if not failed or failed.code != 2:
            again = "--resume and its run folder"
            if self.folder:
                again = f"--resume {quoted(self.folder)}"
            hint = (
                "all workers were ended. If the run had begun, its last checkpoint is good: start "
                f"this command again with {again} after --"
            )
        print(f"error: {what}; {hint}", file=sys.stderr)
        if not failed:
            return 1
        return failed.code if failed.code > 0 else 128 - failed.code


@exits()
def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    place = given.index("--") if "--" in given else len(given)
    options, words = _parser().parse_args(given[:place]), given[place + 1 :]
    command = worker_command(options.script, words)
    local = options.workers if options.local is None else options.local
    if not 1 <= local <= options.workers or options.servers < 1:
        raise UserError(
            f"-n {options.workers} --local {local} --servers {options.servers}: give at least "
            "one server, and of the workers at least one to this machine"
        )
    if options.join:
        places = {
            "--address": options.address,
            "--port": options.port,
            "--servers": options.servers != 1,
        }
        idle = [flag for flag, value in places.items() if value]
        if idle:
            raise UserError(
                f"{', '.join(idle)} with --join: the first machine says that; leave it out here"
            )
        plan = join_first_machine(options.join, options.workers, local)
    else:
        plan = gather_machines(
            options.address or "127.0.0.1",
            options.port,
            options.workers,
            local,
            options.servers,
        )
    return Supervisor(plan, command).run()


def worker_command(script: str, words: Sequence[str]) -> list[str]:
    """Return the command of a worker.

    Raises
    ------
    UserError
        When there is no such script, or the words name another engine.
    """
    path = Path(script)
    if not path.exists() and not path.is_absolute():
        path = ROOT / path
    if not path.is_file():
        raise UserError(f"--script {script}: there is no such file")
    named = [word for word in words if word.partition("=")[0] == "--distributed"]
    if not named:
        words = [*words, "--distributed", DIST_SYNC]
    elif DIST_SYNC not in " ".join(words):
        raise UserError(f"this command starts workers of {DIST_SYNC}: leave --distributed out")
    return [sys.executable, str(path), *words]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.launch",
        usage="%(prog)s -n N [--flag value ...] -- ARGS...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("-n", "--workers", type=int, required=True, help="workers on all machines together")
    add("--local", type=int, help="workers on this machine (default: all)")
    add("--servers", type=int, default=1, help="parameter servers, on the first machine")
    add("--script", default=SCRIPT, help=f"training script (default: {SCRIPT})")
    add("--address", help="of this, the first machine (default: 127.0.0.1)")
    add("--port", type=int, default=0, help="that other machines join at (default: a free one)")
    add("--join", metavar="ADDRESS:PORT", help="of the first machine, on all others")
    return parser


if __name__ == "__main__":
    sys.exit(main())
