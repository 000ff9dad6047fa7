"""An exported symbol in PyTorch: a worker that runs `bridge.graph.symbol_module.SymbolModule`.

Runs in the environment of requirements/bench-torch-py311.txt, where neither MXNet nor gluoncv is.
Arrays come and go as .npz files: ``param/NAME`` values, ``input/NAME`` inputs, ``grad/I`` gradients
of the outputs; ``output/I``, ``grad/NAME`` and ``param/NAME`` come back.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]
from torch.nn import functional  # type: ignore[import-not-found]

from benchmarks.harness.worker import Action, serve
from bridge.graph.symbol_module import SymbolModule, read_symbol
from bridge.loop.optimizer import Nag


def read_part(path: str, part: str) -> dict[str, np.ndarray]:
    """Return the arrays of a file whose names begin with ``part/``, without it."""
    with np.load(path) as file:
        return {n.split("/", 1)[1]: file[n] for n in file.files if n.startswith(part + "/")}


def build(symbol: str, arrays: str) -> SymbolModule:
    """Return the module of a symbol file, with the values and inputs of an .npz."""
    params, inputs = read_part(arrays, "param"), read_part(arrays, "input")
    return SymbolModule(read_symbol(symbol), params, inputs=list(inputs))


def run(
    symbol: str, arrays: str, out: str, train: bool = True, dtype: str = "float32", layout: str = ""
) -> dict[str, Any]:
    """Run once, and backwards where there are gradients of the outputs.

    `layout` is ``channels_last`` or nothing. Returns the number of statements of ``forward``.
    """
    module = build(symbol, arrays).to(getattr(torch, dtype)).train(train)
    inputs = {name: torch.from_numpy(v) for name, v in read_part(arrays, "input").items()}
    for name, value in inputs.items():
        if value.is_floating_point():
            inputs[name] = value.to(getattr(torch, dtype)).requires_grad_()
    given = list(inputs.values())
    if layout == "channels_last":
        module = module.to(memory_format=torch.channels_last)
        given = [
            x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in given
        ]
    outputs = module(*given)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    found = {f"output/{i}": output.detach().numpy() for i, output in enumerate(outputs)}
    cotangents = read_part(arrays, "grad")
    if cotangents:
        pairs = [
            (output, torch.from_numpy(cotangents[str(i)]).to(output.dtype))
            for i, output in enumerate(outputs)
            if output.requires_grad
        ]
        if pairs:  # comparisons and whole numbers have no gradient
            torch.autograd.backward(*zip(*pairs))
        for name, tensor in [*module.named_parameters(), *inputs.items()]:
            if tensor.grad is not None:
                found[f"grad/{name}"] = tensor.grad.numpy()
    found.update({f"param/{name}": value.numpy() for name, value in module.named_buffers()})
    np.savez(out, **found)
    return {"statements": module.code.count("\n")}


def train(
    symbol: str,
    arrays: str,
    batches: str,
    out: str,
    optimizer: dict[str, Any],
    dtype: str = "float32",
) -> dict[str, Any]:
    """Train on batches (first axis of the arrays in ``input/``) by MXNet's NAG; returns the losses.

    `optimizer` has lr, momentum, wd and decay_bias. The loss is that of
    `benchmarks.bridge.mxnet_symbol.Reference.train`.
    """
    kind = getattr(torch, dtype)
    module = build(symbol, arrays).to(kind).train()
    data = {name: torch.from_numpy(v).to(kind) for name, v in read_part(batches, "input").items()}
    lr = torch.tensor(optimizer["lr"], dtype=kind)
    weights = {name: p for name, p in module.named_parameters() if p.requires_grad}
    nag = Nag(weights, SimpleNamespace(**optimizer))
    losses = []
    for batch in zip(*data.values()):
        named = dict(zip(data, batch))
        outputs = module(*(named[name] for name in module.input_names))
        if "label" in module.input_names:
            loss = outputs[0].mean()
        else:
            loss = functional.cross_entropy(outputs, named["label"].long())
        found = torch.autograd.grad(loss, nag.weights, allow_unused=True, materialize_grads=True)
        with torch.no_grad():
            nag.update(found, lr)
        losses.append(loss.item())
    tensors = [*module.named_parameters(), *module.named_buffers()]
    np.savez(out, **{f"param/{name}": value.detach().numpy() for name, value in tensors})
    return {"losses": losses}


def decide(symbol: str, weights: str, images: str) -> dict[str, Any]:
    """Return the class that a file of weights gives each image of ``input/image``."""
    module = SymbolModule.from_files(symbol, weights).eval()
    with torch.no_grad():
        logits = module(torch.from_numpy(read_part(images, "input")["image"]))
    return {"classes": logits.argmax(1).tolist()}


def save(symbol: str, weights: str, out: str) -> dict[str, Any]:
    """Read a file of weights into a module and write it again; returns the digest."""
    return {"sha256": SymbolModule.from_files(symbol, weights).save(Path(out))}


def actions() -> dict[str, Action]:
    """Return what this worker does, by name."""
    return {"run": run, "train": train, "decide": decide, "save": save}


def main() -> None:
    """Serve, with one thread."""
    torch.set_num_threads(1)
    serve(lambda: ({"versions": {"torch": torch.__version__}}, actions()))


if __name__ == "__main__":
    main()
