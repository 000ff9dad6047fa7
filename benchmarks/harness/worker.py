"""The worker's side of an interleaved benchmark: answers one request a line, until its input ends.

A worker runs in an environment of its own, so that this file needs the standard library alone. Its
first line says that it is ready and what it is; then it reads ``{"do": NAME, ...}`` and answers
``{...}``, or ``{"error": TEXT}``, each one line of JSON. ``interleave.py`` is the other side.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

Action = Callable[..., dict[str, Any]]


def serve(make: Callable[[], tuple[Mapping[str, Any], Mapping[str, Action]]]) -> None:
    """Prepare, announce what is ready, then answer until the input ends.

    Parameters
    ----------
    make
        Called once; returns what the first line says of this worker (versions, checks made) and the
        actions by name. An action takes a request's other entries by name.
    """
    # What a library prints must not come between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(answer: Mapping[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    about, actions = make()
    say({"ready": True, **about})
    for line in sys.stdin:
        request = json.loads(line)
        name = request.pop("do")
        try:
            say(actions[name](**request))
        except Exception as error:
            say({"error": f"{name}: {type(error).__name__}: {error}"})
    # Some libraries' threads outlive the interpreter's end noisily; all is said by now.
    with contextlib.suppress(BrokenPipeError):
        answers.close()
    os._exit(0)


def timed(
    steps: Mapping[str, Callable[[], object]], finish: Callable[[], object] = lambda: None
) -> Action:
    """Return the action ``time``: run one of `steps` several times and report seconds per step.

    `finish` waits for what steps have only queued, and is timed too. ``peak_mib`` is the largest
    resident memory of the process so far.
    """

    def action(case: str, repeat: int) -> dict[str, Any]:
        step = steps[case]
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(repeat):
            step()
        finish()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        return {
            "seconds": seconds / repeat,
            "cpu_seconds": cpu_seconds / repeat,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }

    return action
