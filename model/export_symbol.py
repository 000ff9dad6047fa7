"""Moved: `model.export_symbol` is `model.export.export_symbol` now, and goes on working."""

from __future__ import annotations

import sys

from model.export.export_symbol import export_symbol, main, symbol_json

__all__ = ["export_symbol", "main", "symbol_json"]

if __name__ == "__main__":
    sys.exit(main())
