"""The page's left side: a glimpse model looks at a digit, drawn or from a test set."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Optional

import mxnet as mx
import numpy as np
from PIL import Image

from demo.encode import card, png_url
from formats.errors import UserError
from formats.images.decode import open_rgb
from model.registry import create_model
from model.weights.known import known_of
from model.weights.loading import load_parameters
from training.data.dataset import ImageData
from training.glimpse.canvas import draw_canvases
from training.glimpse.config import SPEC_FIELDS
from training.glimpse.data import TASKS
from training.glimpse.loaders import known_settings
from training.glimpse.view import look

SIZE = 28
INNER = 20  # the longer side of a digit of MNIST, which is centred by its mass in 28x28
INK = 32  # grey level from which a pixel counts as drawn
NOT_LABELLED = 0  # GlimpsePath wants a label; the page does not show it for a drawing


class Start(NamedTuple):
    """Where the first look goes, in the place of `training.glimpse.rollouts.Draw`; no noise."""

    x: float
    y: float
    steps: int
    std: float = 0.0

    def __call__(self, images: int, rollouts: int, *_: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return first locations (images, rollouts, 2) and noise (images, rollouts, steps, 2)."""
        first = np.tile(np.array([self.x, self.y], np.float32), (images, rollouts, 1))
        return first, np.zeros((images, rollouts, self.steps, 2), np.float32)


class GlimpseModel:
    """A saved glimpse model, on single digits of 28x28 pixels or on a larger canvas."""

    def __init__(self, path: Path, digits: ImageData) -> None:
        known = known_settings(known_of(path))
        if not known.get("model"):
            raise UserError(
                f"{path}: nothing says which glimpse model this is; give a published file, one "
                "with its card, or one in the folder of its run"
            )
        dataset = str(known.get("dataset", ""))
        if dataset.startswith("folder:"):
            raise UserError(
                f"{path}: its images are those of {dataset}, not digits; give a model of digits, "
                "or draw this one's looks with train_mnist_glimpse.py --plot"
            )
        fields = {name: known[name] for name in SPEC_FIELDS if known.get(name) is not None}
        self.net = create_model(known["model"], **fields)
        self.canvas = TASKS.get(dataset, ("", None))[1]
        status = load_parameters(self.net, path, [mx.cpu()])
        native = self.net.use_operator()
        self.net.hybridize()
        self.digits = digits
        self.card = card(path, status, "the operator in C++" if native else "MXNet's graph")
        side = self.canvas.size if self.canvas else SIZE
        if self.net.image_shape != (1, side, side):
            raise UserError(f"{path} takes images of {self.net.image_shape}, not 1x{side}x{side}")

    def see(self, digit: np.ndarray, seed: int, x: float, y: float) -> dict[str, Any]:
        """Return what the model does with a digit, uint8 (28, 28).

        Parameters
        ----------
        digit
            The image, or what is put at a random place of the canvas.
        seed
            Of place and clutter.
        x, y
            First look, in [-1, 1]; (-1, -1) is the top left corner.

        Returns
        -------
        dict
            ``image`` (PNG) with its ``size``, and ``looks``: for each its ``boxes`` in pixels
            (left, top, right, bottom; the smallest first), its ``patches`` (PNG) and the
            ``probabilities`` of the ten classes after it.
        """
        image = digit[None, :, :, None]
        if self.canvas:
            rng = np.random.default_rng(seed)
            image = draw_canvases(image, self.digits.images, self.canvas, rng)
        data = ImageData(image, np.array([NOT_LABELLED], np.int32))
        start = Start(x, y, self.net.spec.num_glimpses)
        names = tuple(map(str, range(self.net.spec.classes)))
        path = look(self.net, mx.cpu(), data, start, names)  # type: ignore[arg-type]
        looks = [
            {
                "boxes": boxes.tolist(),
                "patches": [png_url(patch) for patch in patches],
                "probabilities": [round(float(share), 4) for share in shares],
            }
            for boxes, patches, shares in zip(
                path.boxes()[0], path.rgb_patches()[0], path.probabilities[0]
            )
        ]
        return {"image": png_url(image[0, :, :, 0]), "size": image.shape[1], "looks": looks}


def read_drawing(content: bytes) -> np.ndarray:
    """Return a drawing, light on dark, as MNIST has its digits: uint8 (28, 28).

    Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database: the digit keeps its proportions, its
    longer side becomes 20 pixels, and its centre of mass the centre of 28x28.

    Raises
    ------
    UserError
        When it is no picture, or nothing is drawn on it.
    """
    grey = np.asarray(open_rgb("the drawing", SIZE, content).convert("L"))
    rows, columns = (np.flatnonzero((grey >= INK).any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        raise UserError("nothing is drawn yet; draw a digit from 0 to 9")
    ink = Image.fromarray(grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    scale = INNER / max(ink.size)
    width, height = (max(1, round(side * scale)) for side in ink.size)
    small = np.asarray(ink.resize((width, height), Image.Resampling.LANCZOS))
    mass = np.maximum(small.astype(np.float64), 1e-9)
    centre = [
        float((mass.sum(axis=1 - axis) * np.arange(small.shape[axis])).sum() / mass.sum())
        for axis in (0, 1)
    ]
    # Its centre of mass may be far off the middle of its box; no part of it may leave the image.
    top, left = (
        int(np.clip(round(SIZE / 2 - 0.5 - where), 0, SIZE - length))
        for where, length in zip(centre, small.shape)
    )
    image: np.ndarray = np.zeros((SIZE, SIZE), np.uint8)
    image[top : top + height, left : left + width] = small
    return image


def test_digit(digits: ImageData, index: int) -> tuple[np.ndarray, Optional[int]]:
    """Return a test image uint8 (28, 28) and its class.

    Raises
    ------
    UserError
        For a number that is not there.
    """
    if not 0 <= index < len(digits):
        raise UserError(f"there is no test image {index}; give a number of 0 to {len(digits) - 1}")
    return digits.images[index, :, :, 0], int(digits.labels[index])
