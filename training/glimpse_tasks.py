"""Moved: `training.glimpse_tasks` is `training.glimpse.data` now, and goes on working."""

from __future__ import annotations

from training.glimpse.data import load_task

__all__ = ["load_task"]
