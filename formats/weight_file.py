"""Any file of weights: MXNet's, PyTorch's or safetensors', told apart by content, not by name."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any, Optional

import numpy as np

from formats.atomic import PathLike
from formats.card import METADATA_KEY, CardError, card_text, parse_card
from formats.file_kinds import HEAD_BYTES
from formats.param_file import read_block, read_params, read_shapes, write_block
from formats.param_reader import ParamFileError
from formats.safetensors_file import (
    is_safetensors,
    read_metadata,
    read_safetensors,
    write_metadata,
)
from formats.torch_file import read_state_dict, without_module
from formats.torch_legacy import is_legacy

PARAM, TORCH, SAFETENSORS = "param", "torch", "safetensors"


def detect_format(path: PathLike) -> str:
    """Return ``param``, ``torch`` or ``safetensors``.

    What is none of them, or cannot be opened, counts as ``param``: `formats.param_file` then says
    what it looks like, or why it cannot be read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
            return PARAM
        with open(path, "rb") as stream:
            head = stream.read(HEAD_BYTES)
    except (OSError, ValueError):
        return PARAM
    if head.startswith(b"PK\x03\x04") or is_legacy(head):
        return TORCH
    return SAFETENSORS if is_safetensors(head) else PARAM


def read_weights(path: PathLike) -> dict[str, np.ndarray]:
    """Read the arrays of a parameter file, a PyTorch checkpoint or a safetensors file.

    Returns
    -------
    dict
        Name to array. The prefixes ``arg:`` and ``aux:`` of MXNet's checkpoints with a symbol and
        ``module.`` of PyTorch's DataParallel are removed.

    Raises
    ------
    ParamFileError
        When the file cannot be read or is damaged, or names coincide without their prefixes.
    """
    kind = detect_format(path)
    if kind == PARAM:
        arrays = read_params(path)
        return dict(zip(_bare_names(path, list(arrays)), arrays.values()))
    return read_state_dict(path) if kind == TORCH else without_module(read_safetensors(path))


def read_weight_shapes(path: PathLike) -> dict[str, tuple[int, ...]]:
    """Return name to shape, of the same files and with the same names as `read_weights`.

    The elements of a parameter file are not read; the other formats are read whole.
    """
    if detect_format(path) != PARAM:
        return {name: array.shape for name, array in read_weights(path).items()}
    shapes = read_shapes(path)
    return dict(zip(_bare_names(path, list(shapes)), (shape for shape, _ in shapes.values())))


def read_card(path: PathLike) -> Optional[dict[str, Any]]:
    """Return the card of a file of weights (see `formats.card`); None where it has none.

    PyTorch's files have no place for one.

    Raises
    ------
    ParamFileError
        When the file cannot be read or its card is damaged.
    """
    kind = detect_format(path)
    if kind == PARAM:
        return read_block(path)[0]
    text = read_metadata(path).get(METADATA_KEY) if kind == SAFETENSORS else None
    try:
        return None if text is None else parse_card(text)
    except CardError as error:
        raise ParamFileError(
            f"{os.fspath(path)}: its card is damaged: {error}. Expected a card that this project "
            f"wrote. Take it off: python -m model.weights.card {os.fspath(path)} --strip."
        ) from error


def write_card(path: PathLike, card: Optional[Mapping[str, Any]]) -> None:
    """Give a file another card, or none; no array changes, the digest beside the file follows.

    Raises
    ------
    ParamFileError
        When the file is damaged, has no place for a card, or cannot be written.
    """
    kind = detect_format(path)
    if kind == TORCH:
        raise ParamFileError(
            f"{os.fspath(path)}: a PyTorch file has no place for a card. Expected an MXNet or "
            "safetensors file. Convert it: python -m model.convert IN OUT --to pistony."
        )
    if kind == PARAM:
        write_block(path, card)
        return
    metadata = read_metadata(path)
    metadata.pop(METADATA_KEY, None)
    try:
        texts = {} if card is None else {METADATA_KEY: card_text(card)}
    except CardError as error:
        raise ParamFileError(
            f"{os.fspath(path)}: its card cannot be written: {error}. Expected the fields of "
            "docs/files.md. Correct them."
        ) from error
    write_metadata(path, {**metadata, **texts})


def _bare_names(path: PathLike, names: list[str]) -> list[str]:
    bare = [name[4:] if name.startswith(("arg:", "aux:")) else name for name in names]
    if len(set(bare)) != len(bare):
        raise ParamFileError(
            f"{os.fspath(path)}: the same name occurs with arg: and with aux:. Expected each name "
            "once. Save the file again from the network."
        )
    return bare
