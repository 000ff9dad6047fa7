"""The text that MXNet's C++ side reads an operator's parameters from.

MXNet writes ``str((2, 3))``. A tuple writes its elements by ``repr``, and since NumPy 2 the repr of
a NumPy number names its type: ``(np.int64(2), 3)``, which the C++ side cannot read.
"""

from __future__ import annotations

import builtins
import functools
from typing import Any


def parameter_text(value: Any = "") -> str:
    """Return ``str(value)``, with the numbers of NumPy in lists, tuples and dicts as plain ones."""
    if isinstance(value, (tuple, list, dict)) and _has_numpy_number(value):
        return _text_within(value)
    return builtins.str(value)


@functools.cache
def _number_types() -> tuple[type, ...]:
    import numpy

    return numpy.number, numpy.bool_


def _is_numpy_number(value: Any) -> bool:
    return isinstance(value, _number_types())


def _has_numpy_number(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_numpy_number(each) for pair in value.items() for each in pair)
    if isinstance(value, (tuple, list)):
        return any(_has_numpy_number(each) for each in value)
    return _is_numpy_number(value)


def _text_within(value: Any) -> str:
    """Return the repr that NumPy 1 gave."""
    if _is_numpy_number(value):
        return builtins.str(value)
    # A subclass with a repr of its own, such as a named tuple, is not taken apart.
    kind: Any = type(value).__repr__
    if kind is dict.__repr__:
        pairs = (f"{_text_within(key)}: {_text_within(each)}" for key, each in value.items())
        return "{" + ", ".join(pairs) + "}"
    if kind is list.__repr__:
        return "[" + ", ".join(_text_within(each) for each in value) + "]"
    if kind is tuple.__repr__:
        inner = ", ".join(_text_within(each) for each in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return repr(value)


class _TextClass(type):
    """Makes a class that answers as `str` does, and writes as `parameter_text` does."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, str)

    def __call__(cls, value: Any = "") -> str:
        return parameter_text(value)


class ParameterText(metaclass=_TextClass):
    """Stands for `str` in modules that also ask ``isinstance(x, str)``."""
