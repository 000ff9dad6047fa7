"""Networks: ``create_model(name, classes=10)`` builds one, ``list_models()`` names them, and
``load_classifier(FILE or NAME)`` classifies pictures with a trained one."""

from __future__ import annotations

import sys
from importlib.util import find_spec

if find_spec("mxnet") is None:
    raise ModuleNotFoundError(
        f"{sys.executable} has no mxnet, which networks need: run make setup once in the project's "
        "folder, then start this with .venv/bin/python (without a checkout: docs/compatibility.md)",
        name="mxnet",
    )

from model.pretrained.classify import load_classifier
from model.pretrained.create import create_model, list_models
from model.registry import ModelError

__all__ = ["ModelError", "create_model", "list_models", "load_classifier"]
