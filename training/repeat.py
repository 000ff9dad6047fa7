"""Moved: `training.repeat` is `training.reports.repeat` now, and goes on working."""

from __future__ import annotations

import sys

from training.reports.repeat import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
