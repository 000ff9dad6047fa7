"""The parameters of the last epochs, one file each: ``epoch-0007.param`` and its digest."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from training.loop.checkpoint import save_parameters

NAME = "epoch-{:04d}.param"
_PATTERN = re.compile(r"epoch-(\d{4,})\.param(\.sha256)?")


def keep_last(folder: Path, net: Any, epoch: int, count: int) -> None:
    """Write the file of an epoch and remove those that are not of the last `count` epochs.

    With `count` 0 nothing is written and nothing removed.
    """
    if not count:
        return
    save_parameters(net, folder / NAME.format(epoch))
    # Sorted, a file goes before its digest: in between it must not look unverified. A digest alone
    # is what a process leaves that is killed in between.
    for path in sorted(folder.iterdir()):
        match = _PATTERN.fullmatch(path.name)
        if match and not epoch - count < int(match[1]) <= epoch:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
