"""Named recipes: settings that belong together. A flag on the command line goes before them.

A recipe may name the network and the data set too. Published recipes count updates; here they are
epochs of CIFAR's 50,000 images, of which the last incomplete batch is dropped. Where a source
leaves something open or does what cannot be done here, the comment says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from formats.errors import UserError

Recipe = Mapping[str, Any]

CIFAR_IMAGES = 50_000


def epochs_of(updates: int, batch_size: int) -> int:
    """Return the number of epochs, rounded, that `updates` of `batch_size` images are."""
    return round(updates / (CIFAR_IMAGES // batch_size))


def _stepped(updates: int, falls: tuple[int, ...]) -> Recipe:
    """Return a step schedule that is given in updates of 64 images."""
    return {
        "epochs": epochs_of(updates, 64),
        "batch_size": 64,
        "micro_batch": 0,
        "schedule": "step",
        "lr_steps": tuple(epochs_of(fall, 64) for fall in falls),
        "warmup_epochs": 0,
    }


NO_SMALL: Mapping[str, int] = {"small_size": 0, "small_epochs": 0}
NO_MIXUP: Recipe = {"mixup_alpha": 0.0, "mixup_off_epochs": 0}

# Wang et al. 2017, section 4.1. Pixels are normalised, not only centred; the initializer is He's in
# the paper and MSRAPrelu here. What the paper says of weight decay holds for all parameters.
PAPER: Recipe = {
    **_stepped(160_000, (64_000, 96_000)),
    **NO_MIXUP,
    "lr": 0.1,
    "decay_bias": True,
    "cutout": "none",
}

# PistonY's first run of 2018: 95.41 to 95.68 %.
PISTONY_2018: Recipe = {
    **_stepped(240_000, (72_000, 144_000, 216_000)),
    **NO_MIXUP,
    "model": "attention92",
    "dataset": "cifar10",
    "optimizer": "sgd",
    "lr": 0.1,
    "decay_bias": True,
    "cutout": "none",
    "normalization": "imagenet",
}

# The same with mixup in the first 80 % of 255,000 updates: 96.57 %. Its falls of the rate are not
# on record; they are put at the same 30, 60 and 90 %.
MIXUP_2018: Recipe = {
    **PISTONY_2018,
    **_stepped(255_000, (76_500, 153_000, 229_500)),
    "mixup_alpha": 1.0,
    "mixup_off_epochs": epochs_of(51_000, 64),
}

# The notebooks of rahullokesh/Residual-Attention-Network-For-Image-Classification: Keras' Adam,
# 250 epochs of 40,000 images. They stop early by the accuracy on the training images; here the
# held-out fifth decides. Keras shifts by fractions of pixels.
TF: Recipe = {
    **NO_MIXUP,
    "epochs": 250,
    "batch_size": 64,
    "micro_batch": 0,
    "optimizer": "adam",
    "lr": 0.001,
    "wd": 0.0,
    "schedule": "constant",
    "warmup_epochs": 0,
    "init": "xavier",
    "pad": 0,
    "shift": 0.15,
    "cutout": "none",
    "valid_count": 10_000,
    "early_stopping": 15,
}
# Beside these falls the notebook divides the rate by 1 + updates / 10,000, which is not done here.
TF_SGD: Recipe = {"optimizer": "nag", "lr": 0.1, "schedule": "step", "lr_steps": (65, 120, 180)}

# The RAM-ResNet repository's documented command: the rate falls before epochs 81 and 122 (from 0).
# All parameters decay. Differs: the last, incomplete batch of an epoch is dropped, and the
# initializer is the network's own where it has one.
RAM: Recipe = {
    **NO_MIXUP,
    "model": "resnet164_ram",
    "epochs": 164,
    "batch_size": 128,
    "micro_batch": 0,
    "optimizer": "sgd",
    "lr": 0.1,
    "wd": 1e-4,
    "decay_bias": True,
    "schedule": "step",
    "lr_steps": (81, 122),
    "warmup_epochs": 0,
    "cutout": "none",
    "normalization": "ram",
}
# STL-10 there: batches of 16, and the crops of CIFAR although the test images are 96x96.
RAM_STL10: Recipe = {**RAM, "dataset": "stl10", "batch_size": 16}

# The same networks and number of epochs with what osmr's much higher numbers on the same backbone
# were trained with: NAG, cosine, crop, flip, colour jitter, mixup but for the last 12 epochs, label
# smoothing, no decay of batch norms and biases. How strong each part was is not on record; the
# strengths, warm-up and cutout are this project's choice, not tuned.
RAM_STRONG: Recipe = {
    "model": "resnet164_ram",
    "epochs": 164,
    "batch_size": 128,
    "micro_batch": 0,
    "optimizer": "nag",
    "lr": 0.1,
    "wd": 5e-4,
    "decay_bias": False,
    "schedule": "cosine",
    "warmup_epochs": 5,
    "label_smoothing": 0.1,
    "mixup_alpha": 0.2,
    "mixup_off_epochs": 12,
    "jitter": 0.4,
    "cutout": "square",
    "cutout_size": 8,
}


# For hours on a CPU, about 10 to 60 epochs: little regularization, because networks underfit then.
# Rate times weight decay is 5e-5; alternating flips are Jordan's (2024). What the rate and smaller
# images in the first half gain is measured in docs/results.md.
SHORT: Recipe = {
    **NO_MIXUP,
    "epochs": 30,
    "batch_size": 128,
    "micro_batch": 0,
    "optimizer": "nag",
    "lr": 0.4,
    "wd": 1.25e-4,
    "schedule": "cosine",
    "warmup_epochs": 1,
    "label_smoothing": 0.0,
    "pad": 4,
    "flip_mode": "alternating",
    "small_size": 24,
    "small_epochs": 15,
    "cutout": "none",
}

# From a trained file to other images of the same kind, in minutes. The batch is cut where there are
# few images (`training.classifier.finetuning`).
FINETUNE: Recipe = {
    "epochs": 10,
    "batch_size": 64,
    "micro_batch": 0,
    "optimizer": "nag",
    "lr": 0.01,
    "wd": 5e-4,
    "schedule": "cosine",
    "warmup_epochs": 1,
}


def _notebook(dataset: str, depth: int, learning: str, attention: str) -> Recipe:
    return {
        **TF,
        **(TF_SGD if depth == 92 else {}),
        "dataset": dataset,
        "model": f"attention{depth}_tf",
        "learning": learning,
        "attention": attention,
    }


RECIPES: dict[str, Recipe] = {
    # PistonY's 97.14 % run; these are the defaults of TrainConfig.
    "pistony": {},
    "pistony-2018": PISTONY_2018,
    "mixup-2018": MIXUP_2018,
    "paper": PAPER,
    "tf": TF,
    "tf-cifar10-56-arl-mixed": _notebook("cifar10", 56, "arl", "mixed"),
    "tf-cifar10-56-arl-spatial": _notebook("cifar10", 56, "arl", "spatial"),
    "tf-cifar10-56-nal-mixed": _notebook("cifar10", 56, "nal", "mixed"),
    "tf-cifar10-92-arl-spatial": _notebook("cifar10", 92, "arl", "spatial"),
    "tf-cifar100-56-arl-spatial": _notebook("cifar100", 56, "arl", "spatial"),
    "tf-cifar100-56-nal-mixed": _notebook("cifar100", 56, "nal", "mixed"),
    "ram": RAM,
    "ram-stl10-released": {**RAM_STL10, "pad": 4, "crop_size": 32},
    "ram-stl10-native": {**RAM_STL10, "pad": 12},
    "ram-strong": RAM_STRONG,
    "short": SHORT,
    "finetune": {**NO_MIXUP, **FINETUNE, "cutout": "none"},
    # For minutes to an hour on a CPU: small batches, no regularization that needs long training.
    "quick": {
        **NO_MIXUP,
        "epochs": 6,
        "batch_size": 64,
        "micro_batch": 0,
        "lr": 0.1,
        "warmup_epochs": 0,
        "wd": 5e-4,
        "cutout": "none",
    },
}


def _small(recipe: Recipe, given: Mapping[str, Any]) -> Mapping[str, int]:
    """Return the first epochs on smaller images: all of a recipe's, or none if one is put to 0."""
    epochs = max(0, given.get("epochs", recipe["epochs"]))
    share = recipe["small_epochs"] * epochs // recipe["epochs"]
    small, size = given.get("small_epochs", share), given.get("small_size", recipe["small_size"])
    return {"small_size": size, "small_epochs": small} if size and small else NO_SMALL


def with_recipe(name: str, given: Mapping[str, Any]) -> Recipe:
    """Return the settings of a recipe with what the user has given laid over them.

    A schedule of the user's own does not keep the recipe's steps, nor --no-flip its way to flip.
    First epochs on smaller images are the same share of the user's number of epochs, rounded down.

    Raises
    ------
    UserError
        When the recipe's epochs are cut so short that its steps lie behind the end.
    """
    recipe = dict(RECIPES[name])
    if given.get("schedule", "step") != "step" and "lr_steps" not in given:
        recipe.pop("lr_steps", None)
    if given.get("flip") is False and "flip_mode" not in given:
        recipe.pop("flip_mode", None)
    if "small_epochs" in recipe:
        recipe.update(_small(recipe, given))
    steps, epochs = recipe.get("lr_steps", ()), given.get("epochs")
    if steps and epochs is not None and "lr_steps" not in given and steps[-1] >= epochs:
        listed = " ".join(map(str, steps))
        raise UserError(
            f"--epochs {epochs}: the recipe {name} lowers the learning rate after epochs {listed}. "
            "Give --lr-steps of your own, or another --schedule"
        )
    return {**recipe, **given}
