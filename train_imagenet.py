"""Train and test Residual Attention Networks on ImageNet or other large photographs.

    python train_imagenet.py --data-dir PATH                  Attention-56, the paper's recipe
    python train_imagenet.py --data-dir PATH --model attention92_imagenet --size 224
    python train_imagenet.py --resume runs/NAME               go on where a run stopped
    python train_imagenet.py --test FILE --data-dir PATH --size 320
    python train_imagenet.py --predict FILE cat.jpg           top 5 classes of your own pictures
    python train_imagenet.py --help                           everything else

PATH has train.rec, train.idx, val.rec and val.idx (MXNet's im2rec.py writes them), or
train/<class>/*.jpg and val/<class>/*.jpg.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn, Optional

if __name__ == "__main__":  # before NumPy and MXNet are loaded, which read it once
    from training.compute.thread_choice import take_threads

    take_threads(sys.argv[1:], needs=("numpy", "mxnet"))

    from training.classifier.imagenet import ImageNetConfig
    from training.settings.exit_code import check_flags
    from training.settings.pretrained import CLASSIFIER_ACTIONS, any_weights

    check_flags(ImageNetConfig, __doc__, lambda words: any_weights(words, CLASSIFIER_ACTIONS))

from formats.errors import UserError
from machine.processor import limit_onednn
from model.registry import ModelError
from model.weights.file_match import LoadError
from train_cifar import list_names, summarize, test
from training.apply.actions import inspect
from training.apply.pretrained import with_weights
from training.classifier.config import ACTIONS
from training.classifier.finetuning import gentle_settings, is_finetuning, with_start
from training.classifier.imagenet import (
    ImageNetConfig,
    build_photo_loaders,
    open_imagenet,
    photo_test_batches,
)
from training.classifier.matching import warn_of_more_classes, with_labels_of
from training.classifier.opening import open_classifier
from training.classifier.task import prepare_classifier
from training.loop.train import train
from training.settings.config import parse_overrides
from training.settings.exit_code import exits
from training.settings.pretrained import CLASSIFIER_ACTIONS
from training.settings.run_config import check_settings

PROG = "train_imagenet.py"


@exits(ModelError, LoadError)
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    words = with_weights(argv, CLASSIFIER_ACTIONS)
    given = parse_overrides(ImageNetConfig, words, PROG, __doc__)
    limit_onednn()
    return _run(given, argv)


def _run(given: Mapping[str, Any], argv: Sequence[str]) -> int:
    gentle = is_finetuning(given)
    start = gentle_settings(given) if gentle else {}
    if gentle or given.get("schedule", "step") != "step":
        start = {"lr_steps": (), **start}
    config = ImageNetConfig(**{**start, **given})
    check_settings(config, given, ACTIONS)
    if config.list_models:
        return list_names()
    if config.summary:
        return summarize(config.summary, config)
    if config.predict or config.masks or config.mask_score:
        return inspect(config, given, _no_test_images)
    if config.test:
        return _test_file(config.test, config, given)
    prepare = partial(
        prepare_classifier, open_data=open_imagenet, build_loaders=build_photo_loaders
    )
    return train(PROG, with_start(config, given, gentle), given, argv, prepare)


def _no_test_images(config: ImageNetConfig) -> NoReturn:
    raise UserError("test images by number, and their objects, are for train_cifar.py")


def _test_file(path: str, config: ImageNetConfig, given: Mapping[str, Any]) -> int:
    opened = open_classifier(path, config, given)
    expected = opened.preprocessing()
    # The file says what it was trained on, these images are others.
    name = given.get("dataset", config.data_dir)
    config = replace(opened.config, size=expected.size, dataset=name)
    data = with_labels_of(open_imagenet(config), expected.class_names, path)
    own = opened.known.card.get("image", {}).get("height", expected.size)
    trained = "" if own == expected.size else f" (trained on {own}x{own})"
    print(
        f"{path} ({opened.status}): {config.model} on {data.name}, {expected.size}x{expected.size}"
        f"{trained}; {opened.origin()}"
    )
    warn_of_more_classes(config.classes, data)
    test(opened.net, opened.contexts, photo_test_batches(data, config.classes, expected))
    return 0


if __name__ == "__main__":
    sys.exit(main())
