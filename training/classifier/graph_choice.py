"""What training steps are computed by and in which precision, where the settings leave it open."""

from __future__ import annotations

import sys
import time
from typing import Any, NamedTuple, Optional

import mxnet as mx
from mxnet import autograd

from formats.errors import UserError, last_line
from machine.processor import Unavailable
from model.execution.fused_training import difference_of, fuse
from training.classifier.networks import build_classifier
from training.compute.devices import check_bfloat16, hybridize_options
from training.records.environment import remember
from training.settings.run_config import HOROVOD

# A timing is only as good as the machine is quiet: bfloat16 must save this share of a step in
# float32, and MXNet's own operators this share of what the fused ones take.
LEAST_GAIN = 0.1
OWN_GRAPH = "MXNet's own operators"
PROBE_PIXELS = 16 * 32 * 32  # of all images of a step
PROBE_STEPS = 3
# Rounding makes 1e-4 of the largest logit; another activation of the masks, for one, 10 % and more.
MOST_DIFFERENCE = 0.01


class Choice(NamedTuple):
    """How training steps are computed.

    Parameters
    ----------
    fused
        What the fused operators are, as `model.execution.fused_training.fuse` says; None: MXNet's
        own.
    reason
        Why they are MXNet's own.
    precision
        ``float32``, ``bfloat16`` or ``float16``.
    why
        Why this precision, where it was chosen here.
    net
        The network that this was found out with, to be initialized anew; None: one is to be built.
    slower
        Whether the fused operators could be had and were left out, since they are slower here.
    """

    fused: Optional[str]
    reason: str
    precision: str
    why: str = ""
    net: Any = None
    slower: bool = False

    @property
    def settings(self) -> dict[str, str]:
        """The settings of the run that keep this choice when it is resumed."""
        return {"precision": self.precision, **({"fused": "off"} if self.slower else {})}

    @property
    def amp(self) -> str:
        """The precision that MXNet itself is set to; fused operators bring their own."""
        return "float32" if self.fused else self.precision

    @property
    def steps(self) -> str:
        """What computes training steps, with the reason where it is MXNet itself."""
        return self.fused or f"{OWN_GRAPH} ({self.reason})"

    def apply(self, net: Any) -> None:
        """Let an initialized network train so."""
        net.hybridize(**hybridize_options(self.amp))
        if self.fused:
            fuse(net, self.precision)

    def tell(self) -> None:
        """Print it and let the record of the run have it."""
        print(f"training steps by {self.steps}, {self.precision}{self.why and f' ({self.why})'}")
        remember("training_steps", self.steps)
        remember("precision", f"{self.precision}{self.why and f': {self.why}'}")


def choose_graph(config: Any, contexts: list[Any], classes: int) -> Choice:
    """Return how a network trains fastest without being worse, which is measured where needed.

    Parameters
    ----------
    config
        A `ClassifierConfig`; ``fused`` and ``precision`` may be ``auto``.
    contexts
        Devices of the training.
    classes
        Number of classes.

    Raises
    ------
    UserError
        When fused operators are demanded and cannot be had, or bfloat16 on a processor without.
    """
    found, reason, net = None, "", None
    if config.fused == "off":
        reason = "as the run began" if config.resume else "--fused off"
    elif any(context.device_type != "cpu" for context in contexts):
        reason = "on a GPU; the fused ones are for the CPU"
    elif config.precision == "float16":
        reason = "float16, which the fused ones do not know"
    elif config.distributed == HOROVOD:
        # Horovod makes MXNet's symbols global; its oneDNN then answers for the other one.
        reason = "they crash beside Horovod, not with --distributed dist_sync"
    elif config.freeze != "none":
        reason = "frozen layers, which the fused ones do not know"
    else:
        try:
            net = build_classifier(config, classes)
            found, reason = _fused(net)
        except Unavailable as error:
            reason = str(error)
    if found and config.precision == "bfloat16":
        check_bfloat16()  # MXNet is not set to it, which would check
    if reason and config.fused == "on":
        raise UserError(f"--fused on: {reason}. Leave it out to train by MXNet's own operators")
    if config.precision != "auto":
        return Choice(found, reason, config.precision, net=net if found else None)
    if not found:
        return Choice(found, reason, "float32")
    return probe(net, found, config.fused == "auto")


def _fused(net: Any) -> tuple[Optional[str], str]:
    """Return what computes a network's training steps in C++, or why that may not be used."""
    found = fuse(net)
    difference = difference_of(net)
    if difference <= MOST_DIFFERENCE:
        return found, ""
    reason = (
        f"the operators in C++ give other logits than the network, by {difference:.1%} of the "
        "largest: what a layer computes was changed in one of the two alone"
    )
    print(f"warning: {reason}", file=sys.stderr)
    return None, reason


def probe(net: Any, fused: str, compare: bool) -> Choice:
    """Return how a network trains fastest here, by the measured time of some steps.

    In bfloat16 the fused operators round what convolutions multiply and give, nothing else; sums,
    normalisations, gates, parameters and updates are float32 in both.

    Parameters
    ----------
    net
        A network that the fused operators know.
    fused
        What they are, as `model.execution.fused_training.fuse` says.
    compare
        Whether MXNet's own operators are measured too, in float32, and may be chosen.
    """
    seconds: dict[str, float] = {}
    try:
        for precision in ("float32", "bfloat16"):
            seconds[precision] = _step_seconds(net, precision)
    except Exception as error:  # oneDNN has no such convolution for this processor
        failed = "bfloat16 is not possible here" if seconds else "no step could be timed"
        precision, why = "float32", f"{failed}: {last_line(error)}"
    else:
        share = seconds["bfloat16"] / seconds["float32"]
        precision = "bfloat16" if share <= 1 - LEAST_GAIN else "float32"
        why = f"a step in bfloat16 takes {share:.2f} of the time in float32"
    if not (compare and seconds):
        return Choice(fused, "", precision, why, net)
    share = _step_seconds(net, OWN_GRAPH, enough=seconds[precision]) / seconds[precision]
    if share > 1 - LEAST_GAIN:
        why = f"{why}; by {OWN_GRAPH} it takes {share:.2f} times as long"
        return Choice(fused, "", precision, why, net)
    net.fused = None
    reason = f"faster here: a step takes {share:.2f} of the time by the fused ones"
    return Choice(None, reason, "float32", "", net, slower=True)


def _step_seconds(net: Any, way: str, enough: float = 0.0) -> float:
    """Return the shortest time of a forward and backward pass of a network made for it.

    `way` is a precision of the fused operators, or `OWN_GRAPH`. A way that takes twice `enough` is
    timed once, as it will not be chosen.
    """
    net.initialize(mx.init.Zero(), force_reinit=True)
    if way == OWN_GRAPH:
        net.fused = None
        net.hybridize(**hybridize_options("float32"))
    else:
        fuse(net, way)
    _, height, width = net.image_shape
    images = max(2, PROBE_PIXELS // (height * width))
    image = mx.nd.ones((images, *net.image_shape))
    found: list[float] = []
    while len(found) <= PROBE_STEPS and not (found[1:] and found[-1] > 2 * enough > 0):
        mx.nd.waitall()
        begun = time.perf_counter()
        with autograd.record():
            logits = net(image)
        logits.backward()
        mx.nd.waitall()
        found.append(time.perf_counter() - begun)
    return min(found[1:])
