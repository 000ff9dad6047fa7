"""How many OpenMP threads MXNet keeps beside those that compute."""

from __future__ import annotations

import ctypes
import os

import mxnet as mx

LIBRARY = "libgomp.so.1"
SOFT = 1  # omp_pause_soft: what has been set stays
VARIABLE = "MXNET_CPU_PARALLEL_SIZE"  # numbers from which on a copy is made by several threads
NEVER = 2**31 - 1


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


def copy_on_one_thread() -> None:
    """Let the calling thread alone copy into and out of MXNet's arrays; call it before the first.

    Copies of 200,000 numbers or more are else made by a team of OpenMP threads of the thread that
    calls, beside the team of the engine's thread. libgomp then counts more threads than cores and
    lets all of them sleep at every barrier of every operator: on 2 cores and a batch of 128 images
    of 60x60, 3,100 instead of 25 context switches a step, and three times the time. A copy by one
    thread costs a fraction of a millisecond. A value of the user's own is left as it is. The same
    happens where arrays in oneDNN's layout are read, as weights are after an evaluation.
    """
    os.environ.setdefault(VARIABLE, str(NEVER))
    mx.base._LIB.MXSetNumOMPThreads(ctypes.c_int(1))
