"""The command line of kevinzakka/recurrent-visual-attention, read as flags of our own.

``--patch_size=8 --M 10 --use_gpu=False`` becomes ``--patch-size=8 --rollouts-eval=10 --gpus=cpu``.
Nothing here knows the settings of a script, prints, or looks at files: what is not a flag of the
seed repository goes to the parser as it is.

Source: the seed's ``config.py``, HEAD a38ac89. Differs: the seed's trainer swaps ``loc_hidden`` and
``glimpse_hidden`` (its pull request #46); here each sets what it is named after. ``--lr_patience``
brings the plateau schedule, which is the only one of the seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Optional

from formats.errors import UserError
from training.settings.words import is_given

# What `--resume` gets for the seed's `--resume=True`: the run that a model of these settings has.
RESUME_THIS_MODEL = "auto"

_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
# Seed's flag to ours, with the value as it is.
_RENAMED = {
    "--patch_size": "--patch-size",
    "--glimpse_scale": "--glimpse-scale",
    "--num_patches": "--num-patches",
    "--loc_hidden": "--loc-hidden",
    "--glimpse_hidden": "--glimpse-hidden",
    "--num_glimpses": "--num-glimpses",
    "--hidden_size": "--hidden-size",
    "--valid_size": "--valid-fraction",
    "--batch_size": "--batch-size",
    "--init_lr": "--lr",
    "--lr_patience": "--lr-patience",
    "--train_patience": "--early-stopping",
    "--random_seed": "--seed",
    "--data_dir": "--data-dir",
    "--ckpt_dir": "--checkpoint-dir",
    "--logs_dir": "--log-dir",
    "--plot_freq": "--plot-freq",
}
_BOOLEAN = ("--use_gpu", "--use_tensorboard", "--is_train", "--shuffle", "--show_sample")
_OTHERS = ("--M", "--num_workers", "--print_freq", "--momentum", "--resume")
# `--std`, `--epochs` and `--best` are the same in both, and pass like all of our own flags.
_SEED_FLAGS = frozenset((*_RENAMED, *_BOOLEAN, *_OTHERS))

_WITHOUT_MEANING = {
    "--num_workers": "batches are made in the training process",
    "--print_freq": "the seed never used it",
    "--shuffle": "every epoch is shuffled",
    "--show_sample": "no window is opened",
    "--momentum": "the seed never used it, and Adam has none",
}


class _Flag(NamedTuple):
    name: str  # as the seed spells it; empty for a word that is something else
    value: Optional[str]  # None: no value was given
    words: tuple[str, ...]


def translate_seed_flags(argv: Sequence[str]) -> list[str]:
    """Return the command line with the seed repository's flags replaced by ours.

    Both ``--flag=value`` and ``--flag value`` are read, truth values in any case. Of a seed's flag
    that is given twice the last one counts. Flags that mean nothing here are left out;
    `note_on_seed_flags` names them. ``--resume=True`` becomes ``--resume=auto``
    (`RESUME_THIS_MODEL`), ``--resume=False`` is left out, and ``--resume FOLDER`` stays.
    ``--momentum`` stays where ``--optimizer`` is given, which the seed does not have.

    Parameters
    ----------
    argv
        Words of the command line, without the script's name.

    Returns
    -------
    list of str
        Words for `training.settings.config.parse`. Our own flags and unknown ones are in it as they
        were.

    Raises
    ------
    UserError
        A truth value is neither true nor false, or a flag asks for what does not exist here.
    """
    words: list[str] = []
    for flag in _last_of_each(_read(argv)):
        words += _translate(flag)
    # The seed has no other schedule, and in ours the patience would do nothing without it.
    patient = any(flag.name == "--lr_patience" for flag in _read(argv))
    if patient and not is_given(argv, "--schedule"):
        words.append("--schedule=plateau")
    return words


def note_on_seed_flags(argv: Sequence[str]) -> str:
    """Return one line that names the seed's flags that are left out; empty if there is none.

    Parameters
    ----------
    argv
        Words of the command line, as `translate_seed_flags` gets them.
    """
    names = [flag.name for flag in _last_of_each(_read(argv)) if flag.name in _WITHOUT_MEANING]
    if not names:
        return ""
    reasons = ", ".join(f"{name} ({_WITHOUT_MEANING[name]})" for name in names)
    return f"note: without effect here: {reasons}"


def _read(argv: Sequence[str]) -> list[_Flag]:
    """Take the words apart: a seed's flag with its value, or a single other word."""
    flags: list[_Flag] = []
    place = 0
    while place < len(argv):
        word = argv[place]
        name, equals, value = word.partition("=")
        following = argv[place + 1] if place + 1 < len(argv) else None
        if name not in _SEED_FLAGS or (name == "--momentum" and is_given(argv, "--optimizer")):
            flags.append(_Flag("", None, (word,)))
        elif equals:
            flags.append(_Flag(name, value, (word,)))
        elif following is None or following.startswith("--"):
            flags.append(_Flag(name, None, (word,)))
        else:
            flags.append(_Flag(name, following, (word, following)))
        place += len(flags[-1].words)
    return flags


def _last_of_each(flags: list[_Flag]) -> list[_Flag]:
    last = {flag.name: place for place, flag in enumerate(flags)}
    return [flag for place, flag in enumerate(flags) if not flag.name or last[flag.name] == place]


def _translate(flag: _Flag) -> Sequence[str]:
    name, value = flag.name, flag.value
    if name in _RENAMED:
        return [_RENAMED[name] if value is None else f"{_RENAMED[name]}={value}"]
    if name in _BOOLEAN:
        return _translate_boolean(name, _truth(flag))
    if name == "--resume":
        wanted = {"true": [f"--resume={RESUME_THIS_MODEL}"], "false": []}
        return wanted.get((value or "").lower(), list(flag.words))
    if name == "--M":
        return ["--rollouts-eval" if value is None else f"--rollouts-eval={_whole(value)}"]
    return [] if name else flag.words


def _translate_boolean(name: str, value: bool) -> Sequence[str]:
    if name == "--use_gpu":
        return [] if value else ["--gpus=cpu"]
    if name == "--use_tensorboard":
        return ["--tensorboard" if value else "--no-tensorboard"]
    if name == "--is_train":
        return [f"--is-train={value}"]
    if name == "--shuffle" and not value:
        raise UserError(
            "--shuffle False: training in a fixed order is not supported, because images of one "
            "batch would always be the same ones; leave it out"
        )
    if name == "--show_sample" and value:
        raise UserError(
            "--show_sample True: no window is opened here; leave it out, and draw samples into a "
            "file with python -m training.glimpse.sheet"
        )
    return []


def _truth(flag: _Flag) -> bool:
    if flag.value is None:
        return True  # `--use_tensorboard` alone, as our own flags allow it
    try:
        return _BOOLS[flag.value.lower()]
    except KeyError:
        raise UserError(f"{flag.name} {flag.value}: must be True or False") from None


def _whole(value: str) -> str:
    """Read 10.0, which was the default of M once, as 10; the parser judges everything else."""
    head, dot, tail = value.partition(".")
    return head if dot and not tail.strip("0") and head.isdigit() else value
