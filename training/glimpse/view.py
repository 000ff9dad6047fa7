"""What a glimpse model does on a few images, as data for pictures; kept during a training."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import mxnet as mx
import numpy as np

from formats.errors import UserError, printable
from formats.param_file import read_params, write_params
from formats.param_reader import ParamFileError
from training.data.dataset import ImageData
from training.glimpse.config import MOST_IMAGES, GlimpseConfig
from training.glimpse.loaders import Opened, test_batches
from training.glimpse.pictures.gif import animate_paths
from training.glimpse.pictures.overlay import glimpse_images
from training.glimpse.pictures.path import GlimpsePath
from training.glimpse.pictures.plot import plot_paths
from training.glimpse.rollouts import Draw

FOLDER = "glimpses"  # in a run folder
NAME = "epoch-{:04d}.path"
ARRAYS = ("images", "labels", "locations", "patches", "probabilities")


def look(
    net: Any, context: Any, data: ImageData, draw: Draw, class_names: Sequence[str]
) -> GlimpsePath:
    """Return one rollout of each image.

    Parameters
    ----------
    net
        Gives (logits, ..., locations) and has ``patches(image, locations)`` and ``spec``.
    context
        Where its parameters are.
    data
        uint8 images as the network takes them.
    draw
        First locations and noise.
    class_names
        For the captions.
    """
    first, noise = draw(len(data), 1, (0, 0), draw.std)
    return look_from(net, context, data, first, noise, class_names)


def look_from(
    net: Any,
    context: Any,
    data: ImageData,
    first: np.ndarray,
    noise: np.ndarray,
    class_names: Sequence[str],
) -> GlimpsePath:
    """Return one rollout of each image from first locations (N, 1, 2), with noise (N, 1, T, 2)."""
    images = data.images.transpose(0, 3, 1, 2).astype(np.float32) / 255
    image, first, noise = (mx.nd.array(value, ctx=context) for value in (images, first, noise))
    outputs = net(image, first, noise)
    locations = outputs[-1]
    return GlimpsePath(
        images,
        data.labels,
        np.clip(locations.asnumpy()[:, 0], -1, 1),
        net.patches(image, locations).asnumpy()[:, 0],
        mx.nd.softmax(outputs[0]).asnumpy()[:, 0],
        net.spec.patch_size,
        net.spec.glimpse_scale,
        tuple(map(printable, class_names)),
    )


def keeper(
    config: GlimpseConfig,
    net: Any,
    context: Any,
    data: ImageData,
    draw: Draw,
    class_names: Sequence[str],
) -> Callable[[Any, int], None]:
    """Return what a training calls after each epoch: some are kept, and shown by TensorBoard.

    Raises
    ------
    UserError
        When the folder for TensorBoard cannot be made.
    """
    if config.log_dir:
        _make(Path(config.log_dir))

    def keep(run: Any, epoch: int) -> None:
        if config.log_dir and epoch == 1:
            _link(Path(config.log_dir), run.folder)
        if config.plot_freq and (epoch % config.plot_freq == 0 or epoch == config.epochs):
            path = look(net, context, data, draw, class_names)
            save_view(run.folder, epoch, path)
            run.images("glimpses", epoch, glimpse_images(path))

    return keep


def _link(log_dir: Path, run_folder: Path) -> None:
    """Put a link to the run into the folder that TensorBoard is to look at."""
    _make(log_dir)
    try:
        link = log_dir / run_folder.name
        if link.is_symlink() and link.resolve() != run_folder.resolve():
            link.unlink()  # of an older run of this name
        if not link.exists():
            link.symlink_to(run_folder.resolve())
    except OSError as error:
        raise UserError(f"--log-dir {log_dir}: cannot put a link there: {error}") from None


def _make(log_dir: Path) -> None:
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--log-dir {log_dir}: cannot make this folder: {error}") from None


def save_view(run_folder: Path, epoch: int, path: GlimpsePath) -> None:
    """Keep what the model does after an epoch, in the run's folder."""
    folder = run_folder / FOLDER
    folder.mkdir(exist_ok=True)
    arrays = {name: np.ascontiguousarray(getattr(path, name)) for name in ARRAYS}
    arrays["labels"] = arrays["labels"].astype(np.int32)
    arrays["size"] = np.array([path.patch_size, path.scale], np.float32)
    names = "\n".join(path.class_names).encode()
    arrays["class_names"] = np.frombuffer(names, np.uint8)
    write_params(folder / NAME.format(epoch), arrays, digest=False)


def load_view(run_folder: Path, epoch: int) -> tuple[int, GlimpsePath]:
    """Return (epoch, what was kept); epoch 0 is the last.

    Raises
    ------
    UserError
        When there is none of that epoch; the message names those that there are.
    """
    found = (re.fullmatch(r"epoch-(\d+)\.path", file.name) for file in _files(run_folder))
    epochs = sorted(int(match.group(1)) for match in found if match)
    if not epochs or (epoch and epoch not in epochs):
        kept = ", ".join(map(str, epochs)) or "none; train with --plot-freq 1"
        raise UserError(f"{run_folder} kept no glimpses of epoch {epoch}; kept: {kept}")
    epoch = epoch or epochs[-1]
    try:
        arrays = read_params(run_folder / FOLDER / NAME.format(epoch))
        size, scale = arrays["size"]
        names = tuple(arrays["class_names"].tobytes().decode().split("\n"))
        parts: dict[str, Any] = {name: arrays[name] for name in ARRAYS}
    except (ParamFileError, KeyError, ValueError) as error:
        message = f"the glimpses of epoch {epoch} in {run_folder} are damaged: {error}"
        raise UserError(message) from None
    path = GlimpsePath(**parts, patch_size=int(size), scale=float(scale), class_names=names)
    return epoch, path


def _files(run_folder: Path) -> list[Path]:
    folder = run_folder / FOLDER
    return list(folder.iterdir()) if folder.is_dir() else []


def write_pictures(path: GlimpsePath, output: Path) -> list[Path]:
    """Write OUTPUT.png and OUTPUT.gif and return both."""
    output.parent.mkdir(parents=True, exist_ok=True)
    still, moving = (output.with_name(output.name + ending) for ending in (".png", ".gif"))
    return [plot_paths(path, still), animate_paths(path, moving)]


def draw_file(opened: Opened, config: GlimpseConfig, path: Path) -> None:
    """Draw where a saved file looks on some test images of all classes, with mean locations."""
    shown = test_batches(opened.task).data.sample(min(config.plot_images, MOST_IMAGES), config.seed)
    still = replace(opened.draw(), std=0.0)
    names = opened.task.dataset.class_names
    view = look(opened.net, opened.contexts[0], shown, still, names)
    output = Path(config.output or path.parent) / f"{path.stem}_glimpses"
    print("wrote", ", ".join(map(str, write_pictures(view, output))))


def draw_run(config: GlimpseConfig) -> int:
    """Draw the glimpses that a run folder (``plot``) kept of an epoch; return the exit code."""
    folder = Path(str(config.plot))
    epoch, view = load_view(folder, config.plot_epoch)
    output = Path(config.output or folder) / f"glimpses_epoch_{epoch}"
    print("wrote", ", ".join(map(str, write_pictures(view, output))))
    return 0
