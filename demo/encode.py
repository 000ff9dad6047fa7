"""Images and what is known of a file, as the page takes them: JSON and PNG in it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from model.weights.known import known_of

# What of a file's record the page shows, in this order.
SHOWN = (
    *("model", "dataset", "test_acc", "single_error", "epochs", "precision", "seed", "hours"),
    *("hardware", "commit", "command", "sha256"),
)


def png_url(image: np.ndarray) -> str:
    """Return a uint8 image (H, W) or (H, W, 3) as the address of a PNG that holds it."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def card(path: Path, status: str, computes: str) -> dict[str, Any]:
    """Return what the page says of a parameter file: who it is, how it was made, who computes."""
    found = known_of(path)
    own = found.card
    known = {
        "model": found.model,
        "dataset": own.get("data", {}).get("name"),
        **own.get("scores", {}),
        **own.get("training", {}),
        **found.recorded,
    }
    facts = {name: str(known[name]) for name in SHOWN if known.get(name) not in (None, "")}
    return {"file": path.name, "status": str(status), "computes": computes, "facts": facts}
