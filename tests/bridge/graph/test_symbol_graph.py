"""Reading symbols without MXNet or PyTorch: sound ones, damaged ones, and MXNet's shapes."""

from __future__ import annotations

import itertools
import json
from typing import Any

import mxnet as mx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.graph.symbol_graph import SymbolError, parse_attribute, parse_symbol
from bridge.graph.symbol_shapes import reshaped, reshaped_like

x = mx.sym.var("x", shape=(0, 3))


def sound() -> dict[str, Any]:
    names = ("gamma", "beta", "mean", "var")
    normed = mx.sym.BatchNorm(x, *(mx.sym.var(name) for name in names), name="bn")
    content: dict[str, Any] = json.loads(mx.sym.Group([normed, normed + 1]).tojson())
    return content


def test_a_symbol_is_read_as_it_is() -> None:
    graph = parse_symbol(json.dumps(sound()))
    assert list(graph.variables()) == ["x", "gamma", "beta", "mean", "var"]
    assert graph.auxiliary() == {"mean", "var"}
    assert graph.variables()["x"].shape == (0, 3)
    first, second = (graph.nodes[index].name for index, _ in graph.heads)
    assert first == "bn"
    assert second.rstrip("0123456789") == "_plusscalar"  # MXNet counts over the whole process


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(1, 2)", (1, 2)),
        ("[1,2]", (1, 2)),
        ("True", True),
        ("1e-05", 1e-5),
        ("None", None),
        ("relu", "relu"),
        ("f(x)", "f(x)"),
        ("(" * 500, "(" * 500),
        ("", ""),
    ],
)
def test_attributes_are_values_or_text(text: str, value: object) -> None:
    assert parse_attribute(text) == value


def damaged(path: tuple[Any, ...], value: object) -> str:
    content = sound()
    place: Any = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(content)


@pytest.mark.parametrize(
    ("path", "value", "found"),
    [
        (("nodes",), [], "'nodes'"),
        (("heads",), [], "no outputs"),
        (("heads",), [[99, 0, 0]], "node 99"),
        (("heads", 0), [0, -1, 0], "output -1"),
        (("heads", 0), [0], "[0]"),
        (("heads", 0), [True, 0, 0], "[True, 0, 0]"),
        (("nodes", 0), 3, "node 0"),
        (("nodes", 0, "op"), 3, "node 0"),
        (("nodes", 1, "name"), "x", "two variables"),
        (("nodes", 0, "attrs"), {"a": 1}, "attributes"),
        (("nodes", 0, "inputs"), [[0, 0, 0]], "node 0"),
        (("nodes", 5, "inputs", 0), [5, 0, 0], "node 5"),
        (("nodes", 5, "subgraphs"), [{}], "control flow"),
        (("nodes", 0, "attrs"), {"__shape__": "(-3,)"}, "(-3,)"),
        (("nodes", 0, "attrs"), {"__shape__": "open"}, "open"),
    ],
)
def test_damage_is_named_in_one_line(path: tuple[Any, ...], value: object, found: str) -> None:
    def read_shapes() -> list[Any]:
        variables = parse_symbol(damaged(path, value)).variables()
        return [variable.shape for variable in variables.values()]

    with pytest.raises(SymbolError) as caught:
        read_shapes()
    assert found in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "3", "[]", "{}", "[" * 100000])
def test_what_is_no_symbol_is_refused(text: str) -> None:
    with pytest.raises(SymbolError):
        parse_symbol(text)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_reshape_is_that_of_mxnet(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4)))
    code = st.sampled_from([0, -1, -2, -3, 1, 2, 3, 4, 6])
    codes = tuple(data.draw(st.lists(code, min_size=1, max_size=4)))
    reverse = data.draw(st.booleans())
    array = mx.nd.zeros(shape)
    try:
        expected = array.reshape(codes, reverse=reverse).shape
    except (mx.MXNetError, ValueError):
        return
    assert reshaped(shape, codes, reverse) == expected


@pytest.mark.parametrize("codes", [(-4, 2, -1, 0), (0, -4, -1, 3), (0, -4, 2, 3), (-4, 1, 4, -2)])
def test_splitting_an_axis_is_that_of_mxnet(codes: tuple[int, ...]) -> None:
    assert reshaped((4, 6), codes) == mx.nd.zeros((4, 6)).reshape(codes).shape


@pytest.mark.parametrize("codes", [(5,), (-1, -1), (0, 0, 0), (7, -1), (-3, -3), (-4, 3, -1, 0)])
def test_a_shape_that_does_not_fit_is_refused(codes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        reshaped((4, 6), codes)


def test_part_of_a_shape_is_that_of_mxnet() -> None:
    left, right = mx.nd.zeros((2, 12)), mx.nd.zeros((5, 3, 4))
    for begin, end in itertools.product((1, -1), (None, 2)):
        found = reshaped_like((2, 12), (5, 3, 4), (begin, end), (-2, None))
        expected = mx.nd.reshape_like(
            left, right, lhs_begin=begin, lhs_end=end, rhs_begin=-2, rhs_end=None
        )
        assert found == expected.shape
