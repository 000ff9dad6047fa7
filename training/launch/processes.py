"""Processes that live and die together, their output line by line under their names.

Each is the first of a process group of its own, so that what it has started ends with it, and asks
Linux to kill it when its parent is gone, however that happened (``PR_SET_PDEATHSIG``).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Callable, NamedTuple, TextIO

from formats.errors import UserError

PR_SET_PDEATHSIG = 1
POLL_SEC = 0.1
READ_BYTES = 65536


class Ended(NamedTuple):
    """A process that has ended; ``code`` is negative for a signal, as in `subprocess`."""

    name: str
    code: int

    def __str__(self) -> str:
        if self.code >= 0:
            return f"{self.name} ended with exit code {self.code}"
        number = -self.code
        reason = ", as the system does when memory runs out" if number == signal.SIGKILL else ""
        return f"{self.name} was ended by signal {number} ({signal.Signals(number).name}{reason})"


class _Stream:
    """One output of a process, cut into lines."""

    def __init__(self, prefix: str, target: TextIO, note: Callable[[str], None]) -> None:
        self.prefix, self.target, self.note = prefix, target, note
        self._rest = b""

    def write(self, data: bytes) -> None:
        # A progress bar ends its lines by a carriage return.
        *lines, self._rest = (self._rest + data).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._line(line)

    def close(self) -> None:
        self._line(self._rest)
        self._rest = b""

    def _line(self, line: bytes) -> None:
        text = line.decode(errors="replace")
        if not text.strip():
            return
        self.note(text)
        with contextlib.suppress(OSError):  # nobody reads any more: the work goes on
            self.target.write(f"{self.prefix}{text}\n")
            self.target.flush()


class Crew:
    """Running processes; leaving the ``with`` block kills what is left of them."""

    def __init__(self) -> None:
        self.running: dict[str, subprocess.Popen] = {}
        self.ended: list[Ended] = []
        self._selector = selectors.DefaultSelector()

    def start(
        self,
        name: str,
        command: Sequence[str],
        variables: Mapping[str, str],
        prefix: str = "",
        note: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Start a process.

        Parameters
        ----------
        name
            What messages call it.
        command, variables
            Program with arguments, and environment besides that of this process.
        prefix
            In front of each of its lines.
        note
            Gets each line without the prefix.

        Raises
        ------
        UserError
            When the program cannot be started.
        """
        libc, parent = ctypes.CDLL(None), os.getpid()

        def tie_to_parent() -> None:
            if sys.platform == "linux":
                libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)

        try:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={**os.environ, **variables},
                start_new_session=True,
                preexec_fn=tie_to_parent,
            )
        except OSError as error:
            raise UserError(f"cannot start {command[0]}: {error.strerror}") from error
        self.running[name] = process
        pipes: Any = ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        for pipe, target in pipes:
            self._selector.register(pipe, selectors.EVENT_READ, _Stream(prefix, target, note))

    def watch(self, file: Any, action: Callable[[], None]) -> None:
        """Call `action` from `step` whenever `file` can be read."""
        self._selector.register(file, selectors.EVENT_READ, action)

    def unwatch(self, file: Any) -> None:
        """Look at `file` no longer."""
        self._selector.unregister(file)

    def step(self, seconds: float = POLL_SEC) -> list[Ended]:
        """Hand on output for at most `seconds`; return what has ended meanwhile."""
        for key, _ in self._selector.select(seconds):
            if isinstance(key.data, _Stream):
                self._read(key.fileobj, key.data)
            else:
                key.data()
        gone = [name for name, process in self.running.items() if process.poll() is not None]
        found = [Ended(name, self.running.pop(name).returncode) for name in gone]
        self.ended += found
        return found

    def _read(self, pipe: Any, stream: _Stream) -> None:
        data = os.read(pipe.fileno(), READ_BYTES)
        if data:
            stream.write(data)
            return
        stream.close()
        self._selector.unregister(pipe)
        pipe.close()

    def signal(self, number: int, names: Sequence[str]) -> None:
        """Send a signal to those of the processes that still run."""
        for name in names:
            if name in self.running:
                with contextlib.suppress(ProcessLookupError):
                    self.running[name].send_signal(number)

    def wait(self, seconds: float) -> None:
        """Hand on output until all have ended, but not longer than `seconds`."""
        end = time.monotonic() + seconds
        while self.running and time.monotonic() < end:
            self.step(min(POLL_SEC, max(0.0, end - time.monotonic())))

    def kill(self) -> None:
        """End everything that runs, with what it has started, at once; print the last output."""
        for process in self.running.values():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
        for name, process in self.running.items():
            self.ended.append(Ended(name, process.wait()))
        self.running.clear()
        for key in list(self._selector.get_map().values()):
            if isinstance(key.data, _Stream):
                self._drain(key.fileobj, key.data)

    def _drain(self, pipe: Any, stream: _Stream) -> None:
        os.set_blocking(pipe.fileno(), False)
        with contextlib.suppress(BlockingIOError):  # a process that left the group holds it open
            while data := os.read(pipe.fileno(), READ_BYTES):
                stream.write(data)
        stream.close()
        self._selector.unregister(pipe)
        pipe.close()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()
        self._selector.close()
