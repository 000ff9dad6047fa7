"""The two glimpse tasks that are measured, for workers of any framework; needs NumPy alone.

Sizes, names and orders of parameters are those of kevinzakka/recurrent-visual-attention (MIT), so
that one file of arrays serves every worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.harness.worker import Action, serve

HIDDEN, GLIMPSE_HIDDEN, LOC_HIDDEN, LOCATOR_HIDDEN, CLASSES = 256, 128, 128, 128, 10
STD = 0.05  # of the policy, as the seed's default
# So small that hours of rounds do not learn the few random images by heart: a loss near 0 makes
# gradients that are denormal numbers, which processors compute slowly.
LEARNING_RATE = 1e-6
REINFORCE_WEIGHT = 0.01
# The last decision, and what the policy did: what two frameworks must agree on.
OUTPUTS = ("logits", "baselines", "means", "locations")


@dataclass(frozen=True)
class Task:
    """One setting of the model.

    Parameters
    ----------
    size
        Height and width of the images, pixels.
    patch_size, num_patches
        Edge of a patch as the network sees it, and number of scales, each twice the one before.
    num_glimpses
        Looks per image, T.
    batch_size
        Images per training step and per evaluated batch.
    """

    size: int
    patch_size: int
    num_patches: int
    num_glimpses: int = 6
    batch_size: int = 128

    @property
    def values(self) -> int:
        """Numbers in one glimpse."""
        return self.num_patches * self.patch_size**2


TASKS = {
    "mnist": Task(28, 8, 1),
    "translated": Task(60, 12, 3),
}


def parameter_shapes(task: Task, locator_hidden: int = LOCATOR_HIDDEN) -> dict[str, tuple]:
    """Name and shape of every parameter.

    With a hidden layer in the locator mnist has 242,317 numbers, without one (0) 209,677.
    """
    width = GLIMPSE_HIDDEN + LOC_HIDDEN
    layers = {
        "sensor.fc1": (GLIMPSE_HIDDEN, task.values),
        "sensor.fc2": (LOC_HIDDEN, 2),
        "sensor.fc3": (width, GLIMPSE_HIDDEN),
        "sensor.fc4": (width, LOC_HIDDEN),
        "rnn.i2h": (HIDDEN, width),
        "rnn.h2h": (HIDDEN, HIDDEN),
        "locator.fc": (locator_hidden or 2, HIDDEN),
        "locator.fc_lt": (2, locator_hidden),
        "classifier.fc": (CLASSES, HIDDEN),
        "baseliner.fc": (1, HIDDEN),
    }
    if not locator_hidden:
        del layers["locator.fc_lt"]
    shapes: dict[str, tuple] = {}
    for name, shape in layers.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    return shapes


def random_images(task: Task, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 images (count, 1, size, size) in [0, 1) and int64 labels (count,)."""
    rng = np.random.default_rng(seed)
    image = rng.random((count, 1, task.size, task.size), dtype=np.float32)
    return image, rng.integers(0, CLASSES, count)


def parity_inputs(task: Task) -> dict[str, np.ndarray]:
    """Return parameters, U(-a, a) with a = 1 / sqrt(inputs), and the inputs of one forward pass.

    ``image`` (B, 1, H, W); ``first_location`` (B, 2), the four corners and the centre among them;
    ``noise`` (B, T, 2) with a standard deviation that also leads out of the image.
    """
    rng = np.random.default_rng([1, 0])
    arrays: dict[str, np.ndarray] = {}
    for name, shape in parameter_shapes(task).items():
        fan_in = shape[1] if len(shape) == 2 else arrays[name.replace("bias", "weight")].shape[1]
        arrays[name] = (rng.uniform(-1, 1, shape) * fan_in**-0.5).astype(np.float32)
    first = rng.uniform(-1, 1, (task.batch_size, 2)).astype(np.float32)
    first[:5] = [[-1, -1], [1, -1], [-1, 1], [1, 1], [0, 0]]
    noise = rng.normal(0, 0.5, (task.batch_size, task.num_glimpses, 2)).astype(np.float32)
    image, _ = random_images(task, task.batch_size, 0)
    return {**arrays, "image": image, "first_location": first, "noise": noise}


def work(
    make: Callable[[Any], tuple[Mapping[str, Any], Mapping[str, Action]]], config: Any
) -> None:
    """Serve as the worker that `make` gives for a configuration, or measure a little alone."""
    if config.worker:
        serve(lambda: make(config))
    about, actions = make(config)
    print(about)
    for case in ("train", "evaluate"):
        actions["time"](case=case, repeat=3)
        print(case, {k: round(v, 5) for k, v in actions["time"](case=case, repeat=20).items()})
