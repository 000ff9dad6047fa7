"""Export a trained network, knowing the data it was trained on.

    python export_model.py FILE --to onnx           FILE.onnx, with normalization and class names
    python export_model.py FILE --to onnx --int8    the same with 8 bit convolutions, if they are
                                                    as accurate
    python export_model.py FILE --to symbol         for gluon.SymbolBlock

Takes every option of ``python -m training.apply.export``, which does the same without any data set.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Optional

if __name__ == "__main__":  # before NumPy and MXNet are loaded, which read it once
    from training.compute.thread_choice import take_threads

    take_threads(sys.argv[1:])

from train_cifar import CifarConfig
from training.apply import int8
from training.apply.export import Knowledge
from training.apply.export import main as export
from training.augmentation.augment import normalize
from training.classifier.loaders import (
    evaluation_batches,
    normalized,
    open_dataset,
    preprocessing_of,
)
from training.classifier.task import known_of
from training.settings.errors import UserError
from training.settings.exit_code import exit_code

INT8_LIMIT = 0.005  # accuracy that 8 bits may cost, as a share
INT8_IMAGES = 256  # that ranges of activations are taken from


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code."""
    return exit_code(lambda: export(argv, Knowledge(preprocessing, quantize, add_options)))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what `quantize` wants to be told, and what `take_threads` reads before MXNet is there."""
    parser.add_argument(
        "--threads",
        metavar="N",
        help="threads of the CPU (default: $OMP_NUM_THREADS, else all physical cores)",
    )
    group = parser.add_argument_group("8 bits")
    group.add_argument("--data-dir", help="folder with the data set's files")
    group.add_argument(
        "--int8-limit",
        type=float,
        default=INT8_LIMIT,
        help="accuracy that may be lost, as a share (default: %(default)s)",
    )
    group.add_argument(
        "--int8-images",
        type=int,
        default=INT8_IMAGES,
        help="training images to calibrate on (default: %(default)s)",
    )
    group.add_argument(
        "--int8-test", type=int, default=0, help="test images to compare on; 0: all (default)"
    )


def preprocessing(path: Path) -> Optional[str]:
    """Return how a published classifier wants its images, as JSON; None for other files."""
    config = _settings(path)
    if config is None:
        return None
    return preprocessing_of(path, config).to_json().decode()


def _settings(path: Path, data_dir: Optional[str] = None) -> Optional[Any]:
    """Return the data set and normalization of a file, as settings; None when they are unknown."""
    known = known_of(path)
    if not {"dataset", "normalization"} <= known.keys():
        return None
    return replace(
        CifarConfig(),
        dataset=known["dataset"],
        normalization=known["normalization"],
        data_dir=data_dir,
    )


class Quantized(NamedTuple):
    """A model in 8 bits, and the accuracy (shares) before and after on test images."""

    model: bytes
    dataset: str
    images: int
    before: float
    after: float


def measure_int8(
    path: Path, model: bytes, data_dir: Optional[str], images: int, test: int
) -> Quantized:
    """Quantize the float32 ONNX model of a classifier's file and compare both on its data set.

    Parameters
    ----------
    path
        Parameter file, by which data set and normalization are known.
    model
        Serialized float32 ONNX model of it.
    data_dir
        Folder with the data set's files; None: the usual one.
    images
        Training images that give the ranges of activations.
    test
        Test images that are counted, from the first; 0: all.

    Raises
    ------
    UserError
        When the data set is unknown or not there.
    """
    config = _settings(path, data_dir)
    if config is None:
        raise UserError(
            f"--int8: nothing is on record of the images that {path} was trained on. Give a "
            "classifier in its run folder, or one of cifar_param/"
        )
    dataset = normalized(open_dataset(config), config.normalization)
    small = int8.quantize(
        model, normalize(dataset.train.images[:images], dataset.mean, dataset.std)
    )
    chosen = dataset.test.first(test) if test else dataset.test
    before, after = int8.accuracies([model, small], evaluation_batches(chosen, dataset))
    return Quantized(small, dataset.name, len(chosen), before, after)


def quantize(path: Path, model: bytes, args: argparse.Namespace) -> bytes:
    """Return the model in 8 bits; UserError when that costs too much, or nothing can be measured.

    Training images give the ranges, test images the accuracy before and after, which is printed.
    """
    if args.int8_images < 1 or args.int8_test < 0 or not 0 <= args.int8_limit < 1:
        raise UserError(
            "--int8-images must be 1 or more, --int8-test 0 or more, --int8-limit from 0 to 1"
        )
    found = measure_int8(path, model, args.data_dir, args.int8_images, args.int8_test)
    print(
        f"accuracy over {found.images} test images of {found.dataset}: {found.before:.2%} in "
        f"float32, {found.after:.2%} in 8 bits; {len(model):,} and {len(found.model):,} bytes"
    )
    int8.accept(found.before, found.after, args.int8_limit)
    return found.model


if __name__ == "__main__":
    sys.exit(main())
