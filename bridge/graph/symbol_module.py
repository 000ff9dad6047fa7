"""A network of MXNet in PyTorch: the same graph, the same weights by name; needs PyTorch.

`SymbolModule` runs the graph that MXNet exported. Its parameters have the names of the symbol's
arguments; ``python -m model.export.export_symbol`` writes symbols whose arguments have the names of
this project's ``.param`` files, so that a file goes in and comes out again without any translation.
MXNet is not needed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np
import torch  # type: ignore[import-not-found]
from torch import nn

import bridge.graph.symbol_arrays
import bridge.graph.symbol_elementwise
import bridge.graph.symbol_layers
import bridge.graph.symbol_reductions  # noqa: F401  (these four fill the table of operators)
from bridge.graph.symbol_code import generate
from bridge.graph.symbol_graph import (
    MAX_JSON_CHARACTERS,
    Graph,
    SymbolError,
    parse_attribute,
    parse_symbol,
)
from formats.atomic import PathLike
from formats.digest import verify_digest
from formats.param_file import write_params
from formats.weight_file import read_weights

WIDENED = ("float16", "float32")  # what a float32 parameter can hold exactly
# Of the names that net.export gives; those of this project's exporter have dots.
PARAMETER_ENDINGS = tuple(
    f"_{kind}" for kind in ("weight", "bias", "gamma", "beta", "running_mean", "running_var")
)


class SymbolModule(nn.Module):
    """The graph of an exported symbol as a torch.nn.Module.

    Parameters
    ----------
    symbol_json
        What ``net.export`` or ``sym.tojson()`` wrote, or `model.export.export_symbol`.
    params
        Name to array (float32; float16 is widened) of every argument that is no input, running
        statistics included; names as the symbol has them.
    inputs
        Names of the arguments of ``forward``, in this order. None: the arguments that `params` has
        not, in the order of the graph, but those that are called as parameters are.

    Attributes
    ----------
    input_names, output_names : tuple of str
        Arguments of ``forward``, and names of what it returns (one tensor, or a tuple).
    input_shapes : dict
        Name to shape as the symbol declares it, 0 where any size will do, () where it says nothing.
    code : str
        Source of ``forward``.

    Notes
    -----
    ``state_dict()`` has the same names as the parameter file: parameters, and running statistics as
    buffers. ``train()`` and ``eval()`` do what MXNet's training and inference modes do. The scale
    of a normalisation with ``fix_gamma`` needs no gradient.

    ``module.to(memory_format=torch.channels_last)`` with inputs in that format, ``torch.autocast``
    and ``torch.compile(module, fullgraph=True)`` work; so do ``copy.deepcopy`` and ``pickle``.

    Raises
    ------
    SymbolError
        When the symbol cannot be read, has an operator that is not known here, or does not fit the
        arrays or inputs.

    Examples
    --------
    >>> module = SymbolModule.from_files("net.json", "net.param").eval()
    >>> logits = module(torch.zeros(1, 3, 32, 32))
    >>> module.save("again.param")
    """

    def __init__(
        self,
        symbol_json: str,
        params: Mapping[str, np.ndarray],
        *,
        inputs: Optional[Sequence[str]] = None,
    ) -> None:
        super().__init__()
        graph = parse_symbol(symbol_json)
        variables = graph.variables()
        if inputs is None:
            inputs = [n for n in variables if n not in params and not _is_parameter(n)]
        _check_names(graph, params, inputs)
        frozen, auxiliary = _fixed_scales(graph), graph.auxiliary()
        stored = {}
        for name in variables:
            if name not in inputs:
                value = _tensor(name, params[name], variables[name].shape)
                stored[name] = "_buffers" if name in auxiliary else "_parameters"
                self._place(name, value, name in auxiliary, name not in frozen)
        self.symbol_json = symbol_json
        self.input_names = tuple(inputs)
        self.input_shapes = {name: variables[name].shape for name in inputs}
        self.output_names = tuple(
            graph.nodes[index].name + (f"_{output}" if output else "")
            for index, output in graph.heads
        )
        self._order = tuple(name for name in params if name in stored)
        self.code, self._functions = generate(graph, self.input_names, stored)
        self._run = _compiled(self.code, self._functions)

    @classmethod
    def from_files(
        cls,
        symbol_path: PathLike,
        param_path: PathLike,
        *,
        inputs: Optional[Sequence[str]] = None,
    ) -> SymbolModule:
        """Build the module from a symbol file and a file of weights.

        Parameters
        ----------
        symbol_path
            JSON of the symbol.
        param_path
            ``.param`` or ``.params`` (``arg:`` and ``aux:`` are removed), PyTorch or safetensors,
            told apart by content; compared with its digest where there is one.
        inputs
            See the class.

        Raises
        ------
        SymbolError, formats.param_reader.ParamFileError
            When one of the files cannot be read, is damaged, or they do not fit each other.
        """
        verify_digest(param_path)
        return cls(read_symbol(symbol_path), read_weights(param_path), inputs=inputs)

    def forward(self, *inputs: Any) -> Any:
        """Run the graph on tensors in the order of `input_names`."""
        return self._run(self, *inputs)

    def param_arrays(self) -> dict[str, np.ndarray]:
        """Return name to float32 array, running statistics included, in the order they came in.

        The arrays are copies.
        """
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return {
            name: np.array(tensors[name].detach().to("cpu", torch.float32).numpy(), order="C")
            for name in self._order
        }

    def save(self, path: PathLike, digest: bool = True) -> str:
        """Write a parameter file that MXNet loads; see `formats.param_file.write_params`."""
        return write_params(path, self.param_arrays(), digest)

    def _place(self, name: str, value: Any, is_buffer: bool, needs_gradient: bool) -> None:
        """Put a tensor where ``state_dict`` gives it this name."""
        module: nn.Module = self
        *path, leaf = name.split(".")
        try:
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                module = module._modules[part]
            if is_buffer:
                module.register_buffer(leaf, value)
            else:
                module.register_parameter(leaf, nn.Parameter(value, needs_gradient))
        except (KeyError, TypeError) as error:
            raise SymbolError(
                f"{name!r} cannot be the name of a parameter: {error}. Rename it in the symbol and "
                "in the parameter file."
            ) from None

    def __getstate__(self) -> dict[str, Any]:
        # A function that was made at run time cannot be pickled; it is made again.
        return {k: v for k, v in self.__dict__.items() if k not in ("_run", "_functions")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        stored = {name: "_parameters" for name, _ in self.named_parameters()}
        stored.update({name: "_buffers" for name, _ in self.named_buffers()})
        graph = parse_symbol(self.symbol_json)
        self.code, self._functions = generate(graph, self.input_names, stored)
        self._run = _compiled(self.code, self._functions)


def read_symbol(path: PathLike) -> str:
    """Return the text of a symbol file, of bounded length.

    Raises
    ------
    SymbolError
        When it cannot be read, or is too long or no text.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read(MAX_JSON_CHARACTERS + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no UTF-8 text"
        raise SymbolError(
            f"{os.fspath(path)}: cannot be read: {reason}. Expected the JSON of a symbol. Check "
            "the path, or write it with python -m model.export.export_symbol."
        ) from error
    return text


def _compiled(code: str, functions: Mapping[str, Any]) -> Any:
    names: dict[str, Any] = dict(functions)
    exec(compile(code, "<symbol>", "exec"), names)
    return names["forward"]


def _check_names(graph: Graph, params: Mapping[str, np.ndarray], inputs: Sequence[str]) -> None:
    variables = graph.variables()
    lacking = [name for name in variables if name not in params and name not in inputs]
    unknown = [name for name in params if name not in variables]
    strange = [name for name in inputs if name not in variables or name in params]
    both = graph.auxiliary() & set(inputs)
    if len(set(inputs)) != len(inputs) or strange or not inputs:
        free = [name for name in variables if name not in params]
        raise SymbolError(
            f"inputs {', '.join(inputs) or 'none'}. Expected different names of arguments that the "
            f"weights do not have, at least one: {_few(free)}."
        )
    if lacking or unknown or both:
        found = [f"the weights lack {_few(lacking)}"] if lacking else []
        found += [f"the symbol lacks {_few(unknown)}"] if unknown else []
        found += [f"the running statistics {_few(sorted(both))} have no values"] if both else []
        raise SymbolError(
            f"symbol and weights do not fit: {'; '.join(found)}. Expected the same names in both. "
            "Export the symbol of the network that the weights belong to: python -m "
            "model.export.export_symbol."
        )


def _is_parameter(name: str) -> bool:
    """Tell whether a name is one that an exporter gives to a parameter, not to an input."""
    return "." in name or name.endswith(PARAMETER_ENDINGS)


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3]) or "none"
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _tensor(name: str, array: np.ndarray, declared: tuple[int, ...]) -> Any:
    array = np.asarray(array)
    if array.dtype.name not in WIDENED:
        raise SymbolError(
            f"the array {name!r} has element type {array.dtype}. Expected float32 or float16. "
            "Convert it first."
        )
    fits = len(array.shape) == len(declared) and all(
        wanted in (0, size) for wanted, size in zip(declared, array.shape)
    )
    if declared and not fits:
        raise SymbolError(
            f"the array {name!r} has shape {array.shape}, the symbol declares {declared}. Expected "
            "the weights of the same network, with as many classes."
        )
    return torch.from_numpy(array.astype(np.float32, order="C"))


def _fixed_scales(graph: Graph) -> set[str]:
    """Return the names of the scales that ``fix_gamma`` replaces by 1."""
    return {
        graph.nodes[node.inputs[1][0]].name
        for node in graph.nodes
        if node.op == "BatchNorm" and parse_attribute(node.attrs.get("fix_gamma", "True"))
        if len(node.inputs) > 1
    }
