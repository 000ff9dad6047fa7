"""Stand-in for ``distutils.version``, which Python 3.12 removed; setuptools has it too.

MXNet, GluonCV and MXBoard compare release numbers with it, such as 1.26.4 and 1.17.
"""

from __future__ import annotations

import functools
import re
import sys
from typing import Any, Union


@functools.total_ordering
class LooseVersion:
    """A version as a list of numbers and words; a number comes after a word, as 1.0 after 1.rc1."""

    def __init__(self, vstring: str = "") -> None:
        self.vstring = vstring
        parts = re.findall(r"\d+|[a-z]+", vstring.lower())
        self.version = [int(part) if part.isdigit() else part for part in parts]

    def __str__(self) -> str:
        return self.vstring

    def __repr__(self) -> str:
        return f"{type(self).__name__} ('{self.vstring}')"

    def _key(self) -> list[tuple[int, Union[int, str]]]:
        return [(isinstance(part, int), part) for part in self.version]

    def __eq__(self, other: object) -> bool:
        return self._key() == _as_version(other)._key()

    def __lt__(self, other: object) -> bool:
        return self._key() < _as_version(other)._key()

    def __hash__(self) -> int:
        return hash(tuple(self._key()))


class StrictVersion(LooseVersion):
    """The same: MXNet compares releases alone."""


def _as_version(value: Any) -> LooseVersion:
    return value if isinstance(value, LooseVersion) else LooseVersion(str(value))


def version_module() -> Any:
    """Return this module, for ``from distutils.version import LooseVersion``."""
    return sys.modules[__name__]
