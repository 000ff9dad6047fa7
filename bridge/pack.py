"""Moved: `bridge.pack` is `bridge.carry.pack` now, and goes on working."""

from __future__ import annotations

import sys

from bridge.carry.pack import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
