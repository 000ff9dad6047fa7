"""Moved: `training.compare` is `training.reports.compare` now, and goes on working."""

from __future__ import annotations

import sys

from training.reports.compare import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
