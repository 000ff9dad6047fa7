"""The parameters of the last epochs, one file each: ``epoch-0007.param`` and its digest."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

from bridge.digest import digest_path
from training.checkpoint import save_parameters

NAME = "epoch-{:04d}.param"
_PATTERN = re.compile(r"epoch-(\d{4,})\.param")


def keep_last(folder: Path, net: Any, epoch: int, count: int) -> None:
    """Write the file of an epoch and remove those that are not of the last `count` epochs.

    With `count` 0 nothing is written and nothing removed.
    """
    if not count:
        return
    save_parameters(net, folder / NAME.format(epoch))
    for path in folder.iterdir():
        match = _PATTERN.fullmatch(path.name)
        if match and not epoch - count < int(match[1]) <= epoch:
            # The digest last: a file that is left for a moment must not look unverified.
            for old in (path, Path(digest_path(path))):
                with contextlib.suppress(FileNotFoundError):
                    old.unlink()
