"""A NumPy that still has the names which MXNet, GluonCV and MXBoard ask for."""

from __future__ import annotations

import functools
import types
from typing import Any, Callable


def _gone(name: str) -> Callable[..., Any]:
    def raises(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError(f"NumPy has had no {name} since 1.20: numpy-financial has it")

    raises.__name__ = name
    return raises


def _msort(a: Any) -> Any:
    """Sort along the first axis."""
    import numpy

    return numpy.sort(a, axis=0)


# What to take for a name that NumPy lacks: another of its names, or a value. In which release it
# went is in brackets; the last six are stubs that raise, as they have done since NumPy 1.20.
OTHER_NAMES = {
    "bool": "bool_",  # (1.24) NumPy 2 has it again, with this meaning
    "alltrue": "all",  # (2.0)
    "sometrue": "any",  # (2.0)
    "product": "prod",  # (2.0)
    "round_": "round",  # (2.0)
    "PINF": "inf",  # (2.0)
    "Inf": "inf",  # (2.0)
    "NAN": "nan",  # (2.0)
    "NaN": "nan",  # (2.0)
    "in1d": "isin",  # (2.4)
    "trapz": "trapezoid",  # (2.4)
}
VALUES = {
    "int": int,  # (1.24)
    "float": float,  # (1.24)
    "PZERO": 0.0,  # (2.0)
    "NZERO": -0.0,  # (2.0)
    "NINF": float("-inf"),  # (2.0)
    "compat": types.SimpleNamespace(basestring=str),  # (2.0)
    "msort": _msort,  # (2.0)
    **{name: _gone(name) for name in ("mirr", "npv", "pmt", "ppmt", "pv", "rate")},  # (2.0)
}


class NumPyView(types.ModuleType):
    """NumPy itself, asked name by name, and the lost names beside it."""

    def __getattr__(self, name: str) -> Any:
        import numpy

        # Not hasattr(numpy, name): NumPy 1.24 to 1.26 warn when asked for some of these.
        if name in vars(numpy):
            return vars(numpy)[name]
        if name in OTHER_NAMES:
            return getattr(numpy, OTHER_NAMES[name])
        if name in VALUES:
            return VALUES[name]
        return getattr(numpy, name)

    def __dir__(self) -> list[str]:
        import numpy

        return sorted({*dir(numpy), *OTHER_NAMES, *VALUES})


@functools.cache
def numpy_view() -> NumPyView:
    """Return the one view of NumPy that all patched modules share."""
    return NumPyView("numpy", "NumPy with the names that MXNet 1.9.1 asks for")
