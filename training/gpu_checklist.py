"""Moved: `training.gpu_checklist` is `training.loop.gpu_checklist` now, and goes on working."""

from __future__ import annotations

import sys

from training.loop.gpu_checklist import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
