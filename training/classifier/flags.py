"""The command line of zhongshsh/RAM's ``run.py``, read as flags of our own.

``--arch ram --dataset cifar100 --block-name bottleneck --depth 164 --epochs 164 --schedule 81 122
--wd 1e-4 --info depth164`` becomes ``--recipe=ram --model=resnet164_ram --dataset=cifar100
--epochs=164 --schedule=step --lr-steps=81,122 ...``. Nothing here knows the settings of a script,
prints, or looks at files.

Source: the seed's ``run.py``, HEAD 55abaa8, whose defaults hold for what is not given: 300 epochs,
rate divided by 10 at 150 and 225, weight decay 5e-4, depth 29. Differs: the default block, which
fails there, is the bottleneck wherever it fits the depth; a milestone behind the last epoch is left
out; the batch of STL-10 can be changed; the default seed is 0, not a random one; the images of an
epoch that do not fill a batch are left out, so 390 instead of 391 updates on CIFAR; a resume keeps
the number of epochs.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import NoReturn, Optional

from formats.errors import UserError
from training.settings.words import is_given

# Depths that have a network of their own name; others are settings of the one of depth 164 or 110.
NAMED_DEPTHS = {"bottleneck": (20, 29, 83, 164, 245), "basic": (20, 56, 110)}
DEFAULT_DEPTH = {"bottleneck": 164, "basic": 110}
LAYERS = {"bottleneck": 9, "basic": 6}
BLOCKS = {"bottleneck": "bottleneck", "basicblock": "basic", "basic": "basic"}
SEED_DEFAULTS = {"epochs": "300", "schedule": ["150", "225"], "weight_decay": "5e-4"}
CHECKPOINT_ENDINGS = (".tar", ".pth", ".param")

_WITHOUT_MEANING = {
    "workers": ("-j, --workers", "batches are made in the training process"),
    "start_epoch": ("--start-epoch", "a resumed run knows where it stopped"),
    "test_batch": ("--test-batch", "scores do not depend on it"),
    "drop": ("--drop", "the seed never used it"),
    "cardinality": ("--cardinality", "of another network"),
    "widen_factor": ("--widen-factor", "of another network"),
    "growthRate": ("--growthRate", "of another network"),
    "compressionRate": ("--compressionRate", "of another network"),
    "length": ("--length", "the seed never used it"),
    "gpu_id": ("--gpu-id", "the seed ignores it; choose with --gpus"),
}
# The seed's name of a value, and our flag that takes it as it is.
_RENAMED = {
    "dataset": "--dataset",
    "epochs": "--epochs",
    "train_batch": "--batch-size",
    "lr": "--lr",
    "gamma": "--lr-factor",
    "momentum": "--momentum",
    "weight_decay": "--wd",
    "manualSeed": "--seed",
}
# Flags that only the seed has: one of them is enough to tell its command line from ours.
_SEED_ONLY = frozenset(
    (
        *("-a", "--arch", "-d", "-j", "--workers", "-c", "--checkpoint", "--block-name", "--info"),
        *("--train-batch", "--test-batch", "--learning-rate", "--weight-decay", "--gamma"),
        *("--start-epoch", "--drop", "--dropout", "--cardinality", "--widen-factor", "--length"),
        *("--growthRate", "--compressionRate", "--manualSeed", "--e", "--evaluate", "--gpu-id"),
    )
)


def is_ram_command(argv: Sequence[str]) -> bool:
    """Return whether a command line is the seed's: it has a flag, or a value, of the seed alone."""
    for place, word in enumerate(argv):
        name, _, value = word.partition("=")
        following = value or (argv[place + 1] if place + 1 < len(argv) else "")
        if name in _SEED_ONLY or (name == "--schedule" and following.isdigit()):
            return True
        if name == "--resume" and following.endswith(CHECKPOINT_ENDINGS):
            return True
    return False


def translate_ram_flags(argv: Sequence[str]) -> list[str]:
    """Return the command line with the seed repository's flags replaced by ours.

    Our own command lines come back as they are. With ``--e`` the result scores the file of
    ``--resume``; with ``--resume`` alone it goes on with the run in the file's folder, and names
    only the settings that were given; otherwise it trains, by the seed's defaults unless our
    ``--recipe`` is given.

    Parameters
    ----------
    argv
        Words of the command line, without the script's name.

    Returns
    -------
    list of str
        Words for `training.settings.config.parse`. Our own flags are in it as they were, last.

    Raises
    ------
    UserError
        A value is missing, the depth fits no network, or ``--e`` has no file.
    """
    if not is_ram_command(argv):
        return list(argv)
    seed, rest = _parser().parse_known_args(list(argv))
    if seed.evaluate:
        if not seed.resume:
            raise UserError("--e scores a file: add --resume FILE, such as model_best.pth.tar")
        named = [] if seed.depth is None else _network(seed)
        known = [f"--dataset={seed.dataset}"] if seed.dataset else []
        return [f"--test={seed.resume}", "--seed-format", *named, *known, *rest]
    if seed.resume:
        inside = seed.resume.endswith(CHECKPOINT_ENDINGS)
        folder = (os.path.dirname(seed.resume) or ".") if inside else seed.resume
        named = [] if seed.depth is None else _network(seed)
        return [f"--resume={folder}", *named, *_settings(seed), *rest]
    return [*_training(seed, is_given(rest, "--recipe")), *rest]


def note_on_ram_flags(argv: Sequence[str]) -> str:
    """Return one line that names the seed's flags that are left out; empty if there is none."""
    if not is_ram_command(argv):
        return ""
    seed, _ = _parser().parse_known_args(list(argv))
    reasons = [
        f"{flag} ({reason})"
        for name, (flag, reason) in _WITHOUT_MEANING.items()
        if getattr(seed, name) is not None
    ]
    return f"note: without effect here: {', '.join(reasons)}" if reasons else ""


def _training(seed: argparse.Namespace, own_recipe: bool) -> list[str]:
    dataset = seed.dataset or "cifar10"
    kind = dataset.partition(":")[0]  # of our own folder:PATH, which the seed does not have
    folder = "/".join((seed.checkpoint or "checkpoints", kind, seed.arch, seed.info or "normal"))
    words = ["--seed-format", f"--run-dir={folder}", *_network(seed)]
    if not own_recipe:
        for name, value in SEED_DEFAULTS.items():
            if getattr(seed, name) is None:
                setattr(seed, name, value)
        words.insert(0, f"--recipe={'ram-stl10-released' if dataset == 'stl10' else 'ram'}")
    seed.dataset = dataset
    return [*words, *_settings(seed)]


def _settings(seed: argparse.Namespace) -> list[str]:
    """Our flags for what has a value in `seed`."""
    values = {flag: getattr(seed, name) for name, flag in _RENAMED.items()}
    words = [f"{flag}={value}" for flag, value in values.items() if value is not None]
    if seed.schedule is None:
        return words
    if not all(word.isdigit() for word in seed.schedule):
        return [*words, f"--schedule={','.join(seed.schedule)}"]  # our own, such as cosine
    last = int(seed.epochs) if (seed.epochs or "").isdigit() else None
    steps = [word for word in seed.schedule if last is None or int(word) < last]
    kind = (
        ["--schedule=step", f"--lr-steps={','.join(steps)}"] if steps else ["--schedule=constant"]
    )
    return [*words, *kind]


def _network(seed: argparse.Namespace) -> list[str]:
    """Our name of the network: ``resnet164_ram``, ``resnet20_basic_se``, ``preresnet164_ram``."""
    depth, block = _depth(seed.depth), _block(seed.block_name, _depth(seed.depth))
    version, _, gate = seed.arch.partition("_")
    if version not in ("resnet", "preresnet"):
        version, gate = "resnet", seed.arch
    named = depth in NAMED_DEPTHS[block]
    unit = "_basic" if block == "basic" else ""
    suffix = f"_{gate}" if gate else ""
    name = f"--model={version}{depth if named else DEFAULT_DEPTH[block]}{unit}{suffix}"
    return [name] if named else [name, f"--depth={depth}"]


def _depth(word: Optional[str]) -> int:
    if word is None:
        return 29
    if not word.isdigit():
        raise UserError(f"--depth {word}: give a whole number, such as 164")
    return int(word)


def _block(word: Optional[str], depth: int) -> str:
    fitting = [name for name, layers in LAYERS.items() if depth > 2 and (depth - 2) % layers == 0]
    block = fitting[0] if word is None and fitting else BLOCKS.get((word or "").lower())
    if word is not None and block is None:
        raise UserError(f"--block-name {word}: must be bottleneck or BasicBlock")
    if block not in fitting:
        raise UserError(
            f"--depth {depth}: bottlenecks make depths 9n+2 such as 29, 164; basic blocks 6n+2 "
            "such as 20, 56, 110"
        )
    return str(block)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))


def _parser() -> _Parser:
    """The seed's flags; values stay words, which the parser of our own flags judges."""
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--arch", "-a", default="ram")
    parser.add_argument("--dataset", "-d")
    parser.add_argument("--lr", "--learning-rate")
    parser.add_argument("--weight-decay", "--wd")
    parser.add_argument("--checkpoint", "-c")
    parser.add_argument("--schedule", nargs="+")
    parser.add_argument("--evaluate", "--e", action="store_true")
    parser.add_argument("--workers", "-j")
    parser.add_argument("--drop", "--dropout")
    for name in ("epochs", "train-batch", "gamma", "momentum", "manualSeed"):
        parser.add_argument(f"--{name}")
    for name in ("depth", "block-name", "info", "resume"):
        parser.add_argument(f"--{name}")
    for name in _WITHOUT_MEANING:
        if name not in ("workers", "drop"):
            parser.add_argument(f"--{name.replace('_', '-')}")
    return parser
