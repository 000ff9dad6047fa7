"""From a glimpse task and a configuration to the batches of a run, and what is known of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from model.weights.published import GLIMPSE_INDEX, find_result
from training.augmentation.deform import Deformation
from training.batches.in_memory import EvalBatches, Loaders
from training.data.dataset import SPLIT_SEED, ImageData, hold_out
from training.data.identity import identity_of
from training.glimpse.batches import GlimpseTrainBatches, draw_split
from training.glimpse.config import SPEC_FIELDS, GlimpseConfig
from training.glimpse.data import GlimpseTask, draw_test, load_task
from training.glimpse.rollouts import Draw
from training.records.run_folder import CONFIG_FILE, read_config

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
    elif config.valid_fraction and not count:
        print(f"note: the held-out images are those of the val folder of {data.name}, no fraction")
    rest, held_out = hold_out(data, count)
    valid = None
    if held_out is not None:
        valid = _batches(draw_split(held_out, task.canvas, SPLIT_SEED))
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
    return _batches(draw_test(task))


def _batches(data: ImageData) -> EvalBatches:
    channels = data.images.shape[3]
    return EvalBatches(data, EVAL_BATCH, mean=(0.0,) * channels, std=(1.0,) * channels)


def known_settings(path: Path) -> dict[str, Any]:
    """Return what the index or the run folder says of a parameter file."""
    row = find_result(path, GLIMPSE_INDEX)
    if row:
        return {"model": row["model"], "dataset": row["dataset"], "std": float(row["std"])}
    if not (path.parent / CONFIG_FILE).is_file():
        return {}
    saved = read_config(path.parent)
    return {key: saved[key] for key in (*KNOWN, *SPEC_FIELDS) if key in saved}
