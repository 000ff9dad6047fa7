"""MXNet's parameter files without MXNet (NumPy and the standard library)."""

from __future__ import annotations

from bridge.atomic import write_atomically

__all__ = ["write_atomically"]
