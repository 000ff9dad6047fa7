"""What a network consists of: blocks, output shapes, parameters and multiply-adds."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Optional

import mxnet as mx
from mxnet import gluon


@dataclass
class Row:
    """One direct child of a network.

    ``output`` is the shape after its last convolution or dense layer, for one image; ``macs`` are
    the multiply-adds of convolutions and dense layers for one image.
    """

    block: str
    output: tuple[int, ...] = ()
    tensors: int = 0
    parameters: int = 0
    macs: int = 0


def summary_rows(
    net: gluon.HybridBlock, image_shape: Optional[tuple[int, int, int]] = None
) -> list[Row]:
    """Return one row per direct child, in order of execution, by tracing the graph.

    Parameters
    ----------
    net
        Any network whose shapes are known before it sees data; it is neither initialized nor run.
    image_shape
        (C, H, W) of the input. None: the network's own, (3, 32, 32) where it names none.
    """
    image_shape = image_shape or _image_shape(net)
    children = {
        parameter.name: name.split(".")[0]
        for name, parameter in net._collect_params_with_prefix().items()
    }
    rows: dict[str, Row] = {child: Row(child) for child in children.values()}
    for parameter in net.collect_params().values():
        row = rows[children[parameter.name]]
        row.tensors += 1
        if parameter.grad_req != "null":
            row.parameters += math.prod(parameter.shape)
    for weight, shape, macs in _products(net, image_shape):
        rows[children[weight]].output = shape
        rows[children[weight]].macs += macs
    return list(rows.values())


def summarize(net: gluon.HybridBlock, image_shape: Optional[tuple[int, int, int]] = None) -> str:
    """Return `summary_rows` as a table with a line of totals."""
    image_shape = image_shape or _image_shape(net)
    rows = summary_rows(net, image_shape)
    lines = [f"{'block':<24}{'output (C, H, W)':>20}{'tensors':>9}{'parameters':>13}{'MACs':>16}"]
    for row in rows:
        output = " x ".join(str(n) for n in row.output)
        lines.append(
            f"{row.block:<24}{output:>20}{row.tensors:>9}{row.parameters:>13,}{row.macs:>16,}"
        )
    tensors, parameters, macs = (
        sum(getattr(row, key) for row in rows) for key in ("tensors", "parameters", "macs")
    )
    size = " x ".join(str(n) for n in image_shape)
    lines.append(f"{'total, one image ' + size:<44}{tensors:>9}{parameters:>13,}{macs:>16,}")
    return "\n".join(lines)


def _image_shape(net: gluon.HybridBlock) -> tuple[int, int, int]:
    shape: tuple[int, int, int] = getattr(net, "image_shape", (3, 32, 32))
    return shape


def _products(
    net: gluon.HybridBlock, image_shape: tuple[int, int, int]
) -> list[tuple[str, tuple[int, ...], int]]:
    """Return (weight name, output shape without N, MACs) of each convolution and dense layer."""
    symbol = net(mx.sym.var("data"))
    internals = symbol.get_internals()
    _, shapes, _ = internals.infer_shape(data=(1, *image_shape))
    outputs = dict(zip(internals.list_outputs(), shapes))
    nodes: list[dict[str, Any]] = json.loads(symbol.tojson())["nodes"]
    found = []
    for node in nodes:
        if node["op"] in ("Convolution", "FullyConnected"):
            weight = nodes[node["inputs"][1][0]]["name"]
            shape = outputs[f"{node['name']}_output"][1:]
            macs = math.prod(outputs[weight][1:]) * math.prod(shape)
            found.append((weight, tuple(shape), macs))
    return found
