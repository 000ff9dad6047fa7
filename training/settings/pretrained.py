"""``--model NAME --pretrained`` on a command line: published weights in place of a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, Optional

from formats.errors import UserError
from training.settings.words import value_of

FLAG = "--pretrained"
MODEL, DATASET, FINETUNE = ("--model", "-m"), "--dataset", "--finetune"
# Flags of each script that take a file.
CLASSIFIER_ACTIONS = ("--test", "--predict", "--masks", "--mask-score", FINETUNE)
GLIMPSE_ACTIONS = ("--test", "--plot", "--gaze", FINETUNE)
Find = Callable[[str, Optional[str], Optional[str]], str]


def place_weights(argv: Sequence[str], actions: Sequence[str], find: Find) -> list[str]:
    """Return the words of a command with the path of a file where ``--pretrained`` asks for it.

    Parameters
    ----------
    argv
        ``--model NAME --pretrained`` with one of the `actions`, which has no file then.
        ``--pretrained=cifar100`` chooses by the data set of the training.
    actions
        Flags that take a file, such as ``--test``.
    find
        Gives the path from the name of the network, the data set that ``--pretrained`` names, and
        the one of ``--dataset``; None where it is not named, or is that of a finetuning.

    Raises
    ------
    UserError
        When the network or the action is not named; and what `find` raises.
    """
    asked = [word for word in argv if word.partition("=")[0] == FLAG]
    if not asked:
        return list(argv)
    words = [word for word in argv if word not in asked]
    name = value_of(words, *MODEL)
    if not name:
        raise UserError(f"{FLAG} needs the network's name: add --model NAME (docs/weights.md)")
    named = [word for word in words if word.partition("=")[0] in actions]
    if len(named) != 1 or "=" in named[0]:
        raise UserError(
            f"{FLAG} stands in place of a file: give one of {', '.join(actions)} with it, and no "
            "path"
        )
    action = named[0]
    dataset = None if action == FINETUNE else value_of(words, DATASET) or None
    words[words.index(action)] = f"{action}={find(name, asked[-1].partition('=')[2], dataset)}"
    return words


def any_weights(argv: Sequence[str], actions: Sequence[str]) -> list[str]:
    """Return the same with a word in place of the path, to look at the other flags only."""
    return place_weights(argv, actions, lambda *_: "FILE")
