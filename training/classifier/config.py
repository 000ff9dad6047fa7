"""What the training of a classifier of whole images can be told, beside
`training.settings.run_config`.

`ClassifierConfig` is for images of any size and source, `TrainConfig` for small images in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Optional

from formats.errors import UserError
from formats.images.preprocessing import DATASET, figures_of
from training.augmentation.augment import CUTOUT_KINDS, FLIP_MODES, PAD_MODES, Augmentation
from training.classifier.recipes import RECIPES
from training.settings.fields import LOOSE, REPEATED, option
from training.settings.idle import Idle
from training.settings.run_config import (
    DIST_SYNC,
    ENGINES,
    HOROVOD,
    NONE,
    PRECISIONS,
    RunConfig,
    check_least,
    check_one_action,
)
from training.settings.words import flags_of

INITIALIZERS = ("msra", "xavier")
STEM_INITIALIZERS = ("usual", "whitened")
FUSED = ("auto", "on", "off")
# Those of model.layers.attention_module; this file does without MXNet, for the bridge reads it.
WIRINGS = ("legacy", "paper")
LEARNINGS = ("arl", "nal")
ATTENTIONS = ("mixed", "channel", "spatial")
PROXY_EVERY = 4  # Jordan's
OTHER_PICTURES = (".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".svg", ".pdf", ".tif", ".tiff")
# Settings that change the network; None leaves what its name says.
VARIANT = ("wiring", "learning", "attention")  # the same tensors
OVERRIDES = (*VARIANT, "depth", "steps", "w_init", "b_init")
# Settings that a parameter file's row in the index, or its run, answers.
KNOWN = ("model", "dataset", "normalization", "set", *OVERRIDES)
# Each is all that a command does; those of one script alone are named here too. Behind it is what
# it heeds.
_FILE = ("recipe", *KNOWN, "classes", "data_dir", "mirror", "download", "precision", "size")
_MACHINE = ("gpus", "threads")
ACTIONS: dict[str, tuple[str, ...]] = {
    "resume": (),
    "test": (*_FILE, *_MACHINE, "seed_format"),
    "predict": (*_FILE, *_MACHINE, "images"),
    "masks": (*_FILE, *_MACHINE, "images", "mask_output"),
    "mask_score": (*_FILE, *_MACHINE, "mask_images", "seed", "init"),
    "summary": (*OVERRIDES, "set", "classes", "recipe"),
    "list_models": (),
    # With --stem-init whitened also what changes the images.
    "export_start": (
        *(*_FILE, *_MACHINE, "seed", "init", "stem_init", "batch_size", "pad", "crop_size"),
        *("valid_count", "train_count", "label_noise", "small_size", "small_epochs"),
    ),
}
IDLE = (
    Idle(
        ("mixup_alpha",),
        lambda c: c.mixup_off_epochs >= c.epochs,
        "the last {mixup_off_epochs} epochs (--mixup-off-epochs) are without mixup, and there are "
        "{epochs}. Give a smaller --mixup-off-epochs",
        always=True,
    ),
    Idle(
        ("mixup_off_epochs",),
        lambda c: not c.mixup_alpha,
        "--mixup-alpha 0 is no mixup at all; leave it out, or give --mixup-alpha 1",
    ),
    Idle(
        ("scale_batch",),
        lambda c: c.distributed == NONE,
        "there is one worker; start several (docs/distributed.md), or leave it out",
    ),
    Idle(("mask_output",), lambda c: True, "it goes with --masks FILE"),
    Idle(("mask_images",), lambda c: True, "it goes with --mask-score FILE"),
)
SMALL_IMAGES_IDLE = (
    Idle(
        ("cutout_prob", "cutout_size"),
        lambda c: c.cutout == "none",
        "--cutout none cuts nothing out; choose square or erasing, or leave it out",
    ),
    Idle(
        ("cutout_size",),
        lambda c: c.cutout == "erasing",
        "--cutout erasing draws the size; choose square, or leave it out",
    ),
    Idle(("pad_mode",), lambda c: not c.pad, "--pad 0 adds no border; leave one of them out"),
    Idle(
        ("proxy", "proxy_depth", "proxy_every"),
        lambda c: c.harder_share == 1,
        "it goes with --harder-share below 1",
    ),
)


@dataclass(frozen=True)
class ClassifierConfig(RunConfig):
    """Options of the training of any classifier of whole images, and of what is done with it."""

    IDLE: ClassVar[tuple[Idle, ...]] = (*RunConfig.IDLE, *IDLE)
    CHANNELS: ClassVar[Optional[int]] = 3  # of all images; None: the data set's

    model: str = option("attention92", "network; --list-models names them", flags=("-m",))
    classes: int = option(0, "number of classes; 0: as many as the data set has")
    wiring: Optional[str] = option(
        None, "what the masks add up on their way up; default: the network's", choices=WIRINGS
    )
    learning: Optional[str] = option(
        None, "attention residual or naive learning; default: the network's", choices=LEARNINGS
    )
    attention: Optional[str] = option(
        None, "activation of the masks; default: the network's", choices=ATTENTIONS
    )
    depth: Optional[int] = option(
        None, "layers of a CIFAR ResNet of any depth; default: the network's"
    )
    steps: Optional[int] = option(
        None, "linear steps of a recurrent gate (ram); default: the network's"
    )
    w_init: Optional[float] = option(None, "first weights of a gate; default: the network's")
    b_init: Optional[float] = option(None, "first offsets of a gate; default: the network's")
    set: tuple[str, ...] = option(
        (),
        "any other field of the network's spec, such as channels=64,64,128; may be given again",
        metavar="FIELD=VALUE",
        words=REPEATED,
    )
    normalization: str = option(
        DATASET,
        "mean and std: the data set's own (dataset), ImageNet's (imagenet), those of the "
        "RAM-ResNet repository (ram), none (pixels from 0 to 1), or numbers as "
        "0.5,0.5,0.5/0.2,0.2,0.2; with a trained file the default is the file's",
        metavar="NAME|MEAN/STD",
    )
    # bfloat16 costs no accuracy that several seeds could show (docs/speed.md).
    precision: str = option(
        "auto",
        "what convolutions multiply; auto: the faster one of a probe, where fused operators train",
        choices=(*PRECISIONS, "auto"),
    )
    init: str = option("msra", "initializer of convolutions", choices=INITIALIZERS)
    fused: str = option(
        "auto",
        "train by the project's own C++ operators: where they can be built, or else end with the "
        "reason (on), or not at all",
        choices=FUSED,
    )

    flip: bool = option(True, "mirror images at random")
    mixup_alpha: float = option(1.0, "alpha of mixup; 0: no mixup")
    mixup_off_epochs: int = option(20, "epochs at the end without mixup")
    label_smoothing: float = option(0.0, "label smoothing")

    distributed: str = option(
        NONE, "train with several processes (docs/distributed.md)", choices=ENGINES
    )
    scale_batch: bool = option(
        False, "multiply batch size and learning rate by the number of workers"
    )
    sync_batch_norm: bool = option(
        False, "batch-norm statistics over the images of all GPUs of a process"
    )

    images: tuple[str, ...] = option(
        (), "pictures for --predict and --masks: files, or test:7 for a test image", words=LOOSE
    )
    predict: Optional[str] = option(
        None, "print the top 5 classes of the pictures by this parameter file", metavar="FILE"
    )
    masks: Optional[str] = option(
        None, "draw the soft masks of this parameter file over the pictures", metavar="FILE"
    )
    mask_output: str = option(
        "masks", "folder for a picture each, or a .png for all in one", metavar="PATH"
    )
    mask_score: Optional[str] = option(
        None, "measure how well this file's soft masks find the object (shapes)", metavar="FILE"
    )
    mask_images: int = option(1000, "test images that --mask-score is measured on")
    test: Optional[str] = option(
        None,
        "score this parameter file and end; here, and with --predict, --masks, --mask-score and "
        "--finetune, --model NAME --pretrained without FILE takes published weights",
        metavar="FILE",
    )
    finetune: Optional[str] = option(
        None, "start from this parameter file; fc may have other classes", metavar="FILE"
    )
    freeze: str = option("none", "what finetuning leaves as it is", choices=("none", "trunk"))
    list_models: bool = option(False, "list the networks and end")
    summary: Optional[str] = option(None, "layers, parameters and MACs", metavar="MODEL")

    def check(self) -> None:
        """Raise UserError for a value outside its range or that does nothing."""
        super().check()
        check_least(self, 0, "mixup_off_epochs")
        check_least(self, 1, "mask_images")
        check_one_action(self, *ACTIONS)
        figures_of(self.normalization, self.CHANNELS)
        if self.images and not (self.predict or self.masks):
            raise UserError(
                f"unexpected word {self.images[0]!r}; every setting is a flag (--help lists all), "
                "and pictures go with --predict FILE or --masks FILE"
            )
        if Path(self.mask_output).suffix.lower() in OTHER_PICTURES:
            raise UserError(f"--mask-output {self.mask_output}: give a folder, or a .png file")
        if self.freeze != "none" and not self.finetune:
            raise UserError(f"--freeze {self.freeze} needs trained weights: add --finetune FILE")


@dataclass(frozen=True)
class TrainConfig(ClassifierConfig):
    """Options of a classifier of small images. The defaults are PistonY's recipe of 97.14 %.

    That run: NAG, batch 640, peak learning rate 1.0 after 5 epochs of linear warm-up, cosine to 0
    over 220 epochs, weight decay 1e-4 on weights only, pad-crop, flip, random erasing, mixup with
    alpha 1 but for the last 20 epochs, batch-norm statistics over 160 images (four GPUs).
    """

    IDLE: ClassVar[tuple[Idle, ...]] = (*ClassifierConfig.IDLE, *SMALL_IMAGES_IDLE)

    dataset: str = option(
        "cifar10",
        "cifar10, cifar100, cifar100-coarse, stl10, shapes (embedded) or folder:PATH (your own "
        "images)",
    )
    train_count: int = option(0, "use only this many training images; 0: all")
    label_noise: float = option(
        1.0,
        "share of training labels that stay true, the others become any other class (held-out and "
        "test images keep their labels); 1: no noise",
        metavar="CLEAN_RATIO",
    )
    pad: int = option(4, "pixels of padding before the random crop; 0: no crop")
    pad_mode: str = option(
        "black", "padding: black, or the image mirrored at its border", choices=PAD_MODES
    )
    crop_size: int = option(0, "edge of the random crop in pixels; 0: as large as the image")
    flip_mode: str = option(
        "random",
        "mirror an image with probability 1/2 in every epoch (random), or in every second one, of "
        "which a random half is the first (alternating)",
        choices=FLIP_MODES,
    )
    shift: float = option(0.0, "largest random shift, as a fraction of the image")
    jitter: float = option(0.0, "strength of random brightness, contrast and saturation; 0: none")
    cutout: str = option("erasing", "cutout", choices=CUTOUT_KINDS)
    cutout_prob: float = option(0.5, "probability of the cutout per image")
    cutout_size: int = option(16, "edge of the square cutout in pixels")
    small_size: int = option(
        0, "edge that training images are shrunk to in the first epochs; 0: never", metavar="PIXELS"
    )
    small_epochs: int = option(0, "first epochs that are trained on images of --small-size")
    stem_init: str = option(
        "usual",
        "first weights of the first convolution: those of --init, or filters that whiten patches "
        "of the training images",
        choices=STEM_INITIALIZERS,
    )
    average_last: int = option(
        0,
        "test and save the mean of the weights at the ends of so many last epochs, with batch-norm "
        "statistics measured anew; 0: none",
    )
    harder_share: float = option(
        1.0,
        "draw --batch-size / SHARE images for an update, and train on those --batch-size of them "
        "that have the largest loss in a small network, --proxy; 1: on all",
        metavar="SHARE",
    )
    proxy: str = option(
        "resnet20_basic", "network that chooses for --harder-share, trained along", metavar="MODEL"
    )
    proxy_depth: Optional[int] = option(
        None, "layers of the proxy, where it is a CIFAR ResNet; default: the network's"
    )
    proxy_every: int = option(
        PROXY_EVERY, "updates of the network for one of the proxy, on the images of that batch"
    )

    def check(self) -> None:
        """Raise UserError for a value outside its range."""
        super().check()
        check_least(self, 0, "train_count", "average_last", "small_size", "small_epochs")
        if self.flip_mode == "alternating" and not self.flip:
            raise UserError(
                "--flip-mode alternating mirrors images, --no-flip does not: leave one of them out"
            )
        if self.stem_init != "usual" and self.finetune:
            raise UserError("--stem-init: --finetune takes all first weights from its file")
        self._check_average()
        self._check_small()
        self._check_harder()
        if not 0 < self.label_noise <= 1:
            raise UserError(
                f"--label-noise {self.label_noise}: give the share of labels that stay true, "
                "above 0 and at most 1, for example 0.7"
            )
        self.augmentation()

    def _check_average(self) -> None:
        """Raise UserError for an average of epochs that cannot be taken."""
        if self.average_last > self.epochs:
            raise UserError(
                f"--average-last {self.average_last}: there are only --epochs {self.epochs}; "
                "choose fewer"
            )
        if self.average_last and self.ema:
            raise UserError(
                "--average-last and --ema are two averages of the weights: give only one of them"
            )
        if self.average_last and self.early_stopping:
            raise UserError(
                "--average-last needs to know which epochs are the last: leave out --early-stopping"
            )

    def _check_small(self) -> None:
        """Raise UserError for first epochs on smaller images that cannot be."""
        if bool(self.small_size) != bool(self.small_epochs):
            raise UserError(
                "--small-size and --small-epochs belong together, for example "
                "--small-size 24 --small-epochs 10"
            )
        if self.small_epochs and self.small_epochs >= self.epochs:
            raise UserError(
                f"--small-epochs {self.small_epochs}: of --epochs {self.epochs} the last must be "
                "on images of the size that is tested; choose fewer"
            )

    def _check_harder(self) -> None:
        """Raise UserError for a choice of images that cannot be made."""
        share = f"--harder-share {self.harder_share:g}"
        if not 0 < self.harder_share <= 1:
            raise UserError(f"{share}: must be above 0 and at most 1, for example 0.5")
        check_least(self, 1, "proxy_every")
        if self.harder_share == 1:
            return
        if self.drawn_images() == self.batch_size:
            raise UserError(
                f"{share}: an update of --batch-size {self.batch_size} would leave no image out; "
                "choose a smaller share"
            )
        for name, undone, instead in (
            ("distributed", (HOROVOD, DIST_SYNC), "train with one worker"),
            ("precision", ("float16",), "choose another"),
            ("on_nonfinite", ("skip",), "choose stop"),
        ):
            if getattr(self, name) in undone:
                flag = f"{flags_of([name])[0]} {getattr(self, name)}"
                raise UserError(f"{share} is not done with {flag}: leave one out, or {instead}")

    def drawn_images(self) -> int:
        """Return how many images an update uses up, of which it trains on ``batch_size``."""
        return round(self.batch_size / self.harder_share)

    def augmentation(self) -> Augmentation:
        """Return the part of the configuration that says what is done to a training batch."""
        return Augmentation(
            pad=self.pad,
            pad_mode=self.pad_mode,
            crop_size=self.crop_size,
            flip=self.flip,
            flip_mode=self.flip_mode,
            shift=self.shift,
            jitter=self.jitter,
            cutout=self.cutout,
            cutout_prob=self.cutout_prob,
            cutout_size=self.cutout_size,
            small_size=self.small_size,
            small_epochs=self.small_epochs,
            mixup_alpha=self.mixup_alpha,
            label_smoothing=self.label_smoothing,
        )


@dataclass(frozen=True)
class CifarConfig(TrainConfig):
    """Options of ``train_cifar.py``."""

    recipe: str = option(
        "pistony", "settings to start from; single flags change them", choices=tuple(RECIPES)
    )
    export_start: Optional[str] = option(
        None,
        "write PREFIX-symbol.json and PREFIX.param, the network as this training would start it, "
        "for python -m bridge.train, and end",
        metavar="PREFIX",
    )
    seed_format: bool = option(
        False, "write log.txt, checkpoint.param and model_best.param as zhongshsh/RAM does"
    )
