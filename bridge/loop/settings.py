"""The settings of ``python -m bridge.train``: those of ``train_cifar.py`` and what is its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from formats.errors import UserError
from training.classifier.config import TrainConfig
from training.classifier.recipes import RECIPES
from training.settings import run_config
from training.settings.fields import option
from training.settings.words import flags_of

ENGINES = ("auto", "eager", "graph", "compile", "compile-graph")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
# Settings of train_cifar.py that are something else than training, or that MXNet alone has. The
# network's own settings (--wiring and so on) are in the symbol already; they stay here so that the
# run's config.json can tell train_cifar.py --test which network the file belongs to.
LEFT_OUT = (
    "images", "predict", "masks", "mask_output", "mask_score", "mask_images", "test", "finetune",
    "freeze", "fused", "list_models", "summary", "gpus", "histogram_every", "init",
    "stem_init", "set", "classes", "keep", "on_nonfinite", "nonfinite_limit",
    "distributed", "scale_batch", "sync_batch_norm", "kvstore",
)  # fmt: skip
# What may be another at a resume: where things are and how fast they go, not what is computed.
RESUMABLE = (
    "data_dir", "mirror", "download", "checkpoint_minutes", "device", "compile", "stop_after",
    "threads", "data_changed", "tensorboard",
)  # fmt: skip


@dataclass(frozen=True)
class BridgeConfig(TrainConfig):
    """Options of ``bridge.train``."""

    CHANNELS: ClassVar[Optional[int]] = None

    recipe: str = option(
        "pistony", "settings to start from; single flags change them", choices=tuple(RECIPES)
    )
    symbol: Optional[str] = option(None, "the network, NAME-symbol.json", metavar="JSON")
    start: Optional[str] = option(
        None, "weights to start from; default: NAME.param beside the symbol", metavar="FILE"
    )
    model: str = option(
        "", "name of the symbol's network, for train_cifar.py --test; default: as exported",
        flags=("-m",),
    )  # fmt: skip
    device: str = option("auto", "cuda, cuda:1 or cpu; auto: a GPU if there is one")
    precision: str = option(
        "auto",
        "arithmetic of convolutions in training; auto: bfloat16 on a GPU, else float32. Tests are "
        "always in float32",
        choices=PRECISIONS,
    )
    tf32: bool = option(True, "let float32 products in training round to 10 bits on a GPU")
    channels_last: bool = option(True, "keep images in the order N, H, W, C in memory")
    compile: str = option(
        "auto",
        "how a step runs: auto measures the others at the start and takes the fastest",
        choices=ENGINES,
    )
    stop_after: float = option(
        0.0, "save and end this many seconds after the start, exit code 75; 0: no limit"
    )
    tensorboard: bool = option(False, "write event files too (needs MXBoard and MXNet)")

    def check(self) -> None:
        """Raise UserError for a value outside its range."""
        super().check()
        run_config.check_least(self, 0, "stop_after")
        undone = [name for name in ("average_last", "small_epochs") if getattr(self, name)]
        undone += ["harder_share"] if self.harder_share < 1 else []
        if undone:
            raise UserError(
                f"{', '.join(flags_of(undone))}: not done here. Leave it out (--ema "
                "averages weights too), or train with train_cifar.py"
            )
        if not self.symbol and not self.resume:
            raise UserError(
                "--symbol is missing: export the network where MXNet is "
                "(python -m model.export.export_symbol --help), then give --symbol NAME-symbol.json"
            )


def check_resume(given: Mapping[str, Any]) -> None:
    """Refuse settings that a resumed run would not heed."""
    run_config.check_resume(given, (*RESUMABLE, "resume"))
