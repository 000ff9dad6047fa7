"""Networks: ``create_model(name, classes=10)`` builds one, ``list_models()`` names them, and
``load_classifier(FILE or NAME)`` classifies pictures with a trained one."""

from __future__ import annotations

from model.pretrained.classify import load_classifier
from model.pretrained.create import create_model, list_models
from model.registry import ModelError

__all__ = ["ModelError", "create_model", "list_models", "load_classifier"]
