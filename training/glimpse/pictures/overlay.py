"""The path of the gaze drawn over the images as plain arrays, with NumPy and Pillow alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from training.glimpse.pictures.path import GlimpsePath

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

Colour = tuple[int, int, int]

# From the first glimpse to the last, light enough for a black background. Numbers tell the order to
# those who cannot see it.
STEP_ANCHORS = ((95, 150, 255), (0, 190, 220), (60, 205, 110), (240, 195, 30), (255, 90, 60))
OUTSIDE: Colour = (58, 58, 64)  # neither the black of a digit's background nor white
INK: Colour = (20, 20, 20)
WIDEST = 256  # pixels: images are enlarged by a whole number up to this edge
ALWAYS_DOUBLED = 180  # ... and at least doubled up to this one, or numbers would hide the boxes
FONT_SIZE = 10
TAG_WIDTH, TAG_HEIGHT = 9, 11


@dataclass(frozen=True)
class View:
    """How an image is laid out: `margin` pixels around it, each pixel `zoom` wide."""

    margin: int
    zoom: int


def glimpse_images(path: GlimpsePath) -> np.ndarray:
    """Draw the boxes of all glimpses over each image, for `training.records.run.Run.images`.

    The size depends on the sizes of image and boxes only, so that pictures of different epochs
    have the same one.

    Parameters
    ----------
    path
        What the model did.

    Returns
    -------
    uint8 (N, H', W', 3)
        The images, enlarged, within a margin that holds every smallest box that can occur.
    """
    view = choose_view(path, path.largest_overhang())
    return np.stack(
        [draw_glimpses(path, i, path.glimpses, None, view) for i in range(len(path.images))]
    )


def choose_view(path: GlimpsePath, overhang: int) -> View:
    """Return the view for boxes that leave the image by up to `overhang` pixels.

    The margin is at most a fifth of the image, so that the image stays the main thing: the lines of
    a large box may end at the border of the picture. The smallest box is always whole.
    """
    edge = max(path.images.shape[2:])
    margin = min(overhang, max(edge // 5, (path.patch_size + 1) // 2))
    edge += 2 * margin
    return View(margin, max(WIDEST // edge, 2 if edge <= ALWAYS_DOUBLED else 1))


def step_colours(steps: int) -> list[Colour]:
    """Return the colours of the glimpses, in order."""
    anchors = np.array(STEP_ANCHORS, float)
    places = np.linspace(0, len(anchors) - 1, steps) if steps > 1 else np.zeros(1)
    known = np.arange(len(anchors))
    mixed = np.stack([np.interp(places, known, anchors[:, c]) for c in range(3)], axis=1)
    return [(int(r), int(g), int(b)) for r, g, b in mixed.round()]


def dimmed(colour: Colour, part: float) -> Colour:
    """Return a colour with `part` of its brightness."""
    red, green, blue = (round(part * value) for value in colour)
    return red, green, blue


def brightness(scale: int, step: int, current: Optional[int]) -> float:
    """Return how bright the box of a glimpse is: small and current ones stand out."""
    if current is None or step == current:
        return 1.0 if scale == 0 or step == current else 0.6
    return 0.65 if scale == 0 else 0.4


def draw_glimpses(
    path: GlimpsePath, index: int, steps: int, current: Optional[int], view: View
) -> np.ndarray:
    """Draw the first glimpses over one image.

    Parameters
    ----------
    path
        What the model did.
    index
        Which image.
    steps
        How many glimpses.
    current
        The step whose boxes stand out; None: all equal.
    view
        Margin and zoom.

    Returns
    -------
    uint8 (H', W', 3)
        A box is drawn on the outermost pixels within it.
    """
    from PIL import Image, ImageDraw

    sides = ((view.margin, view.margin), (view.margin, view.margin))
    picture = np.stack(
        [
            np.pad(path.rgb()[index, :, :, channel], sides, constant_values=OUTSIDE[channel])
            for channel in range(3)
        ],
        axis=2,
    )
    image = Image.fromarray(picture.repeat(view.zoom, axis=0).repeat(view.zoom, axis=1))
    draw = ImageDraw.Draw(image)
    boxes = (path.boxes()[index, :steps] + view.margin) * view.zoom
    centres = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in boxes[:, 0]]
    if steps > 1:
        draw.line(centres, fill=INK, width=3)
        draw.line(centres, fill=(255, 255, 255), width=1)
    colours = step_colours(path.glimpses)
    # Larger boxes first, so that the small ones, which the network sees sharply, are on top.
    for scale in reversed(range(boxes.shape[1])):
        for step in range(steps):
            left, top, right, bottom = (int(edge) for edge in boxes[step, scale])
            colour = dimmed(colours[step], brightness(scale, step, current))
            width = 2 if scale == 0 and view.zoom > 1 else 1
            draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=width)
    for step, centre in enumerate(centres):
        colour = dimmed(colours[step], brightness(0, step, current))
        _draw_dot(draw, centre, colour, step, path.glimpses)
        _draw_tag(draw, boxes[step, 0], str(step + 1), colour)
    return np.asarray(image)


@functools.cache
def load_font(size: int) -> Any:
    """Return Pillow's own font: a drawable one needs no file of the system."""
    from PIL import ImageFont

    return ImageFont.load_default(size)


def draw_text(draw: ImageDraw, centre: tuple[float, float], text: str, colour: Colour) -> None:
    """Draw a text around a point."""
    font = load_font(FONT_SIZE)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    place = (round(centre[0] - (left + right) / 2), round(centre[1] - (top + bottom) / 2))
    draw.text(place, text, fill=colour, font=font)


def _draw_dot(
    draw: ImageDraw, centre: tuple[float, float], colour: Colour, step: int, steps: int
) -> None:
    """Mark where a glimpse looked: the first with a square, the last with a white ring."""
    x, y = round(centre[0]), round(centre[1])
    if step == steps - 1 and steps > 1:
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=(255, 255, 255), outline=INK)
    shape = draw.rectangle if step == 0 else draw.ellipse
    shape((x - 3, y - 3, x + 3, y + 3), fill=colour, outline=INK)


def _draw_tag(draw: ImageDraw, box: np.ndarray, text: str, colour: Colour) -> None:
    """Write the number of a glimpse on its box, above the corner if there is room."""
    left, top, right, _ = (int(edge) for edge in box)
    width = TAG_WIDTH + 6 * (len(text) - 1)
    start = min(max(left, 0), right - width)
    upper = max(top - TAG_HEIGHT, 0)
    edges = (start, upper, start + width - 1, upper + TAG_HEIGHT - 1)
    draw.rectangle(edges, fill=colour)
    draw_text(draw, (start + width / 2, upper + TAG_HEIGHT / 2), text, INK)
