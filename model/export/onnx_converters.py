"""Operators that MXNet's own ONNX exporter lacks, or converts into something else.

``mxnet.onnx`` of 1.9.1 was written for onnx 1.8. In graphs of this project it has no converter for
one-dimensional convolutions, for bilinear resizing to the size of another map and for averages over
more than one bin, fails at
``arange`` with whole numbers, warns at every product, and prints names at every subtraction from a
number. The functions here stand in for those, in its own form: node of the symbol in, ONNX nodes
out.

Operators: https://onnx.ai/onnx/operators, version 13 of the set.
"""

from __future__ import annotations

import ast
from typing import Any, Callable

import numpy as np

OPSET = 13  # the last that MXNet's exporter knows; onnxruntime 1.19 for Python 3.9 knows 21
Converter = Callable[..., Any]


def register_converters() -> None:
    """Tell MXNet's exporter of the converters below; again and again does no harm."""
    import mxnet.onnx.mx2onnx._op_translations  # noqa: F401  registers MXNet's own
    from mxnet.onnx.mx2onnx._export_onnx import MXNetGraph

    known = MXNetGraph.registry_.setdefault(OPSET, {})
    for name in ("Convolution", "Reshape"):
        _MXNETS_OWN.setdefault(name, known.get(name) or MXNetGraph.registry_[12][name])
    known.update(_CONVERTERS)


_MXNETS_OWN: dict[str, Converter] = {}


def _inputs(node: dict[str, Any], found: dict[str, Any]) -> tuple[str, list[str], dict[str, str]]:
    """Return name, names of the inputs and attributes of a node."""
    lookup = found["outputs_lookup"]
    names = [lookup[place[0]][place[1]].name for place in node["inputs"]]
    return node["name"], names, node.get("attrs", {})


def _constant(name: str, values: Any, dtype: Any, found: dict[str, Any]) -> str:
    from onnx import numpy_helper

    found["initializer"].append(numpy_helper.from_array(np.array(values, dtype), name))
    return name


def _flag(attributes: dict[str, str], name: str) -> bool:
    return attributes.get(name, "False") in ("True", "1")


def _dot(node: dict[str, Any], **found: Any) -> list[Any]:
    """The last axis of the first factor with the first axis of the second, a matrix."""
    from onnx.helper import make_node

    name, (first, second), attributes = _inputs(node, found)
    if _flag(attributes, "transpose_a"):
        raise NotImplementedError("dot with transpose_a has no ONNX form here")
    nodes = []
    if _flag(attributes, "transpose_b"):
        nodes.append(make_node("Transpose", [second], [f"{name}_second"], perm=[1, 0]))
        second = f"{name}_second"
    return [*nodes, make_node("MatMul", [first, second], [name], name=name)]


def _convolution(node: dict[str, Any], **found: Any) -> Any:
    """Convolutions along one axis; all others as MXNet has them."""
    from onnx.helper import make_node

    name, inputs, attributes = _inputs(node, found)
    kernel = ast.literal_eval(attributes["kernel"])
    if len(kernel) != 1:
        return _MXNETS_OWN["Convolution"](node, **found)
    pad = ast.literal_eval(attributes.get("pad", "(0,)")) or (0,)
    settings = {
        "kernel_shape": kernel,
        "strides": ast.literal_eval(attributes.get("stride", "(1,)")) or (1,),
        "dilations": ast.literal_eval(attributes.get("dilate", "(1,)")) or (1,),
        "pads": (*pad, *pad),
        "group": int(attributes.get("num_group", 1)),
    }
    return [make_node("Conv", inputs, [name], name=name, **settings)]


def _arange(node: dict[str, Any], **found: Any) -> Any:
    """A constant: the numbers do not depend on any input."""
    from onnx.helper import make_node

    name, _, attributes = _inputs(node, found)
    dtype = np.dtype(attributes.get("dtype", "float32"))
    start, stop = attributes.get("start", "0"), attributes.get("stop", "None")
    first, end = (0.0, float(start)) if stop == "None" else (float(start), float(stop))
    values = np.arange(first, end, float(attributes.get("step", 1)))
    values = values.repeat(int(attributes.get("repeat", 1)))
    source = _constant(f"{name}_values", values, dtype, found)
    return [make_node("Identity", [source], [name], name=name)], (dtype,)


def _length(name: str, source: str, axis: int, found: dict[str, Any]) -> list[Any]:
    """Nodes that give the length of an axis of a tensor, an int64 number called `name`."""
    from onnx.helper import make_node

    index = _constant(f"{name}_axis", axis, np.int64, found)
    return [
        make_node("Shape", [source], [f"{name}_shape"]),
        make_node("Gather", [f"{name}_shape", index], [name], axis=0),
    ]


def _arange_like(node: dict[str, Any], **found: Any) -> list[Any]:
    """0, 1, 2 ... as far as one axis of the input is long, in float32."""
    from onnx import TensorProto
    from onnx.helper import make_node

    name, (source,), attributes = _inputs(node, found)
    plain = (float(attributes.get("start", 0)), float(attributes.get("step", 1)))
    if attributes.get("axis", "None") == "None" or plain != (0.0, 1.0):
        raise NotImplementedError("arange_like has an ONNX form here for an axis, from 0 on")
    zero = _constant(f"{name}_zero", 0, np.int64, found)
    one = _constant(f"{name}_one", 1, np.int64, found)
    return [
        *_length(f"{name}_length", source, int(attributes["axis"]), found),
        make_node("Range", [zero, f"{name}_length", one], [f"{name}_whole"]),
        make_node("Cast", [f"{name}_whole"], [name], name=name, to=TensorProto.FLOAT),
    ]


def _reshape(node: dict[str, Any], **found: Any) -> Any:
    """Shapes with -3, the product of the next two lengths; all others as MXNet has them."""
    from onnx.helper import make_node

    name, (source,), attributes = _inputs(node, found)
    shape = ast.literal_eval(attributes["shape"])
    if -3 not in shape:
        return _MXNETS_OWN["Reshape"](node, **found)
    if min(shape) < -3:
        raise NotImplementedError(f"reshape to {shape} has no ONNX form here")
    nodes = [make_node("Shape", [source], [f"{name}_old"])]
    parts, axis = [], 0
    for number, code in enumerate(shape):
        part, taken = f"{name}_part{number}", 2 if code == -3 else 1
        if code in (0, -3):
            places = _constant(f"{part}_axes", range(axis, axis + taken), np.int64, found)
            nodes.append(make_node("Gather", [f"{name}_old", places], [f"{part}_old"]))
            nodes.append(make_node("ReduceProd", [f"{part}_old"], [part], axes=[0], keepdims=1))
        else:
            _constant(part, [code], np.int64, found)
        parts.append(part)
        axis += taken
    return [
        *nodes,
        make_node("Concat", parts, [f"{name}_new"], axis=0),
        make_node("Reshape", [source, f"{name}_new"], [name], name=name),
    ]


def _from_number(operator: str) -> Converter:
    """A number minus, or over, a tensor."""

    def convert(node: dict[str, Any], **found: Any) -> list[Any]:
        from onnx.helper import make_node

        name, (source,), attributes = _inputs(node, found)
        number = _constant(f"{name}_number", float(attributes["scalar"]), np.float32, found)
        return [make_node(operator, [number, source], [name], name=name)]

    return convert


def _rsqrt(node: dict[str, Any], **found: Any) -> list[Any]:
    """One over the square root."""
    from onnx.helper import make_node

    name, inputs, _ = _inputs(node, found)
    return [
        make_node("Sqrt", inputs, [f"{name}_root"]),
        make_node("Reciprocal", [f"{name}_root"], [name], name=name),
    ]


def _bilinear_resize(node: dict[str, Any], **found: Any) -> list[Any]:
    """Resizing to a size, or (``like``) to the size of a second map; corners are aligned."""
    from onnx.helper import make_node

    name, inputs, attributes = _inputs(node, found)
    mode = attributes.get("mode", "size")
    if mode not in ("size", "like"):
        raise NotImplementedError(f"BilinearResize2D in mode {mode!r} has no ONNX form here")
    two = _constant(f"{name}_two", [2], np.int64, found)
    four = _constant(f"{name}_four", [4], np.int64, found)
    zero = _constant(f"{name}_zero", [0], np.int64, found)
    nodes = [
        make_node("Shape", [inputs[0]], [f"{name}_shape"]),
        make_node("Slice", [f"{name}_shape", zero, two, zero], [f"{name}_front"]),
    ]
    if mode == "like":
        nodes += [
            make_node("Shape", [inputs[1]], [f"{name}_like"]),
            make_node("Slice", [f"{name}_like", two, four, zero], [f"{name}_size"]),
        ]
    else:
        size = [int(attributes["height"]), int(attributes["width"])]
        _constant(f"{name}_size", size, np.int64, found)
    settings = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    return [
        *nodes,
        make_node("Concat", [f"{name}_front", f"{name}_size"], [f"{name}_sizes"], axis=0),
        make_node("Resize", [inputs[0], "", "", f"{name}_sizes"], [name], name=name, **settings),
    ]


def _shares(name: str, source: str, axis: int, bins: int, found: dict[str, Any]) -> list[Any]:
    """Nodes that give how much each element along an axis counts in each bin, (bins, length).

    Bin i is from floor(i * length / bins) to ceil((i + 1) * length / bins), as in PyTorch.
    """
    from onnx import TensorProto
    from onnx.helper import make_node

    firsts = _constant(f"{name}_firsts", np.arange(bins)[:, None], np.int64, found)
    nexts = _constant(f"{name}_nexts", np.arange(1, bins + 1)[:, None], np.int64, found)
    number = _constant(f"{name}_bins", bins, np.int64, found)
    up = _constant(f"{name}_up", bins - 1, np.int64, found)
    zero = _constant(f"{name}_zero", 0, np.int64, found)
    one = _constant(f"{name}_one", 1, np.int64, found)
    length, start, end = f"{name}_length", f"{name}_start", f"{name}_end"
    return [
        *_length(length, source, axis, found),
        make_node("Mul", [firsts, length], [f"{start}_n"]),
        make_node("Div", [f"{start}_n", number], [start]),
        make_node("Mul", [nexts, length], [f"{end}_n"]),
        make_node("Add", [f"{end}_n", up], [f"{end}_up"]),
        make_node("Div", [f"{end}_up", number], [end]),
        make_node("Range", [zero, length, one], [f"{name}_places"]),
        make_node("GreaterOrEqual", [f"{name}_places", start], [f"{name}_from"]),
        make_node("Less", [f"{name}_places", end], [f"{name}_until"]),
        make_node("And", [f"{name}_from", f"{name}_until"], [f"{name}_inside"]),
        make_node("Cast", [f"{name}_inside"], [f"{name}_ones"], to=TensorProto.FLOAT),
        make_node("Sub", [end, start], [f"{name}_count"]),
        make_node("Cast", [f"{name}_count"], [f"{name}_total"], to=TensorProto.FLOAT),
        make_node("Div", [f"{name}_ones", f"{name}_total"], [name]),
    ]


def _adaptive_pool(node: dict[str, Any], **found: Any) -> list[Any]:
    """Averages over as many bins as `output_size` says, as two products with shares."""
    from onnx.helper import make_node

    name, (source,), attributes = _inputs(node, found)
    size = ast.literal_eval(attributes.get("output_size", "1"))
    rows, columns = (size, size) if isinstance(size, int) else (size * 2)[:2]
    if rows == columns == 1:
        return [make_node("GlobalAveragePool", [source], [name], name=name)]
    return [
        *_shares(f"{name}_rows", source, 2, rows, found),
        *_shares(f"{name}_columns", source, 3, columns, found),
        make_node("Transpose", [f"{name}_columns"], [f"{name}_turned"], perm=[1, 0]),
        make_node("MatMul", [f"{name}_rows", source], [f"{name}_low"]),
        make_node("MatMul", [f"{name}_low", f"{name}_turned"], [name], name=name),
    ]


_CONVERTERS: dict[str, Converter] = {
    "Convolution": _convolution,
    "Reshape": _reshape,
    "_arange": _arange,
    "_contrib_AdaptiveAvgPooling2D": _adaptive_pool,
    "_contrib_BilinearResize2D": _bilinear_resize,
    "_contrib_arange_like": _arange_like,
    "_rdiv_scalar": _from_number("Div"),
    "_rminus_scalar": _from_number("Sub"),
    "dot": _dot,
    "rsqrt": _rsqrt,
}
