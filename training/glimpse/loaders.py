"""From a glimpse task and a configuration to the batches of a run, and what is known of files."""

from __future__ import annotations

from typing import Any, NamedTuple

from model.weights.known import Known
from training.augmentation.deform import Deformation
from training.batches.in_memory import EvalBatches, Loaders
from training.data.dataset import SPLIT_SEED, ImageData, hold_out
from training.data.identity import identity_of
from training.glimpse.batches import GlimpseTrainBatches, draw_split
from training.glimpse.config import SPEC_FIELDS, GlimpseConfig
from training.glimpse.data import GlimpseTask, draw_test, load_task
from training.glimpse.rollouts import Draw

EVAL_BATCH = 500
# What a run folder says of a file in it, beside its network.
KNOWN = ("model", "dataset", "image_size", "std", "std_final", "first_radius")


class Opened(NamedTuple):
    """A saved file in its network and in the control whose noise is the location; its data."""

    net: Any
    control: Any
    contexts: list[Any]
    config: GlimpseConfig
    task: GlimpseTask

    def draw(self) -> Draw:
        """Return draws with the policy and the first locations that the file was trained with."""
        return Draw(self.net.spec.num_glimpses, self.config.final_std, self.config.first_radius)


def load_data(config: GlimpseConfig) -> GlimpseTask:
    """Return the data of the configuration's task; UserError as `load_task`."""
    return load_task(
        config.dataset,
        config.data_dir,
        mirror=config.mirror,
        download=config.download,
        size=config.image_size,
    )


def glimpse_loaders(config: GlimpseConfig, task: GlimpseTask) -> Loaders:
    """Return training, held-out (or None) and test batches.

    Raises
    ------
    UserError
        When fewer training images are left than one batch needs.
    """
    data, count = task.dataset, config.valid_count
    if data.valid is None:
        count = count or round(config.valid_fraction * len(data.train))
        if config.valid_fraction and not count:
            share = f"--valid-fraction {config.valid_fraction:g} of {len(data.train)} images"
            print(f"note: {share} is none, so no image is held out")
    elif config.valid_fraction and not count:
        print(f"note: the held-out images are those of the val folder of {data.name}, no fraction")
    rest, held_out = hold_out(data, count)
    valid = None
    if held_out is not None:
        valid = eval_batches(draw_split(held_out, task.canvas, SPLIT_SEED))
    train = GlimpseTrainBatches(
        rest,
        config.batch_size,
        canvas=task.canvas,
        deformation=Deformation(
            config.rotate, config.scale, config.shear, config.shift, config.elastic
        ),
        seed=config.seed,
    )
    return Loaders(train, valid, test_batches(task), identity_of(data))


def test_batches(task: GlimpseTask) -> EvalBatches:
    """Return the test images of a task, which are the same in every run."""
    return eval_batches(draw_test(task))


def eval_batches(data: ImageData) -> EvalBatches:
    """Return batches of images, uint8 (N, H, W, C), as the network is evaluated with."""
    channels = data.images.shape[3]
    return EvalBatches(data, EVAL_BATCH, mean=(0.0,) * channels, std=(1.0,) * channels)


def known_settings(known: Known) -> dict[str, Any]:
    """Return the settings that card, index or run folder say of a parameter file."""
    recorded, card = known.recorded, known.card
    found = {key: recorded[key] for key in (*KNOWN, *SPEC_FIELDS) if key in recorded}
    network, data = card.get("network", {}), card.get("data", {})
    if network.get("model"):
        settings = network.get("settings", {})
        found.update({key: settings.get(key) for key in SPEC_FIELDS}, model=network["model"])
    found.setdefault("dataset", data.get("name") or GlimpseConfig.dataset)
    if "height" in card.get("image", {}):
        found["image_size"] = card["image"]["height"]
    policy = card.get("glimpse", {})
    if "deviation" in policy:
        found.update(std=policy["deviation"], std_final=None)
    if "first_radius" in policy:
        found["first_radius"] = policy["first_radius"]
    return found
