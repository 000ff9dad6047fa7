"""Exported networks as files, and as the network that a parameter file belongs to.

`training.apply.export` is the command line.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import mxnet as mx
import numpy as np

from formats.atomic import write_atomically
from formats.card import METADATA_KEY, VERSION, card_text, parse_card
from formats.digest import sha256_hex
from formats.param_file import write_params
from formats.param_reader import ParamFileError
from model.export.onnx_graph import TOLERANCE, ExportError, largest_difference, onnx_session
from model.export.tracing import Traced, run_symbol
from model.registry import create_model
from model.weights.dialects import CLASS_LAYERS, detect_dialect
from model.weights.file_match import LoadError, find_model
from model.weights.known import Known, known_of
from model.weights.loading import check_finite, load_parameters
from model.weights.network_card import network_section, recorded_network
from model.weights.seed_checkpoint import read_for_unit_range

BATCHES = (1, 3)  # that a written file is compared at


class Found(NamedTuple):
    """A parameter file in its network."""

    net: Any
    name: str
    settings: dict[str, Any]
    status: str
    known: Known
    dialect: Optional[str]

    def card(self, sections: Mapping[str, Any]) -> dict[str, Any]:
        """Return the card of an export, with what is known beside the network in `sections`."""
        classes = int(class_layer(self.net).shape[0])
        network = network_section(self.name, self.net, classes)
        return {"card": VERSION, **self.known.card, "network": network, **sections}


def open_network(
    path: Path, name: Optional[str] = None, given: Optional[Mapping[str, Any]] = None
) -> Found:
    """Load a parameter file into the network that it belongs to.

    Parameters
    ----------
    path
        File that `formats.weight_file` reads, or a checkpoint of kevinzakka's glimpse models.
    name
        Of the model; None: what the index or the run folder says, or else the file's shapes.
    given
        Fields of the model's spec; they come before those of the run folder.

    Raises
    ------
    LoadError, ModelError, ParamFileError
        When the file cannot be read, or no network or another one fits.
    """
    (seed, arrays), known = read_for_unit_range(path), known_of(path)
    shapes = {key: array.shape for key, array in arrays.items()}
    named = {**(given or {}), "model": name}
    recorded = recorded_network(path, known, shapes, named)
    settings: dict[str, Any] = dict(given or {})
    if recorded:
        name, classes, settings = recorded
    else:
        found, classes = (seed, 0) if seed and name is None else find_model(shapes)
        name, classes = name or found, settings.pop("classes", classes)
    if name is None:
        raise LoadError(
            f"{path}: no model of this project fits. Expected a parameter file of one. Name it "
            "with --model, and with --set FIELD=VALUE what is not as in the model."
        )
    with mx.name.NameManager():  # names that do not depend on what was built before
        net = create_model(name, classes or None, **settings)
    try:
        status = load_parameters(net, path, mx.cpu(), arrays=arrays)
    except LoadError as error:
        if not recorded:
            raise
        raise LoadError(f"{error} {known.remedy(path)}.") from error
    check_finite(net, path)
    return Found(net, name, settings, str(status), known, detect_dialect(shapes))


def class_layer(net: Any) -> Any:
    """Return the weight of the layer that tells classes apart."""
    parameters = net._collect_params_with_prefix()
    return next(parameters[f"{n}.weight"] for n in CLASS_LAYERS if f"{n}.weight" in parameters)


def metadata_of(
    path: Path,
    found: Found,
    traced: Traced,
    card: Mapping[str, Any],
    preprocessing: Optional[str],
) -> dict[str, str]:
    """Return what goes into the exported file about its origin and use."""
    about = {
        "model": found.name,
        "settings": json.dumps(found.settings),
        "source": path.name,
        "source_sha256": sha256_hex(path.read_bytes()),
        "inputs": json.dumps(traced.inputs),
        "outputs": json.dumps(traced.outputs),
        METADATA_KEY: card_text(card),
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
    check_symbol(traced)
    card = parse_card(metadata[METADATA_KEY]) if METADATA_KEY in metadata else None
    write_params(names[1], traced.parameter_file(), card=card)
    about = {**metadata, "inputs": traced.inputs, "outputs": traced.outputs}
    if card:
        about[METADATA_KEY] = card
    if "preprocessing" in metadata:
        about["preprocessing"] = json.loads(metadata["preprocessing"])
    write(names[0], traced.symbol.tojson().encode())
    write(names[2], (json.dumps(about, indent=1) + "\n").encode())
    return names


def check_symbol(traced: Traced) -> float:
    """Return the largest difference of ``SymbolBlock`` from MXNet, as `compare` does and raises."""
    with tempfile.TemporaryDirectory() as folder:
        symbol, params = f"{folder}/x-symbol.json", f"{folder}/x-0000.params"
        Path(symbol).write_text(traced.symbol.tojson(), encoding="utf-8")
        write_params(params, traced.parameter_file(), digest=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that types of inputs are guessed; all are float32
            block = mx.gluon.SymbolBlock.imports(symbol, list(traced.inputs), params)
        return compare(traced, lambda inputs: _run_block(block, inputs))


def _run_block(block: Any, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    found = block(*(mx.nd.array(value) for value in inputs.values()))
    return [value.asnumpy() for value in (found if isinstance(found, list) else [found])]


def write(name: str, content: bytes) -> None:
    """Write a file atomically; ParamFileError when that fails."""
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
