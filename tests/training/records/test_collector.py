"""Collections leave alone what was there before."""

from __future__ import annotations

import gc
import weakref

import pytest

from training.records.interruption import only_new_objects


class Loop:
    """An object that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


def test_old_objects_are_frozen_and_new_garbage_is_not() -> None:
    with only_new_objects():
        assert gc.get_freeze_count() > 1000
        gone = weakref.ref(Loop())
        gc.collect()
        assert gone() is None
    assert gc.get_freeze_count() == 0


def test_it_ends_with_an_error_too() -> None:
    with pytest.raises(KeyError), only_new_objects():
        raise KeyError
    assert gc.get_freeze_count() == 0
