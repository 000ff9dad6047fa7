"""A check of a machine's GPUs in some minutes: ``python -m training.loop.gpu_checklist``.

Prints a report to paste into an issue: driver, cards, libraries, a convolution and its gradients
against the CPU, training steps in float32 and float16, a step on two GPUs, memory and images/s.
Exit code 0: all is well, 1: something is not, 2: there is no GPU that MXNet sees.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import mxnet as mx
import numpy as np
from mxnet.gluon import Trainer, nn

from formats.errors import UserError, last_line
from training.batches.in_memory import Batch
from training.compute.devices import device_names, gpu_count, probe_gpu, run_apart, use_precision
from training.compute.gpu_info import gpu_lines, has_cuda, list_gpus, visible_gpus
from training.compute.loss_scaling import with_loss_scaling
from training.loop.engine import Updater, measure
from training.loop.task import ClassificationTask
from training.records.environment import describe

IMAGES, EDGE, CLASSES, CHANNELS = 64, 32, 10, 32
STEPS, TIMED_STEPS = 5, 20
TOLERANCE = 1e-3  # of the largest number; a GPU sums in another order, and may use TF32
FLOAT16_TIMEOUT_SEC = 300
LIBRARIES = re.compile(r"(lib(?:cuda|cudart|cudnn\w*|cublas\w*|nccl|curand|cufft)\.so[.\d]*)$")


class Check(NamedTuple):
    """One line of the report; ``passed`` is None for what was not done."""

    name: str
    passed: Optional[bool]
    detail: str


def loaded_libraries(maps: str = "/proc/self/maps") -> list[str]:
    """Return the CUDA libraries in this process, as LIBRARY from its folder's name."""
    try:
        lines = Path(maps).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    paths = {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}
    return sorted(match.group(1) for match in map(LIBRARIES.search, paths) if match)


def convolution(context: Any) -> list[np.ndarray]:
    """Return a convolution's result and its gradients for data and weight, always the same."""
    rng = np.random.default_rng(0)
    data, weight = (
        mx.nd.array(rng.standard_normal(shape), ctx=context, dtype="float32")
        for shape in ((8, 16, 17, 17), (32, 16, 3, 3))
    )
    data.attach_grad()
    weight.attach_grad()
    with mx.autograd.record():
        y = mx.nd.Convolution(data, weight, kernel=(3, 3), pad=(1, 1), num_filter=32, no_bias=True)
        loss = (y * y).mean()
    loss.backward()
    return [array.asnumpy() for array in (y, data.grad, weight.grad)]


def check_convolution(context: Any) -> Check:
    """Compare with the CPU."""
    worst = 0.0
    for found, expected in zip(convolution(context), convolution(mx.cpu())):
        scale = max(float(np.abs(expected).max()), 1e-12)
        worst = max(worst, float(np.abs(found - expected).max()) / scale)
    text = f"largest difference from the CPU {worst:.1e} of the largest number"
    return Check(f"convolution and gradients, {device_names([context])}", worst < TOLERANCE, text)


def small_network(contexts: Sequence[Any]) -> Any:
    """Return an initialized network of convolutions, the same at every call."""
    net = nn.HybridSequential()
    for _ in range(3):
        net.add(nn.Conv2D(CHANNELS, 3, padding=1, use_bias=False), nn.BatchNorm())
        net.add(nn.Activation("relu"))
    net.add(nn.GlobalAvgPool2D(), nn.Flatten(), nn.Dense(CLASSES))
    mx.random.seed(0)
    np.random.seed(0)
    net.initialize(mx.init.Xavier(), ctx=mx.cpu())
    net(mx.nd.zeros((1, 3, EDGE, EDGE)))
    # Values are drawn on the CPU: every device begins with the same ones.
    net.collect_params().reset_ctx(list(contexts))
    net.hybridize()
    return net


def train(contexts: Sequence[Any], precision: str = "float32", frozen: bool = False) -> Any:
    """Train a few steps; return the losses and images/s of more such steps.

    `frozen` normalisations use stored statistics, which makes any split of a batch the same.
    """
    net = small_network(contexts)
    if frozen:
        for child in net:
            if isinstance(child, nn.BatchNorm):
                child._kwargs["use_global_stats"] = True
    trainer = Trainer(
        net.collect_params(), "nag", {"learning_rate": 0.1}, "device", update_on_kvstore=False
    )
    updater = Updater(ClassificationTask(net, with_loss_scaling(trainer, precision), contexts))
    rng = np.random.default_rng(1)
    image = rng.standard_normal((IMAGES, 3, EDGE, EDGE)).astype(np.float32)
    batch = Batch(image, rng.integers(0, CLASSES, IMAGES).astype(np.int32))
    losses = [measure(updater.step(batch)).loss / IMAGES for _ in range(STEPS)]
    mx.nd.waitall()
    start = time.perf_counter()
    for _ in range(TIMED_STEPS):
        updater.step(batch)
    mx.nd.waitall()
    return losses, TIMED_STEPS * IMAGES / (time.perf_counter() - start)


def check_training(context: Any) -> Check:
    """Compare the losses of some steps with those of the CPU."""
    losses, speed = train([context])
    expected, _ = train([mx.cpu()])
    difference = max(abs(a - b) for a, b in zip(losses, expected))
    return Check(
        f"{STEPS} training steps float32, {device_names([context])}",
        difference < 0.01 * expected[0] and losses[-1] < losses[0],
        f"loss {losses[0]:.4f} to {losses[-1]:.4f}, from the CPU's by {difference:.1e}; "
        f"{speed:.0f} images/s",
    )


def check_two(contexts: Sequence[Any]) -> Check:
    """Compare steps on two devices with steps on the first."""
    two, speed = train(contexts[:2], frozen=True)
    one, _ = train(contexts[:1], frozen=True)
    difference = max(abs(a - b) for a, b in zip(two, one))
    return Check(
        f"{STEPS} training steps on {device_names(contexts[:2])}",
        difference < TOLERANCE * one[0],
        f"losses differ from one device's by {difference:.1e}; {speed:.0f} images/s",
    )


def check_float16(context: Any) -> Check:
    """Train with float16 in a process of its own: mixed precision cannot be switched off again."""
    name = f"{STEPS} training steps float16, {device_names([context])}"
    if context.device_type != "gpu":
        return Check(name, None, "MXNet has no float16 matrix product for the CPU")
    words = ["-m", "training.loop.gpu_checklist", "--float16", str(context.device_id)]
    failed, said = run_apart(words, FLOAT16_TIMEOUT_SEC)
    return Check(name, not failed, failed or said.splitlines()[-1])


def train_float16(contexts: Sequence[Any]) -> str:
    """Train with float16 and loss scaling; return what came out.

    Raises
    ------
    UserError
        When a context is on the CPU, or the loss does not fall.
    """
    use_precision("float16", list(contexts))
    losses, speed = train(contexts, "float16")
    if not losses[-1] < losses[0]:
        raise UserError(f"the loss did not fall: {losses}")
    return f"loss {losses[0]:.4f} to {losses[-1]:.4f}; {speed:.0f} images/s"


def check_memory(context: Any) -> Check:
    """Tell free and whole memory."""
    name = f"memory, {device_names([context])}"
    if context.device_type != "gpu":
        return Check(name, None, "not a GPU")
    free, total = mx.context.gpu_memory_info(context.device_id)
    return Check(name, True, f"{free / 2**20:.0f} of {total / 2**20:.0f} MiB free")


def run_checks(contexts: Sequence[Any]) -> list[Check]:
    """Return all checks of some devices, which compute; a failure is a line, not an exception."""
    jobs: list[tuple[Callable[..., Check], Any]] = []
    for context in contexts:
        jobs += [(check, context) for check in (check_convolution, check_training)]
        jobs += [(check, context) for check in (check_float16, check_memory)]
    if len(contexts) > 1:
        jobs.append((check_two, contexts))
    checks = []
    for check, argument in jobs:
        try:
            checks.append(check(argument))
        except Exception as error:  # the report is of use above all when something fails
            checks.append(Check(check.__name__.replace("_", " "), False, last_line(error)))
    if len(contexts) < 2:
        checks.append(Check("training steps on two GPUs", None, "there is one"))
    return checks


def report(checks: Sequence[Check], about: Sequence[str]) -> str:
    """Return the report as Markdown."""
    words = {True: "ok", False: "FAILED", None: "not done"}
    lines = ["### GPU checklist", "", *(f"- {line}" for line in about), ""]
    lines += ["| check | result | detail |", "|---|---|---|"]
    for check in checks:
        detail = check.detail.replace("|", "\\|")
        lines.append(f"| {check.name} | {words[check.passed]} | {detail} |")
    return "\n".join(lines)


def machine_lines(cuda: bool) -> list[str]:
    """Return what the report says of the machine."""
    known = describe()
    git = known["git"] or {"commit": "unknown", "dirty": False}
    packages = ", ".join(f"{name} {version}" for name, version in known["packages"].items())
    commit = git["commit"][:12] + (" with changes" if git["dirty"] else "")
    gpus = visible_gpus(list_gpus())
    return [
        f"{known['time']}, commit {commit}",
        f"Python {known['python']}, {packages}",
        f"{known['platform']}, {known['cpu']}, {known['cores']} cores",
        *(gpu_lines(gpus, cuda) or ["nvidia-smi names no GPU"]),
        f"libraries: {', '.join(loaded_libraries()) or 'none of CUDA'}",
    ]


def main(argv: Optional[Sequence[str]] = None, contexts: Optional[Sequence[Any]] = None) -> int:
    """Run the checklist and print the report; return the exit code.

    `contexts` stand for the GPUs, which are looked for when it is None.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not (len(words) == 2 and words[0] == "--float16" and words[1].isdecimal()):
        print(
            f"error: unexpected {' '.join(words)!r}; the checklist has no options", file=sys.stderr
        )
        return 2

    if words:
        print(train_float16([mx.gpu(int(words[1]))]))
        return 0
    checks: list[Check] = []
    if contexts is None:
        faults = [probe_gpu(index) for index in range(gpu_count())]
        contexts = [mx.gpu(index) for index, fault in enumerate(faults) if fault is None]
        checks += [
            Check(f"computing on gpu({index})", fault is None, fault or "it computes")
            for index, fault in enumerate(faults)
        ]
    about = machine_lines(has_cuda())
    if not checks and not contexts:
        print(report([Check("a GPU that MXNet sees", False, "there is none")], about))
        print("error: this MXNet sees no GPU, so nothing was checked", file=sys.stderr)
        return 2
    checks += run_checks(contexts) if contexts else []
    print(report(checks, about))
    return 1 if any(check.passed is False for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main())
