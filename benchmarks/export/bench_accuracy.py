"""What 16 and 8 bit arithmetic cost in accuracy: ``python -m benchmarks.export.bench_accuracy``.

A trained file (``--file``) is prepared for inference in float32, bfloat16 and int8, and judged on
test images that it has not seen. int8 is calibrated with training images. Needs the data set
(``--data-dir``).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np

from benchmarks.harness.report import begin, headline, store
from training.compute.thread_choice import take_threads
from training.settings.config import parse
from training.settings.exit_code import exits
from training.settings.fields import option
from training.settings.run_config import check_least


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    model: str = option("attention56_small", "network of the file, by name")
    file: str = option(
        "cifar_param/attention56_small_cifar10_0.8603_2eaa07f4.param", "trained parameters"
    )
    dataset: str = option("cifar10", "data set")
    data_dir: Optional[str] = option(None, "folder with the data set")
    images: int = option(10000, "test images, the first")
    calibration: int = option(512, "training images that int8 is calibrated with")
    batch_size: int = option(100, "images of a step", flags=("-b",))
    out: str = option("runs/bench/accuracy.json", "file that the figures are stored in")

    def check(self) -> None:
        """Refuse what measures nothing."""
        check_least(self, 1, "images", "calibration", "batch_size")


def judge(run: Callable[[Any], Any], image: np.ndarray, label: np.ndarray, batch: int) -> dict:
    """Return accuracy, and seconds of CPU time for an image."""
    import mxnet as mx

    start, right = time.process_time(), 0
    for first in range(0, len(image), batch):
        logits = run(mx.nd.array(image[first : first + batch])).asnumpy()
        right += int((logits.argmax(axis=1) == label[first : first + batch]).sum())
    seconds = (time.process_time() - start) / len(image)
    return {"accuracy": right / len(image), "cpu_seconds": seconds}


def measure(config: Config) -> dict[str, Any]:
    """Return what `judge` says, by precision."""
    from model import create_model
    from model.execution.inference import prepare_inference
    from model.execution.quantization import quantize
    from model.weights.loading import load_parameters
    from training.data.catalogue import load_dataset

    data = load_dataset(config.dataset, config.data_dir, download=False)
    net = create_model(config.model, data.classes)
    load_parameters(net, config.file)
    net.hybridize(static_alloc=True, static_shape=True)
    mean, std = (np.reshape(v, (1, 3, 1, 1)).astype(np.float32) for v in (data.mean, data.std))

    def normalised(images: np.ndarray) -> np.ndarray:
        found: np.ndarray = (images.transpose(0, 3, 1, 2).astype(np.float32) / 255 - mean) / std
        return found

    image, label = normalised(data.test.images[: config.images]), data.test.labels[: config.images]
    known = normalised(data.train.images[: config.calibration])
    runs = {
        "float32, as trained": net,
        "float32": prepare_inference(net, known[:16]),
        "bfloat16": prepare_inference(net, known[:16], "bfloat16"),
        "int8": quantize(net, known, max_loss=1.0),
    }
    return {name: judge(run, image, label, config.batch_size) for name, run in runs.items()}


@exits(ValueError)
def main(argv: Sequence[str]) -> int:
    """Measure, print the table and store the figures; 2 for bad input."""
    config = parse(Config, argv, "bench_accuracy.py", __doc__)
    known = begin()
    print(headline(known), flush=True)
    found = measure(config)
    print("| arithmetic | accuracy | points lost | CPU ms an image |\n|---|---|---|---|")
    first = next(iter(found.values()))["accuracy"]
    for name, one in found.items():
        lost = 100 * (first - one["accuracy"])
        print(f"| {name} | {one['accuracy']:.4f} | {lost:.2f} | {1e3 * one['cpu_seconds']:.2f} |")
    store(config.out, {"environment": known, "file": config.file, "found": found})
    return 0


if __name__ == "__main__":
    take_threads([])  # before MXNet is loaded, which reads it once
    sys.exit(main(sys.argv[1:]))
