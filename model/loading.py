"""Moved: `model.loading` is `model.weights.loading` now, and goes on working."""

from __future__ import annotations

from model.weights.file_match import LoadError, find_model
from model.weights.loading import LoadResult, load_parameters

__all__ = ["LoadError", "LoadResult", "find_model", "load_parameters"]
