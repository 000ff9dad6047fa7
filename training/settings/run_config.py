"""What every training run can be told, whatever it trains: the base of each script's settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from formats.errors import UserError, quoted
from training.settings.fields import option
from training.settings.idle import Idle, check_idle, tell_unheeded
from training.settings.schedules import KINDS, check_schedule
from training.settings.words import flags_of

OPTIMIZERS = ("nag", "sgd", "adam")
MAX_SEED = 2**31 - 1  # MXNet's
PRECISIONS = ("float32", "bfloat16", "float16")
KVSTORES = ("device", "nccl", "local")
# Settings that may be another at a resume: where things are, not what is computed.
RESUMABLE = (
    *("data_dir", "mirror", "download", "gpus", "checkpoint_minutes", "keep"),
    *("on_nonfinite", "nonfinite_limit"),  # these change nothing as long as all is finite
    "threads",  # this changes how sums are rounded, which is warned about
)
# What config.json keeps from the start, so that a further resume has to be told again. The
# arithmetic may be another, parameters and optimizer states are float32 in any; it is warned about.
REPEATED = (*RESUMABLE, "precision")
AT_RESUME = (*REPEATED, "distributed", "resume", "data_changed")  # what a resume takes
NONE, HOROVOD, DIST_SYNC = ENGINES = ("none", "horovod", "dist_sync")
ON_NONFINITE = ("stop", "skip")


def _waits_out(config: Any, evaluations: int) -> bool:
    """Return whether a training is over when so many evaluations were not better than before."""
    small: int = getattr(config, "small_epochs", 0)
    first = max(1, small // config.eval_every)  # it is the best so far
    return bool((first + evaluations) * config.eval_every >= config.epochs)


EVERY = 8  # updates between two steps of the average: a step costs as much as a plain SGD update
UNDECAYED = ("beta", "gamma", "bias")
# What `training.launch` tells a worker beside MXNet's own variables.
RANK, SIZE = "ATTENTION_RANK", "ATTENTION_WORKERS"
LOCAL_RANK, LOCAL_SIZE = "ATTENTION_LOCAL_RANK", "ATTENTION_LOCAL_WORKERS"
# What a training does not look at beside other settings.
IDLE = (
    Idle(
        ("momentum",),
        lambda c: c.optimizer == "adam",
        "--optimizer adam has none; leave it out, or choose nag or sgd",
    ),
    Idle(("decay_bias",), lambda c: not c.wd, "--wd 0 decays nothing; leave one of them out"),
    Idle(
        ("lr_factor",),
        lambda c: c.schedule not in ("step", "plateau"),
        "--schedule {schedule} has no steps; choose step or plateau, or leave it out",
    ),
    Idle(
        ("lr_patience",),
        lambda c: c.schedule != "plateau",
        "--schedule {schedule} waits for nothing; choose plateau, or leave it out",
    ),
    Idle(
        ("final_lr",),
        lambda c: c.schedule not in ("cosine", "linear", "exponential"),
        "--schedule {schedule} has its own end; choose cosine, linear or exponential, or leave it "
        "out",
    ),
    Idle(
        ("nonfinite_limit",),
        lambda c: c.on_nonfinite == "stop",
        "--on-nonfinite stop ends at the first; choose skip, or leave it out",
    ),
    Idle(
        ("early_stopping",),
        lambda c: _waits_out(c, c.early_stopping),
        "--epochs {epochs} with --eval-every {eval_every} end before it could act",
        told=True,
    ),
    Idle(
        ("lr_patience",),
        lambda c: c.schedule == "plateau" and _waits_out(c, c.lr_patience + 1),
        "--epochs {epochs} with --eval-every {eval_every} end before it could act, so the rate "
        "never falls",
        told=True,
        always=True,
    ),
    Idle(("data_changed",), lambda c: not c.resume, "it goes with --resume RUN"),
    Idle(
        ("mirror",),
        lambda c: not c.download,
        "--no-download fetches nothing; leave one of them out",
    ),
    Idle(
        ("data_dir", "mirror"),
        lambda c: c.dataset.startswith(("folder:", "shapes", "digits")),
        "{dataset} does not look there",
        told=True,
    ),
)


@dataclass(frozen=True)
class RunConfig:
    """Options of every training script: optimization, evaluation, places.

    A family of networks that wants another default defines the field again in its subclass.
    """

    IDLE: ClassVar[tuple[Idle, ...]] = IDLE

    model: str = option("", "network", flags=("-m",))
    dataset: str = option("", "data set")
    data_dir: Optional[str] = option(None, "folder with the data set's files")
    mirror: Optional[str] = option(None, "URL or folder to download the data set from first")
    download: bool = option(True, "download the data set when it is not found")
    valid_count: int = option(
        0, "training images held out to choose epochs and hyper-parameters on"
    )

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
    schedule: str = option("cosine", "learning rate over time", choices=KINDS)
    warmup_epochs: int = option(5, "epochs of linear warm-up from 0")
    lr_steps: tuple[int, ...] = option((), "epochs after which a step schedule multiplies the rate")
    lr_factor: float = option(0.1, "factor of the step and plateau schedules")
    lr_patience: int = option(
        20, "a plateau schedule acts after more evaluations without a better accuracy than these"
    )
    final_lr: float = option(0.0, "learning rate at the end of cosine, linear and exponential")
    clip_gradient: float = option(0.0, "limit of the gradients' norm; 0: none")
    ema: float = option(
        0.0, "decay per update of the weights' moving average, which is then tested; 0: none"
    )

    on_nonfinite: str = option(
        "stop",
        "at a loss or gradient that is not finite: stop, or skip (leave out that update)",
        choices=ON_NONFINITE,
    )
    nonfinite_limit: int = option(10, "updates left out in a row after which skip stops too")

    early_stopping: int = option(
        0,
        "stop after this many evaluations without a better accuracy on the held-out images; "
        "0: never",
    )
    eval_every: int = option(1, "epochs between two evaluations; the last epoch always has one")
    histogram_every: int = option(10, "epochs between two weight histograms; 0: none")
    seed: int = option(0, "seed of initialization, order and augmentation")
    gpus: Optional[str] = option(
        None, "GPUs such as 0,1, or cpu; default: every usable one, else the CPU"
    )
    threads: Optional[int] = option(
        None, "threads of the CPU; default: $OMP_NUM_THREADS, else all idle physical cores"
    )
    kvstore: str = option("device", "what adds up gradients of several GPUs", choices=KVSTORES)
    precision: str = option(
        "float32",
        "arithmetic of convolutions: bfloat16 for the CPU, float16 with loss scaling for GPUs",
        choices=PRECISIONS,
    )
    run_dir: Optional[str] = option(None, "folder of the run; default: runs/DATASET-MODEL-TIME")
    resume: Optional[str] = option(None, "run folder to continue", metavar="RUN")
    data_changed: bool = option(
        False, "go on although the data is not what the run was trained on, which is recorded"
    )
    checkpoint_minutes: float = option(10.0, "minutes between two checkpoints within an epoch")
    keep: int = option(
        0, "also keep the parameters of so many last epochs, as epoch-NNNN.param; 0: none"
    )

    def drawn_images(self) -> int:
        """Return how many images of the data an update uses up; not all may be trained on."""
        return self.batch_size

    def may_hold_out(self) -> bool:
        """Return whether images may be held out: a folder may have some, which opening it tells."""
        return bool(self.valid_count) or self.dataset.startswith("folder:")

    def check_judged(self, held_out: bool) -> None:
        """Raise UserError when something is to be judged by held-out images and there are none."""
        judges = "--early-stopping" if self.early_stopping else "--schedule plateau"
        if (self.early_stopping or self.schedule == "plateau") and not held_out:
            raise UserError(
                f"{judges} needs held-out images to judge by: add --valid-count 5000 "
                "(stopping on the test set would spoil its number)"
            )

    def check(self) -> None:
        """Raise UserError for a value outside its range."""
        check_least(self, 1, "epochs", "batch_size", "eval_every", "lr_patience", "nonfinite_limit")
        check_least(self, 0, "valid_count", "micro_batch", "warmup_epochs", "early_stopping")
        check_least(self, 0, "histogram_every", "seed", "wd", "momentum", "final_lr")
        check_least(self, 0, "checkpoint_minutes", "clip_gradient", "ema", "keep")
        if self.threads is not None:
            check_least(self, 1, "threads")
        if not 0 < self.lr < float("inf"):
            raise UserError(f"--lr {self.lr}: must be a positive number")
        if self.momentum >= 1:
            raise UserError(f"--momentum {self.momentum}: must be 0 or more and less than 1")
        if self.ema >= 1:
            raise UserError(f"--ema {self.ema}: must be 0 or more and less than 1, such as 0.999")
        if self.seed > MAX_SEED:
            raise UserError(f"--seed {self.seed}: must be at most {MAX_SEED}")
        self.check_judged(self.may_hold_out())
        if (self.schedule == "step") != bool(self.lr_steps):
            raise UserError(
                "--schedule step and --lr-steps belong together, for example "
                "--schedule step --lr-steps 80 120"
            )
        check_schedule(self)


def words_of(name: str, given: Mapping[str, Any]) -> list[str]:
    """Return the words of a command line that name a setting as `given` has it, if it has it."""
    value, (flag,) = given.get(name), flags_of([name])
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    return [] if value is None else [flag, quoted(str(value))]


def check_one_action(config: Any, *names: str) -> None:
    """Raise UserError when more than one of the settings called `names` is given."""
    given = flags_of(name for name in names if getattr(config, name, None))
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)}: one thing at a time, give only one of them")


def check_resume(given: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Refuse settings that a resumed run would not heed: all that are `given` but `allowed`."""
    ignored = [name for name in given if name not in allowed]
    if given.get("resume") and ignored:
        flags = ", ".join(flags_of(ignored))
        raise UserError(
            f"--resume keeps the settings of the run; {flags} cannot be changed. Leave them out, "
            "or start a new run; --finetune RUN/last.param starts one from its weights"
        )


def check_least(config: Any, least: int, *names: str) -> None:
    """Raise UserError when one of the settings of `config` called `names` is below `least`."""
    for name, flag in zip(names, flags_of(names)):
        value = getattr(config, name)
        if not value >= least:
            raise UserError(f"{flag} {value}: must be {least} or more")


def check_settings(
    config: RunConfig,
    given: Mapping[str, Any],
    actions: Mapping[str, Sequence[str]],
    strict: bool = True,
) -> None:
    """Check the settings of a command line, of `actions` one alone, with what each heeds.

    Those of a resume come first: laid over the defaults of a start they would be told wrong things.
    `strict` is that of `training.settings.idle.check_idle`.
    """
    check_resume(given, (*AT_RESUME, *actions))
    config.check()
    action = next((name for name in actions if getattr(config, name, None)), None)
    if action and action != "resume":
        tell_unheeded(action, given, actions[action])
    elif not action:
        check_idle(config, given, strict)
