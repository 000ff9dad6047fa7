"""Checks of the compatibility layer in a Python of their own: ``python compat_checks.py ...``.

    compat_checks.py all NAME...      run these checks with every patch in place
    compat_checks.py without NAME     run one check with every patch but that one

On a machine whose NumPy, onnx, protobuf and Python still have what was removed later, it is taken
away first, so that each patch is needed here as it is on newer ones. Nothing of this project but
`compat` is imported.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
import types
import warnings
from pathlib import Path
from typing import Any, Callable

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

import compat
from compat import table

GONE = (
    *("PZERO", "NZERO", "PINF", "NINF", "NAN", "NaN", "Inf", "alltrue", "sometrue", "product"),
    *("round_", "msort", "in1d", "trapz", "compat"),
)


class Newer(np.int64):
    """A number that writes itself as in NumPy 2, whatever NumPy this is."""

    def __repr__(self) -> str:
        return f"np.int64({int(self)})"


class OneNumber(np.ndarray):
    """An array of one number that is as strict as in NumPy 2.5."""

    def __float__(self) -> float:
        if self.ndim:
            raise TypeError("only 0-dimensional arrays can be converted to Python scalars")
        return float(self.item())


def take_away() -> None:
    """Make this process lack what NumPy 2.5, onnx 1.19, protobuf 4 and Python 3.12 lack."""
    import numpy.testing  # noqa: F401 NumPy imports it when it is first asked for

    if int(np.__version__.split(".")[0]) < 2:
        vars(np)["trapezoid"] = vars(np)["trapz"]  # its name since 2.0
        for name in (*GONE, "bool", "int", "float"):
            vars(np).pop(name, None)
        np.__all__[:] = [name for name in np.__all__ if name in vars(np)]
        # What NumPy 1 gives with a warning, and its functions that raise.
        vars(np).pop("__getattr__", None)
    sys.modules["distutils"] = sys.modules["distutils.version"] = None  # type: ignore[assignment]
    import onnx  # before: up to 1.18 it imports its own mapping

    vars(onnx).pop("mapping", None)
    sys.modules["onnx.mapping"] = None  # type: ignore[assignment]
    sys.meta_path.insert(0, NoGeneratedMessages())


class NoGeneratedMessages:
    """Refuses MXBoard's own messages, as protobuf 4 does."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Raise for a module of messages; find nothing else."""
        if name.startswith("mxboard.proto.") and name.endswith("_pb2"):
            raise TypeError("Descriptors cannot be created directly.")


def numpy_bool() -> None:
    import mxnet as mx

    chosen = mx.np.array([True, False], dtype=mx.np.bool)
    values = mx.np.ones((2,))
    values[chosen] = 5
    assert values.tolist() == [5, 1]


def numpy_int_float() -> None:
    from gluoncv.data.transforms import track
    from mxnet import test_utils

    assert track.np.float is float
    assert test_utils.np.int is int


def numpy_2_names() -> None:
    import mxnet as mx

    assert np.isinf(mx.np.PINF)
    assert mx.np.NZERO == 0
    assert mx.np.msort(mx.np.array([3.0, 1.0, 2.0])).tolist() == [1, 2, 3]
    assert mx.np.in1d(mx.np.array([1, 5]), mx.np.array([5])).tolist() == [False, True]
    assert mx.np.trapz(mx.np.array([0.0, 1.0, 2.0])).item() == 2
    assert mx.np.bincount(mx.np.array([1, 1], dtype="int64")).tolist() == [0, 2]
    from mxnet.gluon.contrib.estimator import LoggingHandler

    assert LoggingHandler().priority == np.inf


def numpy_2_numbers() -> None:
    import mxnet as mx

    two, three = Newer(2), Newer(3)
    assert mx.nd.zeros((two, three)).shape == (2, 3)
    assert mx.nd.sum(mx.nd.ones((2, 3)), axis=[two - 1]).shape == (2,)
    data = mx.sym.var("data", shape=(two, three))
    assert data.attr("__shape__") == "(2, 3)"
    assert mx.sym.reshape(data, shape=(three, two)).infer_shape(data=(2, 3))[1] == [(3, 2)]
    net = mx.gluon.nn.HybridSequential()
    net.add(mx.gluon.nn.Conv2D(two, (three, three), strides=(two, 1)), mx.gluon.nn.Dense(three))
    net.initialize(mx.init.Orthogonal())
    net.hybridize()
    assert net(mx.nd.ones((1, 3, 8, 8))).shape == (1, 3)
    # Reads its parameters as text too; it says so when it cannot, before it looks for the file.
    message = ""
    try:
        mx.io.MNISTIter(image="none", label="none", input_shape=(Newer(1), Newer(28), Newer(28)))
    except mx.MXNetError as error:
        message = str(error)
    assert message
    assert "Invalid Parameter format" not in message, message
    mx.kv.create("device").set_gradient_compression({"type": "2bit", "threshold": np.float32(0.5)})


def recordio_tostring() -> None:
    from mxnet import recordio

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # DeprecationWarning, until the method went
        packed = recordio.pack(recordio.IRHeader(0, [1.0, 2.0], 7, 0), b"rest")
    header, rest = recordio.unpack(packed)
    assert header.label.tolist() == [1, 2]
    assert rest == b"rest"


def onnx_mapping() -> None:
    import mxnet as mx
    import onnx

    net = mx.gluon.nn.HybridSequential(prefix="")
    net.add(mx.gluon.nn.Dense(2))
    net.initialize()
    net.hybridize()
    net(mx.nd.ones((1, 3)))
    with tempfile.TemporaryDirectory() as folder:
        net.export(f"{folder}/net")
        files = f"{folder}/net-symbol.json", f"{folder}/net-0000.params"
        path = mx.onnx.export_model(*files, [(1, 3)], [np.float32], f"{folder}/net.onnx")
        onnx.checker.check_model(onnx.load(path))
    assert "mapping" not in vars(onnx)


def distutils_version() -> None:
    import gluoncv
    import mxnet as mx

    assert mx.np.ones((2,)).sum().item() == 2
    gluoncv.utils.check_version("0.1.0")


def mxboard_messages() -> None:
    from mxboard.summary import Summary, histogram_summary, image_summary, pr_curve_summary

    assert Summary.DESCRIPTOR.full_name == "tensorboard.Summary"
    values = np.arange(6, dtype=np.float32)
    assert histogram_summary("h", values, 3).value[0].histo.sum == 15
    assert image_summary("i", np.ones((3, 4, 5), np.float32)).value[0].image.width == 5
    curve = pr_curve_summary("p", np.array([0, 1, 1]), np.array([0.1, 0.6, 0.9]), 5).value[0]
    assert curve.metadata.plugin_data.plugin_name == "pr_curves"


def mxboard_float() -> None:
    from mxboard.summary import _compute_curve

    assert _compute_curve(np.array([0, 1]), np.array([0.1, 0.9]), 3).shape == (6, 3)


def mxboard_scalar() -> None:
    from mxboard.summary import scalar_summary

    value = np.array([2.0]).view(OneNumber)
    assert scalar_summary("tag", value).value[0].simple_value == 2


CHECKS: dict[str, Callable[[], None]] = {
    name.replace("_", "-"): check
    for name, check in list(globals().items())
    if isinstance(check, types.FunctionType)
    and name.replace("_", "-") in {e.name for e in table.ENTRIES}
}


def main(mode: str, names: list[str]) -> None:
    """Run the checks `names` with all patches, or without the one that is named."""
    left_out = names if mode == "without" else []
    # Needed here, whatever the versions: take_away has made it so.
    table.ENTRIES = tuple(  # type: ignore[assignment]
        dataclasses.replace(entry, is_needed=lambda: True)
        for entry in table.ENTRIES
        if entry.name not in left_out
    )
    sys.meta_path[:] = [each for each in sys.meta_path if type(each).__name__ != "CompatFinder"]
    take_away()
    assert compat.install()
    for name in names:
        CHECKS[name]()
        print(name)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
