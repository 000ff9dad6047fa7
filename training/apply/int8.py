"""ONNX classifiers in 8 bits: static quantization by onnxruntime, accepted by measured accuracy.

Weights of convolutions get one scale per output channel, activations one per tensor, from the
range that they take on training images. Everything between convolutions stays float32.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

from formats.errors import UserError
from formats.images.outputs import require_finite
from formats.images.preprocessing import normalize
from formats.weight_file import read_weight_shapes
from model.export.onnx_graph import onnx_session
from model.weights.dialects import detect_dialect
from model.weights.known import known_of
from training.batches.scores import image_and_label
from training.classifier.config import TrainConfig
from training.classifier.loaders import evaluation_batches, open_dataset
from training.classifier.matching import with_labels_of
from training.classifier.opening import Source, expected_of

INPUT = "image"
CALIBRATION_BATCH = 32


def quantize(model: bytes, images: np.ndarray) -> bytes:
    """Return a model with 8 bit convolutions.

    Parameters
    ----------
    model
        Serialized float32 ONNX classifier with one input called ``image``.
    images
        Normalized training images, float32 (N, C, H, W), for the ranges of activations.

    Raises
    ------
    UserError
        When onnxruntime or onnx is missing, or there is no image.
    """
    if not len(images):
        raise UserError("quantization needs training images for the ranges of activations; got 0")
    try:
        import onnx
        from onnxruntime.quantization import (
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise UserError(
            f"8 bits need the packages onnx and onnxruntime: {error}. Run make setup, or pip "
            "install -e '.[cpu,export]'"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        source, prepared, target = (str(Path(folder) / f"{n}.onnx") for n in "abc")
        Path(source).write_bytes(model)
        # Folds normalisations into the convolutions before them, whose weights it then sees.
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            target,
            _reader(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        quantized = onnx.load(target)
    known = onnx.load_model_from_string(model).metadata_props
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(known)
    return bytes(quantized.SerializeToString())


def _reader(images: np.ndarray) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = _batches(images)

        def get_next(self) -> Optional[dict[str, np.ndarray]]:
            return next(self.batches, None)

    return Reader()


def _batches(images: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    for start in range(0, len(images), CALIBRATION_BATCH):
        yield {INPUT: images[start : start + CALIBRATION_BATCH]}


def accuracies(models: Sequence[bytes], batches: Iterable[Any]) -> list[float]:
    """Return the accuracy of each model over the same images, with onnxruntime."""
    sessions = [onnx_session(model, threads=0) for model in models]
    correct, images = [0] * len(models), 0
    for image, label in map(image_and_label, batches):
        images += len(label)
        for index, session in enumerate(sessions):
            logits = session.run(None, {INPUT: image})[0]
            require_finite(logits, "the test images")
            correct[index] += int((logits.argmax(axis=1) == label).sum())
    if not images:
        raise UserError("there is nothing to evaluate: the data set gave no images")
    return [number / images for number in correct]


def accept(before: float, after: float, limit: float) -> None:
    """Raise UserError when the accuracy fell by more than `limit`, both as shares."""
    if before - after > limit:
        raise UserError(
            f"8 bits cost {before - after:.2%} of accuracy ({before:.2%} before, {after:.2%} "
            f"after), more than the {limit:.2%} of --int8-limit. Nothing was written; raise the "
            "limit, calibrate on more images (--int8-images), or export without --int8"
        )


class Quantized(NamedTuple):
    """A model in 8 bits, and the accuracy (shares) before and after on test images."""

    model: bytes
    dataset: str
    images: int
    before: float
    after: float


def measure_int8(
    path: Path,
    model: bytes,
    data_dir: Optional[str],
    images: int,
    test: int,
    seed: int = 0,
    normalization: Optional[str] = None,
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
        Test images that are counted; 0: all.
    seed
        Of the choice of images, from all classes by their shares.
    normalization
        What the images are normalized by; None: what the file says.

    Raises
    ------
    UserError
        When the data set is unknown or not there.
    """
    known = known_of(path)
    named = known.recorded.get("dataset") or known.card.get("data", {}).get("name")
    if not named:
        raise UserError(
            f"--int8: nothing is on record of the images that {path} was trained on. Give a "
            "classifier with a card, or one in its run folder"
        )
    config = TrainConfig(dataset=named, data_dir=data_dir)
    shapes = read_weight_shapes(path)
    dialect, name = detect_dialect(shapes), known.model or ""
    given = {"normalization": normalization} if normalization else {}
    source = Source(str(path), known, dialect, name, None, config, given)
    expected = expected_of(source).preprocessing
    dataset = with_labels_of(open_dataset(config), known.class_names, str(path))
    dataset = replace(dataset, mean=expected.mean, std=expected.std)
    shown = dataset.train.sample(images, seed).images
    small = quantize(model, normalize(shown, dataset.mean, dataset.std))
    chosen = dataset.test.sample(test, seed) if test else dataset.test
    before, after = accuracies([model, small], evaluation_batches(chosen, dataset))
    return Quantized(small, dataset.name, len(chosen), before, after)


def quantize_file(path: Path, model: bytes, args: argparse.Namespace) -> bytes:
    """Return the model in 8 bits; UserError when that costs too much, or nothing can be measured.

    Training images give the ranges, test images the accuracy before and after, which is printed.
    """
    wrong = args.int8_images < 1 or args.int8_test < 0 or args.seed < 0
    if wrong or not 0 <= args.int8_limit < 1:
        raise UserError(
            "--int8-images must be 1 or more, --int8-test and --seed 0 or more, --int8-limit from "
            "0 to 1"
        )
    numbers = (args.int8_images, args.int8_test, args.seed)
    found = measure_int8(path, model, args.data_dir, *numbers, args.normalization)
    print(
        f"accuracy over {found.images} test images of {found.dataset}: {found.before:.2%} in "
        f"float32, {found.after:.2%} in 8 bits; {len(model):,} and {len(found.model):,} bytes"
    )
    accept(found.before, found.after, args.int8_limit)
    return found.model
