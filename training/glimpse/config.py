"""What ``train_mnist_glimpse.py`` can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Optional

from formats.errors import UserError
from training.settings.fields import option
from training.settings.idle import Idle
from training.settings.run_config import RunConfig, check_least, check_one_action

MOST_IMAGES = 16  # in one picture
REWARDS = ("last", "every", "likelihood")
POLICY_BASELINES = ("state", "rollouts")
# Settings that are fields of the network's spec.
SPEC_FIELDS = (
    "patch_size",
    "num_patches",
    "glimpse_scale",
    "pad_value",
    "num_glimpses",
    "glimpse_hidden",
    "loc_hidden",
    "location_octaves",
    "combine",
    "hidden_size",
    "core",
    "locator_hidden",
    "squash",
    "first_location",
    "reinforce_to_core",
    "baseline_per_glimpse",
)


# What is other than the defaults for a data set; found on held-out images. Flags go before them.
DEFORMED = {"rotate": 10.0, "scale": 0.1, "shear": 0.1, "std_final": 0.05}
TASK_SETTINGS: dict[str, dict[str, Any]] = {
    "mnist": {"epochs": 280, "shift": 1.0, **DEFORMED},
    "translated": {"epochs": 230, **DEFORMED},
    "cluttered": {"epochs": 230, **DEFORMED},
    "cluttered100": {"epochs": 230, **DEFORMED},
    # Few images, so many epochs of few updates.
    "digits": {"epochs": 250, "batch_size": 64, "plot_freq": 50, "shift": 2.0, **DEFORMED},
    "digits-translated": {"epochs": 400, "batch_size": 64, "plot_freq": 50, **DEFORMED},
}
_FILE = ("model", "dataset", "image_size", "std", "std_final", "first_radius", *SPEC_FIELDS)
_PLACES = ("data_dir", "mirror", "download", "gpus", "threads")
# What is done beside training, and what it heeds.
ACTIONS: dict[str, tuple[str, ...]] = {
    "resume": (),
    "test": (*_FILE, *_PLACES, "rollouts_eval", "eval_seeds"),
    "gaze": (*_FILE, *_PLACES, "eval_seeds", "plot_images", "output"),
    "plot": (*_FILE, *_PLACES, "plot_images", "plot_epoch", "output", "seed"),
    "list_models": (),
}
IDLE = (
    Idle(
        ("valid_fraction",),
        lambda c: c.valid_count,
        "--valid-count {valid_count} says how many are held out; leave one of them out",
    ),
    Idle(
        ("image_size",),
        lambda c: not c.dataset.startswith("folder:"),
        "images of {dataset} have their size; leave it out",
    ),
    Idle(
        ("glimpse_scale",),
        lambda c: c.num_patches == 1 and c.glimpse_scale != 1,
        "--num-patches 1 is a single scale; leave it out, or take more patches",
    ),
    Idle(
        ("first_radius",),
        lambda c: c.first_location in ("learned", "context"),
        "--first-location {first_location} chooses the first location; leave it out",
    ),
    Idle(
        ("intermediate_weight",),
        lambda c: c.num_glimpses == 1,
        "--num-glimpses 1 has no decision before the last; leave it out",
    ),
    Idle(
        ("reward",),
        lambda c: not (c.reinforce_weight or c.baseline_weight),
        "--reinforce-weight 0 and --baseline-weight 0 credit nothing; leave it out",
    ),
    Idle(
        ("policy_baseline",),
        lambda c: not c.reinforce_weight,
        "--reinforce-weight 0 gives the policy no reward; leave it out",
    ),
    Idle(
        ("histogram_every", "log_dir"),
        lambda c: not c.tensorboard,
        "--no-tensorboard writes nothing for TensorBoard; leave one of them out",
    ),
    Idle(("plot_epoch",), lambda c: True, "it goes with --plot RUN"),
    Idle(
        ("checkpoint_dir",),
        lambda c: c.run_dir,
        "--run-dir names the folder of the run; leave one of them out",
    ),
    Idle(
        ("std", "checkpoint_dir"),
        lambda c: c.std_sweep,
        "--std-sweep trains with deviations of its own, in folders of its own (--run-dir names "
        "where); leave it out",
    ),
)


@dataclass(frozen=True)
class GlimpseConfig(RunConfig):
    """Options of ``train_mnist_glimpse.py``."""

    IDLE: ClassVar[tuple[Idle, ...]] = (*RunConfig.IDLE, *IDLE)

    model: str = option("", "network; default: the data set's", flags=("-m",))
    dataset: str = option(
        "mnist",
        "mnist, translated, cluttered, cluttered100, digits or digits-translated (embedded), or "
        "folder:PATH",
    )
    valid_fraction: float = option(
        0.1, "share of the training images held out to choose epochs and settings on"
    )
    image_size: int = option(60, "edge that the images of a folder get")

    patch_size: Optional[int] = option(
        None, "edge of the smallest patch", group="network (none: as the model has it)"
    )
    num_patches: Optional[int] = option(None, "number of scales")
    glimpse_scale: Optional[float] = option(None, "factor between successive scales")
    pad_value: Optional[float] = option(None, "what surrounds an image")
    num_glimpses: Optional[int] = option(None, "glimpses per image")
    glimpse_hidden: Optional[int] = option(None, "width of the layer that sees the patches")
    loc_hidden: Optional[int] = option(None, "width of the layer that sees the location")
    location_octaves: Optional[int] = option(None, "octaves of sin and cos of the location")
    combine: Optional[str] = option(
        None, "how what and where meet in the sensor", choices=("add", "multiply")
    )
    hidden_size: Optional[int] = option(None, "width of the core")
    core: Optional[str] = option(None, "core", choices=("rnn", "lstm"))
    locator_hidden: Optional[int] = option(None, "hidden width of the location network; 0: none")
    squash: Optional[str] = option(
        None, "what keeps samples in the image", choices=("clamp", "tanh")
    )
    first_location: Optional[str] = option(
        None, "where the first glimpse is from", choices=("given", "learned", "context")
    )
    reinforce_to_core: Optional[bool] = option(None, "let the policy's gradient into the core")
    baseline_per_glimpse: Optional[bool] = option(
        None, "a baseline of its own for each glimpse, instead of one for all"
    )

    epochs: int = option(100, "epochs to train", group="training")
    batch_size: int = option(128, "images per update", flags=("-b",))
    micro_batch: int = option(0, "images per device at a time; 0: the whole share")
    optimizer: str = option("adam", "optimizer", choices=("nag", "sgd", "adam"))
    lr: float = option(1e-3, "peak learning rate")
    wd: float = option(0.0, "weight decay")
    warmup_epochs: int = option(0, "epochs of linear warm-up from 0")
    clip_gradient: float = option(1.0, "limit of the gradients' norm; 0: none")
    ema: float = option(
        0.999, "decay per update of the weights' moving average, which is then tested; 0: none"
    )
    histogram_every: int = option(0, "epochs between two weight histograms; 0: none")
    std: float = option(0.15, "standard deviation of the policy")
    std_final: Optional[float] = option(None, "the same at the end; between them it is linear")
    std_sweep: tuple[float, ...] = option(
        (), "train with each of these and name the best on the held-out images"
    )
    rollouts: int = option(1, "rollouts per image in training")
    first_radius: float = option(1.0, "given first locations are uniform in [-r, r]; 0: the centre")
    reinforce_weight: float = option(0.1, "weight of the policy term")
    baseline_weight: float = option(1.0, "weight of the baseline's squared error")
    intermediate_weight: float = option(0.0, "weight of the decisions before the last")
    reward: str = option("last", "what the policy is credited with", choices=REWARDS)
    policy_baseline: str = option(
        "state",
        "what its reward is compared with: the baseline network, or the mean of the image's other "
        "rollouts",
        choices=POLICY_BASELINES,
    )

    rotate: float = option(0.0, "largest random rotation in degrees", group="augmentation")
    scale: float = option(0.0, "largest random change of height and width, as a fraction")
    shear: float = option(0.0, "largest random shear")
    shift: float = option(0.0, "largest random shift in pixels")
    elastic: float = option(0.0, "elastic distortion in pixels")

    finetune: Optional[str] = option(
        None, "start from this file; the classifier may have other classes", metavar="FILE"
    )
    test: Optional[str] = option(
        None,
        "score this file; here, and with --plot, --gaze and --finetune, --model NAME --pretrained "
        "without FILE takes published weights",
        metavar="FILE",
        group="testing, drawing",
    )
    rollouts_eval: int = option(10, "rollouts whose decisions are averaged, M", flags=("--M",))
    eval_seeds: int = option(5, "evaluations with other first locations and noise")
    is_train: bool = option(True, "false: score the best file of the run instead of training")
    best: bool = option(True, "with --is-train false: the best file, else the last")
    plot: Optional[str] = option(
        None, "draw where a saved file, or a run, looks", metavar="FILE|RUN"
    )
    gaze: Optional[str] = option(
        None,
        "say and draw where a saved file looks when it is right and when it is wrong",
        metavar="FILE",
    )
    plot_epoch: int = option(0, "of a run: draw this epoch; 0: the last that was kept")
    plot_freq: int = option(5, "epochs between two that are kept for drawing; 0: none")
    plot_images: int = option(6, "images to draw")
    output: Optional[str] = option(None, "folder for drawings; default: beside the file")
    list_models: bool = option(False, "list the networks and end")
    checkpoint_dir: Optional[str] = option(None, "folder of runs that are named by their network")
    log_dir: Optional[str] = option(None, "folder that gets a link to the run, for TensorBoard")
    tensorboard: bool = option(True, "write MXBoard event files")

    def check(self) -> None:
        """Raise UserError for a value outside its range."""
        super().check()
        check_least(self, 1, "rollouts", "image_size", "rollouts_eval", "eval_seeds", "plot_images")
        check_least(self, 0, "first_radius", "reinforce_weight", "baseline_weight", "plot_freq")
        check_least(self, 0, "intermediate_weight", "plot_epoch")
        check_one_action(self, "resume", "test", "plot", "gaze", "std_sweep", "list_models")
        if self.plot_images > MOST_IMAGES and not self.resume:  # a run of before may have more
            raise UserError(f"--plot-images {self.plot_images}: must be at most {MOST_IMAGES}")
        if not self.first_radius <= 1:
            raise UserError(f"--first-radius {self.first_radius}: must be 0 to 1")
        if self.policy_baseline == "rollouts" and self.rollouts < 2:
            raise UserError(
                "--policy-baseline rollouts compares the rollouts of an image: add --rollouts 4, "
                "or leave it out"
            )
        if not 0 <= self.valid_fraction < 1:
            raise UserError(f"--valid-fraction {self.valid_fraction}: must be 0 or more, below 1")
        if self.std_sweep:
            self.check_sweep(self.may_hold_out())
        if len({f"{std:g}" for std in self.std_sweep}) < len(self.std_sweep):
            told = " ".join(f"{std:g}" for std in self.std_sweep)
            raise UserError(f"--std-sweep {told}: give each deviation once")
        if self.std_sweep and self.early_stopping:
            raise UserError(
                "--std-sweep compares trainings of the same length: leave out --early-stopping"
            )
        for std in (self.std, self.final_std, *self.std_sweep):
            if not 0 < std <= 1:
                raise UserError(f"--std {std}: must be more than 0 and at most 1")

    @staticmethod
    def check_sweep(held_out: bool) -> None:
        """Raise UserError when a sweep has no held-out images to be judged by."""
        if not held_out:
            raise UserError(
                "--std-sweep needs held-out images to judge by: add --valid-fraction 0.1"
            )

    @property
    def final_std(self) -> float:
        """The policy's standard deviation at the end of the training."""
        return self.std if self.std_final is None else self.std_final

    def std_at(self, part: float) -> float:
        """Return the policy's standard deviation when `part` (0 to 1) of the training is done."""
        return self.std + (self.final_std - self.std) * min(1.0, part)

    def may_hold_out(self) -> bool:
        """Return whether images may be held out."""
        return bool(self.valid_fraction) or super().may_hold_out()

    def spec(self) -> dict[str, Any]:
        """Return the fields of the network's spec that were given."""
        given = ((name, getattr(self, name)) for name in SPEC_FIELDS)
        return {name: value for name, value in given if value is not None}

    def named_folder(self, glimpses: int, patch_size: int, scale: float) -> Path:
        """Return the run folder in `checkpoint_dir`, with the seed's name of the network."""
        name = f"ram_{glimpses}_{patch_size}x{patch_size}_{scale:g}"
        return Path(self.checkpoint_dir or "ckpt") / name
