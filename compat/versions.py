"""Versions of installed packages, by their metadata: none of them is imported for it."""

from __future__ import annotations

import re
from typing import Optional


def version_of(distribution: str) -> Optional[str]:
    """Return the version of an installed distribution; None when it is not there."""
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def is_at_least(distribution: str, wanted: str) -> bool:
    """Whether a distribution is installed in version `wanted` (``"1.24"``) or a later one."""
    found = version_of(distribution)
    return found is not None and _numbers(found) >= _numbers(wanted)


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers: (2, 5) of ``2.5rc1``."""
    match = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()
