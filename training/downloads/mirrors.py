"""Where the files of data sets are to be had."""

from __future__ import annotations

import os
from typing import Optional
from urllib.parse import unquote, urlsplit

from formats.downloads.fetch import shown
from formats.errors import UserError

AUTHORS_URL = "https://www.cs.toronto.edu/~kriz"
# The page of MNIST's authors no longer serves the files; these are copies that others rely on.
MNIST_URLS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)
STL10_URL = "https://ai.stanford.edu/~acoates/stl10"
GLUON_URL = "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com"


def candidates(dataset: str, file_name: str, mirror: Optional[str] = None) -> list[str]:
    """Where to look for a file, in order: mirror, the authors' page, Gluon's repository.

    MNIST has two public copies in place of the authors' page; Gluon does not keep STL-10.

    Parameters
    ----------
    dataset : str
        ``cifar10``, ``cifar100`` or ``mnist``: Gluon's folder name; or ``stl10``.
    file_name : str
        Name of the file.
    mirror : str, optional
        ``http(s)://...`` or ``file://...`` or a local folder; ``file_name`` is looked for in it.

    Returns
    -------
    list of str
        URLs and local paths.

    Raises
    ------
    UserError
        The mirror has another scheme, or is a local folder that does not exist.
    """
    gluon = os.environ.get("MXNET_GLUON_REPO") or GLUON_URL
    published = {"mnist": MNIST_URLS, "stl10": (STL10_URL,)}.get(dataset, (AUTHORS_URL,))
    places = [f"{url}/{file_name}" for url in published]
    if dataset != "stl10":
        places.append(f"{gluon.rstrip('/')}/gluon/dataset/{dataset}/{file_name}")
    if mirror is None:
        return places
    try:
        parts = urlsplit(mirror)
    except ValueError as error:
        raise UserError(f"the mirror {mirror} is not a valid address: {error}") from error
    if parts.scheme in ("http", "https") and parts.netloc:
        own = mirror if parts.path.endswith(file_name) else f"{mirror.rstrip('/')}/{file_name}"
        return [own, *places]
    folder = unquote(parts.path) if parts.scheme == "file" else os.path.expanduser(mirror)
    if not os.path.isdir(folder):
        raise UserError(
            f"the mirror {shown(mirror)} is neither an http:// or https:// address nor a folder "
            f"that exists; give one that holds {file_name}"
        )
    return [os.path.join(folder, file_name), *places]
