"""Write a network's graph for the PyTorch bridge: ``python -m model.export.export_symbol NAME
OUT.json``.

The file is a symbol as ``net.export`` writes it, with one difference: the arguments have the names
that ``save_parameters`` gives them (``conv1.0.weight``), not those with the prefixes of blocks. So
a ``.param`` file fits by name, and `bridge.graph.symbol_module.SymbolModule` can read one and write
one. ``mx.gluon.SymbolBlock.imports`` reads both files as well.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import mxnet as mx
from mxnet import gluon

from formats.atomic import PathLike, write_atomically
from formats.param_reader import ParamFileError
from formats.weight_file import read_weight_shapes
from model.hybrid_loss import HybridLoss, LossWeights
from model.recurrent_attention import RecurrentAttention
from model.registry import DEFAULT_CLASSES, ModelError, create_model, read_settings
from model.weights.file_match import LoadError, find_model
from model.weights.known import known_of
from model.weights.network_card import network_section, recorded_network
from model.weights.seed_checkpoint import is_seed_checkpoint


def symbol_json(block: gluon.HybridBlock, note: Optional[Mapping[str, str]] = None) -> str:
    """Return the graph of a block as JSON, its arguments named as in its parameter file.

    Parameters
    ----------
    block
        A network of this project, or a `HybridLoss`, whose arguments get its network's names.
        It need not be initialized.
    note
        Text by name, kept with the first input as ``__name__``.

    Returns
    -------
    str
        Inputs are called as the arguments of ``hybrid_forward``, a single one ``image``.
    """
    owner = block.net if isinstance(block, HybridLoss) else block
    # The names under which save_parameters stores; Gluon has no public way to ask for them.
    names = {p.name: name for name, p in owner._collect_params_with_prefix().items()}
    inputs = [
        parameter.name
        for parameter in list(inspect.signature(block.hybrid_forward).parameters.values())[1:]
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    inputs = ["image"] if len(inputs) == 1 else inputs  # x in gluoncv's networks
    shapes = _input_shapes(owner)
    attributes = {f"__{key}__": text for key, text in (note or {}).items()}
    variables = [
        mx.sym.var(name, shape=shapes[name], attr=attributes if name == inputs[0] else None)
        for name in inputs
    ]
    outputs = block(*variables)
    symbol = outputs if isinstance(outputs, mx.sym.Symbol) else mx.sym.Group(list(outputs))
    content = json.loads(symbol.tojson())
    for node in content["nodes"]:
        if node["op"] == "null" and node["name"] not in inputs:
            node["name"] = names[node["name"]]
    return json.dumps(content, indent=1)


def _input_shapes(net: gluon.HybridBlock) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all possible inputs of a network or its loss, 0 for any size."""
    shapes: dict[str, tuple[int, ...]] = {"image": (0, *net.image_shape)}
    if isinstance(net, RecurrentAttention):
        steps = net.spec.num_glimpses
        shapes.update(first_location=(0, 0, 2), noise=(0, 0, steps, 2), std=(1,), label=(0,))
    return shapes


def export_symbol(
    source: str,
    target: PathLike,
    *,
    classes: Optional[int] = None,
    loss: bool = False,
    overrides: Optional[Mapping[str, Any]] = None,
) -> str:
    """Write the symbol of a network by name, or of the network that a weight file belongs to.

    Parameters
    ----------
    source
        Name of a network (see `model.registry.list_models`), or a weight file.
    target
        JSON file to write, atomically.
    classes
        Number of classes. None: the file's, or the network's own.
    loss
        Of a glimpse network: the training loss with its default weights instead of the rollouts.
    overrides
        See `model.registry.create_model`.

    Returns
    -------
    str
        Name of the network.

    Raises
    ------
    ModelError, LoadError, formats.param_reader.ParamFileError
        When there is no such network or file, the file belongs to no network of the registry, or
        to another one than `classes` and `overrides` say.
    OSError
        When `target` cannot be written.
    """
    name, settings = source, dict(overrides or {})
    if named := {"name", "classes"} & {*settings}:
        raise ModelError(f"--set {min(named)}: give the network's name, and --classes N")
    if os.path.exists(source):
        name, classes, settings = _network_of(source, classes, settings)
    net = create_model(name, classes, **settings)
    if loss and not isinstance(net, RecurrentAttention):
        raise ModelError(f"{name} has no loss of its own; --loss is for glimpse networks")
    block = HybridLoss(net, LossWeights()) if loss else net
    if classes is None:
        classes = getattr(getattr(net, "spec", None), "classes", DEFAULT_CLASSES)
    section = network_section(name, net, classes)
    write_atomically(
        target, symbol_json(block, {"network": name, "card": json.dumps(section)}).encode()
    )
    return name


def _network_of(
    path: str, classes: Optional[int], settings: Mapping[str, Any]
) -> tuple[str, Optional[int], dict[str, Any]]:
    """Return name, classes and settings of a file's network: on record, else by its tensors."""
    shapes = read_weight_shapes(path)
    named = {**settings, "classes": classes}
    recorded = recorded_network(path, known_of(path), shapes, named)
    if recorded:
        return recorded
    if is_seed_checkpoint(path, shapes):
        raise LoadError(
            f"{path}: a checkpoint of kevinzakka's, whose normalization of images no graph has. "
            f"Expected one without. Convert it first: python -m model.weights.convert {path} "
            "OUT.safetensors --to safetensors"
        )
    name, found = find_model(shapes)
    if name is None:
        raise LoadError(
            f"{path}: its tensors belong to no network of the registry. Expected one of "
            "them. Give the network's name, and --set for what differs."
        )
    wanted = found if classes is None else classes
    if _tensors(name, wanted, **settings) != _tensors(name, found):
        raise LoadError(
            f"{path}: its tensors are those of {name} with {found} classes. Expected the network "
            "that --classes and --set say, which has others. Leave out what differs."
        )
    return name, wanted, dict(settings)


def _tensors(name: str, classes: int, **settings: Any) -> dict[str, tuple[int, ...]]:
    parameters = create_model(name, classes, **settings)._collect_params_with_prefix()
    return {key: tuple(parameter.shape) for key, parameter in parameters.items()}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; returns 0, or 2 after printing what is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m model.export.export_symbol",
        description="Write a network's graph, with the argument names of its parameter file.",
    )
    parser.add_argument("source", metavar="NAME", help="name of a network, or a file of weights")
    parser.add_argument("target", metavar="OUT", help="JSON file to write")
    parser.add_argument("--classes", type=int, help="number of classes")
    parser.add_argument("--loss", action="store_true", help="a glimpse network's training loss")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="what differs from the named network, as wiring=paper; may be repeated",
    )
    args = parser.parse_args(argv)
    try:
        name = export_symbol(
            args.source,
            args.target,
            classes=args.classes,
            loss=args.loss,
            overrides=read_settings(args.overrides),
        )
    except (ModelError, LoadError, ParamFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {args.target}: cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    print(f"written  {args.target}: the graph of {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
