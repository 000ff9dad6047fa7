"""Train, test and draw the recurrent attention (glimpse) model on MNIST and its harder variants.

    python train_mnist_glimpse.py                                MNIST, 6 glimpses of 8x8
    python train_mnist_glimpse.py --dataset digits               embedded digits, minutes
    python train_mnist_glimpse.py --dataset cluttered            60x60 with clutter, 12x12, 3 scales
    python train_mnist_glimpse.py --resume runs/NAME             go on where a run stopped
    python train_mnist_glimpse.py --test mnist_param/FILE.param  score a saved file
    python train_mnist_glimpse.py --plot FILE|runs/NAME          draw where it looks, PNG and GIF
    python train_mnist_glimpse.py --gaze FILE                    where it looks when it is wrong
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

    take_threads(sys.argv[1:], needs=("numpy", "mxnet"))

    from training.glimpse.config import GlimpseConfig
    from training.glimpse.flags import translate_seed_flags
    from training.settings.exit_code import check_flags
    from training.settings.pretrained import GLIMPSE_ACTIONS, any_weights

    check_flags(
        GlimpseConfig,
        __doc__,
        lambda words: translate_seed_flags(any_weights(words, GLIMPSE_ACTIONS)),
    )

import numpy as np

from formats.images.outputs import require_finite
from machine.processor import limit_onednn
from model.recurrent_attention import FAMILY as GLIMPSE
from model.registry import ModelError
from model.weights.file_match import LoadError
from training.apply.pretrained import with_weights
from training.compute.devices import usable_contexts
from training.glimpse.config import ACTIONS, TASK_SETTINGS, GlimpseConfig
from training.glimpse.flags import RESUME_THIS_MODEL, note_on_seed_flags, translate_seed_flags
from training.glimpse.gaze import draw_gaze
from training.glimpse.report import print_report
from training.glimpse.rollouts import Draw, RolloutTask, score_rollouts
from training.glimpse.task import open_glimpse, prepare_glimpse, with_run_folder, with_start
from training.glimpse.view import draw_file, draw_run
from training.loop.train import train
from training.records.run_folder import BEST_FILE, LAST_FILE, default_folder
from training.reports.run_results import read_result
from training.settings.config import parse_overrides
from training.settings.exit_code import exits
from training.settings.idle import tell_unheeded
from training.settings.pretrained import GLIMPSE_ACTIONS
from training.settings.run_config import RESUMABLE, check_settings

PROG = "train_mnist_glimpse.py"


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
    require_finite(np.array(scores.loss), "these images")
    accuracy = scores.log_mean
    print(f"test loss {scores.loss:.4f}, test accuracy {accuracy:.5f} ({scores.images} images)")
    return scores.loss, accuracy


@exits(ModelError, LoadError)
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code."""
    words = with_weights(list(sys.argv[1:] if argv is None else argv), GLIMPSE_ACTIONS)
    translated = translate_seed_flags(words)
    given = parse_overrides(GlimpseConfig, translated, PROG, __doc__)
    if note := note_on_seed_flags(words):
        print(note)
    limit_onednn()
    return _run(given, words, strict=translated == words)


def _run(given: dict[str, Any], argv: Sequence[str], strict: bool) -> int:
    dataset = given.get("dataset", GlimpseConfig.dataset)
    config = GlimpseConfig(**{**TASK_SETTINGS.get(dataset, {}), **given})
    if config.is_train:
        # A run of this model that goes on (--resume=True) compares the flags with its own.
        check_settings(config, {} if config.resume == RESUME_THIS_MODEL else given, ACTIONS, strict)
    else:
        config.check()
        tell_unheeded(
            "is_train", given, (*ACTIONS["test"], "best", "run_dir", "resume", "checkpoint_dir")
        )
    if config.list_models:
        print("\n".join(sorted(GLIMPSE)))
        return 0
    if config.plot and Path(config.plot).is_dir():
        return draw_run(config)
    if config.plot or config.test or config.gaze:
        return _score_or_draw(config, given)
    if config.std_sweep:
        return _sweep(with_start(config, given), argv)
    config, given = with_run_folder(config, given)
    if not config.is_train:
        path = Path(str(config.run_dir)) / (BEST_FILE if config.best else LAST_FILE)
        return _score_or_draw(replace(config, test=str(path)), given)
    config = with_start(config, given)
    return train(PROG, config, given, argv, prepare_glimpse, _finish)


def _sweep(config: GlimpseConfig, argv: Sequence[str]) -> int:
    """Train with each deviation of the policy and say which is best on the held-out images."""
    base = config.run_dir or default_folder(config.dataset, "std")
    scores: dict[float, float] = {}
    for std in config.std_sweep:
        one = replace(config, std=std, std_sweep=(), run_dir=f"{base}/std-{std:g}")
        code = train(PROG, one, {}, argv, _prepare_judged)
        done = read_result(str(one.run_dir))
        if code or not done.finished:
            left = [f"{other:g}" for other in config.std_sweep if other not in (*scores, std)]
            if left:
                print(f"not begun yet: --std-sweep {' '.join(left)}, in another --run-dir")
            return code
        scores[std] = done.last("valid_acc")
    for std, score in scores.items():
        print(f"std {std:g}: held-out accuracy {score:.4f} after {config.epochs} epochs")
    print(f"best: --std {max(scores, key=lambda std: scores[std]):g}")
    return 0


def _prepare_judged(config: GlimpseConfig) -> RolloutTask:
    """Return what one training of a sweep needs, with held-out images."""
    task = prepare_glimpse(config)
    config.check_sweep(task.loaders.valid is not None)
    return task


def _finish(config: GlimpseConfig, folder: Path) -> None:
    """Say what the last file of a training scores, and draw where it looks."""
    path = str(folder / LAST_FILE)
    here = {name: getattr(config, name) for name in RESUMABLE}
    _score_or_draw(replace(config, test=path, plot=None), here)
    _score_or_draw(replace(config, plot=path), here)


def _score_or_draw(config: GlimpseConfig, given: Mapping[str, Any]) -> int:
    """Score a saved file, or draw where it looks."""
    path = str(config.plot or config.gaze or config.test)
    opened = open_glimpse(path, config, given)
    if config.plot:
        draw_file(opened, config, Path(path))
    elif config.gaze:
        draw_gaze(opened, config, Path(path))
    else:
        print_report(opened, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
