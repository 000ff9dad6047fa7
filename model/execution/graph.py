"""A traced network as a list of nodes that can be changed, with the values of its variables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Optional

import mxnet as mx
import numpy as np

Node = dict[str, Any]
Reference = list[int]  # [node, output, version]


def is_true(value: Any) -> bool:
    """Tell what a boolean attribute of a node says; MXNet writes True and 1."""
    return str(value) in ("True", "true", "1")


class Graph:
    """Nodes and values of a traced network.

    Parameters
    ----------
    symbol
        The graph.
    values
        NDArray of every variable but the inputs, by name. They are not changed; ``self.values``
        gets new ones.
    """

    def __init__(self, symbol: Any, values: Mapping[str, Any]) -> None:
        content = json.loads(symbol.tojson())
        self.nodes: list[Node] = content["nodes"]
        self.heads: list[Reference] = content["heads"]
        self.attrs: Mapping[str, Any] = content.get("attrs", {})
        self.values = dict(values)

    def users(self) -> dict[int, list[int]]:
        """Return the needed nodes that read each node, and -1 for those that are outputs."""
        found: dict[int, list[int]] = {}
        for index, node in self.live():
            for reference in node["inputs"]:
                found.setdefault(reference[0], []).append(index)
        for head in self.heads:
            found.setdefault(head[0], []).append(-1)
        return found

    def source(self, node: Node, position: int = 0) -> Node:
        """Return the node that feeds an input."""
        return self.nodes[node["inputs"][position][0]]

    def value(self, node: Node, position: int) -> np.ndarray:
        """Return the value of an input that is a variable, float64."""
        values: np.ndarray = self.values[self.source(node, position)["name"]].asnumpy()
        return values.astype(np.float64)

    def count(self, op: str) -> int:
        """Count the nodes of an operator."""
        return sum(node["op"] == op for node in self.nodes)

    def redirect(self, old: int, new: Reference) -> None:
        """Let everything that reads output 0 of node `old` read `new`."""
        for references in (*(node["inputs"] for node in self.nodes), self.heads):
            for position, reference in enumerate(references):
                if reference[0] == old and reference[1] == 0:
                    references[position] = list(new)

    def add(self, op: str, name: str, inputs: list[Reference], **attrs: Any) -> int:
        """Add a node, in any order of the list; return its number."""
        self.nodes.append(
            {
                "op": op,
                "name": name,
                "attrs": {key: str(value) for key, value in attrs.items()},
                "inputs": inputs,
            }
        )
        return len(self.nodes) - 1

    def set_value(self, name: str, values: np.ndarray) -> None:
        """Give a variable a value, stored as float32."""
        self.values[name] = mx.nd.array(values.astype(np.float32))

    def order(self, heads: Optional[list[Reference]] = None) -> list[int]:
        """Return the nodes that the outputs need, each after its inputs."""
        order: list[int] = []
        seen: set[int] = set()
        for head in self.heads if heads is None else heads:
            stack = [(head[0], False)]
            while stack:
                index, entered = stack.pop()
                if entered:
                    order.append(index)
                elif index not in seen:
                    seen.add(index)
                    stack.append((index, True))
                    inputs = self.nodes[index]["inputs"]
                    stack += [(r[0], False) for r in reversed(inputs) if r[0] not in seen]
        return order

    def live(self) -> list[tuple[int, Node]]:
        """Return number and node of all that the outputs need, each after its inputs."""
        return [(index, self.nodes[index]) for index in self.order()]

    def symbol(self, heads: Optional[list[Reference]] = None) -> Any:
        """Return the graph as a symbol, without the nodes that nothing reads.

        `heads` are other outputs than the graph's own.
        """
        heads = self.heads if heads is None else heads
        order = self.order(heads)
        place = {index: number for number, index in enumerate(order)}
        nodes = [
            {**self.nodes[i], "inputs": [[place[r[0]], r[1], 0] for r in self.nodes[i]["inputs"]]}
            for i in order
        ]
        content = {
            "nodes": nodes,
            "arg_nodes": [number for number, node in enumerate(nodes) if node["op"] == "null"],
            "heads": [[place[head[0]], head[1], 0] for head in heads],
            "attrs": self.attrs,
        }
        return mx.sym.load_json(json.dumps(content))

    def parameters(self) -> dict[str, Any]:
        """Return the values that the graph still reads."""
        return {
            name: self.values[name] for name in self.symbol().list_inputs() if name in self.values
        }
