"""Export a trained network: ``python -m model.export FILE --to symbol|onnx``.

- ``symbol``: ``OUT-symbol.json`` and ``OUT-0000.params``, which ``gluon.SymbolBlock.imports`` runs
  without this project's code, and ``OUT.json``, which says what the inputs are;
- ``onnx``: ``OUT.onnx`` with the same in its metadata, for onnxruntime, with free batch and, but
  for glimpse models, free image size.

What was written is run and compared with the network before it gets its name. ``export_model.py``
takes the same options and knows the data sets too: it stores how published files want their
images normalized, and has ``--int8``.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import mxnet as mx
import numpy as np

from bridge.atomic import write_atomically
from bridge.digest import sha256_hex
from bridge.param_file import ParamFileError, write_params
from bridge.published import settings_of
from bridge.weight_file import TORCH, detect_format, read_weight_shapes, read_weights
from model.file_match import LoadError, find_model
from model.loading import load_parameters
from model.onnx_graph import (
    TOLERANCE,
    ExportError,
    largest_difference,
    onnx_session,
    to_onnx,
)
from model.registry import FAMILIES, ModelError, create_model
from model.tracing import Traced, run_symbol, trace

PREPROCESSING_FILE = "preprocessing.json"  # in a run folder
BATCHES = (1, 3)  # that a written file is compared at
# Settings of a run that are the data's and not the network's.
NOT_OF_THE_SPEC = ("classes", "image_size")


class Knowledge(NamedTuple):
    """What a caller knows of data sets, which networks do not.

    ``preprocessing(FILE)`` gives the JSON text of how a file's images are normalized, None where it
    cannot tell. ``quantize(FILE, model, metadata, arguments)`` gives a serialized int8 model.
    ``options(parser)`` adds what it wants to be told.
    """

    preprocessing: Callable[[Path], Optional[str]] = lambda path: None
    quantize: Optional[Callable[[Path, bytes, argparse.Namespace], bytes]] = None
    options: Callable[[argparse.ArgumentParser], Any] = lambda parser: None


class Found(NamedTuple):
    """A parameter file in its network."""

    net: Any
    name: str
    settings: dict[str, Any]
    status: str


def open_network(
    path: Path, name: Optional[str] = None, given: Optional[Mapping[str, Any]] = None
) -> Found:
    """Load a parameter file into the network that it belongs to.

    Parameters
    ----------
    path
        File that `bridge.weight_file` reads, or a checkpoint of kevinzakka's glimpse models.
    name
        Of the model; None: what the index or the run folder says, or else the file's shapes.
    given
        Fields of the model's spec; they come before those of the run folder.

    Raises
    ------
    LoadError, ModelError, ParamFileError
        When the file cannot be read, or no network or another one fits.
    """
    known = settings_of(path)
    arrays, shapes = None, read_weight_shapes(path)
    seed = _seed_network(path) if name is None and detect_format(path) == TORCH else None
    if seed is not None:
        name, arrays = seed
    found, classes = (name, 0) if arrays is not None else find_model(shapes)
    name = name or known.get("model") or found
    if name is None:
        raise LoadError(
            f"{path}: no model of this project fits. Expected a parameter file of one. Name it "
            "with --model, and with --set FIELD=VALUE what is not as in the model."
        )
    settings: dict[str, Any] = {}
    if name in FAMILIES:
        fields = {field.name for field in dataclasses.fields(FAMILIES[name][0])}
        for key in fields.difference(NOT_OF_THE_SPEC):
            if known.get(key) not in (None, ""):
                settings[key] = known[key]
    settings.update(given or {})
    with mx.name.NameManager():  # names that do not depend on what was built before
        net = create_model(name, **{"classes": classes or None, **settings})
    status = load_parameters(net, path, mx.cpu(), arrays=arrays)
    return Found(net, name, settings, str(status))


def _seed_network(path: Path) -> Optional[tuple[str, dict[str, np.ndarray]]]:
    from model.seed_checkpoint import from_seed

    try:
        name, arrays = from_seed(read_weights(path))
    except LoadError:
        return None  # a PyTorch file of another network
    return name, dict(arrays)


def metadata_of(path: Path, found: Found, traced: Traced, preprocessing: Optional[str]) -> dict:
    """Return what goes into the exported file about its origin and use; str to str."""
    about = {
        "model": found.name,
        "settings": json.dumps(found.settings),
        "source": path.name,
        "source_sha256": sha256_hex(path.read_bytes()),
        "inputs": json.dumps(traced.inputs),
        "outputs": json.dumps(traced.outputs),
    }
    if preprocessing:
        about["preprocessing"] = preprocessing
    return about


def export_symbol(traced: Traced, output: str, metadata: Mapping[str, str]) -> list[str]:
    """Write ``OUT-symbol.json``, ``OUT-0000.params`` and ``OUT.json``; return their names.

    Raises
    ------
    ExportError
        When ``SymbolBlock`` computes something else from them.
    ParamFileError
        When they cannot be written.
    """
    names = [f"{output}-symbol.json", f"{output}-0000.params", f"{output}.json"]
    text = traced.symbol.tojson()
    with tempfile.TemporaryDirectory() as folder:
        symbol, params = f"{folder}/x-symbol.json", f"{folder}/x-0000.params"
        Path(symbol).write_text(text, encoding="utf-8")
        write_params(params, traced.parameter_file(), digest=False)
        block = mx.gluon.SymbolBlock.imports(symbol, list(traced.inputs), params)
        compare(traced, lambda inputs: _run_block(block, inputs))
    write_params(names[1], traced.parameter_file())
    about = {**metadata, "inputs": traced.inputs, "outputs": traced.outputs}
    if "preprocessing" in metadata:
        about["preprocessing"] = json.loads(metadata["preprocessing"])
    for name, content in ((names[0], text), (names[2], json.dumps(about, indent=1) + "\n")):
        _write(name, content.encode())
    return names


def _run_block(block: Any, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    found = block(*(mx.nd.array(value) for value in inputs.values()))
    return [value.asnumpy() for value in (found if isinstance(found, list) else [found])]


def _write(name: str, content: bytes) -> None:
    try:
        write_atomically(name, content)
    except OSError as error:
        raise ParamFileError(
            f"{name}: cannot be written: {error.strerror or error}. Expected a writable folder "
            "with room. Choose another --output."
        ) from error


def compare(traced: Traced, run: Callable[[dict[str, np.ndarray]], list[np.ndarray]]) -> float:
    """Return the largest difference from the network, over sizes and batches, relative to it.

    Raises
    ------
    ExportError
        When it is above `TOLERANCE`.
    """
    worst = 0.0
    for size in traced.sizes:
        for batch in BATCHES:
            inputs = traced.example(batch, size)
            for name, expected, found in zip(
                traced.outputs, run_symbol(traced, inputs), run(inputs)
            ):
                difference = largest_difference(expected, found)
                if not difference <= TOLERANCE:
                    raise ExportError(
                        f"the exported network differs from the original in {name} by "
                        f"{difference:.2g} for {batch} images of {size[0]}x{size[1]}; at most "
                        f"{TOLERANCE:g} is allowed. Nothing was written; please report this."
                    )
                worst = max(worst, difference)
    return worst


def check_onnx(traced: Traced, model: bytes) -> float:
    """Return the largest difference of onnxruntime from MXNet, as `compare` does and raises."""
    try:
        session = onnx_session(model)
    except ImportError as error:
        raise ExportError(
            f"a written ONNX file is checked with onnxruntime: {error}. Expected the extra "
            "`export`. Run make setup, or pip install -e '.[cpu,export]'."
        ) from error
    return compare(traced, lambda inputs: list(session.run(list(traced.outputs), inputs)))


def parser_of(knowledge: Knowledge) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python export_model.py" if knowledge.quantize else "python -m model.export",
        description="Write a trained network as MXNet symbol or ONNX, and check what was written.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="parameter file; its network is found out")
    parser.add_argument("--to", required=True, choices=("symbol", "onnx"), help="form to write")
    parser.add_argument("--output", metavar="OUT", help="without ending; default: FILE without it")
    parser.add_argument("--model", help="network, where the file does not tell")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="field of the network's spec, such as wiring=paper or height=100; may be repeated",
    )
    parser.add_argument(
        "--fold-gates", action="store_true", help="fold the recurrent gates of a RAM ResNet"
    )
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    parser.add_argument(
        "--int8",
        action="store_true",
        help="quantize to 8 bits (export_model.py, which knows data to calibrate on)",
    )
    knowledge.options(parser)
    return parser


def _settings(words: Sequence[str]) -> dict[str, Any]:
    settings = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.isidentifier():
            raise ExportError(f"--set {word}: give FIELD=VALUE, such as --set wiring=paper")
        try:
            settings[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            settings[name] = text
    return settings


def run(args: argparse.Namespace, knowledge: Knowledge) -> None:
    """Export what the command line says and print what was written.

    Raises
    ------
    ExportError, LoadError, ModelError, ParamFileError
        When it cannot be done; nothing is then written.
    """
    if args.int8 and (args.to != "onnx" or knowledge.quantize is None):
        raise ExportError(
            "--int8 is for --to onnx, and needs images to calibrate on: use python "
            "export_model.py FILE --to onnx --int8"
        )
    path = Path(args.file)
    output = args.output or str(path.with_suffix(""))
    endings = (".onnx",) if args.to == "onnx" else ("-symbol.json", "-0000.params", ".json")
    for name in (output + ending for ending in endings):
        if os.path.lexists(name) and not args.force:
            raise ExportError(f"{name} exists. Give another --output, or --force to replace it.")
    found = open_network(path, args.model, _settings(args.set))
    if args.fold_gates:
        found = found._replace(net=_folded(found.net))
    traced = trace(found.net)
    beside = path.parent / PREPROCESSING_FILE
    preprocessing = (
        beside.read_text("utf-8") if beside.is_file() else knowledge.preprocessing(path)
    )
    metadata = metadata_of(path, found, traced, preprocessing)
    print(f"{path} ({found.status}): {found.name}")
    if args.to == "symbol":
        names = export_symbol(traced, output, metadata)
    else:
        names = [f"{output}.onnx"]
        content = to_onnx(traced, metadata).SerializeToString()
        print(f"onnxruntime differs from MXNet by at most {check_onnx(traced, content):.1e}")
        if args.int8 and knowledge.quantize:
            content = knowledge.quantize(path, content, args)
        _write(names[0], content)
    print("wrote", ", ".join(names))
    if not preprocessing and "H" in traced.inputs["image"]:
        print("nothing is known here of how its images were normalized; export_model.py may know")


def _folded(net: Any) -> Any:
    from model.gate_folding import fold_gates
    from model.ram_resnet import ResNet

    if not isinstance(net, ResNet):
        raise ExportError("--fold-gates is for RAM ResNets")
    try:
        with mx.name.NameManager():
            return fold_gates(net)
    except ValueError as error:
        raise ExportError(f"--fold-gates: {error}") from error


def main(argv: Optional[Sequence[str]] = None, knowledge: Knowledge = Knowledge()) -> int:
    """Run the command line; returns 0, or 2 after printing what is wrong."""
    args = parser_of(knowledge).parse_args(argv)
    try:
        run(args, knowledge)
    except (ExportError, LoadError, ModelError, ParamFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
