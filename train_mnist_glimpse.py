"""Train, test and draw the recurrent attention (glimpse) model on MNIST and its harder variants.

    python train_mnist_glimpse.py                                MNIST, 6 glimpses of 8x8
    python train_mnist_glimpse.py --dataset digits               embedded digits, minutes
    python train_mnist_glimpse.py --dataset cluttered            60x60 with clutter, 12x12, 3 scales
    python train_mnist_glimpse.py --resume runs/NAME             go on where a run stopped
    python train_mnist_glimpse.py --test mnist_param/FILE.param  score a saved file
    python train_mnist_glimpse.py --plot FILE|runs/NAME          draw where it looks, PNG and GIF
    python train_mnist_glimpse.py --help                         everything else

The flags of kevinzakka/recurrent-visual-attention work too (``--patch_size=8 --use_tensorboard=True
--is_train=False``), and ``--test`` scores its checkpoints. `test` can be imported: it scores a
network with batches of this project or any gluon ``DataLoader``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

if __name__ == "__main__":  # before NumPy and MXNet are loaded, which read it once
    from training.compute.thread_choice import take_threads

    take_threads(sys.argv[1:])

import mxnet as mx

from formats.weight_file import TORCH, detect_format, read_weights
from model import create_model
from model.hybrid_loss import HybridLoss, LossWeights
from model.native.processor import Unavailable, limit_onednn
from model.recurrent_attention import FAMILY as GLIMPSE
from model.registry import FAMILIES, ModelError, spec_of
from model.weights.file_match import LoadError
from model.weights.loading import load_parameters
from model.weights.seed_checkpoint import POLICY_STD, from_seed
from training.compute.devices import choose_contexts, usable_contexts
from training.compute.optimizer import build_trainer
from training.glimpse.config import TASK_SETTINGS, GlimpseConfig
from training.glimpse.flags import RESUME_THIS_MODEL, note_on_seed_flags, translate_seed_flags
from training.glimpse.loaders import Opened, glimpse_loaders, known_settings, load_data
from training.glimpse.report import print_report
from training.glimpse.rollouts import Draw, RolloutObjective, rollout_evaluation, score_rollouts
from training.glimpse.view import draw_file, draw_run, keeper
from training.loop.task import Method, Task
from training.loop.train import Prepared, Script
from training.records.metrics import read_metrics
from training.records.run_folder import default_folder
from training.settings.config import parse_overrides
from training.settings.errors import UserError
from training.settings.exit_code import exit_code
from training.settings.run_config import RESUMABLE

PROG = "train_mnist_glimpse.py"
# The network for a data set when --model is not given.
MODELS = dict.fromkeys(("translated", "digits-translated"), "glimpse_translated")
MODELS.update(dict.fromkeys(("cluttered", "cluttered100"), "glimpse_cluttered"))
DEFAULT_MODEL = "glimpse_mnist"


def test(
    test_net: Any,
    ctx: Any,
    test_loader: Iterable[Any],
    rollouts: int = 1,
    seed: int = 0,
) -> tuple[float, float]:
    """Score a glimpse model: mean cross-entropy and accuracy over exactly all images of a loader.

    Locations are the policy's means; first locations are uniform in [-1, 1], drawn from `seed`.

    Parameters
    ----------
    test_net
        `model.recurrent_attention.RecurrentAttention`, initialized or loaded.
    ctx
        MXNet context, or a list of which the first computes.
    test_loader
        Gluon ``DataLoader`` of (image (N, C, H, W) in [0, 1], label) or batches of this project.
    rollouts
        Whose log-probabilities are averaged.
    seed
        Of the first locations.

    Returns
    -------
    (loss, accuracy)
        Loss of single rollouts in nats per image, accuracy in 0 to 1.

    Raises
    ------
    UserError
        When the loader is empty or gives something else.
    """
    contexts = usable_contexts(ctx if isinstance(ctx, (list, tuple)) else [ctx])
    test_net.collect_params().reset_ctx(contexts)
    draw = Draw(test_net.spec.num_glimpses, 0.0, seed=seed)
    scores = score_rollouts(test_net, test_loader, contexts, draw, rollouts)
    accuracy = scores.log_mean
    print(f"test loss {scores.loss:.4f}, test accuracy {accuracy:.5f} ({scores.images} images)")
    return scores.loss, accuracy


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        given = parse_overrides(GlimpseConfig, translate_seed_flags(words), PROG, __doc__)
        if note := note_on_seed_flags(words):
            print(note)
        limit_onednn()
        return _run(given, words)

    return exit_code(run, ModelError, LoadError, Unavailable)


def _run(given: dict[str, Any], argv: Sequence[str]) -> int:
    dataset = given.get("dataset", GlimpseConfig.dataset)
    config = GlimpseConfig(**{**TASK_SETTINGS.get(dataset, {}), **given})
    config.check()
    if config.plot and Path(config.plot).is_dir():
        return draw_run(config)
    if config.plot or config.test:
        return _open_and(config, given)
    if config.std_sweep:
        return _sweep(config, argv)
    config, given = _in_named_folder(config, given)
    if not config.is_train:
        path = Path(str(config.run_dir)) / ("best.param" if config.best else "last.param")
        return _open_and(replace(config, test=str(path)), given)
    return Script(PROG, GlimpseConfig, _prepare, _finish).train(config, given, argv)


def _sweep(config: GlimpseConfig, argv: Sequence[str]) -> int:
    """Train with each deviation of the policy and say which is best on the held-out images."""
    base = config.run_dir or default_folder(config.dataset, "std")
    scores = {}
    for std in config.std_sweep:
        one = replace(config, std=std, std_sweep=(), run_dir=f"{base}/std-{std:g}")
        code = Script(PROG, GlimpseConfig, _prepare).train(one, {}, argv)
        rows = read_metrics(Path(str(one.run_dir)))
        if code or len(rows) < config.epochs:
            return code
        scores[std] = rows[-1]["valid_acc"]
    for std, score in scores.items():
        print(f"std {std:g}: held-out accuracy {score:.4f} after {config.epochs} epochs")
    print(f"best: --std {max(scores, key=lambda std: scores[std]):g}")
    return 0


def _in_named_folder(
    config: GlimpseConfig, given: dict[str, Any]
) -> tuple[GlimpseConfig, dict[str, Any]]:
    """Name the run folder after the network, as the seed does, where that is asked for."""
    again = config.resume == RESUME_THIS_MODEL
    if config.resume and not again and not config.is_train:
        return replace(config, run_dir=config.resume), given
    if config.run_dir or not (config.checkpoint_dir or again or not config.is_train):
        return config, given
    spec = spec_of(_model_name(config), **config.spec())
    folder = str(config.named_folder(spec.num_glimpses, spec.patch_size, spec.glimpse_scale))
    if not again or not config.is_train:
        return replace(config, run_dir=folder), given
    # The flags that were given again have named the folder; the run has them on record.
    kept = {name: given[name] for name in RESUMABLE if name in given}
    return replace(config, resume=folder), {**kept, "resume": folder}


def _model_name(config: GlimpseConfig) -> str:
    name = config.model or MODELS.get(config.dataset, DEFAULT_MODEL)
    if name in FAMILIES and name not in GLIMPSE:
        known = ", ".join(sorted(GLIMPSE))
        raise UserError(f"{name} is no glimpse model: use train_cifar.py, or one of {known}")
    return name


def _prepare(config: GlimpseConfig) -> Prepared:
    """Return what a training needs; everything that can be wrong fails here."""
    import numpy as np

    contexts = choose_contexts(config.gpus)
    data = load_data(config)
    loaders = glimpse_loaders(config, data)
    np.random.seed(config.seed)
    mx.random.seed(config.seed)
    net = _build(config, data)
    net.initialize(ctx=contexts)
    if config.finetune and not config.resume:
        status = load_parameters(net, config.finetune, contexts, allow_classes_mismatch=True)
        print(f"started from {config.finetune} ({status})")
    _use_operator(net, contexts)
    method = _method(config, net, contexts[0], data, loaders)
    return Prepared(Task(net, build_trainer(net, config), contexts, loaders, method))


def _use_operator(net: Any, contexts: Sequence[Any]) -> None:
    """Compute glimpses in C++ where that can be built and the network is one that it knows."""
    from model.native.build import GLIMPSE, load

    if any(context.device_type != "cpu" for context in contexts):
        return
    try:
        found = load(GLIMPSE)
    except Unavailable as error:
        print(f"glimpses are computed by the graph ({error})")
        return
    if net.use_operator():
        print(f"glimpses are computed by {found}; ATTENTION_NATIVE=0: by the graph")


def _method(config: GlimpseConfig, net: Any, context: Any, data: Any, loaders: Any) -> Any:
    """Return how the network is trained and scored, as `training.loop.task.Method`."""
    weights = LossWeights(
        config.baseline_weight, config.reinforce_weight, config.intermediate_weight, config.reward
    )
    loss = HybridLoss(net, weights)
    loss.hybridize(static_alloc=True, static_shape=True)
    net.hybridize(static_alloc=True, static_shape=True)
    glimpses, steps = net.spec.num_glimpses, config.epochs * len(loaders.train)
    objective = RolloutObjective(
        loss,
        Draw(glimpses, config.std, config.first_radius, config.seed),
        config.rollouts,
        lambda step: config.std_at(step / steps),
    )
    still = Draw(glimpses, 0.0, config.first_radius)
    shown = loaders.test.data.first(config.plot_images)
    keep = keeper(config, net, context, shown, still, data.dataset.class_names)
    return Method(objective, rollout_evaluation(still), keep, loss)


def _finish(config: GlimpseConfig, folder: Path) -> None:
    """Say what the last file of a training scores, and draw where it looks."""
    path = str(folder / "last.param")
    here = {name: getattr(config, name) for name in RESUMABLE}
    _open_and(replace(config, test=path, plot=None), here)
    _open_and(replace(config, plot=path), here)


def _build(config: GlimpseConfig, task: Any, **more: Any) -> Any:
    height, width = task.image_size
    shape = {"height": height, "width": width, "channels": task.channels}
    return create_model(
        _model_name(config), task.dataset.classes, **{**shape, **config.spec(), **more}
    )


def _open(path: str, config: GlimpseConfig, given: Mapping[str, Any]) -> Any:
    """Load a parameter file, or a checkpoint of the seed, into the network that it belongs to."""
    contexts = choose_contexts(config.gpus)
    arrays = None
    known = known_settings(Path(path))
    if detect_format(path) == TORCH:
        name, arrays = from_seed(read_weights(path))
        known = {"model": name, "std": POLICY_STD[name]}
    config = GlimpseConfig(**{**known, **given})
    task = load_data(config)
    net, control = (_build(config, task, gaze=gaze) for gaze in ("policy", "noise"))
    for one in (net, control):
        status = load_parameters(one, path, contexts, arrays=arrays)
        one.hybridize(static_alloc=True, static_shape=True)
    _use_operator(net, contexts)
    print(f"{path} ({status}): {_model_name(config)} on {config.dataset}")
    return Opened(net, control, contexts, config, task)


def _open_and(config: GlimpseConfig, given: Mapping[str, Any]) -> int:
    """Score or draw a saved file."""
    path = str(config.plot or config.test)
    opened = _open(path, config, given)
    if config.plot:
        draw_file(opened, config, Path(path))
    else:
        print_report(opened, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
