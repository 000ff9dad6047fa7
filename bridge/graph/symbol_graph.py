"""An exported MXNet symbol as a checked list of nodes: the standard library only.

A symbol file (``net.export``, ``sym.tojson()``) is JSON: ``nodes`` in an order in which every node
comes after its inputs, each with its operator (``null`` for a variable), name, attributes as text
and inputs as (node, output) pairs; ``heads`` are the graph's outputs. Everything is checked before
it is believed, and what is wrong becomes a `SymbolError`.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

MAX_JSON_CHARACTERS = 64 * 2**20  # the largest network of the project needs 2 MB
MAX_OUTPUTS = 1024  # of one node
MAX_DIMENSIONS = 32  # of a shape, as in a parameter file
VARIABLE = "null"
# Inputs that an operator changes while it trains, by operator: moving mean and variance.
AUXILIARY: dict[str, tuple[int, ...]] = {"BatchNorm": (3, 4)}


class SymbolError(Exception):
    """A symbol cannot be read or run.

    The message says what was found, what was expected and what to do.
    """


class Node(NamedTuple):
    """One node; ``inputs`` are (index of an earlier node, which of its outputs)."""

    op: str
    name: str
    attrs: dict[str, str]
    inputs: tuple[tuple[int, int], ...]

    @property
    def is_variable(self) -> bool:
        return self.op == VARIABLE

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape that a variable was declared with, 0 where it is open; () when it says nothing."""
        shape = parse_attribute(self.attrs.get("__shape__", "()"))
        sound = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
        if not sound or len(shape) > MAX_DIMENSIONS:
            raise SymbolError(
                f"the symbol declares {self.name!r} with shape {shape!r:.80}. Expected a tuple of "
                "sizes. Export the symbol again."
            )
        return tuple(shape)


class Graph(NamedTuple):
    """Nodes, each after its inputs, and the outputs as (node, which of its outputs)."""

    nodes: tuple[Node, ...]
    heads: tuple[tuple[int, int], ...]

    def variables(self) -> dict[str, Node]:
        """Return the variables by name, in the order of the graph."""
        return {node.name: node for node in self.nodes if node.is_variable}

    def auxiliary(self) -> set[str]:
        """Return the names of the variables that the graph itself changes in training."""
        return {
            self.nodes[node.inputs[place][0]].name
            for node in self.nodes
            for place in AUXILIARY.get(node.op, ())
            if place < len(node.inputs)
        }


def parse_attribute(text: str) -> Any:
    """Return the value of an attribute: number, tuple, bool, None, or the text itself.

    MXNet reads booleans in any case.
    """
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return tuple(value) if isinstance(value, list) else value


def parse_symbol(symbol_json: str) -> Graph:
    """Read the JSON of a symbol.

    Raises
    ------
    SymbolError
        When it is not the JSON of a symbol, or describes no sound graph.
    """
    if len(symbol_json) > MAX_JSON_CHARACTERS:
        raise _problem(
            f"it has {len(symbol_json):,} characters", f"{MAX_JSON_CHARACTERS:,} or less"
        )
    try:
        content = json.loads(symbol_json)
    except (ValueError, RecursionError) as error:
        raise _problem(
            f"it is no JSON ({error})", "what net.export or sym.tojson() wrote"
        ) from None
    if not isinstance(content, dict) or not {"nodes", "heads"} <= set(content):
        raise _problem("it is JSON without 'nodes' and 'heads'", "what net.export wrote")
    if not isinstance(content["nodes"], list) or not content["nodes"]:
        raise _problem("its 'nodes' are no list or an empty one", "at least one node")
    nodes: list[Node] = []
    names: set[str] = set()
    for entry in content["nodes"]:
        node = _parse_node(entry, len(nodes))
        if node.is_variable and node.name in names:
            raise _problem(f"two variables have the name {node.name!r}", "different names")
        names |= {node.name} if node.is_variable else set()
        nodes.append(node)
    heads = _parse_places(content["heads"], len(nodes), "the outputs")
    if not heads:
        raise _problem("it has no outputs", "one or more heads")
    return Graph(tuple(nodes), heads)


def _parse_node(entry: object, index: int) -> Node:
    if not isinstance(entry, Mapping):
        raise _problem(f"node {index} is no object", "op, name and inputs of each node")
    op, name = entry.get("op"), entry.get("name")
    if not isinstance(op, str) or not isinstance(name, str) or not op:
        raise _problem(f"node {index} has no operator or no name", "op and name as text")
    if entry.get("subgraphs"):
        raise _problem(
            f"node {name!r} ({op}) has a graph of its own inside: control flow, or operators fused "
            "for another backend",
            "the plain graph; export the network without optimize_for and without such a backend",
        )
    attrs = entry.get("attrs", entry.get("attr", entry.get("param", {})))
    if not isinstance(attrs, Mapping) or not all(
        isinstance(k, str) and isinstance(v, str) for k, v in attrs.items()
    ):
        raise _problem(f"the attributes of node {name!r} are no texts by name", "texts by name")
    inputs = _parse_places(entry.get("inputs"), index, f"the inputs of node {name!r}")
    if op == VARIABLE and inputs:
        raise _problem(f"the variable {name!r} has inputs", "none")
    return Node(op, name, dict(attrs), inputs)


def _parse_places(entries: object, limit: int, what: str) -> tuple[tuple[int, int], ...]:
    """Return [[node, output, version], ...] as pairs; every node must be below `limit`."""
    if not isinstance(entries, list):
        raise _problem(f"{what} are no list", "a list of [node, output] pairs")
    places = []
    for entry in entries:
        sound = isinstance(entry, list) and len(entry) in (2, 3)
        if not sound or not all(type(number) is int for number in entry[:2]):
            raise _problem(
                f"{what} have the entry {entry!r:.80}", "[node, output] or with a version"
            )
        if not (0 <= entry[0] < limit and 0 <= entry[1] < MAX_OUTPUTS):
            raise _problem(f"{what} name output {entry[1]} of node {entry[0]}", "an earlier node")
        places.append((entry[0], entry[1]))
    return tuple(places)


def _problem(found: str, expected: str) -> SymbolError:
    return SymbolError(
        f"the symbol cannot be read: {found}. Expected {expected}. Export it again "
        "(python -m model.export.export_symbol), or get an undamaged copy."
    )
