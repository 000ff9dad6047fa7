"""Export a trained network: ``python export_model.py FILE --to symbol|onnx``.

- ``symbol``: ``OUT-symbol.json`` and ``OUT-0000.params``, which ``gluon.SymbolBlock.imports`` runs
  without this project's code, and ``OUT.json``, which says what the inputs are;
- ``onnx``: ``OUT.onnx`` with the same in its metadata, for onnxruntime, with free batch and free
  image size, but for glimpse models and networks with a layer for all pixels.

What was written is run and compared with the network before it gets its name.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Optional

import mxnet as mx

from formats.images.preprocessing import Preprocessing, figures_of
from machine.processor import limit_onednn
from model.execution.gate_folding import fold_gates
from model.export.export_files import (
    Found,
    check_onnx,
    class_layer,
    export_symbol,
    metadata_of,
    open_network,
    write,
)
from model.export.onnx_graph import ExportError, to_onnx
from model.export.tracing import trace
from model.ram_resnet import ResNet
from model.recurrent_attention import FAMILY as GLIMPSE
from model.registry import ModelError, read_settings
from model.weights.file_match import LoadError
from training.apply.export_flags import INT8_DEFAULTS, build_parser
from training.apply.int8 import quantize_file
from training.classifier.config import TrainConfig
from training.classifier.opening import Source, expected_of
from training.settings.exit_code import exits
from training.settings.words import flags_of

SHOWN = 5  # names in a message


def run(args: argparse.Namespace) -> None:
    """Export what the command line says and print what was written.

    Raises
    ------
    ExportError, LoadError, ModelError, ParamFileError, UserError
        When it cannot be done; nothing is then written.
    """
    if args.int8 and args.to != "onnx":
        raise ExportError(
            "--int8 is for --to onnx, and needs images to calibrate on: use python "
            "export_model.py FILE --to onnx --int8"
        )
    idle = [name for name, value in INT8_DEFAULTS.items() if getattr(args, name) != value]
    if idle and not args.int8:
        raise ExportError(f"{', '.join(flags_of(idle))}: for --int8, which is not given")
    path = Path(args.file)
    endings = (".onnx",) if args.to == "onnx" else ("-symbol.json", "-0000.params", ".json")
    output = args.output or str(path.with_suffix(""))
    for ending in endings:  # given by those who take it for a file
        output = output.removesuffix(ending)
    if not Path(output).name or output.endswith("/"):
        raise ExportError(f"--output {args.output}: give a name for the files, not only an ending")
    for name in (output + ending for ending in endings):
        if os.path.lexists(name) and not args.force:
            raise ExportError(f"{name} exists. Give another --output, or --force to replace it.")
    found = open_network(path, args.model, read_settings(args.set))
    if args.fold_gates:
        found = _folded(found)
    traced = trace(found.net)
    expected = _expected(path, found, args)
    if expected:
        expected = replace(expected, class_names=_class_names(path, found, expected, args.classes))
    sections = expected.card_sections() if expected else {}
    preprocessing = expected.to_json().decode() if expected else None
    metadata = metadata_of(path, found, traced, found.card(sections), preprocessing)
    print(f"{path} ({found.status}): {found.name}")
    if args.to == "symbol":
        names = export_symbol(traced, output, metadata)
    else:
        names = [f"{output}.onnx"]
        content = to_onnx(traced, metadata).SerializeToString()
        print(f"onnxruntime differs from MXNet by at most {check_onnx(traced, content):.1e}")
        if args.int8:
            content = quantize_file(path, content, args)
        write(names[0], content)
    print("wrote", ", ".join(names))
    if not preprocessing and found.name not in GLIMPSE:
        print(
            "nothing says how its images were normalized: name it with --normalization, and the "
            "classes with --classes"
        )
    elif expected and not expected.class_names and found.name not in GLIMPSE:
        print("nothing names its classes: name them with --classes")


def _class_names(
    path: Path, found: Found, expected: Preprocessing, words: Optional[str]
) -> tuple[str, ...]:
    """Return the names that the file has, or those of the command line."""
    if not words:
        return expected.class_names
    if words.startswith("@"):
        try:
            names = Path(words[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ExportError(f"--classes {words}: cannot be read: {error}") from error
    else:
        names = words.split(",")
    own = found.known.card.get("classes", [])
    if own and own != names:
        raise ExportError(
            f"--classes {words}: {path} names {', '.join(own[:SHOWN])}. Leave --classes out; if "
            "those are wrong, correct them: "
            f"python -m model.weights.card {path} --set classes=NAME,NAME"
        )
    count = int(class_layer(found.net).shape[0])
    if len(names) != count or len(set(names)) != count or "" in names:
        raise ExportError(
            f"--classes {words}: {len(set(names))} different names, the network has {count} classes"
        )
    return tuple(names)


def _expected(path: Path, found: Found, args: argparse.Namespace) -> Optional[Preprocessing]:
    """Return what a file's network expects of an image; None where nothing says so.

    That is what its card, the index or its run folder have; of a classifier also what follows from
    its data set, or from the names of its tensors.
    """
    if found.name in GLIMPSE:
        return _recorded(found, args)
    given = {"normalization": args.normalization} if args.normalization else {}
    classes = int(class_layer(found.net).shape[0])
    dataset = found.known.recorded.get("dataset", "cifar10")
    config = TrainConfig(dataset=dataset, classes=classes, data_dir=args.data_dir)
    source = Source(str(path), found.known, found.dialect, found.name, found.net, config, given)
    known = expected_of(source)
    return None if known.assumed else known.preprocessing


def _recorded(found: Found, args: argparse.Namespace) -> Optional[Preprocessing]:
    """Return what card, index or run folder say of a file's images; None where nothing does."""
    known, figures = found.known, None
    if args.normalization:
        figures = figures_of(args.normalization, int(found.net.image_shape[0]))
    image = known.card.get("image", {})
    if figures is None and not image.get("mean"):
        return None
    mean, deviation = figures or (tuple(image["mean"]), tuple(image["deviation"]))
    size = image.get("height", found.net.image_shape[1])
    return Preprocessing(size, mean, deviation, known.class_names, image.get("crop", 1.0))


def _folded(found: Found) -> Found:
    if not isinstance(found.net, ResNet):
        raise ExportError("--fold-gates is for RAM ResNets")
    try:
        with mx.name.NameManager():
            return found._replace(net=fold_gates(found.net))
    except ValueError as error:
        raise ExportError(f"--fold-gates: {error}") from error


@exits(ExportError, LoadError, ModelError)
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code."""
    args = build_parser().parse_args(argv)
    limit_onednn()
    run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
