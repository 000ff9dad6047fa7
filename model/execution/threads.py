"""How many OpenMP threads MXNet keeps beside those that compute."""

from __future__ import annotations

import ctypes

import mxnet as mx

LIBRARY = "libgomp.so.1"
SOFT = 1  # omp_pause_soft: what has been set stays


def release_callers_team() -> None:
    """Let the calling thread compute alone from now on, and end the OpenMP team that it has.

    MXNet's operators run in threads of its engine, each with its own team. The thread that calls,
    Python's, starts another one when it reads an array that lies in oneDNN's layout, as
    ``asnumpy`` of weights after a forward pass does, and this team stays. libgomp then counts more
    threads than cores, and lets all of them sleep at every barrier of every operator: with
    ResNet-164, one image and 2 threads on 2 cores (AMD Zen 5), 340 context switches and 10 ms
    instead of 1 and 2.5.
    """
    mx.base._LIB.MXSetNumOMPThreads(ctypes.c_int(1))
    try:
        pause = ctypes.CDLL(LIBRARY).omp_pause_resource_all
    except (OSError, AttributeError):  # another OpenMP, or one from before version 5.0
        return
    pause(ctypes.c_int(SOFT))
