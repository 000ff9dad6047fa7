"""Convert a file of weights: ``python -m model.weights.convert IN OUT --to gluoncv``.

Reads MXNet parameter files, PyTorch checkpoints and safetensors files in every dialect of
`model.weights.dialects` and writes

- ``pistony``, ``pistony-old``, ``gluoncv``: an MXNet parameter file with those names;
- ``safetensors``: a safetensors file with this project's names;
- ``torch-names``: a safetensors file with the names of tengshaofeng's PyTorch networks, or for a
  CIFAR ResNet those of zhongshsh/RAM.

The values are not touched, but for kevinzakka's glimpse models, whose normalization of images goes
into their first layer, as wherever they are loaded. A digest (``OUT.sha256``) is written beside
every file.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np

from formats.atomic import PathLike
from formats.card import METADATA_KEY, VERSION, card_text
from formats.digest import verify_digest
from formats.images.preprocessing import image_section
from formats.param_file import write_params
from formats.param_reader import ParamFileError
from formats.safetensors_file import write_safetensors
from model.registry import FAMILIES
from model.weights.dialects import (
    GLUONCV,
    HEAD,
    IMAGES,
    PRE,
    PYTORCHCV,
    RESNET,
    TITLES,
    TORCH,
    TORCH_RESNET,
    WIRINGS,
    describe,
    detect_dialect,
    rename,
)
from model.weights.file_match import (
    LoadError,
    find_model,
    mixed_names,
    model_wiring,
    network_shapes,
)
from model.weights.foreign_names import pooled_twice
from model.weights.known import Known, known_of
from model.weights.seed_checkpoint import EDGE, POLICY_STD, read_for_unit_range

TARGETS = {
    "pistony": HEAD,
    "pistony-old": PRE,
    "gluoncv": GLUONCV,
    "safetensors": HEAD,
    "torch-names": TORCH,
}
# What other code computes of what tensors do not show; its wiring: `WIRINGS`.
ELSEWHERE = {"learning": "arl", "attention": "mixed"}
SAFETENSORS = ("safetensors", "torch-names")
_ROW_AFTER = re.compile(r"attention_module\w+\.last_blocks\.\d+\.")


class Conversion(NamedTuple):
    """What `convert` did: descriptions of both files, digest, and notes for whoever uses it."""

    source: str
    written: str
    sha256: str
    notes: tuple[str, ...]


def convert(source: PathLike, target: PathLike, to: str, force: bool = False) -> Conversion:
    """Convert a file of weights.

    Parameters
    ----------
    source
        File that `formats.weight_file.read_weights` reads.
    target
        File to write, atomically, and its digest ``TARGET.sha256``.
    to
        Key of `TARGETS`.
    force
        Replace `target` when it exists.

    Returns
    -------
    Conversion

    Raises
    ------
    LoadError
        When these weights have no such form, or `target` exists.
    formats.param_reader.ParamFileError
        When a file cannot be read or written, is damaged or differs from its digest.
    """
    if to not in TARGETS:
        raise LoadError(f"unknown form {to!r}. Expected one of {', '.join(TARGETS)}.")
    if os.path.lexists(target) and not force:
        raise LoadError(
            f"{os.fspath(target)}: exists. Expected a new file. Give another name, or --force to "
            "replace it."
        )
    verify_digest(source)
    seed, arrays = read_for_unit_range(source)
    shapes = {name: array.shape for name, array in arrays.items()}
    dialect = detect_dialect(arrays)
    try:
        head = rename(arrays, HEAD)
        name, classes = find_model(shapes)
        _check_form(source, head, dialect, to)
        known = known_of(source)
        name = known.model if known.model in FAMILIES else name
        told = WIRINGS.get(dialect or "")
        variant = {**({"wiring": told} if told else {}), **_recorded(known)}
        wiring = variant.get("wiring") or model_wiring(name)
        _check_wiring(source, describe(shapes), wiring, to)
        _check_variant(source, variant, to)
        renamed = rename(_ordered(head, name, classes), TARGETS[to])
    except ValueError as error:
        raise mixed_names(source, error) from error
    written = describe({n: array.shape for n, array in renamed.items()})
    card = _card(known, dialect, name, classes, variant)
    if seed:
        card["image"] = image_section((EDGE, EDGE), (0.0,), (1.0,))
        card["glimpse"] = {"deviation": POLICY_STD[seed], "first_radius": 1.0}
    if to in SAFETENSORS:
        # "pt" is what PyTorch's loaders look for; the arrays themselves belong to no framework.
        texts = {"format": "pt", "names": written, METADATA_KEY: card_text(card)}
        digest = write_safetensors(target, renamed, texts)
    else:
        digest = write_params(target, renamed, card=card)
    foreign = None if known.card else dialect
    notes = _notes(foreign, name, classes, len(arrays) - len(renamed), variant)
    if seed:
        notes += ("normalization: now part of sensor.fc1; images are those from 0 to 1",)
    return Conversion(describe(shapes), written, digest, notes)


def _check_form(
    source: PathLike, head: Mapping[str, np.ndarray], dialect: Optional[str], to: str
) -> None:
    """Raise LoadError when weights with these names cannot have the wanted form."""

    def refuse(reason: str, remedy: str) -> LoadError:
        return LoadError(f"{os.fspath(source)}: cannot become {to}: {reason}. {remedy}")

    shapes = {name: array.shape for name, array in head.items()}
    if dialect is None and to != "safetensors":
        raise refuse(
            f"it looks like {describe(shapes)}. Expected a residual attention network",
            "Other weights can only become safetensors, with the names they have.",
        )
    if to == "pistony-old" and not pooled_twice(head):
        raise refuse(
            "only networks whose first stage has two poolings in its mask (those for 32x32 images) "
            f"had older names. This is {describe(shapes)}",
            "Use --to pistony: the names of all others never changed.",
        )
    if to == "torch-names" and dialect == RESNET and "bn1.gamma" not in head:
        raise refuse(
            f"it is {describe(shapes)} of version 2, which PyTorch's ResNets do not have",
            "Use --to pistony or --to safetensors.",
        )
    if to == "gluoncv" and dialect in (RESNET, TORCH_RESNET):
        raise refuse(
            f"it is {describe(shapes)}, which gluoncv does not have",
            "Use --to pistony, --to torch-names or --to safetensors.",
        )
    if to == "gluoncv" and any(_ROW_AFTER.match(name) for name in head):
        raise refuse(
            "gluoncv has one unit after each attention, this network has several",
            "Use --to pistony or --to safetensors.",
        )


def _check_wiring(source: PathLike, what: str, wiring: Optional[str], to: str) -> None:
    """Refuse names of code that would accept the tensors and compute something else."""
    other = WIRINGS.get(TARGETS[to])
    if wiring and other and wiring != other:
        raise LoadError(
            f"{os.fspath(source)}: cannot become {to}: {what} has {wiring} wiring of the soft "
            f"mask, {TITLES[TARGETS[to]]} code has {other} wiring and would compute something "
            f"else. Use --to pistony or --to safetensors and a network with {wiring} wiring."
        )


def _recorded(known: Known) -> dict[str, str]:
    """Return what the card, or the settings of the run beside the file, say that tensors do not."""
    settings = known.card.get("network", {}).get("settings", {})
    told = {n: settings.get(n) or known.recorded.get(n) for n in ("wiring", *ELSEWHERE)}
    return {name: str(value) for name, value in told.items() if value}


def _card(
    known: Known,
    dialect: Optional[str],
    name: Optional[str],
    classes: int,
    variant: Mapping[str, str],
) -> dict[str, Any]:
    """Return the card of the new file: that of the old one, or what is known of it."""
    card = {"card": VERSION, **known.card}
    if name and not known.model:
        fields = {field.name for field in dataclasses.fields(FAMILIES[name][0])}
        settings = {
            key: value
            for key, value in variant.items()
            if key in fields and value != getattr(FAMILIES[name][0], key)
        }
        card["network"] = {"model": name, "classes": classes, "settings": settings}
    if dialect in IMAGES and not known.card:
        card["image"] = dict(IMAGES[dialect])
    return card


def _check_variant(source: PathLike, variant: Mapping[str, str], to: str) -> None:
    """Refuse names of code that has attention residual learning with mixed attention alone."""
    other = {n: variant[n] for n, known in ELSEWHERE.items() if variant.get(n, known) != known}
    if other and WIRINGS.get(TARGETS[to]):
        raise LoadError(
            f"{os.fspath(source)}: cannot become {to}: its run has "
            f"{' and '.join(f'{name} {value}' for name, value in other.items())}, which "
            f"{TITLES[TARGETS[to]]} code does not compute. Use --to pistony or --to safetensors"
        )


def _ordered(
    head: dict[str, np.ndarray], name: Optional[str], classes: int
) -> dict[str, np.ndarray]:
    """Bring tensors into the order in which `save_parameters` writes them, where it is known.

    Safetensors files keep no order; with this one, converting there and back gives the same bytes.
    """
    known = network_shapes(name, classes) if name else {}
    return {n: head[n] for n in known} if known.keys() == head.keys() else head


def _notes(
    dialect: Optional[str],
    name: Optional[str],
    classes: int,
    dropped: int,
    variant: Mapping[str, str],
) -> tuple[str, ...]:
    notes = []
    wiring = variant.get("wiring")
    if name:
        # Said whenever the dialect or the run tells it: the tensors alone do not.
        option = "".join(f", {key}={value!r}" for key, value in variant.items())
        notes.append(f"network: create_model({name!r}, classes={classes}{option})")
    elif wiring:
        notes.append(f"network: one with {wiring} wiring; none of the registry has these tensors")
    if dropped:
        notes.append(f"left out: {dropped} entries that the network never uses")
    if dialect == TORCH:
        notes.append("normalization: none; those networks were trained on pixels from 0 to 1")
    if dialect == PYTORCHCV:
        notes.append("normalization: ImageNet's, as in that code")
    return tuple(notes)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; returns 0, or 2 after printing what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m model.weights.convert",
        description="Convert a file of weights: MXNet, PyTorch or safetensors, in any dialect.",
    )
    parser.add_argument("source", metavar="IN", help="file to read; its format is detected")
    parser.add_argument("target", metavar="OUT", help="file to write, and OUT.sha256")
    parser.add_argument("--to", required=True, choices=list(TARGETS), help="form of OUT")
    parser.add_argument("--force", action="store_true", help="replace OUT when it exists")
    args = parser.parse_args(argv)
    try:
        done = convert(args.source, args.target, args.to, args.force)
    except (LoadError, ParamFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"read     {args.source}: {done.source}")
    for note in done.notes:
        print(f"         {note}")
    print(f"written  {args.target}: {done.written}")
    print(f"sha256   {done.sha256}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
