"""Moved: `model.convert` is `model.weights.convert` now, and goes on working."""

from __future__ import annotations

import sys

from model.weights.convert import convert, main

__all__ = ["convert", "main"]

if __name__ == "__main__":
    sys.exit(main())
