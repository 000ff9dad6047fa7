"""Loading parameter files into networks: checked completely before the network is changed.

Gluon's own `load_parameters` hands the bytes to a C++ parser, sets parameters one by one until the
first that does not fit, and knows one file format and one set of names. Here the file (MXNet's,
PyTorch's or safetensors) is read by `formats.weight_file`, compared with its digest, renamed when
only the dialect of the names differs, and compared with the whole network; only then is anything
set.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Optional, Union

import mxnet as mx
import numpy as np
from mxnet import gluon

from formats.atomic import PathLike
from formats.digest import verify_digest
from formats.errors import last_line
from model.weights.dialects import CLASS_LAYERS, TITLES, WIRINGS, detect_dialect, rename
from model.weights.file_match import (
    LoadError,
    Parameters,
    Shape,
    cast,
    check_match,
    class_names,
    differs,
    mixed_names,
)
from model.weights.flat_names import from_flat, is_flat
from model.weights.seed_checkpoint import read_for_unit_range

__all__ = ["LoadResult", "check_finite", "load_parameters"]

VERIFIED, UNVERIFIED = "verified", "unverified"


class LoadResult(str):
    """``"verified"`` (the digest beside the file matches) or ``"unverified"`` (there is none).

    Attributes
    ----------
    renamed_from
        Dialect of the file when the names were translated (see `model.weights.dialects`), else
        None.
    cast
        Names of the parameters that had another floating-point type in the file.
    fresh
        Names that were left out because the number of classes differs.
    classifier
        Name to array of the last layer as it is in the file.
    seed
        Name of the network when the file is a checkpoint of kevinzakka's, whose normalization of
        images has become part of the values (see `model.weights.seed_checkpoint`), else None.
    """

    renamed_from: Optional[str] = None
    cast: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    classifier: Mapping[str, np.ndarray] = {}
    seed: Optional[str] = None


def load_parameters(
    net: gluon.Block,
    path: PathLike,
    ctx: Union[mx.Context, Sequence[mx.Context], None] = None,
    *,
    allow_classes_mismatch: bool = False,
    arrays: Optional[Mapping[str, np.ndarray]] = None,
) -> LoadResult:
    """Load a parameter file into a network.

    Parameters
    ----------
    net
        Initialized or not; shapes may still be unknown (deferred).
    path
        File written by Gluon's ``save_parameters`` or `formats.param_file.write_params`, PyTorch
        checkpoint or safetensors file, whatever its name ends with; in this project's names or in
        another dialect (see `model.weights.dialects`). A checkpoint of kevinzakka's glimpse models
        gets the values that it has for images in [0, 1] (`model.weights.seed_checkpoint`).
    ctx
        Where the parameters go. None: where they are, or ``mx.cpu()`` for an uninitialized net.
    allow_classes_mismatch
        For finetuning: leave a classifier with another number of classes as it is (initialized
        with Xavier when it is not yet initialized).
    arrays
        What is to be loaded, where a caller has read the file and changed the arrays.

    Returns
    -------
    LoadResult
        A str, ``"verified"`` or ``"unverified"``, that also says what was renamed, cast or left.

    Raises
    ------
    formats.param_reader.ParamFileError
        When the file cannot be read, is damaged, or differs from its digest.
    LoadError
        When names, shapes or element types do not fit, or the file's dialect belongs to code with
        another wiring of the soft mask (`model.layers.attention_module`), so that the network would
        compute something else. The network is then unchanged.
    """
    result = LoadResult(VERIFIED if verify_digest(path) else UNVERIFIED)
    if arrays is None:
        result.seed, arrays = read_for_unit_range(path)
    arrays = dict(arrays)
    stored = {name: array.shape for name, array in arrays.items()}
    # The names under which save_parameters stores; Gluon has no public way to ask for them.
    parameters = net._collect_params_with_prefix()
    if is_flat(arrays) and not is_flat(parameters):
        arrays = from_flat(arrays, net) or arrays
    arrays, result.renamed_from = _translate(arrays, parameters, path)
    result.fresh = class_names(arrays, parameters) if allow_classes_mismatch else ()
    check_match(arrays, parameters, result.fresh, path, stored)
    _check_wiring(net, result.renamed_from, path)
    result.cast = tuple(
        name
        for name in parameters
        if name not in result.fresh and differs(arrays, parameters, name)
    )
    values = {
        name: cast(arrays[name], parameter, name, path)
        for name, parameter in parameters.items()
        if name not in result.fresh
    }
    result.classifier = {
        name: array for name, array in arrays.items() if name.rpartition(".")[0] in CLASS_LAYERS
    }
    contexts = _usable_contexts(ctx)
    for name, parameter in parameters.items():
        if name in result.fresh:
            _keep(parameter, arrays[name].shape, contexts)
        else:
            _set(parameter, values[name], contexts)
    return result


def check_finite(net: gluon.Block, path: PathLike) -> None:
    """Raise LoadError when a loaded parameter is not finite: what is computed would say nothing.

    A network may hide it: the ReLU of NaN is 0.
    """
    for name, parameter in net._collect_params_with_prefix().items():
        if not np.isfinite(parameter.data(parameter.list_ctx()[0]).asnumpy()).all():
            raise LoadError(
                f"{os.fspath(path)}: {name} has NaN or infinite values. Expected finite weights. "
                "The training that wrote it diverged, or the file was damaged; take another one."
            )


def _translate(
    arrays: dict[str, np.ndarray], parameters: Parameters, path: PathLike
) -> tuple[dict[str, np.ndarray], Optional[str]]:
    source, target = detect_dialect(arrays), detect_dialect(parameters)
    if source is None or target is None or source == target:
        return arrays, None
    try:
        return rename(arrays, target), source
    except ValueError as error:
        raise mixed_names(path, error) from error


def _check_wiring(net: gluon.Block, dialect: Optional[str], path: PathLike) -> None:
    """Refuse weights that fit by their shapes, but were trained for another forward pass."""
    wiring = getattr(getattr(net, "spec", None), "wiring", None)
    trained = WIRINGS.get(dialect or "")
    if wiring and trained and wiring != trained:
        raise LoadError(
            f"{os.fspath(path)}: {TITLES[str(dialect)]} names come from code with {trained} wiring "
            f"of the soft mask, the network has {wiring} wiring. Expected the same: the tensors "
            f"fit, the results would not. Use create_model(..., wiring={trained!r})."
        )


def _usable_contexts(
    ctx: Union[mx.Context, Sequence[mx.Context], None],
) -> Optional[list[mx.Context]]:
    """Return ``ctx`` as a list after computing something on each, None when it is None."""
    if ctx is None:
        return None
    contexts = [ctx] if isinstance(ctx, mx.Context) else list(ctx)
    if not contexts or not all(isinstance(c, mx.Context) for c in contexts):
        raise LoadError(f"ctx is {ctx!r}. Expected a Context or a list of them, as mx.cpu().")
    for context in contexts:
        try:
            mx.nd.zeros((1,), ctx=context).wait_to_read()
        except mx.MXNetError as error:
            raise LoadError(
                f"{context} cannot be used: {last_line(error)}. Use mx.cpu(), or a GPU that this "
                "MXNet was built for."
            ) from error
    return contexts


def _contexts_of(parameter: gluon.Parameter) -> Optional[list[mx.Context]]:
    try:
        return list(parameter.list_ctx())
    except RuntimeError:  # not initialized
        return None


def _set(
    parameter: gluon.Parameter, array: np.ndarray, contexts: Optional[list[mx.Context]]
) -> None:
    target = contexts or _contexts_of(parameter) or [mx.cpu()]
    if parameter._data is None:
        parameter.shape = array.shape
        # Zero draws no random numbers: loading does not change what comes after it.
        parameter.initialize(init=mx.init.Zero(), ctx=target, force_reinit=True)
    elif set(target) != set(parameter.list_ctx()):
        parameter.reset_ctx(target)
    parameter.set_data(mx.nd.array(array, ctx=mx.cpu(), dtype=array.dtype))


def _keep(parameter: gluon.Parameter, shape: Shape, contexts: Optional[list[mx.Context]]) -> None:
    """Leave a parameter its values; give it a place and, where it has none, first values."""
    current = _contexts_of(parameter)
    if parameter._data is None:
        # The file knows the input channels that a deferred classifier does not know yet.
        parameter.shape = (parameter.shape[0], *shape[1:])
    if current is None:
        parameter.initialize(ctx=contexts or [mx.cpu()], default_init=mx.init.Xavier())
    elif contexts and set(current) != set(contexts):
        parameter.reset_ctx(contexts)
