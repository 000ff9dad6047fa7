"""ImageNet, or other large photographs, in record files or in folders, as batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Optional

from formats.errors import UserError
from formats.images.preprocessing import (
    DATASET,
    FIGURES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocessing,
    figures_of,
)
from training.augmentation.photo_augment import PhotoAugmentation
from training.batches.in_memory import Loaders
from training.batches.photos import (
    FolderSource,
    PhotoEvalBatches,
    PhotoTrainBatches,
    Shape,
    Source,
    held_out,
)
from training.batches.record_io import RecordFile
from training.classifier.config import ClassifierConfig
from training.data.dataset import SPLIT_SEED, check_one_split
from training.data.identity import identity_of
from training.data.image_folder import list_image_folder
from training.settings.fields import option
from training.settings.idle import Idle
from training.settings.run_config import check_least

IMAGENET_CLASSES = 1000
EVAL_BATCH = 32
MAX_SIZE = 1024
RECORDS = ("train.rec", "val.rec")


@dataclass(frozen=True)
class ImageNetConfig(ClassifierConfig):
    """Options of ``train_imagenet.py``. The defaults are the paper's recipe.

    Wang et al. 2017, section 4.2, and the logs of others: NAG, learning rate 0.1, divided by ten
    after 200,000, 400,000 and 500,000 of 530,000 updates of 64 images, which are 26 epochs of
    1,281,167 images. Crops and colours as in PistonY's script.
    """

    # The data set is but a name here: photographs always come from --data-dir.
    IDLE: ClassVar[tuple[Idle, ...]] = tuple(
        rule for rule in ClassifierConfig.IDLE if "data_dir" not in rule.names
    )

    dataset: str = option("imagenet", "what the data is called in records and messages")
    model: str = option("attention56_imagenet", "network; --list-models names them", flags=("-m",))
    size: int = option(224, "height and width of the inputs")
    epochs: int = option(26, "epochs to train")
    batch_size: int = option(64, "images per update", flags=("-b",))
    micro_batch: int = option(
        0, "images per device at a time, and per batch-norm statistic; 0: the whole share"
    )
    lr: float = option(0.1, "peak learning rate; scale it with the batch size")
    decay_bias: bool = option(True, "decay beta, gamma and bias too")
    schedule: str = option(
        "step", "learning rate over time", choices=("cosine", "step", "linear", "constant")
    )
    warmup_epochs: int = option(0, "epochs of linear warm-up from 0")
    lr_steps: tuple[int, ...] = option(
        (10, 20, 25), "epochs after which a step schedule multiplies the rate"
    )
    normalization: str = option(
        "imagenet",
        "mean and std: ImageNet's (imagenet), another name that train_cifar.py knows, or numbers "
        "as 0.5,0.5,0.5/0.2,0.2,0.2; with a trained file the default is the file's",
        metavar="NAME|MEAN/STD",
    )
    mixup_alpha: float = option(0.0, "alpha of mixup; 0: no mixup")
    mixup_off_epochs: int = option(0, "epochs at the end without mixup")
    crop_area: float = option(0.08, "smallest share of a photograph that a random crop has")
    jitter: float = option(0.4, "largest change of brightness, contrast and saturation")
    pca_noise: float = option(0.1, "deviation of the noise along ImageNet's principal colours")

    def check(self) -> None:
        """Raise UserError for a value outside its range or that does nothing."""
        super().check()
        if not 16 <= self.size <= MAX_SIZE:
            raise UserError(f"--size {self.size}: give 16 to {MAX_SIZE}")
        check_least(self, 0, "mixup_alpha")
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"--label-smoothing {self.label_smoothing}: 0 or more, less than 1")
        if self.normalization == DATASET:
            raise UserError(
                "--normalization dataset: photographs are not read before the training; give "
                "imagenet, or the numbers"
            )
        if self.mirror:
            raise UserError("--mirror: ImageNet cannot be downloaded; give --data-dir FOLDER")
        self.augmentation()

    def may_hold_out(self) -> bool:
        """Return True: a folder may have images for it."""
        return True

    def augmentation(self) -> PhotoAugmentation:
        """Return what is done to a training photograph."""
        return PhotoAugmentation(self.flip, self.jitter, self.pca_noise, self.crop_area)


@dataclass(frozen=True)
class Photographs:
    """Training and test images; folders give names to the classes, records do not."""

    name: str
    train: Source
    test: Source
    class_names: tuple[str, ...]
    classes: int
    valid: Optional[Source] = None
    mean = IMAGENET_MEAN
    std = IMAGENET_STD


def open_imagenet(config: ImageNetConfig) -> Photographs:
    """Open ``train.rec`` and ``val.rec``, or ``train/<class>/*`` and ``val/<class>/*``.

    Both are looked for in ``config.data_dir``. Folders without a ``val`` or ``test`` give a fifth
    of their images to the test.

    Raises
    ------
    UserError
        When neither is there, or a file is missing or damaged.
    """
    if not config.data_dir:
        raise UserError(
            "give the data: --data-dir FOLDER with train.rec, train.idx, val.rec and val.idx, or "
            "with train/<class>/*.jpg and val/<class>/*.jpg"
        )
    root = Path(config.data_dir).expanduser()
    if not root.is_dir():
        raise UserError(
            f"--data-dir {config.data_dir}: there is no such folder; give one with train.rec, "
            "train.idx, val.rec and val.idx, or with train/<class>/*.jpg and val/<class>/*.jpg"
        )
    if (root / RECORDS[0]).is_file():
        train, test = (RecordFile(root / name) for name in RECORDS)
        if not config.classes:
            print(f"record files name no classes: {IMAGENET_CLASSES} assumed, or --classes N")
        return Photographs(config.dataset, train, test, (), config.classes or IMAGENET_CLASSES)
    listing = list_image_folder(config.data_dir)
    images, names = FolderSource(listing.train), listing.class_names
    valid = FolderSource(listing.valid) if listing.valid.paths else None
    return Photographs(config.dataset, images, FolderSource(listing.test), names, len(names), valid)


def build_photo_loaders(config: ImageNetConfig, data: Photographs, classes: int) -> Loaders:
    """Return training, held-out (or None) and test batches.

    Raises
    ------
    UserError
        When fewer training images are left than one batch needs.
    """
    figures = figures_of(config.normalization, 3) or FIGURES["imagenet"]
    shape = Shape(config.size, classes, figures)
    if data.valid is None:
        rest, valid = held_out(data.train, config.valid_count, SPLIT_SEED)
    else:
        check_one_split(config.valid_count, len(data.valid), str(config.data_dir))
        rest, valid = data.train, data.valid
    train = PhotoTrainBatches(
        rest,
        config.batch_size,
        shape,
        augmentation=config.augmentation(),
        mixup_alpha=config.mixup_alpha,
        label_smoothing=config.label_smoothing,
        seed=config.seed,
    )
    judged = None if valid is None else PhotoEvalBatches(valid, EVAL_BATCH, shape)
    test = PhotoEvalBatches(data.test, EVAL_BATCH, shape)
    loaders: Any = (train, judged, test, identity_of(data))
    return Loaders(*loaders)


def photo_test_batches(
    data: Photographs, classes: int, expected: Preprocessing
) -> PhotoEvalBatches:
    """Return batches of all test images, as a network expects them."""
    shape = Shape(expected.size, classes, (expected.mean, expected.std), expected.crop)
    return PhotoEvalBatches(data.test, EVAL_BATCH, shape)
