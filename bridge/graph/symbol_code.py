"""From the graph of a symbol to one Python function that runs it, statement by statement.

One function without a loop or a table costs the least at every step, can be read (`SymbolModule`
keeps it as ``code``), and is what torch.compile follows best. Nothing of the file becomes code but
numbers, tuples, texts and names, each written by `repr`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bridge.graph.symbol_graph import Graph, SymbolError
from bridge.graph.symbol_table import Call, prepare

LITERALS = (int, float, bool, str, type(None))


def attribute_path(name: str, kind: str) -> str:
    """Return the expression of the parameter or buffer `name` ("a.b.weight") of ``self``.

    Dictionaries are asked directly: nn.Module's own attribute access takes ten times as long.
    """
    *modules, leaf = name.split(".")
    path = "".join(f"._modules[{module!r}]" for module in modules)
    return f"self{path}.{kind}[{leaf!r}]"


def _literal(value: Any) -> str:
    """Return the source of an attribute's value; SymbolError for what has none that is safe."""
    if isinstance(value, tuple):
        return f"({''.join(_literal(item) + ', ' for item in value)})"
    if not isinstance(value, LITERALS) or (isinstance(value, float) and not math.isfinite(value)):
        raise SymbolError(
            f"the symbol has the attribute value {value!r:.80}. Expected a finite number, text or "
            "a tuple of them. Export the symbol again."
        )
    return repr(value)


def generate(
    graph: Graph, inputs: Sequence[str], stored: Mapping[str, str]
) -> tuple[str, dict[str, Callable[..., Any]]]:
    """Return the source of ``forward(self, ...)`` and the functions that it names.

    Parameters
    ----------
    graph
        The graph; every operator must be in the table.
    inputs
        Names of the variables that are arguments, in order.
    stored
        Name to ``_parameters`` or ``_buffers`` of all other variables.

    Raises
    ------
    SymbolError
        When an operator, an attribute or an output is not known here.
    """
    functions: dict[str, Callable[..., Any]] = {}
    values = {name: f"x{index}" for index, name in enumerate(inputs)}
    lines = [f"def forward(self, {', '.join(values.values())}):"]
    calls = [None if node.is_variable else prepare(node) for node in graph.nodes]
    last_use = _last_uses(graph)
    for index, (node, call) in enumerate(zip(graph.nodes, calls)):
        if call is None:
            if node.name in stored:
                lines.append(f"v{index} = {attribute_path(node.name, stored[node.name])}")
            else:
                lines.append(f"v{index} = {values[node.name]}")
            continue
        function = call.operator.function
        name = f"{function.__name__}_{node.op.strip('_')}" if node.op.isidentifier() else "f"
        name = name if functions.get(name, function) is function else f"{name}_{index}"
        functions[name] = function
        arguments = [_value(graph, calls, place) for place in node.inputs]
        arguments += [f"{key}={_literal(value)}" for key, value in call.attributes.items()]
        arguments += [f"{key}={GIVEN[key]}" for key in call.given]
        lines.append(f"v{index} = {name}({', '.join(arguments)})")
        # What nobody needs any more would hold its memory to the end.
        done = [f"v{i}" for i in last_use.get(index, ())]
        if done:
            lines.append(f"del {', '.join(done)}")
    heads = [_value(graph, calls, place) for place in graph.heads]
    lines.append(f"return {heads[0] if len(heads) == 1 else '(' + ', '.join(heads) + ')'}")
    return "\n    ".join(lines) + "\n", functions


GIVEN = {"training": "self.training", "device": "x0.device"}


def _value(graph: Graph, calls: Sequence[Any], place: tuple[int, int]) -> str:
    index, output = place
    call: Call = calls[index]
    if call is not None and call.operator.several:
        return f"v{index}[{output}]"
    if output:
        node = graph.nodes[index]
        raise SymbolError(
            f"the graph uses output {output} of node {node.name!r} ({node.op}), of which only the "
            "first is known here. Leave it out of the network."
        )
    return f"v{index}"


def _last_uses(graph: Graph) -> dict[int, list[int]]:
    """Return, by node, the values that are used there for the last time."""
    last: dict[int, int] = {}
    for index, node in enumerate(graph.nodes):
        for source, _ in node.inputs:
            last[source] = index
    for source, _ in graph.heads:
        last.pop(source, None)
    found: dict[int, list[int]] = {}
    for source, index in last.items():
        found.setdefault(index, []).append(source)
    return found
