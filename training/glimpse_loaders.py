"""Moved: `training.glimpse_loaders` is `training.glimpse.loaders` now, and goes on working."""

from __future__ import annotations

from training.glimpse.loaders import test_batches

__all__ = ["test_batches"]
