"""What bench_networks.py measures: networks, modes and the forms of PyTorch they stand against.

Needs the standard library alone, because both kinds of workers read it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CLASSES = 10
SIZE = 32  # height and width of the images, pixels
SMALL, LARGE = 1, 128  # batches of inference
STEADY = 2.0  # a row whose slowest round takes longer than so many times its fastest is not
PEAK_CHANNELS, PEAK_BATCH, PEAK_LAYERS = 128, 16, 4  # of the convolutions that measure the peak


@dataclass(frozen=True)
class Network:
    """A network and the batch that it is trained with."""

    family: str
    train_batch: int
    overrides: tuple[tuple[str, Any], ...] = ()


# RAM's w is 0 at first, which no longer is so after the first updates; then no gate is a constant.
NETWORKS = {
    "attention92": Network("attention", 32),
    "attention56": Network("attention", 32),
    "attention92_paper": Network("attention", 64),
    "attention56_paper": Network("attention", 64),
    "resnet164": Network("resnet", 64),
    "resnet164_ram": Network("resnet", 64, (("w_init", 0.1),)),
}


@dataclass(frozen=True)
class Mode:
    """One way of using a network.

    ``forms`` names what PyTorch does: memory layouts, and ``compiled`` for torch.compile of the
    channels_last form; for int8 it is our own float32.
    """

    kind: str
    precision: str
    batch: int
    forms: tuple[str, ...]

    @property
    def case(self) -> str:
        """What the workers are asked to time."""
        return self.case_in(self.precision)

    def case_in(self, precision: str) -> str:
        """Return the case in another precision."""
        return f"{self.kind}_{precision}_{self.batch}"


EAGER = ("nchw", "channels_last")
COMPILED = "compiled"
WIDE = "float32"  # ours in it, which int8 is compared with


def modes_of(network: Network) -> dict[str, Mode]:
    """Return the modes of a network by the name that they have in the table."""
    train = network.train_batch
    found = {
        "train fp32": Mode("train", "float32", train, EAGER),
        "train bf16": Mode("train", "bfloat16", train, EAGER),
    }
    all_forms = (*EAGER, COMPILED)
    for batch in (LARGE, SMALL):
        for short, precision in (("fp32", "float32"), ("bf16", "bfloat16")):
            mode = Mode("infer", precision, batch, all_forms)
            found[f"infer {short}, batch {batch}"] = mode
        found[f"infer int8, batch {batch}"] = Mode("infer", "int8", batch, (WIDE,))
    return found
