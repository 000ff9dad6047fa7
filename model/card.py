"""``python -m model.card FILE``: a short way to `model.weights.card`."""

from __future__ import annotations

import sys

from model.weights.card import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
