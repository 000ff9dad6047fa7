"""Exported networks compute what the original does, in onnxruntime and without this project."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mxnet as mx
import numpy as np
import onnx
import pytest

from formats.digest import verify_digest
from model.export.export_files import check_onnx, compare, export_symbol, open_network
from model.export.onnx_graph import (
    TOLERANCE,
    ExportError,
    largest_difference,
    onnx_session,
    to_onnx,
)
from model.export.tracing import Traced, run_symbol, trace
from model.layers.retina import Retina
from model.registry import create_model
from model.weights.file_match import LoadError
from tests.model.export.exported import tiny_attention, tiny_glimpse, tiny_resnet
from training.apply import export

NETWORKS: dict[str, Callable[[], Any]] = {
    "attention, legacy": lambda: tiny_attention(),
    "attention, paper, nal": lambda: tiny_attention(wiring="paper", learning="nal"),
    "attention, channel": lambda: tiny_attention(attention="channel"),
    "attention, spatial": lambda: tiny_attention(attention="spatial"),
    "attention, resnext, imagenet stem": lambda: tiny_attention(
        unit="resnext", groups=2, attention="tanh", stem="7x7", image_size=64
    ),
    "attention, stem 5x5, names of old": lambda: tiny_attention(stem="5x5", old_names=True),
    "attention, tf": lambda: tiny_attention("attention56_tf"),
    "attention, gluoncv": lambda: tiny_attention("attention452_gluoncv"),
    **{
        f"resnet, {gate or 'plain'}": partial(tiny_resnet, f"resnet20{gate}")
        for gate in ("", "_static", "_ie", "_ram", "_se", "_eca", "_dia", "_srm", "_cbam")
    },
    "resnet version 2, basic, ram": lambda: tiny_resnet("preresnet20_basic_ram"),
    "glimpse": lambda: tiny_glimpse(),
    "glimpse, lstm, learned": lambda: tiny_glimpse(
        core="lstm", first_location="learned", combine="multiply", location_octaves=2
    ),
    "glimpse, context, noise": lambda: tiny_glimpse(first_location="context", gaze="noise"),
    "glimpse, one glimpse, tanh": lambda: tiny_glimpse(num_glimpses=1, squash="tanh"),
}


def plain_trace(symbol: Any, inputs: dict[str, tuple], outputs: dict[str, tuple]) -> Traced:
    """A graph without parameters."""
    return Traced(symbol, {}, inputs, outputs, ((4, 6),))


def run_onnx(traced: Traced, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = onnx_session(to_onnx(traced, {}).SerializeToString())
    return list(session.run(list(traced.outputs), inputs))


@pytest.mark.parametrize("family", NETWORKS)
def test_onnxruntime_computes_the_same(family: str) -> None:
    traced = trace(NETWORKS[family]())
    model = to_onnx(traced, {"a": "b"})
    assert check_onnx(traced, model.SerializeToString()) < TOLERANCE
    assert len(traced.sizes) == (1 if "glimpse" in family else 3)  # sizes it was compared at
    assert [value.name for value in model.graph.input] == list(traced.inputs)
    assert [value.name for value in model.graph.output] == list(traced.outputs)
    free = {dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim}
    assert free - {""} == ({"N"} if "glimpse" in family else {"N", "H", "W"})


def test_outputs_are_not_all_alike() -> None:
    """Else the comparisons above would pass for anything."""
    for build in (tiny_attention, tiny_glimpse):
        traced = trace(build())
        outputs = run_symbol(traced, traced.example(3, traced.sizes[0]))
        assert all(output.std() > 1e-3 for output in outputs)


def test_a_model_with_another_weight_is_refused() -> None:
    traced = trace(tiny_resnet("resnet20_ram"))
    model = to_onnx(traced, {})
    weight = next(t for t in model.graph.initializer if t.name.endswith("dense0_bias"))
    values = onnx.numpy_helper.to_array(weight) + np.float32(1e-3)
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    with pytest.raises(ExportError, match=r"differs from the original in logits by .*1 images"):
        check_onnx(traced, model.SerializeToString())


def test_wrong_shapes_and_nan_are_infinitely_different() -> None:
    one = np.ones((2, 3))
    assert largest_difference(one, np.ones((3, 2))) == float("inf")
    assert largest_difference(one, np.full((2, 3), np.nan)) == float("inf")
    assert largest_difference(one * 200, one * 201) == pytest.approx(1 / 200)
    traced = trace(tiny_resnet("resnet20"))
    with pytest.raises(ExportError, match="by inf"):
        compare(traced, lambda inputs: [np.full((len(inputs["image"]), 10), np.nan)])


@pytest.mark.parametrize("scales", [1, 3])
def test_crops_at_the_corners_are_the_same_numbers(scales: int) -> None:
    """ONNX's Gather wraps negative indices, MXNet's take does not: padding must stay padding."""
    retina = Retina(9, 11, 2, patch_size=4, num_patches=scales, scale=2.0, pad_value=0.25)
    image, places = mx.sym.var("image"), mx.sym.var("places")
    index = mx.sym.cast(
        mx.sym.zeros_like(mx.sym.slice_axis(places, axis=1, begin=0, end=1)), "int32"
    )
    symbol = retina.glimpses(
        mx.sym, retina.pyramid(mx.sym, image), mx.sym.reshape(index, shape=(-1,)), places
    )
    traced = plain_trace(
        symbol, {"image": (1, 2, 9, 11), "places": ("R", 2)}, {"seen": ("R", retina.values)}
    )
    corners = [[x, y] for x in (-1, 1) for y in (-1, 1)]
    beyond = [[-3, 0.999], [0, 3], [-0.999, -1], [0.1, -0.2]]
    pixels = np.random.default_rng(0).integers(0, 256, (1, 2, 9, 11)) / np.float32(256)
    inputs = {
        "image": pixels.astype(np.float32),
        "places": np.array(corners + beyond, np.float32),
    }
    (expected,), (found,) = run_symbol(traced, inputs), run_onnx(traced, inputs)
    assert found.tobytes() == expected.tobytes()
    first = found[0, :16].reshape(4, 4)  # top left, smallest scale, first channel
    assert (first[:2] == 0.25).all()
    assert (first[:, :2] == 0.25).all()
    assert (first[2:, 2:] == pixels[0, 0, :2, :2]).all()


def test_a_glimpse_model_at_the_corners_with_noise() -> None:
    traced = trace(tiny_glimpse(pad_value=0.5))
    inputs = traced.example(4, traced.sizes[0])
    inputs["first_location"] = np.array(
        [[[x, y], [y, -x]] for x in (-1, 1) for y in (-1, 1)], np.float32
    )
    inputs["noise"] = np.sign(inputs["noise"]) * np.float32(3)  # every glimpse goes to a corner
    expected = dict(zip(traced.outputs, run_symbol(traced, inputs)))
    found = dict(zip(traced.outputs, run_onnx(traced, inputs)))
    assert (np.abs(expected["locations"]) == 1).all()
    assert (found["locations"] == expected["locations"]).all()
    for name in traced.outputs:
        assert largest_difference(expected[name], found[name]) < TOLERANCE
    other = run_onnx(traced, {**inputs, "noise": -inputs["noise"]})
    assert largest_difference(found["logits"], other[0]) > 1e-3  # it is heeded


def test_the_compiled_operator_stays_out_of_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.recurrent_attention.load", lambda group: "as if built")
    net = tiny_glimpse()
    assert net.use_operator()
    nodes = json.loads(trace(net).symbol.tojson())["nodes"]
    assert "glimpse_rollouts" not in {node["op"] for node in nodes}
    assert net.uses_operator  # as before


@pytest.mark.parametrize("mode", ["like", "size"])
def test_bilinear_resizing_has_a_converter(mode: str) -> None:
    low, high = mx.sym.var("low"), mx.sym.var("high")
    size = {"height": 7, "width": 5} if mode == "size" else {}
    symbol = (
        mx.sym.contrib.BilinearResize2D(low, high, mode=mode, **size)
        if mode == "like"
        else (mx.sym.contrib.BilinearResize2D(low, **size))
    )
    inputs: dict[str, tuple] = {"low": ("N", 2, "H", "W")}
    if mode == "like":
        inputs["high"] = ("N", 3, "R", 9)
    traced = plain_trace(symbol, inputs, {"resized": ("N", 2, "Y", "X")})
    rng = np.random.default_rng(0)
    shapes = {"low": (2, 2, 3, 4), "high": (2, 3, 11, 9)}
    arrays = {name: rng.normal(size=shapes[name]).astype(np.float32) for name in inputs}
    (expected,), (found,) = run_symbol(traced, arrays), run_onnx(traced, arrays)
    assert expected.shape == ((2, 2, 7, 5) if mode == "size" else (2, 2, 11, 9))
    assert largest_difference(expected, found) < TOLERANCE


@pytest.mark.parametrize("size", [4, (3, 5)])
def test_averages_over_bins_have_a_converter(size: Any) -> None:
    symbol = mx.sym.contrib.AdaptiveAvgPooling2D(mx.sym.var("x"), output_size=size)
    traced = plain_trace(symbol, {"x": ("N", 2, "H", "W")}, {"small": ("N", 2, "Y", "X")})
    arrays = {"x": np.random.default_rng(0).normal(size=(3, 2, 10, 7)).astype(np.float32)}
    (expected,), (found,) = run_symbol(traced, arrays), run_onnx(traced, arrays)
    assert largest_difference(expected, found) < TOLERANCE  # bins overlap here


@pytest.mark.parametrize(
    ("name", "free"), [("gluoncv:alexnet", False), ("gluoncv:cifar_resnet20_v1", True)]
)
def test_a_layer_for_all_pixels_takes_one_size(name: str, free: bool) -> None:
    net = create_model(name, 3)
    net.initialize()
    traced = trace(net)
    _, height, width = net.image_shape
    assert traced.inputs == {"image": ("N", 3, *(("H", "W") if free else (height, width)))}
    assert len(traced.sizes) == (3 if free else 1)
    if not free:
        assert run_symbol(traced, traced.example(2, traced.sizes[0]))[0].shape == (2, 3)


def test_an_operator_without_onnx_form_is_named() -> None:
    symbol = mx.sym.contrib.BilinearResize2D(
        mx.sym.var("x"), mode="odd_scale", scale_height=2.0, scale_width=2.0
    )
    with pytest.raises(ExportError, match="BilinearResize2D in mode 'odd_scale'"):
        to_onnx(plain_trace(symbol, {"x": (1, 1, 4, 6)}, {"y": (1, 1, 9, 13)}), {})


def test_the_same_network_gives_the_same_bytes() -> None:
    models = []
    for _ in range(2):
        with mx.name.NameManager():
            net = tiny_resnet("resnet20_se")
        models.append(to_onnx(trace(net), {}).SerializeToString(deterministic=True))
    assert models[0] == models[1]


SCRIPT = """
import sys
import mxnet as mx
import numpy as np

folder = sys.argv[1]
net = mx.gluon.SymbolBlock.imports(
    folder + "/x-symbol.json", ["image", "first_location", "noise"], folder + "/x-0000.params"
)
inputs = np.load(folder + "/inputs.npz")
results = net(*(mx.nd.array(inputs[name]) for name in ("image", "first_location", "noise")))
np.savez(folder + "/outputs.npz", *(result.asnumpy() for result in results))
assert not {"model", "training", "bridge"} & set(sys.modules)
"""


def test_symbol_block_runs_the_files_without_this_project(tmp_path: Path) -> None:
    traced = trace(tiny_glimpse())
    names = export_symbol(traced, str(tmp_path / "x"), {"model": "tiny"})
    assert sorted(names) == sorted(str(tmp_path / f"x{end}") for end in ENDINGS)
    assert verify_digest(tmp_path / "x-0000.params")
    inputs = traced.example(2, traced.sizes[0], seed=3)
    np.savez(tmp_path / "inputs.npz", **inputs)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-I", "script.py", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "outputs.npz")
    for name, expected in zip(found.files, run_symbol(traced, inputs)):
        assert (found[name] == expected).all()
    about = json.loads((tmp_path / "x.json").read_text())
    assert about["inputs"]["noise"] == ["N", "R", 3, 2]


# ------------------------------------------------------------------------------------ command line

ENDINGS = ("-symbol.json", "-0000.params", ".json")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run of a small attention network whose settings are not those of its name."""
    folder = tmp_path / "run"
    folder.mkdir()
    tiny_attention(wiring="paper").save_parameters(str(folder / "last.param"))
    settings = {"model": "attention56_small", "wiring": "paper", "classes": 0, "image_size": 7}
    (folder / "config.json").write_text(json.dumps({**settings, "learning": None}))
    preprocessing = {"size": 32, "mean": [0.5] * 3, "std": [0.25] * 3, "class_names": ["a"]}
    (folder / "preprocessing.json").write_text(json.dumps({**preprocessing, "crop": 1.0}))
    return folder


TINY_FLAGS = [
    "--set", "channels=(8, 8)", "--set", "mask_depths=(2, 1)", "--set", "modules=(1, 1)",
    "--set", "stem_channels=8", "--set", "tail_channels=8",
]  # fmt: skip


def test_the_command_finds_network_settings_and_preprocessing(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run_folder / "last.param"
    assert export.main([str(file), "--to", "onnx", *TINY_FLAGS]) == 0
    written = run_folder / "last.onnx"
    assert f"wrote {written}" in capsys.readouterr().out
    session = onnx_session(written.read_bytes())
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["settings"])["wiring"] == "paper"
    assert json.loads(about["preprocessing"])["class_names"] == ["a"]
    image = np.random.default_rng(0).normal(size=(2, 3, 40, 24)).astype(np.float32)
    expected = tiny_attention(wiring="paper")(mx.nd.array(image)).asnumpy()
    other = tiny_attention(wiring="legacy")(mx.nd.array(image)).asnumpy()
    (found,) = session.run(None, {"image": image})
    assert largest_difference(expected, found) < TOLERANCE
    assert largest_difference(other, found) > 1e-3


def test_folded_gates_give_the_same_logits(tmp_path: Path) -> None:
    net = tiny_resnet("resnet20_ram")
    net.save_parameters(str(tmp_path / "x.param"))
    flags = ["--model", "resnet20_ram", "--set", "depth=11", "--set", "channels=(4, 4, 8)"]
    sizes = []
    for more in ([], ["--fold-gates", "--force"]):
        assert export.main([str(tmp_path / "x.param"), "--to", "onnx", *flags, *more]) == 0
        model = (tmp_path / "x.onnx").read_bytes()
        sizes.append(len(onnx.load_model_from_string(model).graph.node))
        image = np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)
        (found,) = onnx_session(model).run(None, {"image": image})
        expected = net(mx.nd.array(image)).asnumpy()
        assert largest_difference(expected, found) < TOLERANCE
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to", "symbol", "--int8"], "--int8 is for --to onnx"),
        (["--to", "onnx", "--set", "wiring"], "give FIELD=VALUE"),
        (["--to", "onnx", "--set", "colour=1"], "unknown override"),
        (["--to", "onnx", "--model", "attention57"], "did you mean"),
        (["--to", "onnx", "--fold-gates", *TINY_FLAGS], "is for RAM ResNets"),
        (["--to", "onnx", "--output", "no/such/folder/x", *TINY_FLAGS], "cannot be written"),
        (["--to", "symbol", "--output", "no/such/folder/x", *TINY_FLAGS], "cannot be written"),
        (["--to", "onnx", "--output", ".onnx"], "give a name for the files, not only an ending"),
        (["--to", "symbol", "--output", "x/"], "give a name for the files, not only an ending"),
        (["--to", "onnx"], "other shapes|looks like"),
    ],
)
def test_mistakes_end_with_one_line_and_no_file(
    run_folder: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run_folder.parent.rglob("*"))
    assert export.main([str(run_folder / "last.param"), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert sorted(run_folder.parent.rglob("*")) == before


@pytest.mark.parametrize(
    ("output", "written"), [("a.onnx", "a.onnx"), ("b", "b.onnx"), ("c.2", "c.2.onnx")]
)
def test_an_output_may_have_its_ending(run_folder: Path, output: str, written: str) -> None:
    before = set(run_folder.iterdir())
    flags = ["--to", "onnx", "--output", str(run_folder / output), *TINY_FLAGS]
    assert export.main([str(run_folder / "last.param"), *flags]) == 0
    assert set(run_folder.iterdir()) - before == {run_folder / written}


@pytest.mark.parametrize("to", ["symbol", "onnx"])
def test_files_that_exist_are_kept(
    run_folder: Path, to: str, capsys: pytest.CaptureFixture[str]
) -> None:
    old = run_folder / ("last.onnx" if to == "onnx" else "last-0000.params")
    old.write_text("mine")
    assert export.main([str(run_folder / "last.param"), "--to", to, *TINY_FLAGS]) == 2
    assert "--force" in capsys.readouterr().err
    assert old.read_text() == "mine"


def test_weights_of_no_network_are_refused(tmp_path: Path) -> None:
    net = mx.gluon.nn.Dense(2, in_units=3)
    net.initialize()
    net.save_parameters(str(tmp_path / "x.param"))
    with pytest.raises(LoadError, match="no model of this project fits"):
        open_network(tmp_path / "x.param")


def test_a_damaged_run_folder_is_named(run_folder: Path) -> None:
    (run_folder / "config.json").write_text("[1")
    assert export.main([str(run_folder / "last.param"), "--to", "onnx"]) == 2
