"""Measure training speed on this device, and what the device can do at most.

    python -m bridge.bench net-symbol.json other-symbol.json
    python -m bridge.bench net-symbol.json --batch-size 640 --micro-batch 160 --output bench.json

Each line is a network and a way of running its steps: images/s of whole training steps (forward,
backward, update; images already on the device), and the share of the measured peak that its
products take. The weights' values do not matter; they are read from beside the symbol.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

if __name__ == "__main__":  # before NumPy and PyTorch are loaded, which read it once
    from training.compute.thread_choice import take_threads

    take_threads(sys.argv[1:], wait_policy={})

from bridge.graph.symbol_graph import SymbolError
from bridge.loop.settings import ENGINES, PRECISIONS
from formats.atomic import write_atomically
from formats.errors import UserError, first_line
from formats.param_reader import ParamFileError
from training.settings.config import parse
from training.settings.exit_code import exit_code
from training.settings.fields import LOOSE, option
from training.settings.run_config import check_least

PROG = "python -m bridge.bench"
TRAIN_FACTOR = 3  # a training step computes about three forward passes
# Sizes of the product and of the convolution that stand for the peak, on a GPU and on a CPU.
PEAK_PRODUCT = {"cuda": 8192, "cpu": 1024}
PEAK_CONVOLUTION = {"cuda": (256, 256, 32), "cpu": (8, 64, 32)}  # images, channels, edge
PEAK_SECONDS = {"cuda": 1.0, "cpu": 0.3}


@dataclass(frozen=True)
class BenchConfig:
    """Options of ``bridge.bench``."""

    symbols: tuple[str, ...] = option((), "files NAME-symbol.json", words=LOOSE)
    batch_size: int = option(640, "images per update", flags=("-b",))
    micro_batch: int = option(160, "images at a time; 0: all")
    optimizer: str = option("nag", "optimizer", choices=("nag", "sgd", "adam"))
    precision: str = option("auto", "arithmetic of convolutions", choices=PRECISIONS)
    compile: str = option("auto", "how steps run; auto: every way", choices=ENGINES)
    device: str = option("auto", "cuda, cuda:1 or cpu; auto: a GPU if there is one")
    threads: Optional[int] = option(
        None, "threads of the CPU; default: $OMP_NUM_THREADS, else all idle physical cores"
    )
    size: int = option(32, "edge of the images in pixels")
    output: Optional[str] = option(None, "write the numbers to this JSON file", metavar="FILE")

    def check(self) -> None:
        """Raise UserError for a value outside its range."""
        check_least(self, 1, "batch_size", "size")
        check_least(self, 0, "micro_batch")
        if not self.symbols:
            raise UserError("give one NAME-symbol.json or more")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code."""
    config = parse(BenchConfig, sys.argv[1:] if argv is None else argv, PROG, __doc__)
    return exit_code(lambda: _run(config), SymbolError)


def _run(config: BenchConfig) -> int:
    from bridge.loop.announce import describe_device
    from bridge.loop.prepare import choose_device

    device = choose_device(config.device)
    about = describe_device(device)
    print(f"on {about.get('gpu', device)}, PyTorch {about['torch']}", flush=True)
    peaks = measure_peaks(device)
    for name, rate in peaks.items():
        print(f"peak of a {name}: {tera(rate)}", flush=True)
    rows, without = [], []
    for path in config.symbols:
        try:
            measured = measure_network(path, config, device)
        except (UserError, SymbolError, ParamFileError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            measured = []
        without += [] if measured else [path]
        for row in measured:
            row["share_of_peak"] = row["flop_per_sec"] / max(peaks.values())
            print(
                f"{path} {row['precision']} {row['engine']}: "
                f"{row['images_per_sec']:,.0f} images/s, {tera(row['flop_per_sec'])}, "
                f"{row['share_of_peak']:.1%} of the peak",
                flush=True,
            )
            rows.append(row)
    if config.output:
        content = {"device": about, "peaks": peaks, "networks": rows}
        write_atomically(config.output, json.dumps(content, indent=2).encode() + b"\n")
    if without:
        raise UserError(f"{', '.join(without)}: cannot be measured here, for the reasons above")
    return 0


def tera(rate: float) -> str:
    """Return a rate of floating point operations as text."""
    return f"{rate / 1e12:.3g} TFLOP/s"


def measure_peaks(device: Any) -> dict[str, float]:
    """Return floating point operations per second of a product and a convolution.

    In bfloat16 on a GPU, in float32 on a CPU; random numbers.
    """
    import torch  # type: ignore[import-not-found]

    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    edge = PEAK_PRODUCT[device.type]
    left, right = (torch.randn(edge, edge, device=device, dtype=kind) for _ in range(2))
    count, channels, size = PEAK_CONVOLUTION[device.type]
    image = torch.randn(count, channels, size, size, device=device, dtype=kind)
    weight = torch.randn(channels, channels, 3, 3, device=device, dtype=kind)
    image, weight = (t.to(memory_format=torch.channels_last) for t in (image, weight))
    torch.backends.cudnn.benchmark = True
    name, convolution = str(kind).rpartition(".")[2], torch.nn.functional.conv2d
    with torch.no_grad():
        product = _calls_per_sec(lambda: left @ right, device)
        convolved = _calls_per_sec(lambda: convolution(image, weight, padding=1), device)
    return {
        f"{name} product {edge}x{edge}x{edge}": product * 2 * edge**3,
        f"{name} convolution 3x3 of {channels} channels": convolved
        * (2 * 9 * channels**2 * count * size**2),
    }


def _calls_per_sec(call: Callable[[], Any], device: Any) -> float:
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for _ in range(3):
        call()
    wait()
    calls, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < PEAK_SECONDS[device.type]:
        for _ in range(3):
            call()
        wait()
        calls += 3
    return calls / (time.perf_counter() - begin)


def measure_network(path: str, config: BenchConfig, device: Any) -> list[dict[str, Any]]:
    """Return a row per engine that works: images/s, FLOP/s of the network's products."""
    import torch

    from bridge.graph.symbol_module import SymbolModule
    from bridge.loop.engine import candidates, choose_step, measure_step
    from bridge.loop.prepare import build_updater, default_weights, resolve_precision
    from bridge.loop.settings import BridgeConfig

    settings = BridgeConfig(
        symbol=path,
        batch_size=config.batch_size,
        micro_batch=config.micro_batch,
        optimizer=config.optimizer,
        precision=resolve_precision(config.precision, device),
    )
    module = SymbolModule.from_files(path, default_weights(path))
    image = torch.randn(config.batch_size, config.size, config.size, 3, device=device)
    image = image.permute(0, 3, 1, 2)
    updater = build_updater(settings, module, device)
    flops, classes = _forward_flops(module, image[:1])
    label = torch.full((config.batch_size, classes), 1 / classes, device=device)
    names = candidates(updater) if config.compile == "auto" else (config.compile,)
    rows = []
    for name in names:
        try:
            step, _, _ = choose_step(updater, name, (image, label), float("inf"))
            rate = measure_step(step, (image, label))
        except Exception as error:
            print(f"{path} {name}: does not work here: {first_line(error)}", file=sys.stderr)
            continue
        rows.append(
            {
                "symbol": path,
                "engine": name,
                "precision": settings.precision,
                "batch_size": config.batch_size,
                "micro_batch": config.micro_batch,
                "images_per_sec": rate,
                "flop_per_sec": rate * flops * TRAIN_FACTOR,
            }
        )
    return rows


def _forward_flops(module: Any, image: Any) -> tuple[float, int]:
    """Return the operations of products and convolutions of one image, and the classes.

    Raises UserError for a network that gives no logits of such an image.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode  # type: ignore[import-not-found]

    from bridge.loop.scoring import inference

    size = "x".join(map(str, image.shape[1:]))
    try:
        with inference(module), torch.no_grad(), FlopCounterMode(display=False) as counter:
            logits = module(image)
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        raise UserError(
            f"the network cannot compute an image of {size}: {first_line(error)}. Give the symbol "
            "of a classifier, and its images' --size"
        ) from error
    shape = tuple(getattr(logits, "shape", ()))
    if len(shape) != 2:
        raise UserError(f"the network gives {shape} for an image of {size}, no logits (1, classes)")
    return float(counter.get_total_flops()), int(shape[1])


if __name__ == "__main__":
    sys.exit(main())
