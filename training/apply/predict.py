"""What a trained classifier sees in pictures: the most probable classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, NamedTuple

import numpy as np

from formats.errors import UserError, printable
from formats.images.decode import decode_image
from formats.images.preprocessing import Preprocessing
from model.pretrained.classify import TOP
from model.pretrained.classify import probabilities as image_probabilities

TEST_PREFIX = "test:"


class Picture(NamedTuple):
    """A picture and what to call it; ``image`` is uint8 (H, W, 3)."""

    name: str
    image: np.ndarray


def read_pictures(
    words: Sequence[str], preprocessing: Preprocessing, open_test: Callable[[], np.ndarray]
) -> list[Picture]:
    """Read picture files, resized, and images of the test split.

    Parameters
    ----------
    words
        Paths of PNG, JPEG, WebP or BMP files, of any size, of which the central square is taken;
        ``test:7`` is image 7 of the test split, from 0.
    preprocessing
        Says the size.
    open_test
        Gives the images of the test split, uint8 (N, H, W, 3); called only when one is named.

    Raises
    ------
    UserError
        When there is none, or one cannot be read.
    """
    if not words:
        raise UserError("name the pictures: --predict FILE a.png b.jpg (or test:0 of the data set)")
    tests = [word for word in words if word.startswith(TEST_PREFIX)]
    shape = (preprocessing.size, preprocessing.crop)
    images = open_test() if tests else np.empty(0)
    pictures = []
    for word in words:
        if word in tests:
            pictures.append(Picture(word, images[_index(word, len(images))]))
        else:
            pictures.append(Picture(word, decode_image(word, *shape)))
    return pictures


def _index(word: str, count: int) -> int:
    text = word[len(TEST_PREFIX) :]
    if not text.isascii() or not text.isdigit() or int(text) >= count:
        raise UserError(f"{word}: give a number of 0 to {count - 1} after {TEST_PREFIX}")
    return int(text)


def probabilities(
    net: Any, context: Any, pictures: Sequence[Picture], preprocessing: Preprocessing
) -> np.ndarray:
    """Return the softmax of the logits, float64 (N, classes)."""
    images, names = [p.image for p in pictures], [p.name for p in pictures]
    return image_probabilities(net, context, images, names, preprocessing)


def prediction_lines(
    pictures: Sequence[Picture], shares: np.ndarray, preprocessing: Preprocessing
) -> list[str]:
    """Return the lines of text: each picture, then its most probable classes."""
    lines = []
    for picture, share in zip(pictures, shares):
        lines.append(printable(picture.name))
        for label in np.argsort(-share, kind="stable")[:TOP]:
            lines.append(f"  {share[label]:8.2%}  {preprocessing.name_of(int(label))}")
    return lines
