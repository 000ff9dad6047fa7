"""What pictures of all kinds share: their bytes, their text, and the file that a user has named."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from formats.atomic import PathLike, write_atomically
from formats.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def png(figure: Figure, dpi: int) -> bytes:
    """Return a figure as a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=dpi)
    return stream.getvalue()


def plain_text(text: str) -> str:
    """Escape what matplotlib would read as a formula."""
    return text.replace("$", r"\$")


def write_png(output: PathLike, image: np.ndarray) -> Path:
    """Write a uint8 image (H, W) or (H, W, 3) as a small PNG file; UserError when that fails."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG", optimize=True)
    return write_named(output, stream.getvalue())


def write_named(output: PathLike, data: bytes) -> Path:
    """Write a file as a whole; UserError when that fails."""
    try:
        write_atomically(output, data)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}. Name another file.") from error
    return Path(output)
