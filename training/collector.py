"""The garbage collector of Python in a training that makes many small objects a step."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def only_new_objects() -> Iterator[None]:
    """Let collections look at nothing that is older than this block.

    An update makes thousands of short-lived objects, so Python goes through all objects again and
    again; modules, network and data are most of them, and they stay.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
