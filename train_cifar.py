"""Train, test and finetune Residual Attention Networks on CIFAR-10, CIFAR-100, shapes or folders.

    python train_cifar.py                                     Attention-92, CIFAR-10, 97.14 % recipe
    python train_cifar.py --model attention56_small --dataset shapes
    python train_cifar.py --resume runs/NAME                  go on where a run stopped
    python train_cifar.py --test cifar_param/FILE.param       score a saved file
    python train_cifar.py --predict FILE cat.jpg dog.png      top 5 classes of your own pictures
    python train_cifar.py --masks FILE cat.jpg test:0         soft masks over pictures, as PNG
    python train_cifar.py --mask-score FILE                   how well masks find the object
    python train_cifar.py --help                              everything else

The flags of zhongshsh/RAM work too (``--arch ram --dataset cifar100 --block-name bottleneck --depth
164 --epochs 164 --schedule 81 122 --wd 1e-4 --info depth164``, and ``--resume FILE --e``).

`test` can be imported: it scores any network of the project with any gluon ``DataLoader``.
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

    from training.classifier.config import CifarConfig
    from training.classifier.flags import translate_ram_flags
    from training.settings.exit_code import check_flags
    from training.settings.pretrained import CLASSIFIER_ACTIONS, any_weights

    check_flags(
        CifarConfig,
        __doc__,
        lambda words: translate_ram_flags(any_weights(words, CLASSIFIER_ACTIONS)),
    )

import mxnet as mx
import numpy as np

from formats.atomic import write_atomically
from formats.card import VERSION
from formats.errors import UserError
from formats.images.outputs import require_finite
from machine.processor import limit_onednn
from model import summary
from model.export.export_symbol import symbol_json
from model.recurrent_attention import FAMILY as GLIMPSE
from model.registry import ModelError, list_models
from model.weights.file_match import LoadError
from model.weights.network_card import network_section
from training.apply.actions import inspect
from training.apply.pretrained import with_weights
from training.augmentation.label_noise import noise_files
from training.classifier.config import ACTIONS, OVERRIDES, CifarConfig, ClassifierConfig
from training.classifier.finetuning import NAME, gentle_settings, is_finetuning, with_start
from training.classifier.flags import is_ram_command, note_on_ram_flags, translate_ram_flags
from training.classifier.loaders import build_loaders, evaluation_batches, open_dataset
from training.classifier.matching import (
    warn_of_more_classes,
    warn_of_other_images,
    with_labels_of,
)
from training.classifier.networks import build_classifier
from training.classifier.opening import open_classifier
from training.classifier.proxy import check_proxy, prepare_proxy
from training.classifier.recipes import with_recipe
from training.classifier.task import (
    prepare_classifier,
    start_network,
    start_stem,
)
from training.compute.devices import usable_contexts
from training.data.cifar import CLASS_NAMES
from training.loop.checkpoint import save_parameters
from training.loop.evaluation import evaluate
from training.loop.task import Task
from training.loop.train import train
from training.records.run_folder import read_config
from training.records.seed_log import (
    changed_settings,
    checkpoint_file,
    evaluation_lines,
    refuse_torch_file,
)
from training.settings.config import parse_overrides
from training.settings.exit_code import exits
from training.settings.pretrained import CLASSIFIER_ACTIONS
from training.settings.run_config import check_settings

PROG = "train_cifar.py"


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
        When the loader is empty, its images and labels do not fit the network, or an image or an
        output is not finite.
    """
    contexts = usable_contexts(ctx if isinstance(ctx, (list, tuple)) else [ctx])
    parameters = test_net.collect_params()
    if any(set(p.list_ctx()) != set(contexts) for p in parameters.values()):
        parameters.reset_ctx(contexts)
    scores = evaluate(test_net, test_loader, contexts)
    require_finite(np.array(scores.loss), "these images")
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


@exits(ModelError, LoadError)
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    given = _given(with_weights(argv, CLASSIFIER_ACTIONS))
    limit_onednn()
    return _run(given, argv)


def _given(argv: Sequence[str]) -> Mapping[str, Any]:
    """Return the settings that a command line names, in our flags or in those of zhongshsh/RAM."""
    given = parse_overrides(CifarConfig, translate_ram_flags(argv), PROG, __doc__)
    note = note_on_ram_flags(argv)
    if note:
        print(note)
    if given.get("resume") and is_ram_command(argv):
        refuse_torch_file(given["resume"], argv)
        return {**changed_settings(given, read_config(given["resume"])), "resume": given["resume"]}
    return given


def _run(given: Mapping[str, Any], argv: Sequence[str]) -> int:
    gentle = is_finetuning(given) and "recipe" not in given and not is_ram_command(argv)
    if gentle:
        start = {"recipe": NAME, "cutout": "none", **gentle_settings(given)}
        config = CifarConfig(**{**start, **given})
    else:
        config = CifarConfig(**with_recipe(given.get("recipe", "pistony"), given))
    check_settings(config, given, ACTIONS, strict=not is_ram_command(argv))
    if config.list_models:
        return list_names()
    if config.summary:
        return summarize(config.summary, config)
    if config.predict or config.masks or config.mask_score:
        return inspect(config, given, lambda settings: open_dataset(settings).test)
    if config.test:
        return _test_file(config.test, config, given)
    if config.export_start:
        return _export_start(config.export_start, config)
    return train(PROG, with_start(config, given, gentle), given, argv, _prepare)


def _prepare(config: CifarConfig) -> Task:
    check_proxy(config)  # before data is downloaded
    task = prepare_classifier(config, open_dataset, build_loaders)
    task.proxy = prepare_proxy(config, task)
    task.files.update(noise_files(task.loaders.train.data, config.label_noise, config.seed))
    return task


def _test_file(path: str, config: CifarConfig, given: Mapping[str, Any]) -> int:
    if config.seed_format:
        path = checkpoint_file(path)
    opened = open_classifier(path, config, given)
    opened.check_data_is_named()
    config, expected = opened.config, opened.preprocessing()
    dataset = open_dataset(config)
    warn_of_other_images(opened.known.card, dataset, path)
    dataset = with_labels_of(dataset, expected.class_names, path)
    dataset = replace(dataset, mean=expected.mean, std=expected.std)
    print(f"{path} ({opened.status}): {config.model} on {dataset.name}; {opened.origin()}")
    warn_of_more_classes(config.classes, dataset)
    scores = test(opened.net, opened.contexts, evaluation_batches(dataset.test, dataset))
    if config.seed_format:
        print(evaluation_lines(*scores))
    return 0


def _export_start(prefix: str, config: CifarConfig) -> int:
    import json

    known = CLASS_NAMES.get(config.dataset)  # of these the data need not be here
    classes = config.classes or (len(known[-1]) if known else open_dataset(config).classes)
    net = start_network(config, classes, [mx.cpu()])
    net(mx.nd.zeros((1, *net.image_shape)))  # parameters get their shapes
    if config.stem_init != "usual":
        start_stem(net, config, build_loaders(config, open_dataset(config), classes).train)
    given = {key: getattr(config, key) for key in OVERRIDES}
    note = {key: json.dumps(value) for key, value in given.items() if value is not None}
    section = network_section(config.model, net, classes)
    symbol = symbol_json(net, {"network": config.model, "card": json.dumps(section), **note})
    try:
        Path(prefix).parent.mkdir(parents=True, exist_ok=True)
        save_parameters(net, f"{prefix}.param", {"card": VERSION, "network": section})
        write_atomically(f"{prefix}-symbol.json", symbol.encode())
    except OSError as error:
        raise UserError(f"--export-start {prefix}: cannot be written: {error.strerror}") from error
    print(
        f"wrote {prefix}-symbol.json and {prefix}.param: {config.model}, {classes} classes, "
        f"seed {config.seed}"
    )
    return 0


def list_names() -> int:
    """Print the names of the classifiers of whole images."""
    print("\n".join(name for name in list_models() if name not in GLIMPSE))
    return 0


def summarize(name: str, config: ClassifierConfig) -> int:
    """Print layers, parameters and MACs of a network."""
    print(summary.summarize(build_classifier(replace(config, model=name), config.classes or 10)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
