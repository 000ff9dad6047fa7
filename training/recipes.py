"""Named recipes: settings that belong together. A flag on the command line goes before them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RECIPES: dict[str, Mapping[str, Any]] = {
    # PistonY's 97.14 % run; these are the defaults of TrainConfig.
    "pistony": {},
    # For minutes to an hour on a CPU: small batches, no regularization that needs long training.
    "quick": {
        "epochs": 6,
        "batch_size": 64,
        "micro_batch": 0,
        "lr": 0.1,
        "warmup_epochs": 0,
        "wd": 5e-4,
        "cutout": "none",
        "mixup_alpha": 0.0,
        "mixup_off_epochs": 0,
    },
}
