"""The table of everything that is patched: what, why, and from which version on."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from . import mxboard_messages
from .distutils_version import version_module
from .numpy_names import numpy_view
from .onnx_mapping import mapping, onnx_view
from .parameter_text import ParameterText, parameter_text
from .patching import NewLines, OwnImports, OwnModules, OwnNames
from .versions import is_at_least


@dataclass(frozen=True)
class Entry:
    """One patch: its name, what it changes, why, since which version, and by which means.

    ``patches`` holds what happens to each module, by the module's name.
    """

    name: str
    what: str
    why: str
    since: str
    is_needed: Callable[[], bool]
    patches: Mapping[str, Any]


def _each(modules: Sequence[str], patch: Any) -> dict[str, Any]:
    return dict.fromkeys(modules, patch)


def _lacks_distutils() -> bool:
    # setuptools puts its copy in place at the start of Python, where it is installed.
    return sys.version_info >= (3, 12) and importlib.util.find_spec("distutils") is None


NUMPY = OwnImports({"numpy": numpy_view})
ONNX = OwnImports({"onnx": onnx_view, "onnx.mapping": mapping})
DISTUTILS = OwnImports({"distutils.version": version_module})

ENTRIES = (
    Entry(
        name="numpy-bool",
        what="np.bool in mxnet.numpy and mxnet.test_utils",
        why="`import mxnet` ends with AttributeError: module 'numpy' has no attribute 'bool'",
        since="NumPy 1.24 (np.bool is back in NumPy 2)",
        is_needed=lambda: is_at_least("numpy", "1.24") and not is_at_least("numpy", "2.0"),
        patches=_each(
            (
                "mxnet.ndarray.numpy._op",
                "mxnet.numpy.multiarray",
                "mxnet.numpy.utils",
                "mxnet.symbol.numpy._symbol",
                "mxnet.test_utils",
            ),
            NUMPY,
        ),
    ),
    Entry(
        name="numpy-int-float",
        what="np.int and np.float in mxnet.test_utils, and in GluonCV's HRNet, R-CNN, tracking and"
        " COCO modules",
        why="calling them ends with AttributeError: module 'numpy' has no attribute 'int'",
        since="NumPy 1.24",
        is_needed=lambda: is_at_least("numpy", "1.24"),
        patches=_each(
            (
                "mxnet.test_utils",
                "gluoncv.data.kitti.kitti_utils",
                "gluoncv.data.transforms.track",
                "gluoncv.model_zoo.hrnet",
                "gluoncv.model_zoo.rcnn.rpn.anchor",
                "gluoncv.utils.data.tracking",
                "gluoncv.utils.metrics.coco_detection",
            ),
            NUMPY,
        ),
    ),
    Entry(
        name="numpy-2-names",
        what="PZERO, NINF, NaN, Inf, alltrue, msort, mirr and 14 others in mxnet.numpy, estimators",
        why="`import mxnet` ends with AttributeError: `np.PZERO` was removed",
        since="NumPy 2.0 (in1d and trapz: 2.4)",
        is_needed=lambda: is_at_least("numpy", "2.0"),
        patches=_each(
            (
                "mxnet.gluon.contrib.estimator.event_handler",
                "mxnet.ndarray.numpy._op",
                "mxnet.numpy.fallback",
                "mxnet.numpy.utils",
                "mxnet.numpy_dispatch_protocol",
                "mxnet.symbol.numpy._symbol",
                "gluoncv.auto.estimators.utils",
            ),
            NUMPY,
        ),
    ),
    Entry(
        name="numpy-2-numbers",
        what="how parameters of operators become text",
        why="a NumPy number in a shape or axis ends with Invalid Parameter format for shape ..."
        " value='(2, np.int64(3))'",
        since="NumPy 2.0",
        is_needed=lambda: is_at_least("numpy", "2.0"),
        patches={
            **_each(
                (
                    "mxnet._ctypes.ndarray",
                    "mxnet._ctypes.symbol",
                    "mxnet.io.io",
                    "mxnet.kvstore.base",
                    "mxnet.profiler",
                ),
                OwnNames({"str": parameter_text}),
            ),
            "mxnet.symbol.symbol": OwnNames({"str": ParameterText}),
        },
    ),
    Entry(
        name="recordio-tostring",
        what="recordio.pack with a vector label, and pack_img",
        why="AttributeError: 'numpy.ndarray' object has no attribute 'tostring'",
        since="NumPy 2.3",
        is_needed=lambda: is_at_least("numpy", "2.3"),
        patches={"mxnet.recordio": NewLines({".tostring()": ".tobytes()"})},
    ),
    Entry(
        name="onnx-mapping",
        what="onnx.mapping for MXNet's exporter to ONNX and its reader",
        why="ImportError: cannot import name 'mapping' from 'onnx'",
        since="onnx 1.19",
        is_needed=lambda: is_at_least("onnx", "1.19"),
        patches=_each(
            (
                "mxnet.contrib.onnx.onnx2mx._op_translations",
                "mxnet.onnx.mx2onnx._export_model",
                "mxnet.onnx.mx2onnx._export_onnx",
                "mxnet.onnx.mx2onnx._op_translations._op_translations_opset12",
                "mxnet.onnx.mx2onnx._op_translations._op_translations_opset13",
            ),
            ONNX,
        ),
    ),
    Entry(
        name="distutils-version",
        what="distutils.version for MXNet, GluonCV and MXBoard, where setuptools does not bring it",
        why="ModuleNotFoundError: No module named 'distutils'",
        since="Python 3.12",
        is_needed=_lacks_distutils,
        patches=_each(
            (
                "mxnet.numpy_dispatch_protocol",
                "mxnet.numpy_op_fallback",
                "gluoncv.check",
                "gluoncv.utils.version",
                "mxboard.summary",
                "mxboard.utils",
            ),
            DISTUTILS,
        ),
    ),
    Entry(
        name="mxboard-messages",
        what="MXBoard writes TensorBoard's own protobuf messages instead of its generated ones",
        why="`import mxboard` ends with TypeError: Descriptors cannot be created directly",
        since="protobuf 4.21",
        is_needed=lambda: is_at_least("protobuf", "4"),
        patches={
            "mxboard.proto": OwnModules(mxboard_messages.MODULES),
            "mxboard.summary": NewLines(mxboard_messages.PASSAGES),
        },
    ),
    Entry(
        name="mxboard-float",
        what="np.float in MXBoard's pr curves",
        why="add_pr_curve ends with AttributeError: module 'numpy' has no attribute 'float'",
        since="NumPy 1.24",
        is_needed=lambda: is_at_least("numpy", "1.24"),
        patches={"mxboard.summary": NewLines({"astype(np.float)": "astype(float)"})},
    ),
    Entry(
        name="mxboard-scalar",
        what="the conversion of an array of one number in MXBoard's add_scalar",
        why="a DeprecationWarning, and since NumPy 2.5 TypeError: only 0-dimensional arrays can be"
        " converted to Python scalars",
        since="NumPy 1.25",
        is_needed=lambda: is_at_least("numpy", "1.25"),
        patches={"mxboard.summary": NewLines({"float(scalar)": "float(scalar.item())"})},
    ),
)


def patches_by_module() -> dict[str, list[Any]]:
    """Return what is needed in this environment: by module, the patches in the table's order."""
    found: dict[str, list[Any]] = {}
    for entry in ENTRIES:
        if entry.is_needed():
            for name, patch in entry.patches.items():
                found.setdefault(name, []).append(patch)
    return found
