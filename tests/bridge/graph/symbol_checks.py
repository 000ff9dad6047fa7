"""Checks of `bridge.graph.symbol_module`, run by test_bridge_module.py where PyTorch is.

    .venv-torch/bin/python tests/bridge/graph/symbol_checks.py FOLDER

FOLDER has ``small.json`` and ``small.param``, a small network that MXNet exported. Every function
``check_*`` is run; FOLDER/results.json gets its name and None, or the traceback.
"""

from __future__ import annotations

import copy
import json
import pickle
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch  # type: ignore[import-not-found]

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

from bridge.graph import symbol_layers  # noqa: E402
from bridge.graph.symbol_graph import SymbolError, parse_attribute  # noqa: E402
from bridge.graph.symbol_module import SymbolModule, read_symbol  # noqa: E402
from formats.param_file import read_params, write_params  # noqa: E402
from formats.param_reader import ParamFileError  # noqa: E402

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
SYMBOL, WEIGHTS = FOLDER / "small.json", FOLDER / "small.param"


def small() -> SymbolModule:
    return SymbolModule.from_files(SYMBOL, WEIGHTS)


def images(count: int = 3) -> Any:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def gradients(module: SymbolModule, outputs: Any) -> dict[str, Any]:
    module.zero_grad()
    outputs.float().square().sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def assert_close(found: Any, expected: Any, tolerance: float) -> None:
    gap = (found.float() - expected.float()).abs().max() / expected.float().abs().max()
    assert gap < tolerance, gap


def refusal(action: Callable[[], Any], kind: type[Exception] = SymbolError) -> str:
    """Return the one line with which an action is refused."""
    try:
        action()
    except kind as error:
        line = str(error)
    else:
        raise AssertionError("nothing was refused")
    assert "\n" not in line
    return line


def changed(change: Callable[[dict[str, Any]], object]) -> str:
    """Return the small network's symbol with a change in its JSON."""
    content = json.loads(read_symbol(SYMBOL))
    change(content)
    return json.dumps(content)


def node(content: dict[str, Any], op: str) -> dict[str, Any]:
    return next(entry for entry in content["nodes"] if entry["op"] == op)


def check_names_are_those_of_the_file() -> None:
    module, stored = small(), read_params(WEIGHTS)
    assert set(module.state_dict()) == set(stored)
    assert list(module.param_arrays()) == list(stored)
    assert module.input_names == ("image",)
    assert module.input_shapes == {"image": (0, 3, 8, 8)}
    buffers = {name for name, _ in module.named_buffers()}
    assert buffers == {n for n in stored if n.endswith(("running_mean", "running_var"))}


def check_a_file_comes_back_with_the_same_bytes() -> None:
    target = FOLDER / "again.param"
    small().to(memory_format=torch.channels_last).double().save(target)
    assert target.read_bytes() == WEIGHTS.read_bytes()


def check_training_moves_the_statistics_and_nothing_else() -> None:
    module = small().train()
    before = module.param_arrays()
    module(images())
    after = module.param_arrays()
    moved = {name for name in before if not np.array_equal(before[name], after[name])}
    assert moved == {name for name, _ in module.named_buffers()}
    module.eval()(images())
    for name, values in module.param_arrays().items():
        assert np.array_equal(values, after[name])


def check_copies_compute_the_same() -> None:
    module = small().eval()
    expected = module(images())
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(images()), expected)
        assert list(other.param_arrays()) == list(module.param_arrays())
        with torch.no_grad():
            next(other.parameters()).add_(1)
        assert torch.equal(module(images()), expected)


def check_channels_last_computes_the_same() -> None:
    module = small().train()
    expected = module(images())
    wanted = gradients(module, expected)
    other = small().train().to(memory_format=torch.channels_last)
    found = other(images().contiguous(memory_format=torch.channels_last))
    assert_close(found, expected, 1e-5)
    for name, gradient in gradients(other, found).items():
        assert_close(gradient, wanted[name], 1e-4)


def arrays(channels: int, size: int) -> tuple[Any, Any]:
    """Return an image and the weight of a convolution, random."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, channels, 7, 8, generator=generator)
    return image, torch.randn(5, channels, size, size, generator=generator)


def strided(channels: int, size: int, **attributes: Any) -> tuple[list[Any], list[Any]]:
    """Return what a strided convolution gives, with its gradients, and what PyTorch was asked for.

    The image is in channels_last; a request is the kernel, the channels and the stride.
    """
    image, weight = arrays(channels, size)
    image = image.contiguous(memory_format=torch.channels_last).requires_grad_()
    weight.requires_grad_()
    requests, real = [], symbol_layers.CONVOLUTIONS[2]

    def noted(x: Any, weight: Any, bias: Any, stride: Any, *more: Any) -> Any:
        requests.append((tuple(weight.shape[1:]), stride))
        return real(x, weight, bias, stride, *more)

    symbol_layers.CONVOLUTIONS[2] = noted
    try:
        settings = {"kernel": (size, size), "num_filter": 5, "no_bias": True, **attributes}
        y = symbol_layers.convolution(image, weight, **settings)
    finally:
        symbol_layers.CONVOLUTIONS[2] = real
    y.square().sum().backward()
    return [y, image.grad, weight.grad], requests


def check_a_strided_convolution_of_few_channels_has_no_stride_for_pytorch() -> None:
    # oneDNN's issue 6035: with AVX2 alone its gradient of the weights writes past a buffer.
    for channels in (1, 3, 4, 7):
        for stride in ((2, 2), (3, 1)):
            found, requests = strided(channels, 1, stride=stride)
            assert requests == [((channels, 1, 1), 1)]
            # float64 is computed without oneDNN.
            image, weight = (each.double().requires_grad_() for each in arrays(channels, 1))
            y = torch.nn.functional.conv2d(image, weight, None, stride)
            y.square().sum().backward()
            for one, wanted in zip(found, (y, image.grad, weight.grad)):
                assert one.shape == wanted.shape
                assert_close(one, wanted, 1e-5)


def check_other_convolutions_keep_their_stride() -> None:
    assert strided(8, 1, stride=(2, 2))[1] == [((8, 1, 1), (2, 2))]
    assert strided(4, 3, stride=(2, 2), pad=(1, 1))[1] == [((4, 3, 3), (2, 2))]
    assert strided(4, 1, stride=(2, 2), pad=(1, 1))[1] == [((4, 1, 1), (2, 2))]
    assert strided(4, 1, stride=(1, 1))[1] == [((4, 1, 1), (1, 1))]


def check_autocast_computes_nearly_the_same() -> None:
    module = small().train()
    expected = module(images(16))
    module = small().train()
    with torch.autocast("cpu", torch.bfloat16):
        found = module(images(16))
    assert found.dtype == torch.bfloat16
    assert_close(found, expected, 0.05)
    assert all(g.dtype == torch.float32 for g in gradients(module, found).values())
    assert all(value.dtype == torch.float32 for value in module.state_dict().values())


def check_compile_follows_the_whole_graph() -> None:
    expected, module = small().train(), small().train()
    # Without a C++ compiler: what is tried here is that nothing breaks the graph.
    run = torch.compile(module, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        found, wanted = run(images()), expected(images())
        assert_close(found, wanted, 1e-6)
    theirs, ours = gradients(module, found), gradients(expected, wanted)
    assert theirs.keys() == ours.keys()
    for name in ours:
        assert_close(theirs[name], ours[name], 1e-4)
    for name, values in module.param_arrays().items():
        np.testing.assert_allclose(values, expected.param_arrays()[name], rtol=1e-5, atol=1e-7)


def check_a_fixed_scale_is_one_and_keeps_its_value() -> None:
    for text in ("true", "TRUE"):  # MXNet reads booleans in any case
        assert parse_attribute(text) is True
    assert parse_attribute("false") is False
    symbol = changed(lambda c: node(c, "BatchNorm")["attrs"].update(fix_gamma="True"))
    arrays = read_params(WEIGHTS)
    module = SymbolModule(symbol, arrays).eval()
    frozen = [name for name, p in module.named_parameters() if not p.requires_grad]
    assert len(frozen) == 1
    scaled = SymbolModule(symbol, {**arrays, frozen[0]: arrays[frozen[0]] * 3}).eval()
    assert torch.equal(module(images()), scaled(images()))
    assert np.array_equal(scaled.param_arrays()[frozen[0]], arrays[frozen[0]] * 3)


def check_inputs_can_be_named() -> None:
    arrays = read_params(WEIGHTS)
    scale = arrays.pop("bn1.gamma")
    module = SymbolModule(read_symbol(SYMBOL), arrays, inputs=("bn1.gamma", "image")).eval()
    assert torch.equal(module(torch.from_numpy(scale), images()), small().eval()(images()))
    line = refusal(lambda: SymbolModule(read_symbol(SYMBOL), arrays, inputs=("image",)))
    assert "the weights lack bn1.gamma" in line


def check_unknown_operators_are_named() -> None:
    symbol = changed(lambda c: node(c, "Activation").update(op="Custom"))
    line = refusal(lambda: SymbolModule(symbol, read_params(WEIGHTS)))
    assert "'Custom'" in line
    assert "Known: " in line
    assert "BatchNorm" in line


def check_unknown_attributes_are_refused() -> None:
    symbol = changed(lambda c: node(c, "Convolution")["attrs"].update(dilation="(2, 2)"))
    line = refusal(lambda: SymbolModule(symbol, read_params(WEIGHTS)))
    assert "dilation" in line
    assert "dilate" in line
    symbol = changed(lambda c: node(c, "BatchNorm")["attrs"].update(training="True"))
    assert "training" in refusal(lambda: SymbolModule(symbol, read_params(WEIGHTS)))
    symbol = changed(lambda c: node(c, "Convolution")["attrs"].update(num_filter="1e999"))
    assert "inf" in refusal(lambda: SymbolModule(symbol, read_params(WEIGHTS)))


def check_text_of_a_symbol_is_never_run() -> None:
    text = "__import__('os').abort()"
    symbol = changed(lambda c: node(c, "Convolution")["attrs"].update(layout=text))
    line = ""
    try:
        SymbolModule(symbol, read_params(WEIGHTS))(images())
    except ValueError as error:
        line = str(error)
    assert "layout" in line

    def rename(content: dict[str, Any]) -> None:
        for entry in content["nodes"]:
            entry["name"] = f"{entry['name']}']#" if entry["op"] == "null" else text

    arrays = {f"{name}']#": value for name, value in read_params(WEIGHTS).items()}
    module = SymbolModule(changed(rename), arrays)
    assert torch.equal(module.eval()(images()), small().eval()(images()))


def check_other_outputs_are_refused() -> None:
    def use(content: dict[str, Any]) -> None:
        node(content, "Activation")["inputs"][0][1] = 1

    line = refusal(lambda: SymbolModule(changed(use), read_params(WEIGHTS)))
    assert "output 1" in line


def check_weights_must_fit() -> None:
    arrays, symbol = read_params(WEIGHTS), read_symbol(SYMBOL)
    lacking = {name: value for name, value in arrays.items() if name != "fc.bias"}
    line = refusal(lambda: SymbolModule(symbol, lacking, inputs=["image"]))
    assert "the weights lack fc.bias" in line
    assert refusal(lambda: SymbolModule(symbol, lacking)) == line  # it is no input either
    line = refusal(lambda: SymbolModule(symbol, {**arrays, "more": arrays["fc.bias"]}))
    assert "the symbol lacks more" in line
    line = refusal(lambda: SymbolModule(symbol, {**arrays, "fc.bias": np.zeros(9, np.float32)}))
    assert "(9,)" in line
    assert "(10,)" in line
    line = refusal(lambda: SymbolModule(symbol, {**arrays, "fc.bias": np.zeros(10)}))
    assert "float64" in line
    line = refusal(lambda: SymbolModule(symbol, arrays, inputs=["image", "image"]))
    assert "image, image" in line


def check_files_must_be_sound() -> None:
    line = refusal(lambda: SymbolModule.from_files(FOLDER / "none.json", WEIGHTS))
    assert "none.json" in line
    binary = FOLDER / "binary.json"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "binary.json" in refusal(lambda: SymbolModule.from_files(binary, WEIGHTS))
    damaged = FOLDER / "damaged.param"
    write_params(damaged, {"a": np.zeros(3, np.float32)})
    damaged.write_bytes(damaged.read_bytes()[:-5] + b"damag")
    line = refusal(lambda: SymbolModule.from_files(SYMBOL, damaged), ParamFileError)
    assert "SHA-256" in line


def main() -> None:
    """Run every check and write what came of it."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for name, check in list(globals().items()):
        if name.startswith("check_"):
            try:
                check()
                results[name] = None
            except Exception:
                results[name] = traceback.format_exc()
    (FOLDER / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
