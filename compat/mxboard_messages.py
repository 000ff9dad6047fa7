"""TensorBoard's own protobuf messages for MXBoard, whose generated ones need protobuf 3."""

from __future__ import annotations

NAMES = (
    "attr_value",
    "event",
    "graph",
    "node_def",
    "resource_handle",
    "summary",
    "tensor",
    "tensor_shape",
    "types",
    "versions",
)
MODULES = {
    **{f"mxboard.proto.{name}_pb2": f"tensorboard.compat.proto.{name}_pb2" for name in NAMES},
    "mxboard.proto.plugin_pr_curve_pb2": "tensorboard.plugins.pr_curve.plugin_data_pb2",
}
# MXBoard's message takes a list of plugins, TensorBoard's takes one.
PASSAGES = {
    "SummaryMetadata(plugin_data=plugin_data)": "SummaryMetadata(plugin_data=plugin_data[0])",
}
