"""Moved: `training.plot` is `training.reports.plot` now, and goes on working."""

from __future__ import annotations

import sys

from training.reports.plot import main, plot_runs

__all__ = ["main", "plot_runs"]

if __name__ == "__main__":
    sys.exit(main())
