"""Moved: `model.quantization` is `model.execution.quantization` now, and goes on working."""

from __future__ import annotations

from model.execution.quantization import quantize

__all__ = ["quantize"]
