"""Train, test and finetune Residual Attention Networks on CIFAR-10, CIFAR-100, shapes or folders.

    python train_cifar.py                                     Attention-92, CIFAR-10, 97.14 % recipe
    python train_cifar.py --model attention56_small --dataset shapes
    python train_cifar.py --resume runs/NAME                  go on where a run stopped
    python train_cifar.py --test cifar_param/FILE.param       score a saved file
    python train_cifar.py --help                              everything else

`test` can be imported: it scores any network of the project with any gluon ``DataLoader``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional

from bridge.param_file import ParamFileError, read_shapes
from training.config import from_dict, option, parse_overrides, to_dict
from training.errors import UserError
from training.recipes import RECIPES
from training.train_config import TrainConfig

INTERRUPTED_EXIT = 130  # what a shell reports for a program that Ctrl-C ended
# Settings that may be another at a resume: where things are, not what is computed.
RESUMABLE = ("data_dir", "mirror", "download", "gpus", "checkpoint_minutes")


@dataclass(frozen=True)
class CifarConfig(TrainConfig):
    """Options of ``train_cifar.py``."""

    model: str = option("attention92", "network; --list-models names them", flags=("-m",))
    recipe: str = option(
        "pistony", "settings to start from; single flags change them", choices=tuple(RECIPES)
    )
    classes: int = option(0, "number of classes; 0: as many as the data set has")
    test: Optional[str] = option(None, "score this parameter file and end", metavar="FILE")
    finetune: Optional[str] = option(
        None, "start from this parameter file; fc may have other classes", metavar="FILE"
    )
    freeze: str = option("none", "what finetuning leaves as it is", choices=("none", "trunk"))
    list_models: bool = option(False, "list the networks and end")
    summary: Optional[str] = option(None, "layers, parameters and MACs", metavar="MODEL")

    def check(self) -> None:
        """Raise UserError for a value outside its range or that does nothing."""
        super().check()
        if self.freeze != "none" and not self.finetune:
            raise UserError(f"--freeze {self.freeze} needs trained weights: add --finetune FILE")


def test(
    test_net: Any,
    ctx: Any,
    test_loader: Iterable[Any],
    iteration: int = 0,
    logger: Any = None,
    save_params: bool = False,
) -> tuple[float, float]:
    """Score a network: mean cross-entropy and accuracy over exactly all images of a loader.

    Parameters
    ----------
    test_net
        Any classifier of the project, initialized or loaded. Its parameters are moved to `ctx`
        when they are elsewhere.
    ctx
        MXNet context, or a list of them. GPUs that cannot be used are left out with a warning.
    test_loader
        Gluon ``DataLoader`` of (image (N, C, H, W), label) or batches of this project.
    iteration
        Number for the line that is printed and for the file name.
    logger
        Gets the line by ``logger.info``; None prints it.
    save_params
        True also writes ``cifar_param/test_epoch<iteration>_<accuracy>.param``.

    Returns
    -------
    (loss, accuracy)
        Loss in nats per image, accuracy in 0 to 1.

    Raises
    ------
    UserError
        When the loader is empty or its images and labels do not fit the network.
    """
    from training.checkpoint import save_parameters
    from training.devices import usable_contexts
    from training.engine import evaluate

    contexts = usable_contexts(ctx if isinstance(ctx, (list, tuple)) else [ctx])
    parameters = test_net.collect_params()
    if any(set(p.list_ctx()) != set(contexts) for p in parameters.values()):
        parameters.reset_ctx(contexts)
    scores = evaluate(test_net, test_loader, contexts)
    line = (
        f"iteration {iteration}: test loss {scores.loss:.4f}, "
        f"test accuracy {scores.acc:.5f} ({scores.images} images)"
    )
    logger.info(line) if logger else print(line)
    if save_params:
        folder = Path("cifar_param")
        folder.mkdir(exist_ok=True)
        save_parameters(test_net, folder / f"test_epoch{iteration}_{scores.acc:.5f}.param")
    return scores.loss, scores.acc


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    given = parse_overrides(CifarConfig, argv, "train_cifar.py", __doc__)
    from model.loading import LoadError
    from model.registry import ModelError

    try:
        config = CifarConfig(**{**RECIPES[given.get("recipe", "pistony")], **given})
        config.check()
        _check_resume(given)
        if config.list_models:
            return _list_models()
        if config.summary:
            return _summary(config.summary, config.classes or 10)
        if config.test:
            return _test_file(config, given)
        return train(config, given, argv)
    except KeyboardInterrupt:  # outside the training loop, which saves first
        return INTERRUPTED_EXIT
    except (UserError, ModelError, LoadError, ParamFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _check_resume(given: Mapping[str, Any]) -> None:
    """Refuse settings that a resumed run would not heed."""
    ignored = [name for name in given if name not in (*RESUMABLE, "resume")]
    if given.get("resume") and ignored:
        flags = ", ".join("--" + name.replace("_", "-") for name in ignored)
        raise UserError(
            f"--resume keeps the settings of the run; {flags} cannot be changed. Leave them out, "
            "or start a new run"
        )


def train(config: CifarConfig, given: Mapping[str, Any], argv: Sequence[str] = ()) -> int:
    """Train by a configuration and return the exit code; see the module's first lines.

    `given` are the settings that the user has named: a resume takes only `RESUMABLE` from them.
    """
    from training.announce import announce, default_folder, report, warn_threads
    from training.checkpoint import Progress, load_state, restore
    from training.environment import describe
    from training.fit import Fit
    from training.plot import plot_runs
    from training.record import Run, read_config

    progress, state = Progress(), None
    if config.resume:
        folder = Path(config.resume)
        saved = from_dict(CifarConfig, read_config(folder))
        here = {name: given[name] for name in RESUMABLE if name in given}
        config = replace(saved, **here, resume=str(folder))
        config.check()
        progress, *state = load_state(folder)
    net, trainer, contexts, loaders = _prepare(config)
    if state:
        restore(net, trainer, *state)
        warn_threads(progress.threads, describe()["threads"]["effective"])
        run = Run.resume(str(config.resume), progress.epoch)
    else:
        folder = Path(config.run_dir or default_folder(config.dataset, config.model))
        run = Run.create(folder, to_dict(config), ["train_cifar.py", *argv])
        progress.threads = describe()["threads"]["effective"]
    with run:
        announce(config, config.model, contexts, loaders, run.folder, progress)
        result = Fit(net, trainer, contexts, loaders, config, run, progress).run_epochs()
    if result.signal is not None:
        print(f"saved; go on with: python train_cifar.py --resume {run.folder}")
        import signal

        return INTERRUPTED_EXIT if result.signal == signal.SIGINT else 0
    curves = plot_runs([run.folder])
    report(result, run.folder, curves, bool(config.valid_count))
    return 0


def _prepare(config: CifarConfig) -> tuple[Any, Any, list[Any], Any]:
    """Return network, trainer, contexts and loaders; everything that can be wrong fails here."""
    import mxnet as mx
    import numpy as np

    from model import create_model
    from model.loading import load_parameters
    from training.datasets import load_dataset
    from training.devices import choose_contexts, hybridize_options, use_precision
    from training.loaders import build_loaders
    from training.optimizer import build_trainer, freeze_except, initializer

    contexts = choose_contexts(config.gpus)
    # Looked at before the data is loaded, so that a wrong name does not first download a data set.
    create_model(config.model, config.classes or 10)
    if config.finetune and not config.resume:
        read_shapes(config.finetune)
    dataset = load_dataset(
        config.dataset, config.data_dir, mirror=config.mirror, download=config.download
    )
    classes = config.classes or dataset.classes
    if classes < dataset.classes:
        raise UserError(
            f"--classes {classes}: {dataset.name} has {dataset.classes}; leave --classes out"
        )
    loaders = build_loaders(config, dataset, classes)
    use_precision(config.precision, contexts)
    np.random.seed(config.seed)  # the initializers of MXNet draw from both
    mx.random.seed(config.seed)
    net = create_model(config.model, classes)
    net.initialize(initializer(config.init), ctx=contexts)
    if config.finetune and not config.resume:
        status = load_parameters(net, config.finetune, contexts, allow_classes_mismatch=True)
        print(f"started from {config.finetune} ({status}); fresh: {', '.join(status.fresh) or '-'}")
    if config.freeze == "trunk":
        freeze_except(net, "fc.")
    net.hybridize(**hybridize_options(config.precision))
    return net, build_trainer(net, config), contexts, loaders


def _test_file(config: CifarConfig, given: Mapping[str, Any]) -> int:
    from model import create_model
    from model.loading import find_model, load_parameters
    from training.datasets import load_dataset
    from training.devices import choose_contexts, hybridize_options, use_precision
    from training.loaders import evaluation_batches, normalized

    known = {**_known_of(Path(str(config.test))), **given}
    contexts = choose_contexts(config.gpus)
    shapes = {name: shape for name, (shape, _) in read_shapes(str(config.test)).items()}
    found, classes = find_model(shapes)
    config = replace(
        config,
        model=known.get("model") or found or config.model,
        classes=known.get("classes") or classes or 10,
        dataset=known.get("dataset", config.dataset),
        normalization=known.get("normalization", config.normalization),
    )
    use_precision(config.precision, contexts)
    net = create_model(config.model, config.classes)
    status = load_parameters(net, str(config.test), contexts)
    dataset = load_dataset(
        config.dataset, config.data_dir, mirror=config.mirror, download=config.download
    )
    net.hybridize(**hybridize_options(config.precision))
    print(
        f"{config.test} ({status}): {config.model} on {dataset.name}, "
        f"normalized by {config.normalization}"
    )
    test(net, contexts, evaluation_batches(dataset.test, normalized(dataset, config.normalization)))
    return 0


def _known_of(path: Path) -> dict[str, Any]:
    """Return what the index or the run folder says of a parameter file."""
    from training.record import CONFIG_FILE, read_config
    from training.results import find_result

    row = find_result(path)
    if row:
        return {key: row[key] for key in ("model", "dataset", "normalization")}
    if not (path.parent / CONFIG_FILE).is_file():
        return {}
    saved = read_config(path.parent)
    return {k: saved[k] for k in ("model", "dataset", "normalization") if k in saved}


def _list_models() -> int:
    from model import list_models

    print("\n".join(list_models()))
    return 0


def _summary(name: str, classes: int) -> int:
    from model import create_model
    from model.summary import summarize

    print(summarize(create_model(name, classes)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
