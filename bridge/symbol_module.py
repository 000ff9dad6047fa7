"""Moved: `bridge.symbol_module` is `bridge.graph.symbol_module` now, and goes on working."""

from __future__ import annotations

from bridge.graph.symbol_module import SymbolModule

__all__ = ["SymbolModule"]
