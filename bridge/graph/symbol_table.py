"""The table of MXNet's operators that PyTorch can run here; each is a function, see `operator`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bridge.graph.symbol_graph import Node, SymbolError, parse_attribute

Tensor = Any
# Attributes that choose between kernels with the same result, or name MXNet's device.
IGNORED = {"workspace", "cudnn_tune", "cudnn_off", "forward_stype", "ctx", "__dtype__"}
# Keywords that do not come from the symbol but from the module that runs.
GIVEN_BY_MODULE = ("training", "device")


class Operator(NamedTuple):
    """How one operator runs; ``several`` says that the function returns a tuple of outputs."""

    function: Callable[..., Any]
    several: bool


class Call(NamedTuple):
    """One operator of a graph, ready to be called: attributes parsed and checked."""

    operator: Operator
    attributes: dict[str, Any]
    given: tuple[str, ...]


OPERATORS: dict[str, Operator] = {}


def operator(*names: str, several: bool = False) -> Callable[..., Any]:
    """Put a function into the table under these names.

    The function's positional parameters are the operator's inputs; its keyword-only ones are the
    attributes, with MXNet's names and default values, and those of `GIVEN_BY_MODULE`. An attribute
    that it has not is refused when a graph is built, never ignored.
    """

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        OPERATORS.update({name: Operator(function, several) for name in names})
        return function

    return add


def prepare(node: Node) -> Call:
    """Return the call for a node.

    Raises
    ------
    SymbolError
        When the operator is unknown, or an attribute or the number of inputs does not fit.
    """
    if node.op not in OPERATORS:
        raise SymbolError(
            f"node {node.name!r} is the operator {node.op!r}, which is not known here. Known: "
            f"{', '.join(sorted(OPERATORS))}. Use one of these in the network, make what is random "
            "an input, or add the operator to bridge/graph/symbol_*.py."
        )
    found = OPERATORS[node.op]
    keywords = [
        parameter.name
        for parameter in inspect.signature(found.function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    values = _values(node.attrs)
    given = tuple(name for name in GIVEN_BY_MODULE if name in keywords)
    unknown = sorted(set(values) - set(keywords) | set(values) & set(GIVEN_BY_MODULE))
    if unknown:
        known = ", ".join(name for name in keywords if name not in GIVEN_BY_MODULE) or "none"
        raise SymbolError(
            f"node {node.name!r} ({node.op}) has the attribute {unknown[0]} = "
            f"{values[unknown[0]]!r:.80}, which is not known here. Known: {known}. Leave it out of "
            "the network, or add it to the function in bridge/graph/symbol_*.py."
        )
    keys = dict.fromkeys(given)
    try:
        inspect.signature(found.function).bind(*([None] * len(node.inputs)), **values, **keys)
    except TypeError as error:
        raise SymbolError(
            f"node {node.name!r} ({node.op}) has {len(node.inputs)} inputs and the attributes "
            f"{sorted(values)}: {error}. Export the symbol again."
        ) from None
    return Call(found, values, given)


def _values(attrs: Mapping[str, str]) -> dict[str, Any]:
    """Return the attributes that matter; those with underscores around are the user's own."""
    return {
        name: parse_attribute(text)
        for name, text in attrs.items()
        if name not in IGNORED and not (name.startswith("__") and name.endswith("__"))
    }
