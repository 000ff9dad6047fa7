"""Names by the prefixes of blocks, as MXNet's own ways of saving write them.

``net.export``, ``collect_params().save``, ``Module.save_checkpoint``, the old ``save_params`` and
``export_model.py --to symbol`` call a tensor ``resnet0_unit0_conv1_weight``, with ``arg:`` or
``aux:`` before it or not, and without the network's own prefix or with any. What follows that is
the same for every network of a kind, so the names of a built network tell the attributes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Optional, TypeVar

from mxnet.gluon import Block

from model.registry import FAMILIES, ModelError, create_model
from model.weights.dialects import CLASS_LAYERS, fits, preference

T = TypeVar("T")
_WORD = re.compile(r"_(?:weight|bias|gamma|beta|running_mean|running_var|[a-z]\d*)$")


def is_flat(names: Iterable[str]) -> bool:
    """Tell whether these are names by prefixes: no attribute's, which have dots."""
    known = list(names)
    return bool(known) and not any("." in name for name in known) and any(map(_WORD.search, known))


def flat_names(net: Block) -> dict[str, str]:
    """Return, for the names by prefix without the network's own, those by attribute."""
    parameters = net._collect_params_with_prefix()
    return {p.name[len(net.prefix) :]: name for name, p in parameters.items()}


def from_flat(tensors: Mapping[str, T], net: Block) -> Optional[dict[str, T]]:
    """Give every tensor the name of its attribute in `net`; None where they are not its names."""
    table = flat_names(net)
    longest = max(table, key=len)
    for name in tensors:
        if name.endswith(longest):
            prefix = name[: -len(longest)]
            found = {
                table[other[len(prefix) :]]: value
                for other, value in tensors.items()
                if other.startswith(prefix) and other[len(prefix) :] in table
            }
            if len(found) == len(tensors) == len(table):
                return found
    return None


def find_flat(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Optional[str], int]:
    """Return name and number of classes of the network whose names by prefix these are.

    None and 0 when there is none. As in `find_model`, a network with attention residual learning
    and mixed attention is preferred.
    """
    for name in _candidates(shapes):
        try:
            net = create_model(name)
        except ModelError:
            continue
        found = from_flat(shapes, net)
        if found is None or () in found.values():  # no network has a scalar
            continue
        wanted = {n: tuple(p.shape) for n, p in net._collect_params_with_prefix().items()}
        other = [n for n in wanted if not fits(wanted[n], found[n])]
        classes = {found[n][0] for n in other if fits(wanted[n][1:], found[n][1:])}
        heads = [n for n in wanted if n.rpartition(".")[0] in CLASS_LAYERS]
        if len(classes) <= 1 and set(other) <= set(heads):
            return name, found[heads[0]][0]
    return None, 0


def _candidates(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return the networks that may have these tensors, without building one."""
    parts = (re.search(r"attentionmodule\d+_", name) for name in shapes)
    count = len({part[0] for part in parts if part})
    convolutions = sum(len(shape) == 4 for shape in shapes.values())
    stems = {shape[0] for shape in shapes.values() if len(shape) == 4 and shape[1] == 3}
    found = []
    for name, (spec, _) in FAMILIES.items():
        modules = getattr(spec, "modules", None)
        if modules is not None:
            may_be = count == sum(modules) and spec.stem_channels in stems
        elif hasattr(spec, "depth"):
            may_be = not count and spec.channels[0] in stems
            may_be = may_be and spec.depth - 2 <= convolutions <= 3 * spec.depth
        else:
            may_be = not convolutions
        if may_be:
            found.append(preference(name, spec))
    return [name for _, _, name in sorted(found)]
