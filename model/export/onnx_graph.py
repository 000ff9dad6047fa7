"""A network's graph as an ONNX model with free batch and image size; needs the extra ``export``."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import mxnet as mx
import numpy as np

from model.export.onnx_converters import OPSET, register_converters
from model.export.tracing import Traced, numbers

IR_VERSION = 8  # what onnxruntime since 1.10 reads
TOLERANCE = 1e-5  # of the largest number of an output, or of 1 where that is larger


class ExportError(Exception):
    """A network cannot be exported, or what was written computes something else."""


def to_onnx(traced: Traced, metadata: Mapping[str, str]) -> Any:
    """Return the ONNX model of a graph.

    Parameters
    ----------
    traced
        See `model.export.tracing.trace`.
    metadata
        Stored in the model; onnxruntime gives it as ``get_modelmeta().custom_metadata_map``.

    Returns
    -------
    onnx.ModelProto
        Inputs and outputs have the names of `traced`; the parameters are initializers and no
        inputs, which lets onnxruntime fold them (1.8 times the speed of MXNet's own export).

    Raises
    ------
    ExportError
        When onnx is missing, or an operator has no ONNX form.
    """
    try:
        import onnx
        from onnx import helper
    except ImportError as error:
        raise ExportError(
            f"--to onnx needs the package onnx: {error}. Expected the extra `export`. Run make "
            "setup, or pip install -e '.[cpu,export]'."
        ) from error
    graph = _convert(traced)
    weights = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(kept)
    _name_outputs(graph, traced)
    graph.name = "attention-networks-gluon"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version, model.producer_name = IR_VERSION, graph.name
    helper.set_model_props(model, dict(metadata))
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # the checker raises several unrelated classes
        raise ExportError(f"onnx refuses the converted network: {error}") from error
    return model


def _convert(traced: Traced) -> Any:
    """Return MXNet's conversion, a GraphProto."""
    from mxnet.onnx.mx2onnx._export_onnx import MXNetGraph
    from onnx import TensorProto

    register_converters()
    lengths = {"N": 2, "R": 2, "H": traced.sizes[0][0], "W": traced.sizes[0][1]}
    shapes = list(traced.inputs.values())
    params = {name: mx.nd.array(array, dtype="float32") for name, array in traced.arrays.items()}
    try:
        with _quiet_exporter():
            return MXNetGraph().create_onnx_graph_proto(
                traced.symbol,
                params,
                [tuple(numbers(shape, lengths)) for shape in shapes],
                [TensorProto.FLOAT] * len(shapes),
                opset_version=OPSET,
                dynamic=True,
                dynamic_input_shapes=shapes,
            )
    except (NotImplementedError, AttributeError) as error:  # what the exporter raises
        raise ExportError(f"the network has no ONNX form: {error}") from error


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep MXNet's exporter from talking, and from judging its graph by a newer operator set.

    It checks the graph against the newest set that onnx knows, not the one that it writes;
    `to_onnx` checks the whole model against the right one.
    """
    from onnx import checker

    check = checker.check_graph
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    checker.check_graph = lambda graph: None  # type: ignore[assignment, misc]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        checker.check_graph = check
        logging.disable(disabled)


def _name_outputs(graph: Any, traced: Traced) -> None:
    """Give the outputs the names, order and shapes of `traced`."""
    from onnx import TensorProto
    from onnx.helper import make_tensor_value_info

    found = [name[: -len("_output")] for name in traced.symbol.list_outputs()]
    names = dict(zip(found, traced.outputs))
    for node in graph.node:
        for places in (node.input, node.output):
            for index, name in enumerate(places):
                places[index] = names.get(name, name)
    del graph.output[:]
    graph.output.extend(
        make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in traced.outputs.items()
    )


def largest_difference(expected: np.ndarray, found: np.ndarray) -> float:
    """Return max |expected - found| over max(1, max |expected|); inf for other shapes or NaN."""
    if expected.shape != found.shape:
        return float("inf")
    difference = np.abs(expected.astype(np.float64) - found).max(initial=0)
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    return float(difference / scale) if np.isfinite(difference) else float("inf")


def onnx_session(model: bytes, threads: int = 1) -> Any:
    """Return an onnxruntime session on the CPU for a serialized model.

    With 0 `threads` it takes as many as there are cores.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
