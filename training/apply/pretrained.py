"""``--model NAME --pretrained`` on a command line: the published weights in place of a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from formats.errors import UserError
from model.pretrained.store import published_names, published_rows, weights_path

FLAG = "--pretrained"
MODEL = ("--model", "-m")
FINETUNE = "--finetune"


def with_weights(argv: Sequence[str], actions: Sequence[str]) -> list[str]:
    """Return the words of a command with the path of a published file where ``--pretrained`` asks.

    Parameters
    ----------
    argv
        ``--model NAME --pretrained`` with one of the `actions`, which has no file then.
        ``--pretrained=cifar100`` chooses by data set, and without that ``--dataset`` does where
        there are weights for it.
    actions
        Flags that take a file, such as ``--test``.

    Raises
    ------
    UserError
        When the network or the action is not named, or there are no such weights.
    """
    asked = [word for word in argv if word.partition("=")[0] == FLAG]
    if not asked:
        return list(argv)
    words = [word for word in argv if word not in asked]
    name = _value(words, MODEL)
    if name is None:
        raise UserError(
            f"{FLAG} needs the network's name: add --model NAME; there are weights for "
            f"{', '.join(published_names())}"
        )
    named = [word for word in words if word.partition("=")[0] in actions]
    if len(named) != 1 or "=" in named[0]:
        raise UserError(
            f"{FLAG} stands in place of a file: give one of {', '.join(actions)} with it, and no "
            "path"
        )
    action = named[0]
    dataset = asked[-1].partition("=")[2] or _dataset(words, name, action)
    place = words.index(action)
    words[place] = f"{action}={weights_path(name, dataset or True)}"
    return words


def _dataset(words: Sequence[str], name: str, action: str) -> Optional[str]:
    """Return the named data set where the network has weights for it; not that of a finetuning."""
    dataset = None if action == FINETUNE else _value(words, ("--dataset",))
    known = {row["dataset"] for row in published_rows() if row["model"] == name}
    return dataset if dataset in known else None


def _value(words: Sequence[str], flags: Sequence[str]) -> Optional[str]:
    """Return the value of a flag, the last one where it is given several times."""
    found = None
    for word, after in zip(words, [*words[1:], ""]):
        flag, equals, value = word.partition("=")
        if flag in flags:
            found = value if equals else after
    return found or None
