"""Moved: python -m model.export is `training.apply.export` now, and goes on working."""

from __future__ import annotations

import sys

from training.apply.export import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
