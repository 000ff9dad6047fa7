"""Where a glimpse model looks when it is right and when it is wrong: ``--gaze FILE``.

The digit's middle is the mean place of its pixels, weighted by their brightness, without the
clutter. A look is at the middle of its boxes (`model.layers.retina`); what it sees in full detail
is the smallest of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import mxnet as mx
import numpy as np

from formats.errors import UserError
from formats.images.outputs import require_finite
from training.batches.in_memory import EvalBatches
from training.data.dataset import FOLDER_PREFIX, ImageData
from training.glimpse.config import GlimpseConfig
from training.glimpse.data import place_test
from training.glimpse.loaders import Opened, eval_batches
from training.glimpse.pictures.gaze_figure import plot_gaze
from training.glimpse.pictures.path import middle_pixels
from training.glimpse.pictures.plot import plot_paths
from training.glimpse.rollouts import Draw, score_rollouts
from training.glimpse.view import look_from


class Gaze(NamedTuple):
    """Single rollouts of N images, of every evaluation seed one, of T looks.

    ``hits`` bool (N, T): whether the answer after each look is the right one. ``offset`` (N, T, 2):
    rows and columns in pixels from the digit's middle to the look. ``seen`` (N, T): the share of
    the digit's brightness that lay in the smallest box of any look so far. ``confidence`` (N,): the
    probability of the last answer. ``first`` (N, 2): the first location that was given.
    ``anywhere`` (T,): accuracy after each look at random places.
    """

    hits: np.ndarray
    offset: np.ndarray
    seen: np.ndarray
    confidence: np.ndarray
    first: np.ndarray
    anywhere: np.ndarray
    patch_size: int

    @property
    def right(self) -> np.ndarray:
        """Bool (N,): whether the last answer is the right one."""
        return np.asarray(self.hits[:, -1])

    @property
    def distance(self) -> np.ndarray:
        """Pixels (N, T) from the digit's middle to each look."""
        return np.asarray(np.hypot(self.offset[..., 0], self.offset[..., 1]))

    def lines(self) -> list[str]:
        """Return the table for the terminal."""
        wrong = int((~self.right).sum())
        head = (
            f"{len(self.right)} rollouts with mean locations, {wrong} of them wrong "
            f"({wrong / len(self.right):.2%}); right / wrong ones apart:"
        )
        lines = [
            head,
            "  look  accuracy  random gaze  pixels to the digit's middle  share of the digit seen",
        ]
        for step, (hits, anywhere) in enumerate(zip(self.hits.mean(axis=0), self.anywhere)):
            apart = [
                " / ".join(format(value, style) for value in self._of_both(values[:, step]))
                for values, style in ((self.distance, "5.1f"), (self.seen, "6.1%"))
            ]
            row = f"  {step + 1:>4}  {hits:>8.2%}  {anywhere:>11.2%}  {apart[0]:>28}  {apart[1]}"
            lines.append(row)
        return lines

    def _of_both(self, values: np.ndarray) -> list[float]:
        """Return the means over right and wrong rollouts; NaN where there are none."""
        return [
            float(values[which].mean()) if which.any() else float("nan")
            for which in (self.right, ~self.right)
        ]


def placed_digits(opened: Opened) -> tuple[ImageData, np.ndarray]:
    """Return what `place_test` does; UserError where the images are no digits."""
    if opened.task.name.startswith(FOLDER_PREFIX):
        raise UserError(
            f"--gaze: images of {opened.task.name} have no digit to look for; name a file for "
            "mnist, translated, cluttered, cluttered100, digits or digits-translated"
        )
    return place_test(opened.task)


def measure_gaze(opened: Opened, images: ImageData, places: np.ndarray, seeds: int) -> Gaze:
    """Return where a network looks on all test images, once for each evaluation seed.

    `images` and `places` are those of `placed_digits`.

    Raises
    ------
    UserError
        When the network gives numbers that are not finite.
    """
    sources, batches = opened.task.dataset.test.images[..., 0], eval_batches(images)
    parts, anywhere = [], []
    for seed in range(seeds):
        still = replace(opened.draw(), std=0.0, seed=seed)
        loose = replace(opened.draw(), std=1.0, uniform=True, seed=seed)
        for rows, first, probabilities, locations in _rollouts(opened, batches, still):
            answers = probabilities.argmax(axis=2)  # (B, T)
            parts.append(
                (
                    answers == images.labels[rows, None],
                    *_against_digits(opened, locations, sources[rows], places[rows]),
                    np.take_along_axis(probabilities[:, -1], answers[:, -1:], 1)[:, 0],
                    first,
                )
            )
        anywhere.append(score_rollouts(opened.control, batches, opened.contexts, loose).steps)
    hits, offset, seen, confidence, first = (np.concatenate(values) for values in zip(*parts))
    random = np.mean(anywhere, axis=0)
    return Gaze(hits, offset, seen, confidence, first, random, opened.net.spec.patch_size)


def _rollouts(
    opened: Opened, batches: EvalBatches, draw: Draw
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield batches.

    Rows (B,), first locations (B, 2), probabilities (B, T, classes) and locations (B, T, 2).
    """
    begin = 0
    for number, batch in enumerate(batches):
        rows = np.arange(begin, begin + len(batch.image))
        begin += len(rows)
        first, noise = draw(len(rows), 1, (0, number), draw.std)
        inputs = (batch.image, first, noise)
        outputs = opened.net(*(mx.nd.array(value, ctx=opened.contexts[0]) for value in inputs))
        probabilities = mx.nd.softmax(outputs[0]).asnumpy()[:, 0]
        require_finite(probabilities, "the test images")
        yield rows, first[:, 0], probabilities, np.clip(outputs[-1].asnumpy()[:, 0], -1, 1)


def _against_digits(
    opened: Opened, locations: np.ndarray, digits: np.ndarray, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``offset`` and the share ``seen`` of a `Gaze`.

    `digits` uint8 (B, h, w) are the images before they were put at `places` (B, 2).
    """
    centre = middle_pixels(locations, *opened.task.image_size)[..., ::-1]  # rows and columns
    first = centre - opened.net.spec.patch_size // 2 - places[:, None]  # in the digit's own image
    ink = digits.astype(np.float64)
    total = ink.sum(axis=(1, 2)) + 1e-12
    axes = [np.arange(length) for length in ink.shape[1:]]
    middle = [
        (ink.sum(axis=2 - axis) * numbers).sum(axis=1) / total for axis, numbers in enumerate(axes)
    ]
    offset = centre - places[:, None] - np.stack(middle, axis=1)[:, None]
    # (B, T, h) and (B, T, w): which rows and columns of the digit's image the box covers.
    inside = [
        (first[..., axis, None] <= numbers)
        & (numbers < first[..., axis, None] + opened.net.spec.patch_size)
        for axis, numbers in enumerate(axes)
    ]
    known = np.zeros(ink.shape, bool)
    seen = []
    for step in range(locations.shape[1]):
        known |= inside[0][:, step, :, None] & inside[1][:, step, None, :]
        seen.append((ink * known).sum(axis=(1, 2)) / total)
    return offset, np.stack(seen, axis=1)


def draw_gaze(opened: Opened, config: GlimpseConfig, path: Path) -> None:
    """Print where a saved file looks, and draw it beside its surest wrong answers."""
    images, places = placed_digits(opened)
    gaze = measure_gaze(opened, images, places, config.eval_seeds)
    print("\n".join(gaze.lines()))
    output = Path(config.output or path.parent)
    output.mkdir(parents=True, exist_ok=True)
    files = [plot_gaze(gaze, output / f"{path.stem}_gaze.png")]
    chosen = surest_wrong(gaze, len(images), config.plot_images)
    if len(chosen):
        shown = ImageData(images.images[chosen], images.labels[chosen])
        first = gaze.first[chosen, None]
        noise = np.zeros((len(chosen), 1, gaze.hits.shape[1], 2), np.float32)
        names = opened.task.dataset.class_names
        view = look_from(opened.net, opened.contexts[0], shown, first, noise, names)
        files.append(plot_paths(view, output / f"{path.stem}_wrong.png"))
    print("wrote", ", ".join(map(str, files)))


def surest_wrong(gaze: Gaze, images: int, most: int) -> np.ndarray:
    """Return the numbers of the wrong rollouts of the first seed, the surest ones first."""
    wrong = np.flatnonzero(~gaze.right[:images])
    return wrong[np.argsort(-gaze.confidence[wrong], kind="stable")][:most]
