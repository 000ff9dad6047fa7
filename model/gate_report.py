"""Moved: `model.gate_report` is `model.execution.gate_report` now, and goes on working."""

from __future__ import annotations

from model.execution.gate_report import gate_statistics, watch_gates

__all__ = ["gate_statistics", "watch_gates"]
