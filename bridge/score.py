"""Score a file of weights with PyTorch over all test images, and keep what it decides.

python -m bridge.score --symbol net-symbol.json --start runs/NAME/last.param --dataset cifar10
python -m bridge.score ... --output logits.npz        for benchmarks/bridge/compare_decisions.py
"""

from __future__ import annotations

import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

if __name__ == "__main__":  # before NumPy and PyTorch are loaded, which read it once
    from training.compute.thread_choice import take_threads

    take_threads(sys.argv[1:], wait_policy={})

import numpy as np

from bridge.graph.symbol_graph import SymbolError
from formats.atomic import write_atomically
from formats.errors import UserError
from formats.images.outputs import require_finite
from formats.images.preprocessing import DATASET
from training.settings.config import parse_overrides
from training.settings.exit_code import exit_code
from training.settings.fields import option

PROG = "python -m bridge.score"


@dataclass(frozen=True)
class ScoreConfig:
    """Options of ``bridge.score``."""

    symbol: str = option("", "the network, NAME-symbol.json", metavar="JSON")
    start: Optional[str] = option(
        None, "file of weights; default: NAME.param beside the symbol", metavar="FILE"
    )
    dataset: str = option("cifar10", "data set, as in train_cifar.py")
    data_dir: Optional[str] = option(None, "folder with the data set's files")
    mirror: Optional[str] = option(None, "URL or folder to download the data set from first")
    download: bool = option(True, "download the data set when it is not found")
    normalization: str = option(
        DATASET, "mean and std, as in train_cifar.py; default: those of the file, or the data set's"
    )
    count: int = option(0, "only the first test images; 0: all")
    device: str = option("auto", "cuda, cuda:1 or cpu; auto: a GPU if there is one")
    threads: Optional[int] = option(
        None, "threads of the CPU; default: $OMP_NUM_THREADS, else all idle physical cores"
    )
    output: Optional[str] = option(None, "write logits and labels to this .npz", metavar="FILE")

    def check(self) -> None:
        """Raise UserError without a symbol."""
        if not self.symbol:
            raise UserError("--symbol is missing: give NAME-symbol.json")
        if self.count < 0:
            raise UserError(f"--count {self.count}: must be 0 or more")


def _as_expected(path: str, dataset: Any, given: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the data with the network's labels and normalization, and who says how that is."""
    from formats.images.preprocessing import own_preprocessing
    from training.classifier.loaders import normalized
    from training.classifier.matching import with_labels_of

    expected, origin = own_preprocessing(path)
    dataset = with_labels_of(dataset, expected.class_names if expected else (), path)
    named = given.get("normalization")
    if named or not expected:
        other = f" (not {origin})" if expected else ""
        return normalized(dataset, named or DATASET), f"{named or 'the data set (assumed)'}{other}"
    return replace(dataset, mean=expected.mean, std=expected.std), origin


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code."""
    given = parse_overrides(ScoreConfig, sys.argv[1:] if argv is None else argv, PROG, __doc__)
    return exit_code(lambda: _run(ScoreConfig(**given), given), SymbolError)


def _run(config: Any, given: Mapping[str, Any]) -> int:
    config.check()
    import torch  # type: ignore[import-not-found]

    from bridge.graph.symbol_module import SymbolModule
    from bridge.loop.device_batches import DeviceImages
    from bridge.loop.prepare import choose_device, count_logits, default_weights
    from bridge.loop.scoring import compute_logits, scores_of
    from training.classifier.loaders import evaluation_batches, open_dataset

    path = config.start or default_weights(config.symbol)
    module = SymbolModule.from_files(config.symbol, path)
    device = choose_device(config.device)
    dataset, origin = _as_expected(path, open_dataset(config), given)
    count_logits(module, dataset)
    images = dataset.test.first(config.count) if config.count else dataset.test
    data = DeviceImages(evaluation_batches(images, dataset), device)
    module.to(device=device, memory_format=torch.channels_last)
    logits = compute_logits(module, data)
    scores = scores_of(logits, images.labels)
    require_finite(logits, "the test images")
    if config.output:
        stream = io.BytesIO()
        np.savez_compressed(stream, logits=logits, labels=images.labels)
        try:
            write_atomically(config.output, stream.getvalue())
        except OSError as error:
            raise UserError(f"--output {config.output}: {error.strerror}") from error
    print(
        f"{path} on {dataset.name}, normalized by {origin}: test loss "
        f"{scores.loss:.4f}, test accuracy {scores.acc:.5f} ({scores.images} images)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
