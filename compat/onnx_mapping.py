"""Stand-in for ``onnx.mapping``, which onnx 1.19 removed: the two tables that MXNet reads."""

from __future__ import annotations

import functools
import types
from typing import Any


class OnnxView(types.ModuleType):
    """The package onnx, and the stand-in for its lost module ``mapping``."""

    def __getattr__(self, name: str) -> Any:
        import onnx

        return mapping() if name == "mapping" else getattr(onnx, name)


@functools.cache
def onnx_view() -> OnnxView:
    """Return onnx with ``mapping``."""
    import onnx  # an ImportError when it is not installed belongs to the import statement

    return OnnxView(onnx.__name__, onnx.__doc__)


@functools.cache
def mapping() -> types.ModuleType:
    """Return a module with TENSOR_TYPE_TO_NP_TYPE and NP_TYPE_TO_TENSOR_TYPE, as in onnx 1.18."""
    import numpy
    from onnx import TensorProto

    names = {
        "FLOAT": "float32",
        "UINT8": "uint8",
        "INT8": "int8",
        "UINT16": "uint16",
        "INT16": "int16",
        "INT32": "int32",
        "INT64": "int64",
        "BOOL": "bool",
        "FLOAT16": "float16",
        "DOUBLE": "float64",
        "COMPLEX64": "complex64",
        "COMPLEX128": "complex128",
        "UINT32": "uint32",
        "UINT64": "uint64",
        "STRING": "object",
    }
    forward = {int(getattr(TensorProto, key)): numpy.dtype(name) for key, name in names.items()}
    module: Any = types.ModuleType("onnx.mapping", __doc__)
    module.NP_TYPE_TO_TENSOR_TYPE = {dtype: number for number, dtype in forward.items()}
    # NumPy has no bfloat16: float32 holds its values, and is not turned back into it.
    module.TENSOR_TYPE_TO_NP_TYPE = {**forward, int(TensorProto.BFLOAT16): numpy.dtype("float32")}
    return module
