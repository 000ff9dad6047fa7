"""ONNX classifiers in 8 bits: static quantization by onnxruntime, accepted by measured accuracy.

Weights of convolutions get one scale per output channel, activations one per tensor, from the
range that they take on training images. Everything between convolutions stays float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np

from training.batches.scores import image_and_label
from training.settings.errors import UserError

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
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    sessions = [
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        for model in models
    ]
    correct, images = [0] * len(models), 0
    for image, label in map(image_and_label, batches):
        images += len(label)
        for index, session in enumerate(sessions):
            logits = session.run(None, {INPUT: image})[0]
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
