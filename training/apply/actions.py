"""What is done with a classifier's parameter file beside scoring it: predict, masks, mask score."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable

import mxnet as mx
import numpy as np

from formats.atomic import write_atomically
from formats.errors import UserError, printable
from formats.images.outputs import require_finite
from formats.images.preprocessing import Preprocessing
from training.apply.mask_plot import MOST_ROWS, MaskRow, draw_masks
from training.apply.mask_score import MaskScores, channel_map, join_scores, score_masks, score_table
from training.apply.predict import Picture, prediction_lines, probabilities, read_pictures
from training.classifier.opening import Opened, open_classifier
from training.compute.optimizer import initializer, seed_initializers

MASK_BATCH = 100
Given = Mapping[str, Any]
OpenTest = Callable[[Any], Any]  # settings to the data set's test split, an ImageData


def inspect(config: Any, given: Given, open_test: OpenTest) -> int:
    """Do what one of ``predict``, ``masks`` and ``mask_score`` asks for; return the exit code."""
    if config.predict:
        return print_predictions(config, given, open_test)
    action = draw_pictures if config.masks else print_mask_scores
    return action(config, given, open_test)


def print_predictions(config: Any, given: Given, open_test: OpenTest) -> int:
    """Print the most probable classes of the pictures; return the exit code.

    Raises
    ------
    UserError
        When a picture or the parameter file cannot be used.
    """
    opened = open_classifier(config.predict, config, given)
    pictures, shares, preprocessing = _classified(opened, open_test)
    print("\n".join(prediction_lines(pictures, shares, preprocessing)))
    return 0


def _classified(
    opened: Opened, open_test: OpenTest
) -> tuple[list[Picture], np.ndarray, Preprocessing]:
    preprocessing = opened.preprocessing()
    # Beside the answers, which other programs may read.
    print(f"{opened.path} ({opened.status}): {opened.origin()}", file=sys.stderr)
    pictures = read_pictures(
        opened.config.images, preprocessing, lambda: _test_images(opened, open_test).images
    )
    shares = probabilities(opened.net, opened.contexts[0], pictures, preprocessing)
    return pictures, shares, preprocessing


def draw_pictures(config: Any, given: Given, open_test: OpenTest) -> int:
    """Write a PNG of every picture with the soft masks over it; return the exit code.

    Raises
    ------
    UserError
        When a picture or the parameter file cannot be used, or the network has no soft masks.
    """
    one_file = Path(config.mask_output).suffix.lower() == ".png"
    if one_file and len(config.images) > MOST_ROWS:
        raise UserError(
            f"--mask-output {config.mask_output}: {len(config.images)} pictures do not fit into "
            f"one file, at most {MOST_ROWS} do; give a folder"
        )
    opened = open_classifier(config.masks, config, given)
    _require_masks(opened)
    pictures, shares, preprocessing = _classified(opened, open_test)
    rows = []
    for picture, share in zip(pictures, shares):
        maps = _masks(opened.net, opened.contexts[0], preprocessing.normalize([picture.image]))
        label = int(share.argmax())
        name = printable(Path(picture.name).name)
        text = f"{name}\n{preprocessing.name_of(label)}\n{share[label]:.1%}"
        one = {name: channel_map(mask)[0] for name, mask in maps.items()}
        rows.append(MaskRow(picture.image, one, text))
    output = Path(config.mask_output)
    if one_file:
        drawings = {output: draw_masks(rows)}
    else:
        output.mkdir(parents=True, exist_ok=True)
        names = _file_names(pictures)
        drawings = {output / name: draw_masks([row]) for name, row in zip(names, rows)}
    for path, content in drawings.items():
        write_atomically(path, content)
        print(path)
    return 0


def _file_names(pictures: list[Picture]) -> list[str]:
    """Return a name for each drawing; pictures of one name in several folders get a number."""
    names: list[str] = []
    for picture in pictures:
        stem = Path(picture.name).stem.replace(":", "-")
        count = sum(name.startswith(f"{stem}-masks") for name in names)
        names.append(f"{stem}-masks{f'-{count + 1}' if count else ''}.png")
    return names


def print_mask_scores(config: Any, given: Given, open_test: OpenTest) -> int:
    """Print how well the masks of a file, and of fresh weights, find the objects, as Markdown.

    Raises
    ------
    UserError
        When the data set does not say where its objects are, or the network has no soft masks.
    """
    opened = open_classifier(config.mask_score, config, given)
    _require_masks(opened)
    settings, context = opened.config, opened.contexts[0]
    data = _test_images(opened, open_test)
    if data.masks is None:
        raise UserError(
            f"{settings.dataset} does not say where its objects are; use --dataset shapes"
        )
    count = min(config.mask_images, len(data))
    preprocessing, sizes = opened.preprocessing(), {}

    def scores(net: Any) -> dict[str, MaskScores]:
        parts: dict[str, list[MaskScores]] = {}
        for start in range(0, count, MASK_BATCH):
            rows = slice(start, min(start + MASK_BATCH, count))
            batch = preprocessing.normalize(list(data.images[rows]))
            for name, mask in _masks(net, context, batch).items():
                sizes[name] = mask.shape[2:]
                parts.setdefault(name, []).append(score_masks(mask, data.masks[rows]))
        return {name: join_scores(found) for name, found in parts.items()}

    seed_initializers(settings.seed)
    fresh = opened.network.build()
    fresh.initialize(initializer(settings.init), ctx=context)
    print(
        f"{config.mask_score}: {settings.model} on the test images of {settings.dataset}; "
        f"{opened.origin()}\n"
    )
    print(score_table(scores(opened.net), scores(fresh), sizes, data.masks[:count]))
    return 0


def _test_images(opened: Opened, open_test: OpenTest) -> Any:
    opened.check_data_is_named()
    return open_test(opened.config)


def _require_masks(opened: Opened) -> None:
    if not hasattr(opened.net, "attention_maps"):
        raise UserError(f"{opened.config.model} has no soft masks; give a file of an attention net")


def _masks(net: Any, context: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    maps = net.attention_maps(mx.nd.array(images, ctx=context))
    arrays = {name: mask.asnumpy() for name, mask in maps.items()}
    for name, mask in arrays.items():
        require_finite(mask, f"the mask of {name}")
    return arrays
