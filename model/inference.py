"""Moved: `model.inference` is `model.execution.inference` now, and goes on working."""

from __future__ import annotations

from model.execution.inference import prepare_inference

__all__ = ["prepare_inference"]
