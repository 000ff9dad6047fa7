"""The commands that the wheel installs: ``attention-train`` and the others, each a script by name.

A script takes its threads before MXNet is imported when it is started as a program; a command does
the same before it imports the script.
"""

from __future__ import annotations

import importlib
import sys

from training.compute.thread_choice import take_threads


def train() -> int:
    """Run ``train_cifar.py``; return the exit code."""
    return _run("train_cifar")


def glimpse() -> int:
    """Run ``train_mnist_glimpse.py``; return the exit code."""
    return _run("train_mnist_glimpse")


def imagenet() -> int:
    """Run ``train_imagenet.py``; return the exit code."""
    return _run("train_imagenet")


def export() -> int:
    """Run ``export_model.py``; return the exit code."""
    return _run("export_model")


def _run(script: str) -> int:
    take_threads(sys.argv[1:], needs=("numpy", "mxnet"))
    code: int = importlib.import_module(script).main()
    return code
