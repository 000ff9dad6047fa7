"""An animation of the gaze: one frame per glimpse, all images side by side."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from formats.atomic import PathLike
from formats.errors import UserError
from training.glimpse.pictures.overlay import (
    INK,
    Colour,
    View,
    choose_view,
    draw_glimpses,
    draw_text,
    load_font,
    step_colours,
)
from training.glimpse.pictures.path import GlimpsePath
from training.reports.picture import write_named

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

RIGHT: Colour = (0, 130, 80)
WRONG: Colour = (200, 60, 20)
PAPER: Colour = (255, 255, 255)
PALE: Colour = (205, 205, 210)
GREY: Colour = (120, 120, 125)
COLUMNS = 4
MOST_IMAGES = 24
GAP = 12
HEADER = 26
CAPTION = 20
BARS = 34
NAMES = 14
MOST_BARS = 12  # classes with a bar each; beyond that there is one bar, of the predicted class
LONGEST_NAME = 14
MAX_RATE = 50.0  # frames per second; viewers slow down anything faster
HOLD = 3.0  # how much longer the last frame stays
COLOURS_IN_PALETTE = 256


def animate_paths(path: GlimpsePath, output: PathLike, frames_per_second: float = 1.5) -> Path:
    """Write an animated GIF: frame t shows the first t glimpses and what the model thinks then.

    Parameters
    ----------
    path
        What the model did on up to 24 images.
    output
        File to write; ends in .gif.
    frames_per_second
        Above 0 and at most 50. GIF knows hundredths of a second. The last frame stays three times
        as long, then the animation starts again.

    Returns
    -------
    Path
        The file that was written.

    Raises
    ------
    UserError
        The rate is out of range, there are too many images, or the file cannot be written.
    """
    if not 0 < frames_per_second <= MAX_RATE:
        raise UserError(
            f"{frames_per_second} frames per second: must be above 0 and at most {MAX_RATE:g}"
        )
    check_picture(path, output, ".gif", MOST_IMAGES)
    view = choose_view(path, path.overhang())
    frames = _with_palette([_frame(path, step, view) for step in range(path.glimpses)])
    duration = 10 * max(2, round(100 / frames_per_second))  # milliseconds
    durations = [duration] * (len(frames) - 1) + [round(HOLD * duration)]
    stream = io.BytesIO()
    frames[0].save(
        stream,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=0,
        optimize=False,
    )
    return write_named(output, stream.getvalue())


def check_picture(path: GlimpsePath, output: PathLike, ending: str, most: int) -> None:
    """Raise UserError for a file name with another ending, or too many images for one picture."""
    if Path(output).suffix.lower() != ending:
        raise UserError(f"cannot write {output}: name a file that ends in {ending}.")
    if len(path.images) > most:
        raise UserError(
            f"{len(path.images)} images do not fit in one picture. Choose at most {most}."
        )


def short_name(name: str) -> str:
    """Return a class name that fits in a caption."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 2] + ".."


def _frame(path: GlimpsePath, step: int, view: View) -> np.ndarray:
    """Return uint8 (H, W, 3): all images after the glimpse `step`, from 0."""
    from PIL import Image, ImageDraw

    height, width = ((edge + 2 * view.margin) * view.zoom for edge in path.images.shape[2:])
    below = CAPTION + BARS + NAMES
    count = len(path.images)
    # Six images look better as 3 x 2 than as 4 + 2.
    rows = -(-count // COLUMNS)
    columns = -(-count // rows)
    size = (
        columns * (width + GAP) + GAP,
        HEADER + rows * (height + below + GAP),
    )
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    _draw_header(draw, path, step)
    for index in range(count):
        left = GAP + index % columns * (width + GAP)
        top = HEADER + index // columns * (height + below + GAP)
        drawn = draw_glimpses(path, index, step + 1, step, view)
        picture.paste(Image.fromarray(drawn), (left, top))
        _draw_caption(draw, path, (index, step), (left, top + height, width))
    return np.asarray(picture)


def _draw_header(draw: ImageDraw, path: GlimpsePath, step: int) -> None:
    """Draw the number of the glimpse, and one dot per glimpse of which the seen ones are filled."""
    middle = HEADER // 2
    text = f"glimpse {step + 1} of {path.glimpses}"
    draw.text((GAP, middle - 7), text, fill=INK, font=load_font(12))
    x = GAP + 110
    for number, colour in enumerate(step_colours(path.glimpses)):
        seen = number <= step
        edges = (x, middle - 4, x + 8, middle + 4)
        draw.ellipse(edges, fill=colour if seen else PAPER, outline=INK if seen else PALE)
        x += 13


def _draw_caption(
    draw: ImageDraw, path: GlimpsePath, which: tuple[int, int], place: tuple[int, int, int]
) -> None:
    """Draw prediction, confidence and label under an image, and a bar per class."""
    (index, step), (left, top, width) = which, place
    shares = path.probabilities[index, step]
    label, guess = int(path.labels[index]), int(path.predictions[index, step])
    colour = RIGHT if guess == label else WRONG
    text = f"{short_name(path.class_names[guess])}  {shares[guess]:.0%}"
    draw.text((left, top + 4), text, fill=colour, font=load_font(13))
    true = f"label {short_name(path.class_names[label])}"
    font = load_font(11)
    draw.text((left + width - draw.textlength(true, font=font), top + 5), true, GREY, font=font)
    floor = top + CAPTION + BARS
    if len(shares) > MOST_BARS:
        filled = round(float(shares[guess]) * width)
        draw.rectangle((left, top + CAPTION + 4, left + width - 1, top + CAPTION + 10), PALE)
        if filled:
            draw.rectangle((left, top + CAPTION + 4, left + filled - 1, top + CAPTION + 10), colour)
        return
    slot = width / len(shares)
    letters = int(slot // 7)
    named = letters >= min(3, max(map(len, path.class_names)))
    for number, share in enumerate(shares):
        start, end = round(left + number * slot) + 2, round(left + (number + 1) * slot) - 3
        tall = round(float(share) * (BARS - 6))
        draw.line((start, floor, end, floor), fill=INK if number == label else PALE)
        if tall:
            bar = colour if number == guess else GREY
            draw.rectangle((start, floor - tall, end, floor - 1), fill=bar)
        if named:
            ink = INK if number == label else GREY
            draw_text(draw, ((start + end) / 2, floor + 8), path.class_names[number][:letters], ink)


def _with_palette(frames: list[np.ndarray]) -> list[Image]:
    """Return the frames with one palette for all, so that nothing flickers.

    A colour that covers many pixels, such as a line's, is kept exactly; Pillow's own search in a
    palette is rounded.
    """
    from PIL import Image

    packed = [frame.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32) for frame in frames]
    colours, where, counts = np.unique(
        np.concatenate([frame.ravel() for frame in packed]), return_inverse=True, return_counts=True
    )
    exact = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1).astype(np.uint8)
    kept = exact[np.argsort(-counts.astype(np.int64), kind="stable")]
    palette = _palette(kept)
    table = np.concatenate([_nearest(part, palette) for part in np.array_split(exact, 16)])
    indices = table[where].reshape(len(frames), *frames[0].shape[:2])
    images = []
    for frame in indices:
        image = Image.fromarray(frame)
        image.putpalette(palette.astype(np.uint8).tobytes())  # makes it a palette image
        images.append(image)
    return images


def _palette(by_count: np.ndarray) -> np.ndarray:
    """Choose up to 256 of the colours (M, 3), which are sorted by how often they occur."""
    from PIL import Image

    if len(by_count) <= COLOURS_IN_PALETTE:
        return by_count
    # The frequent half as it is, the rest by median cut over the colours that occur.
    frequent, rest = np.split(by_count, [COLOURS_IN_PALETTE // 2])
    cut = Image.fromarray(rest[None]).quantize(COLOURS_IN_PALETTE // 2)
    return np.concatenate([frequent, np.array(cut.getpalette(), np.uint8).reshape(-1, 3)])


def _nearest(colours: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Return uint8 (M,): the entry of the palette that is closest to each colour."""
    given, entries = colours.astype(np.float32), palette.astype(np.float32)
    # |c - p|^2 without |c|^2, which is the same for all p; exact in float32 for bytes.
    distance = (entries**2).sum(axis=1) - 2 * given @ entries.T
    return distance.argmin(axis=1).astype(np.uint8)
