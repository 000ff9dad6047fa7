"""Conversion of files: every value to the bit, in every direction, and nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import pytest
from gluoncv.model_zoo import cifar_residualattentionnet56, cifar_residualattentionnet92

from formats.param_file import read_params, write_params
from formats.safetensors_file import read_safetensors
from formats.weight_file import read_card, read_weights, write_card
from model.layers.attention_presets import AttentionSpec
from model.registry import create_model
from model.residual_attention_network import (
    ResidualAttentionModel_92_32input_update,
    ResidualAttentionNetwork,
)
from model.weights.convert import TARGETS, convert, main
from model.weights.dialects import GLUONCV, HEAD, PRE, TORCH, detect_dialect, rename
from model.weights.file_match import LoadError, find_model, network_shapes
from model.weights.loading import load_parameters

ROOT = Path(__file__).parents[3]
GOLDEN = Path(__file__).parents[2] / "golden"


def filled(net: Any, size: int = 32) -> Any:
    """Give every parameter values of its own, running statistics as well."""
    net.initialize()
    net(mx.nd.zeros((1, 3, size, size)))
    rng = np.random.RandomState(11)
    for name, parameter in net._collect_params_with_prefix().items():
        low, high = (0.5, 1.5) if name.endswith(("gamma", "var")) else (-0.1, 0.1)
        if name.startswith("fc."):  # logits around 1, so that 1e-6 is some steps of float32
            low, high = -1e-3, 1e-3
        parameter.set_data(mx.nd.array(rng.uniform(low, high, parameter.shape)))
    return net


def outputs(net: Any) -> np.ndarray:
    rng = np.random.RandomState(12)
    return np.asarray(net(mx.nd.array(rng.rand(1, 3, 32, 32))).asnumpy())


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A file of Attention-92 as Gluon writes it, and what its network computes."""
    path = tmp_path_factory.mktemp("original") / "attention92.param"
    net = filled(create_model("attention92"))
    net.save_parameters(str(path))
    return path, outputs(net)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a narrow network with all kinds of names."""
    path = tmp_path_factory.mktemp("small") / "small.param"
    net = ResidualAttentionNetwork(AttentionSpec((1, 2, 1), 8, (8, 16, 24), 32))
    filled(net, 16).save_parameters(str(path))
    return path


def assert_same_bits(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes(), name


NAMES = {
    "pistony": HEAD,
    "pistony-old": PRE,
    "gluoncv": GLUONCV,
    "safetensors": HEAD,
    "torch-names": TORCH,
}


@pytest.mark.parametrize("form", ["gluoncv", "torch-names"])
def test_there_and_back_gives_the_same_file(
    original: tuple[Path, np.ndarray], tmp_path: Path, form: str
) -> None:
    source, logits = original
    done = convert(source, tmp_path / "there", form)
    assert (tmp_path / "there.sha256").read_text().startswith(done.sha256)
    assert done.source.startswith("PistonY HEAD Attention-92 (750 tensors, 12,231,786 numbers, 10 ")
    assert done.notes == ("network: create_model('attention92', classes=10)",)
    convert(tmp_path / "there", tmp_path / "back", "pistony")
    assert read_card(tmp_path / "back") == read_card(tmp_path / "there")
    write_card(tmp_path / "back", None)
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    net = create_model("attention92")
    assert load_parameters(net, tmp_path / "there") == "verified"
    np.testing.assert_allclose(outputs(net), logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("middle", TARGETS)
def test_from_each_form_to_each_other(small: Path, tmp_path: Path, middle: str) -> None:
    arrays = read_params(small)
    convert(small, tmp_path / "middle", middle)
    for form in TARGETS:
        convert(tmp_path / "middle", tmp_path / form, form)
        written = read_weights(tmp_path / form)
        assert detect_dialect(written) == NAMES[form]
        assert_same_bits(written, rename(arrays, NAMES[form]))


def test_gluoncvs_and_the_oldest_class_compute_the_same(
    original: tuple[Path, np.ndarray], tmp_path: Path
) -> None:
    source, logits = original
    convert(source, tmp_path / "g", "gluoncv")
    theirs = cifar_residualattentionnet92()
    theirs.load_parameters(str(tmp_path / "g"))  # MXNet's own reader, gluoncv's own network
    np.testing.assert_allclose(outputs(theirs), logits, rtol=0, atol=1e-6)
    convert(source, tmp_path / "p", "pistony-old")
    oldest = ResidualAttentionModel_92_32input_update()
    oldest.load_parameters(str(tmp_path / "p"))
    np.testing.assert_allclose(outputs(oldest), logits, rtol=0, atol=1e-6)


def test_a_file_that_gluoncv_saved(tmp_path: Path) -> None:
    theirs = filled(cifar_residualattentionnet56(classes=100))
    theirs.save_parameters(str(tmp_path / "g.params"))
    done = convert(tmp_path / "g.params", tmp_path / "o.safetensors", "safetensors")
    assert done.notes == ("network: create_model('attention56', classes=100, wiring='legacy')",)
    ours = create_model("attention56", classes=100)
    load_parameters(ours, tmp_path / "o.safetensors")
    np.testing.assert_allclose(outputs(ours), outputs(theirs), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("form", "prefix"), [("zip", "module."), ("legacy", "")])
def test_a_state_dict_of_tengshaofengs_network(
    original: tuple[Path, np.ndarray], tmp_path: Path, torch_files: Any, prefix: str, form: str
) -> None:
    source, logits = original
    listed = json.loads((GOLDEN / "torch_attention92.json").read_text(encoding="utf-8"))
    # By position in his list and in the golden one: `rename` has no part in making this file.
    head = json.loads((GOLDEN / "head_attention92.json").read_text(encoding="utf-8"))
    arrays, state = read_params(source), {}
    for theirs, ours in zip(listed["names"], head):
        state[theirs] = arrays[ours].reshape(10, 1024) if theirs == "fc.weight" else arrays[ours]
        if theirs.endswith("running_var"):
            state[theirs.replace("running_var", "num_batches_tracked")] = np.array(7)
    state.update({name: np.ones((4, 4, 1, 1), "f4") for name in listed["unused"]})
    saved = {
        prefix + name: torch_files.tensor(a, "Float" if a.dtype == "f4" else "Long")
        for name, a in state.items()
    }
    path = torch_files.checkpoint(tmp_path, saved, form)
    assert find_model(path) == ("attention92", 10)
    net = create_model("attention92")
    assert load_parameters(net, path).renamed_from == TORCH
    np.testing.assert_array_equal(outputs(net), logits)
    done = convert(path, tmp_path / "o.param", "pistony")
    card = read_card(tmp_path / "o.param") or {}
    assert card["network"]["model"] == "attention92"
    assert card["image"] == {"mean": [0, 0, 0], "deviation": [1, 1, 1]}
    write_card(tmp_path / "o.param", None)
    assert (tmp_path / "o.param").read_bytes() == source.read_bytes()
    assert "left out: 190 entries that the network never uses" in done.notes
    assert "normalization: none; those networks were trained on pixels from 0 to 1" in done.notes
    words = r"looks like tengshaofeng's PyTorch Attention-92.*other shapes.*--model attention92"
    with pytest.raises(LoadError, match=words):
        load_parameters(create_model("attention92", channels=(64, 64, 64)), path)


def test_other_networks_become_safetensors_only(tmp_path: Path) -> None:
    arrays = {"w": np.arange(3, dtype="f4"), "features.0.bias": np.ones((2, 2), "f8")}
    write_params(tmp_path / "f", arrays)
    convert(tmp_path / "f", tmp_path / "s", "safetensors")
    assert_same_bits(read_safetensors(tmp_path / "s"), dict(sorted(arrays.items())))
    for form in ("pistony", "pistony-old", "gluoncv", "torch-names"):
        with pytest.raises(LoadError, match=f"cannot become {form}: it looks like another network"):
            convert(tmp_path / "f", tmp_path / "x", form)
    with pytest.raises(LoadError, match="unknown form 'onnx'"):
        convert(tmp_path / "f", tmp_path / "x", "onnx")


def test_forms_that_a_network_does_not_have(tmp_path: Path) -> None:
    second = filled(create_model("preresnet20"), 16)
    second.save_parameters(str(tmp_path / "v"))
    with pytest.raises(LoadError, match=r"torch-names: .* of version 2, which PyTorch's"):
        convert(tmp_path / "v", tmp_path / "x", "torch-names")
    deeper = filled(create_model("attention56_small", mask_depths=(3, 2, 1)), 16)
    deeper.save_parameters(str(tmp_path / "d"))
    with pytest.raises(LoadError, match=r"two poolings.*project's Attention-56.*--to pistony"):
        convert(tmp_path / "d", tmp_path / "x", "pistony-old")
    wider = filled(create_model("attention56_small", ptr=(2, 2, 1)), 16)
    wider.save_parameters(str(tmp_path / "w"))
    with pytest.raises(LoadError, match="gluoncv has one unit after each attention"):
        convert(tmp_path / "w", tmp_path / "x", "gluoncv")
    mixed = {**read_params(tmp_path / "d")}
    mixed["attention_module1.down_residual_blocks1.bn1.gamma"] = np.ones(64, "f4")
    write_params(tmp_path / "m", mixed)
    with pytest.raises(LoadError, match="mix two dialects"):
        convert(tmp_path / "m", tmp_path / "x", "pistony")
    assert not (tmp_path / "x").exists()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = str(tmp_path / "in.param"), str(tmp_path / "out.params")
    filled(create_model("attention56_small", classes=3), 16).save_parameters(source)
    assert main([source, target, "--to", "gluoncv"]) == 0
    printed = capsys.readouterr().out.splitlines()
    words = "this project's Attention-56, with PistonY's names (450 tensors"
    assert printed[0].startswith(f"read     {source}: {words}")
    assert printed[1] == "         network: create_model('attention56_small', classes=3)"
    assert printed[2].startswith(f"written  {target}: gluoncv Attention-56 (450 tensors")
    assert printed[3] == f"sha256   {Path(target + '.sha256').read_text()[:64]}"
    before = Path(target).read_bytes()
    for arguments, words in (
        ([source, target, "--to", "pistony"], f"error: {target}: exists. Expected a new file."),
        ([source + "x", target, "--to", "pistony", "--force"], "no such file"),
        ([source, str(tmp_path / "no" / "f"), "--to", "pistony"], "cannot be written"),
        ([source, str(tmp_path / "no" / "f"), "--to", "safetensors"], "cannot be written"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert Path(target).read_bytes() == before
    assert main([source, target, "--to", "pistony", "--force"]) == 0
    write_card(target, None)
    assert Path(target).read_bytes() == Path(source).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {
        "in.param",
        "out.params",
        "out.params.sha256",
    }
    Path(source + ".sha256").write_text("0" * 64 + "  in.param\n")
    assert main([source, target, "--to", "pistony", "--force"]) == 2
    assert "SHA-256" in capsys.readouterr().err


def test_the_module_runs() -> None:
    command = [sys.executable, "-m", "model.weights.convert", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "pistony-old" in done.stdout


@pytest.mark.parametrize("name", ["attention452_gluoncv", "attention56_imagenet"])
def test_models_are_found_without_building_all(name: str) -> None:
    """Only networks whose spec agrees with the file so far are built: below 1 second, not 4."""
    shapes = network_shapes(name, 7)
    network_shapes.cache_clear()
    assert find_model(rename(shapes, GLUONCV)) == (name, 7)  # type: ignore[arg-type]
    assert network_shapes.cache_info().misses <= 4


def test_names_of_code_with_another_wiring(tmp_path: Path) -> None:
    net = filled(create_model("attention56_paper"), 16)
    net.save_parameters(str(tmp_path / "p"))
    for form in ("pistony-old", "gluoncv", "torch-names"):
        with pytest.raises(LoadError, match=f"cannot become {form}: .* has paper wiring"):
            convert(tmp_path / "p", tmp_path / "x", form)
    done = convert(tmp_path / "p", tmp_path / "s", "safetensors")
    assert done.notes == ("network: create_model('attention56_paper', classes=10)",)
    load_parameters(create_model("attention56_paper"), tmp_path / "s")
