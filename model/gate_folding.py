"""Moved: `model.gate_folding` is `model.execution.gate_folding` now, and goes on working."""

from __future__ import annotations

from model.execution.gate_folding import fold_gates

__all__ = ["fold_gates"]
