"""Does MXNet decide as PyTorch does? Compare both over the same test images, one by one.

    .venv-torch/bin/python -m bridge.score --symbol S.json --start F.param --output logits.npz ...
    .venv/bin/python -m benchmarks.bridge.compare_decisions F.param logits.npz --dataset cifar10

The network is the one that the file belongs to by its run folder or by its shapes, as for
``train_cifar.py --test``. Exit code 1 when a decision differs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Optional

import numpy as np

from formats.errors import UserError
from training.compute.thread_choice import take_threads
from training.settings.config import parse_overrides
from training.settings.exit_code import exits


class Agreement(NamedTuple):
    """Counts over the images; ``largest`` is the largest difference between two logits."""

    images: int
    equal: int
    correct: tuple[int, int]
    largest: float


def agreement(ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray) -> Agreement:
    """Compare two sets of logits (N, classes).

    Raises
    ------
    UserError
        When they are not of the same images and classes.
    """
    if ours.shape != theirs.shape or labels.shape != ours.shape[:1] or not len(labels):
        raise UserError(
            f"logits {ours.shape} and {theirs.shape} with labels {labels.shape}; needed are the "
            "same images and classes. Name the same --dataset and --count for both"
        )
    first, second = ours.argmax(1), theirs.argmax(1)
    return Agreement(
        len(labels),
        int((first == second).sum()),
        (int((first == labels).sum()), int((second == labels).sum())),
        float(np.abs(ours - theirs).max()),
    )


def mxnet_logits(path: str, argv: Sequence[str], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return logits and labels of the first `count` test images, computed by MXNet on the CPU."""
    import mxnet as mx

    from training.classifier.config import CifarConfig
    from training.classifier.loaders import evaluation_batches, open_dataset
    from training.classifier.matching import with_labels_of
    from training.classifier.opening import open_classifier

    given = {"gpus": "cpu", **parse_overrides(CifarConfig, argv)}
    opened = open_classifier(path, CifarConfig(**given), given)
    expected = opened.preprocessing()
    dataset = with_labels_of(open_dataset(opened.config), expected.class_names, path)
    dataset = replace(dataset, mean=expected.mean, std=expected.std)
    images = dataset.test.first(count)
    batches = evaluation_batches(images, dataset)
    logits = [opened.net(mx.nd.array(batch.image)).asnumpy() for batch in batches]
    return np.concatenate(logits), images.labels


@exits()
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if len(words) < 2 or words[0].startswith("-"):
        raise UserError("give the .param file and the .npz of bridge.score, then the flags")
    path, other, *flags = words
    try:
        with np.load(other, allow_pickle=False) as saved:
            theirs, labels = saved["logits"], saved["labels"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{other} is no file that bridge.score --output wrote: {error}") from error
    ours, known = mxnet_logits(path, flags, len(labels))
    if not np.array_equal(labels, known):
        raise UserError(f"{other} has the labels of other images; name its --dataset")
    result = agreement(ours, theirs, labels)
    print(
        f"{result.equal} of {result.images} decisions are equal; correct: MXNet "
        f"{result.correct[0]}, PyTorch {result.correct[1]}; largest difference of a logit "
        f"{result.largest:.2e}"
    )
    return 0 if result.equal == result.images else 1


if __name__ == "__main__":
    take_threads(sys.argv[1:])  # before MXNet is loaded, which reads it once
    sys.exit(main())
