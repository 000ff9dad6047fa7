"""Rewrites of a traced graph for inference: equal results up to rounding, less work.

Each looks for a pattern of operators, whatever network it comes from, and changes a `Graph`:

    fold_batch_norms    batch normalisation after a convolution goes into its weights and bias
    pool_means          means over the pixels become global pooling, which keeps oneDNN's layout
    broadcast_gates     the outer product that spreads a gate for training becomes a broadcast
    fold_shapes         what depends on the sizes of maps alone becomes a constant
    norms_to_convolutions  batch normalisations that are left become convolutions
    freeze_norms        what is left uses its stored statistics, in training mode too
    cast_products       products of a bfloat16 graph are computed in float32
"""

from __future__ import annotations

import mxnet as mx
import numpy as np

from model.execution.graph import Graph, Node, Reference, is_true


def affine_of_norm(graph: Graph, node: Node) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and offset of a batch normalisation with its stored statistics, float64 (C,)."""
    gamma, beta, mean, var = (graph.value(node, position) for position in range(1, 5))
    attrs = node.get("attrs", {})
    if is_true(attrs.get("fix_gamma", "True")):
        gamma = np.ones_like(gamma)
    scale = gamma / np.sqrt(var + float(attrs.get("eps", 1e-3)))
    return scale, beta - mean * scale


def fold_batch_norms(graph: Graph) -> int:
    """Fold every batch normalisation whose input is a convolution of its own; return how many.

    ``bn(W x + b) = (s W) x + (s b + o)`` with scale s and offset o. A convolution that something
    else reads too, or whose weights are shared, is left as it is.
    """
    users, folded = graph.users(), 0
    for index, node in graph.live():
        if node["op"] != "BatchNorm" or node["inputs"][0][1] != 0:
            continue
        number = node["inputs"][0][0]
        conv = graph.nodes[number]
        variables = [reference[0] for reference in conv["inputs"][1:]]
        if (
            conv["op"] != "Convolution"
            or users[number] != [index]
            or any(users[variable] != [number] for variable in variables)
            or str(node["attrs"].get("axis", "1")) != "1"
        ):
            continue
        scale, offset = affine_of_norm(graph, node)
        weight = graph.value(conv, 1)
        shape = (-1,) + (1,) * (weight.ndim - 1)
        graph.set_value(graph.source(conv, 1)["name"], weight * scale.reshape(shape))
        if len(variables) > 1:
            offset = offset + scale * graph.value(conv, 2)
        bias = graph.add("null", f"{conv['name']}_folded_bias", [])
        graph.set_value(graph.nodes[bias]["name"], offset)
        conv["inputs"] = [*conv["inputs"][:2], [bias, 0, 0]]
        conv["attrs"] = {**conv["attrs"], "no_bias": "False"}
        graph.redirect(index, [number, 0, 0])
        folded += 1
    return folded


def _is_reshape(node: Node, shape: str) -> bool:
    wanted = shape.replace(" ", "")
    return node["op"] == "Reshape" and node["attrs"].get("shape", "").replace(" ", "") == wanted


def pool_means(graph: Graph) -> int:
    """Compute means over all pixels by global pooling; return how many were found.

    Found are ``mean(x, axis=(2, 3), keepdims=True)`` and the product with a row of equal weights of
    `model.layers.channel_attention.global_mean`.
    """
    found = 0
    for index, node in graph.live():
        attrs = node.get("attrs", {})
        if (
            node["op"] == "mean"
            and attrs.get("axis", "").replace(" ", "") == "(2,3)"
            and is_true(attrs.get("keepdims"))
            and not is_true(attrs.get("exclude", "False"))
        ):
            graph.redirect(index, _pooling(graph, node["name"], node["inputs"][0]))
            found += 1
        elif node["op"] == "dot" and is_true(attrs.get("transpose_b")):
            maps, weights = graph.source(node, 0), graph.source(node, 1)
            if _is_reshape(maps, "(0,0,-1)") and _is_mean_row(graph, weights):
                pooled = _pooling(graph, node["name"], _maps(graph, maps["inputs"][0]))
                flat = graph.add("Reshape", f"{node['name']}_flat", [pooled], shape=(0, 0, -1))
                graph.redirect(index, [flat, 0, 0])
                found += 1
    return found


def _pooling(graph: Graph, name: str, maps: Reference) -> Reference:
    attrs = {"global_pool": True, "kernel": (1, 1), "pool_type": "avg"}
    return [graph.add("Pooling", f"{name}_pool", [list(maps)], **attrs), 0, 0]


def _is_mean_row(graph: Graph, node: Node) -> bool:
    """Tell whether a node is ``ones / sum(ones)``."""
    if node["op"] != "broadcast_div" or graph.source(node, 1)["op"] != "sum":
        return False
    ones = node["inputs"][0]
    total = graph.source(node, 1)
    return graph.source(node)["op"] == "ones_like" and total["inputs"][0] == ones


def _maps(graph: Graph, reference: Reference) -> Reference:
    """Look through the reshapes that change nothing but the layout in memory."""
    while _is_reshape(graph.nodes[reference[0]], "(0,0,0,0)"):
        reference = graph.nodes[reference[0]]["inputs"][0]
    return reference


def broadcast_gates(graph: Graph) -> int:
    """Replace ``x * reshape_like(dot(gate, ones), x)`` by a broadcast product; return how many.

    The outer product is `model.layers.channel_attention.scale`'s, for its backward pass.
    """
    found = 0
    for index, node in graph.live():
        if node["op"] not in ("elemwise_mul", "_mul") or len(node["inputs"]) != 2:
            continue
        spread = graph.source(node, 1)
        if spread["op"] != "reshape_like" or len(spread["inputs"]) != 2:
            continue
        product = graph.source(spread)
        if product["op"] != "dot" or graph.source(product, 1)["op"] != "ones_like":
            continue
        name = node["name"]
        gate = graph.add("Reshape", f"{name}_gate", [product["inputs"][0]], shape=(0, 0, 1, 1))
        maps = _maps(graph, node["inputs"][0])
        scaled = graph.add("broadcast_mul", f"{name}_scaled", [list(maps), [gate, 0, 0]])
        graph.redirect(index, [scaled, 0, 0])
        for addition in graph.nodes:
            # With the gated branch first, oneDNN's fusion mixes up the weights of convolutions.
            if addition["op"] == "elemwise_add" and addition["inputs"][0][0] == scaled:
                addition["inputs"].reverse()
        found += 1
    return found


def norms_to_convolutions(graph: Graph) -> int:
    """Turn the normalisations that are left into 1x1 convolutions of a group each; return how many.

    Each multiplies and adds one number per channel. As a convolution oneDNN computes it in
    bfloat16 too, together with the ReLU after it, and in the layout of the other convolutions.
    """
    found = 0
    for index, node in graph.live():
        if node["op"] != "BatchNorm" or str(node["attrs"].get("axis", "1")) != "1":
            continue
        scale, offset = affine_of_norm(graph, node)
        name, channels = node["name"], len(scale)
        weight = graph.add("null", f"{name}_scale", [])
        bias = graph.add("null", f"{name}_offset", [])
        graph.set_value(f"{name}_scale", scale.reshape(-1, 1, 1, 1))
        graph.set_value(f"{name}_offset", offset)
        attrs = {"kernel": (1, 1), "num_filter": channels, "num_group": channels, "no_bias": False}
        inputs = [node["inputs"][0], [weight, 0, 0], [bias, 0, 0]]
        convolution = graph.add("Convolution", f"{name}_affine", inputs, **attrs)
        graph.redirect(index, [convolution, 0, 0])
        found += 1
    return found


def freeze_norms(graph: Graph) -> None:
    """Make batch normalisations use their stored statistics whatever the mode."""
    for node in graph.nodes:
        if node["op"] in ("BatchNorm", "_contrib_BatchNormWithReLU"):
            node["attrs"] = {**node["attrs"], "use_global_stats": "True"}


SHAPE_ONLY = ("_contrib_arange_like", "ones_like", "zeros_like", "shape_array")


def fold_shapes(graph: Graph, shape: tuple[int, ...], data: str = "data") -> int:
    """Compute what depends on the sizes of maps alone, for inputs of `shape`; return how many.

    These are the interpolation matrices of the upsampling and rows of ones. The batch size must not
    be among what they depend on: of constants with that many rows nothing is known, so each is
    computed for two batch sizes and folded only where both agree.
    """
    constant = _constants(graph)
    if not constant:
        return 0
    users = graph.users()
    wanted = [index for index in constant if any(user not in constant for user in users[index])]
    both = [_evaluate(graph, wanted, (batch, *shape[1:]), data) for batch in (2, 3)]
    folded = 0
    for index, first, second in zip(wanted, *both):
        if first.shape != second.shape or not np.array_equal(first, second):
            continue
        # Nothing tells the shape of an operand of `dot` but the operand itself.
        name, known = f"{graph.nodes[index]['name']}_constant", {"__shape__": first.shape}
        variable = graph.add("null", name, [], **known)
        graph.set_value(graph.nodes[variable]["name"], first)
        graph.redirect(index, [variable, 0, 0])
        folded += 1
    return folded


def _constants(graph: Graph) -> set[int]:
    """Return the nodes that depend on sizes alone."""
    found: set[int] = set()
    for index in graph.order():
        node = graph.nodes[index]
        if node["op"] in SHAPE_ONLY or (
            node["inputs"] and all(reference[0] in found for reference in node["inputs"])
        ):
            found.add(index)
    return found


def _evaluate(
    graph: Graph, wanted: list[int], shape: tuple[int, ...], name: str
) -> list[np.ndarray]:
    """Compute some nodes, which depend on sizes alone, for inputs of this shape."""
    symbol = graph.symbol([[index, 0, 0] for index in wanted])
    arguments, _, auxiliary = symbol.infer_shape(**{name: shape})
    names = [*symbol.list_arguments(), *symbol.list_auxiliary_states()]
    values = {n: mx.nd.zeros(s) for n, s in zip(names, [*arguments, *auxiliary])}
    outputs = mx.nd.CachedOp(symbol)(*(values[n] for n in symbol.list_inputs()))
    outputs = outputs if isinstance(outputs, list) else [outputs]
    return [output.asnumpy() for output in outputs]


def cast_products(graph: Graph) -> int:
    """Compute elementwise products of a bfloat16 graph in float32; return how many.

    MXNet's product of two bfloat16 tensors is a scalar software loop. What comes out is bfloat16
    again: a sum of both types would be float32, which MXNet's own pass overlooks, so that a
    convolution further down gets the wrong type.
    """
    products = [i for i, n in graph.live() if n["op"] in ("elemwise_mul", "broadcast_mul")]
    for index in products:
        node = graph.nodes[index]
        node["inputs"] = [
            [graph.add("amp_cast", f"{node['name']}_float{i}", [r], dtype="float32"), 0, 0]
            for i, r in enumerate(node["inputs"])
        ]
        rounded = graph.add("amp_cast", f"{node['name']}_rounded", [], dtype="bfloat16")
        graph.redirect(index, [rounded, 0, 0])
        graph.nodes[rounded]["inputs"] = [[index, 0, 0]]
    return len(products)
