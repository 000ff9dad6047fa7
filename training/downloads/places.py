"""Where data sets are looked for."""

from __future__ import annotations

import os
from typing import Optional

from training.settings.errors import UserError


def base_folder(data_dir: Optional[str], expected: str, title: str) -> str:
    """The folder that a search begins in: ``data_dir``, or ``data`` in the working directory.

    Raises
    ------
    UserError
        ``data_dir`` is given and is no folder; the message says what is ``expected`` in it. Nothing
        is downloaded into a mistyped name.
    """
    if not data_dir:
        return "data"
    base = os.path.expanduser(data_dir)
    if not os.path.isdir(base):
        state = "is not a folder" if os.path.exists(base) else "does not exist"
        raise UserError(
            f"the data folder {data_dir} {state}; expected a folder with {expected}. Create it to "
            f"download {title} there, or leave the option out"
        )
    return base


def gluon_folder(name: str) -> str:
    """Where Gluon keeps the data set: ``$MXNET_HOME/datasets/<name>``, ``~/.mxnet`` by default."""
    home = os.environ.get("MXNET_HOME") or os.path.join("~", ".mxnet")
    return os.path.join(os.path.expanduser(home), "datasets", name)
