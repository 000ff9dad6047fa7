"""MXNet's operators that work element by element, in PyTorch; needs PyTorch.

Differences that are kept: at a tie the gradient of a maximum is all the left side's, where PyTorch
halves it; comparisons return the type of their inputs; an array of integers stays one when a
fraction is added to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import torch  # type: ignore[import-not-found]
from torch.nn import functional  # type: ignore[import-not-found]

from bridge.graph.symbol_table import Tensor, operator

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "BlockGrad": torch.Tensor.detach,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "erf": torch.erf,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "floor": torch.floor,
    "log": torch.log,
    "log1p": torch.log1p,
    "log2": torch.log2,
    "log10": torch.log10,
    "negative": torch.neg,
    "ones_like": torch.ones_like,
    "reciprocal": lambda x: 1 / x,
    "relu": torch.relu,
    "rsqrt": torch.rsqrt,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "sin": torch.sin,
    "softsign": functional.softsign,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "stop_gradient": torch.Tensor.detach,
    "tanh": torch.tanh,
    "trunc": torch.trunc,
    "zeros_like": torch.zeros_like,
}
ACTIVATIONS = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softrelu": functional.softplus,
    "softsign": functional.softsign,
}


def _register_unary(name: str, function: Callable[[Tensor], Tensor]) -> None:
    @operator(name)
    def unary(x: Tensor) -> Tensor:
        return function(x)


for _name, _function in UNARY.items():
    _register_unary(_name, _function)


@operator("_copy", "identity", "_identity_with_attr_like_rhs", "MakeLoss", "make_loss")
def identity(x: Tensor, _: Tensor = None) -> Tensor:
    return x


@operator("Activation")
def activation(x: Tensor, *, act_type: str) -> Tensor:
    return ACTIVATIONS[act_type](x)


@operator("Cast", "cast")
def cast(x: Tensor, *, dtype: str) -> Tensor:
    return x.to(DTYPES[dtype])


@operator("clip")
def clip(x: Tensor, *, a_min: float, a_max: float) -> Tensor:
    return torch.clamp(x, a_min, a_max).to(x.dtype)


def maximum(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a >= b, a, b)


def minimum(a: Tensor, b: Tensor) -> Tensor:
    return torch.where(a <= b, a, b)


def divide(a: Tensor, b: Tensor) -> Tensor:
    whole = isinstance(a, torch.Tensor) and not a.is_floating_point()
    return torch.div(a, b, rounding_mode="trunc") if whole else torch.div(a, b)


BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": divide,
    "maximum": maximum,
    "minimum": minimum,
    "power": torch.pow,
}
COMPARISONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "equal": torch.eq,
    "not_equal": torch.ne,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "lesser": torch.lt,
    "lesser_equal": torch.le,
}
# Names of the same function; those of whole arrays want equal shapes, which MXNet has checked.
BINARY_NAMES = {
    "add": ("elemwise_add", "_plus", "_add", "_Plus", "broadcast_add", "broadcast_plus"),
    "sub": ("elemwise_sub", "_minus", "_sub", "_Minus", "broadcast_sub", "broadcast_minus"),
    "mul": ("elemwise_mul", "_mul", "_Mul", "broadcast_mul"),
    "div": ("elemwise_div", "_div", "_Div", "broadcast_div"),
    "maximum": ("_maximum", "_Maximum", "broadcast_maximum"),
    "minimum": ("_minimum", "_Minimum", "broadcast_minimum"),
    "power": ("_power", "_Power", "_pow", "broadcast_power"),
}
# An array and a number, which is of the array's type.
SCALARS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "_plus_scalar": torch.add,
    "_minus_scalar": torch.sub,
    "_rminus_scalar": lambda x, value: value - x,
    "_mul_scalar": torch.mul,
    "_div_scalar": divide,
    "_rdiv_scalar": lambda x, value: divide(torch.full_like(x, value), x),
    "_maximum_scalar": lambda x, value: torch.clamp(x, min=value),
    "_minimum_scalar": lambda x, value: torch.clamp(x, max=value),
    "_power_scalar": torch.pow,
}


def number(x: Tensor, scalar: float) -> Any:
    """Return a scalar as MXNet takes it for an array of this type."""
    return scalar if x.is_floating_point() else int(scalar)


def _register_binary(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(*BINARY_NAMES[name])
    def binary(a: Tensor, b: Tensor) -> Tensor:
        return function(a, b)


def _register_scalar(name: str, function: Callable[[Tensor, Any], Tensor]) -> None:
    @operator(name)
    def with_scalar(x: Tensor, *, scalar: float, is_int: bool = True) -> Tensor:
        return function(x, number(x, scalar))


def _register_comparison(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> None:
    @operator(f"_{name}", f"broadcast_{name}")
    def compare(a: Tensor, b: Tensor) -> Tensor:
        return function(a, b).to(a.dtype)

    @operator(f"_{name}_scalar")
    def compare_scalar(x: Tensor, *, scalar: float, is_int: bool = True) -> Tensor:
        return function(x, scalar).to(x.dtype)


for _name, _pair in BINARY.items():
    _register_binary(_name, _pair)
for _name, _pair in SCALARS.items():
    _register_scalar(_name, _pair)
for _name, _pair in COMPARISONS.items():
    _register_comparison(_name, _pair)


@operator("add_n", "ElementWiseSum", "_sum")
def add_n(first: Tensor, *others: Tensor, num_args: Optional[int] = None) -> Tensor:
    for other in others:
        first = first + other
    return first


@operator("where")
def where(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    if condition.ndim == 1 and x.ndim > 1:  # one decision for each row
        condition = condition.reshape(-1, *[1] * (x.ndim - 1))
    return torch.where(condition != 0, x, y)


@operator("LeakyReLU")
def leaky_relu(
    x: Tensor, gamma: Tensor = None, *, act_type: str = "leaky", slope: float = 0.25
) -> Tensor:
    if act_type == "leaky":
        return functional.leaky_relu(x, slope)
    if act_type == "elu":
        return functional.elu(x, slope)
    if act_type == "selu":
        return functional.selu(x)
    if act_type == "gelu":
        return functional.gelu(x)
    if act_type == "prelu":
        return functional.prelu(x, gamma.reshape(-1))
    raise ValueError(f"LeakyReLU of type {act_type!r}; available: leaky, elu, selu, gelu, prelu")
