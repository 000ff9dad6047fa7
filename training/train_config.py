"""What a training run can be told: one frozen dataclass, the source of flags and of config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from training.augment import CUTOUT_KINDS, Augmentation
from training.config import option
from training.errors import UserError
from training.schedules import check_schedule

OPTIMIZERS = ("nag", "sgd", "adam")
SCHEDULES = ("cosine", "step", "linear", "constant")
INITIALIZERS = ("msra", "xavier")
MAX_SEED = 2**31 - 1  # MXNet's
NORMALIZATIONS = ("dataset", "imagenet")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class TrainConfig:
    """Options of every training script. The defaults are the recipe of PistonY's 97.14 % run.

    That run: NAG, batch 640, peak learning rate 1.0 after 5 epochs of linear warm-up, cosine to 0
    over 220 epochs, weight decay 1e-4 on weights only, pad-crop, flip, random erasing, mixup with
    alpha 1 but for the last 20 epochs, batch-norm statistics over 160 images (four GPUs).
    """

    dataset: str = option(
        "cifar10", "cifar10, cifar100, shapes (embedded) or folder:PATH (your own images)"
    )
    data_dir: Optional[str] = option(None, "folder with the data set's files")
    mirror: Optional[str] = option(None, "URL or folder to download the data set from first")
    download: bool = option(True, "download the data set when it is not found")
    normalization: str = option(
        "dataset", "mean and std: the data set's own, or ImageNet's", choices=NORMALIZATIONS
    )
    valid_count: int = option(
        0, "training images held out to choose epochs and hyper-parameters on"
    )
    train_count: int = option(0, "use only this many training images; 0: all")

    epochs: int = option(220, "epochs to train")
    batch_size: int = option(640, "images per update", flags=("-b",))
    micro_batch: int = option(
        160, "images per device at a time, and per batch-norm statistic; 0: the whole share"
    )
    optimizer: str = option("nag", "optimizer", choices=OPTIMIZERS)
    lr: float = option(1.0, "peak learning rate; scale it with the batch size")
    momentum: float = option(0.9, "momentum of nag and sgd")
    wd: float = option(1e-4, "weight decay")
    decay_bias: bool = option(False, "decay beta, gamma and bias too")
    schedule: str = option("cosine", "learning rate over time", choices=SCHEDULES)
    warmup_epochs: int = option(5, "epochs of linear warm-up from 0")
    lr_steps: tuple[int, ...] = option((), "epochs after which a step schedule multiplies the rate")
    lr_factor: float = option(0.1, "factor of the step schedule")
    final_lr: float = option(0.0, "learning rate at the end of cosine and linear")
    init: str = option("msra", "initializer of convolutions", choices=INITIALIZERS)

    pad: int = option(4, "pixels of padding before the random crop; 0: no crop")
    flip: bool = option(True, "mirror images at random")
    shift: float = option(0.0, "largest random shift, as a fraction of the image")
    cutout: str = option("erasing", "cutout", choices=CUTOUT_KINDS)
    cutout_prob: float = option(0.5, "probability of the cutout per image")
    cutout_size: int = option(16, "edge of the square cutout in pixels")
    mixup_alpha: float = option(1.0, "alpha of mixup; 0: no mixup")
    mixup_off_epochs: int = option(20, "epochs at the end without mixup")
    label_smoothing: float = option(0.0, "label smoothing")

    early_stopping: int = option(
        0, "stop after this many epochs without a better accuracy on the held-out images; 0: never"
    )
    eval_every: int = option(1, "epochs between two evaluations; the last epoch always has one")
    histogram_every: int = option(10, "epochs between two weight histograms; 0: none")
    seed: int = option(0, "seed of initialization, order and augmentation")
    gpus: Optional[str] = option(
        None, "GPUs such as 0,1, or cpu; default: every usable one, else the CPU"
    )
    precision: str = option("float32", "arithmetic of convolutions", choices=PRECISIONS)
    run_dir: Optional[str] = option(None, "folder of the run; default: runs/DATASET-MODEL-TIME")
    resume: Optional[str] = option(None, "run folder to continue", metavar="RUN")
    checkpoint_minutes: float = option(10.0, "minutes between two checkpoints within an epoch")

    def check(self) -> None:
        """Raise UserError for a value outside its range."""
        for name in ("epochs", "batch_size", "eval_every"):
            if getattr(self, name) < 1:
                raise UserError(f"--{_dashed(name)} {getattr(self, name)}: must be 1 or more")
        for name in (
            "valid_count",
            "train_count",
            "micro_batch",
            "warmup_epochs",
            "mixup_off_epochs",
            "early_stopping",
            "histogram_every",
            "seed",
            "wd",
            "momentum",
            "final_lr",
            "checkpoint_minutes",
        ):
            if not getattr(self, name) >= 0:
                raise UserError(f"--{_dashed(name)} {getattr(self, name)}: must be 0 or more")
        if not 0 < self.lr < float("inf"):
            raise UserError(f"--lr {self.lr}: must be a positive number")
        if self.momentum >= 1:
            raise UserError(f"--momentum {self.momentum}: must be 0 or more and less than 1")
        if self.seed > MAX_SEED:
            raise UserError(f"--seed {self.seed}: must be at most {MAX_SEED}")
        if self.early_stopping and not self.valid_count:
            raise UserError(
                "--early-stopping needs held-out images to judge by: add --valid-count 5000 "
                "(stopping on the test set would spoil its number)"
            )
        if (self.schedule == "step") != bool(self.lr_steps):
            raise UserError(
                "--schedule step and --lr-steps belong together, for example "
                "--schedule step --lr-steps 80 120"
            )
        check_schedule(
            self.schedule,
            self.lr,
            self.epochs,
            self.warmup_epochs,
            self.lr_steps,
            self.lr_factor,
            self.final_lr,
        )
        self.augmentation()

    def augmentation(self) -> Augmentation:
        """Return the part of the configuration that says what is done to a training batch."""
        return Augmentation(
            pad=self.pad,
            flip=self.flip,
            shift=self.shift,
            cutout=self.cutout,
            cutout_prob=self.cutout_prob,
            cutout_size=self.cutout_size,
            mixup_alpha=self.mixup_alpha,
            label_smoothing=self.label_smoothing,
        )


def _dashed(name: str) -> str:
    return name.replace("_", "-")
