"""Train, test and draw the recurrent attention (glimpse) model on MNIST and its harder variants.

    python train_mnist_glimpse.py                                MNIST, 6 glimpses of 8x8
    python train_mnist_glimpse.py --dataset digits               embedded digits, minutes
    python train_mnist_glimpse.py --dataset cluttered            60x60 with clutter, 12x12, 3 scales
    python train_mnist_glimpse.py --resume runs/NAME             go on where a run stopped
    python train_mnist_glimpse.py --test mnist_param/FILE.param  score a saved file
    python train_mnist_glimpse.py --plot FILE                    draw where it looks, PNG and GIF
    python train_mnist_glimpse.py --help                         everything else

The flags of kevinzakka/recurrent-visual-attention work too (``--patch_size=8 --use_tensorboard=True
--is_train=False``). `test` can be imported: it scores a network with batches of this project or any
gluon ``DataLoader``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Optional

from training.config import option, parse_overrides
from training.errors import UserError
from training.run_config import RunConfig, check_least
from training.script import Prepared, Script, exit_code

PROG = "train_mnist_glimpse.py"
REWARDS = ("last", "every", "likelihood")
# The network for a data set when --model is not given.
MODELS = {
    "translated": "glimpse_translated",
    "cluttered": "glimpse_cluttered",
    "cluttered100": "glimpse_cluttered",
    "digits-translated": "glimpse_translated",
}
DEFAULT_MODEL = "glimpse_mnist"
# Settings that are fields of the network's spec.
SPEC_FIELDS = (
    "patch_size",
    "num_patches",
    "glimpse_scale",
    "pad_value",
    "num_glimpses",
    "glimpse_hidden",
    "loc_hidden",
    "hidden_size",
    "core",
    "locator_hidden",
    "squash",
    "first_location",
    "reinforce_to_core",
)


@dataclass(frozen=True)
class GlimpseConfig(RunConfig):
    """Options of ``train_mnist_glimpse.py``."""

    model: str = option("", "network; default: the data set's", flags=("-m",))
    dataset: str = option(
        "mnist", "mnist, translated, cluttered, cluttered100, digits (embedded) or folder:PATH"
    )
    valid_fraction: float = option(
        0.1, "share of the training images held out to choose epochs and settings on"
    )
    image_size: int = option(60, "edge that the images of a folder get")

    patch_size: Optional[int] = option(None, "edge of the smallest patch; none: the network's")
    num_patches: Optional[int] = option(None, "number of scales")
    glimpse_scale: Optional[float] = option(None, "factor between successive scales")
    pad_value: Optional[float] = option(None, "what surrounds an image")
    num_glimpses: Optional[int] = option(None, "glimpses per image")
    glimpse_hidden: Optional[int] = option(None, "width of the layer that sees the patches")
    loc_hidden: Optional[int] = option(None, "width of the layer that sees the location")
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

    epochs: int = option(100, "epochs to train")
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
    rollouts: int = option(1, "rollouts per image in training")
    first_radius: float = option(1.0, "given first locations are uniform in [-r, r]; 0: the centre")
    reinforce_weight: float = option(0.1, "weight of the policy term")
    baseline_weight: float = option(1.0, "weight of the baseline's squared error")
    intermediate_weight: float = option(0.0, "weight of the decisions before the last")
    reward: str = option("last", "what the policy is credited with", choices=REWARDS)

    rotate: float = option(0.0, "largest random rotation in degrees")
    scale: float = option(0.0, "largest random change of height and width, as a fraction")
    shear: float = option(0.0, "largest random shear")
    shift: float = option(0.0, "largest random shift in pixels")
    elastic: float = option(0.0, "elastic distortion in pixels")

    def check(self) -> None:
        """Raise UserError for a value outside its range."""
        super().check()
        check_least(self, 1, "rollouts", "image_size")
        check_least(self, 0, "first_radius", "reinforce_weight", "baseline_weight")
        check_least(self, 0, "intermediate_weight")
        if not 0 <= self.valid_fraction < 1:
            raise UserError(f"--valid-fraction {self.valid_fraction}: must be 0 or more, below 1")
        for std in (self.std, self.std if self.std_final is None else self.std_final):
            if not 0 < std <= 1:
                raise UserError(f"--std {std}: must be more than 0 and at most 1")

    def spec(self) -> dict[str, Any]:
        """Return the fields of the network's spec that were given."""
        given = ((name, getattr(self, name)) for name in SPEC_FIELDS)
        return {name: value for name, value in given if value is not None}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    given = parse_overrides(GlimpseConfig, argv, PROG, __doc__)
    from model.loading import LoadError
    from model.registry import ModelError

    return exit_code(lambda: _run(given, argv), ModelError, LoadError)


def _run(given: dict[str, Any], argv: Sequence[str]) -> int:
    config = GlimpseConfig(**given)
    config.check()
    return Script(PROG, GlimpseConfig, _prepare).train(config, given, argv)


def _prepare(config: GlimpseConfig) -> Prepared:
    import mxnet as mx
    import numpy as np

    from model import create_model
    from model.hybrid_loss import HybridLoss, LossWeights
    from training.devices import choose_contexts
    from training.fit import Method
    from training.glimpse_tasks import load_task
    from training.optimizer import build_trainer
    from training.rollouts import Draw, RolloutObjective, rollout_evaluation

    contexts = choose_contexts(config.gpus)
    task = load_task(
        config.dataset, config.data_dir, mirror=config.mirror, download=config.download
    )
    loaders = _loaders(config, task)
    np.random.seed(config.seed)
    mx.random.seed(config.seed)
    height, width = task.image_size
    net = create_model(
        config.model or MODELS.get(config.dataset, DEFAULT_MODEL),
        task.dataset.classes,
        height=height,
        width=width,
        channels=task.channels,
        **config.spec(),
    )
    net.initialize(ctx=contexts)
    weights = LossWeights(
        config.baseline_weight, config.reinforce_weight, config.intermediate_weight, config.reward
    )
    loss = HybridLoss(net, weights)
    loss.hybridize(static_alloc=True, static_shape=True)
    net.hybridize(static_alloc=True, static_shape=True)
    steps = config.epochs * len(loaders.train)
    end = config.std if config.std_final is None else config.std_final
    objective = RolloutObjective(
        loss,
        Draw(net.spec.num_glimpses, config.std, config.first_radius, config.seed),
        config.rollouts,
        lambda step: config.std + (end - config.std) * step / steps,
    )
    mean_locations = Draw(net.spec.num_glimpses, 0.0, config.first_radius)
    method = Method(objective, rollout_evaluation(mean_locations))
    return Prepared(net, build_trainer(net, config), contexts, loaders, {"method": method})


def _loaders(config: GlimpseConfig, task: Any) -> Any:
    from training.batches import EvalBatches
    from training.datasets import split_validation
    from training.deform import Deformation
    from training.fit import Loaders
    from training.glimpse_batches import GlimpseTrainBatches, draw_split
    from training.glimpse_tasks import draw_test
    from training.loaders import SPLIT_SEED

    rest, valid = task.dataset.train, None
    zeros, ones = (0.0,) * task.channels, (1.0,) * task.channels
    count = config.valid_count or round(config.valid_fraction * len(rest))
    if count:
        rest, held_out = split_validation(rest, count, SPLIT_SEED)
        held_out = draw_split(held_out, task.canvas, SPLIT_SEED)
        valid = EvalBatches(held_out, 500, mean=zeros, std=ones)
    train = GlimpseTrainBatches(
        rest,
        config.batch_size,
        canvas=task.canvas,
        deformation=Deformation(
            config.rotate, config.scale, config.shear, config.shift, config.elastic
        ),
        seed=config.seed,
    )
    return Loaders(train, valid, EvalBatches(draw_test(task), 500, mean=zeros, std=ones))


if __name__ == "__main__":
    sys.exit(main())
