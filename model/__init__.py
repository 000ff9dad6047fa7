"""Networks. ``create_model(name, classes=10)`` builds one, ``list_models()`` names them."""

from __future__ import annotations

from model.registry import ModelError, create_model, list_models

__all__ = ["ModelError", "create_model", "list_models"]
