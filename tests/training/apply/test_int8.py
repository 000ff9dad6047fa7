"""8 bit export: measured, accepted or refused by the number, and nothing written when refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import export_model
from formats.errors import UserError
from formats.param_file import write_params
from model.export.onnx_graph import onnx_session, to_onnx
from model.export.tracing import trace
from tests.model.export.exported import tiny_attention, tiny_resnet
from tests.model.export.test_export import TINY_FLAGS
from training.apply import int8
from training.data.dataset import Dataset, ImageData


def images(count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="module")
def model() -> bytes:
    serialized: bytes = to_onnx(trace(tiny_resnet("resnet20")), {"a": "b"}).SerializeToString()
    return serialized


def test_quantized_convolutions_are_close_and_keep_the_metadata(model: bytes) -> None:
    small = int8.quantize(model, images(40))
    graph = onnx.load_model_from_string(small).graph
    kinds = [onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer]
    assert kinds.count("INT8") >= 11  # a weight for every convolution
    session = onnx_session(small)
    assert session.get_modelmeta().custom_metadata_map == {"a": "b"}
    inputs = {"image": images(8)}
    expected, found = (onnx_session(m).run(None, inputs)[0] for m in (model, small))
    assert 0 < np.abs(expected - found).max() < 0.1 * np.abs(expected).max()
    other = onnx_session(small).run(None, {"image": images(5)[:, :, :9]})[0]
    assert other.shape == (5, 10)  # batch and size stayed free


def test_accuracy_counts_every_image(model: bytes) -> None:
    inputs = images(7)
    label = onnx_session(model).run(None, {"image": inputs})[0].argmax(axis=1)
    label[:2] = (label[:2] + 1) % 10
    batches = [(inputs[:4], label[:4]), (inputs[4:], label[4:])]
    assert int8.accuracies([model, model], batches) == [5 / 7, 5 / 7]
    with pytest.raises(UserError, match="nothing to evaluate"):
        int8.accuracies([model], [])


def test_a_loss_above_the_limit_is_refused_with_the_number() -> None:
    int8.accept(0.9, 0.895, 0.005 + 1e-9)
    int8.accept(0.9, 0.95, 0.0)
    with pytest.raises(UserError, match=r"8 bits cost 1.00% .*90.00% before, 89.00% after.*0.50%"):
        int8.accept(0.9, 0.89, 0.005)
    with pytest.raises(UserError, match="needs training images"):
        int8.quantize(b"", images(0))


@pytest.fixture
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on a data set of 40 images whose labels are what the network says."""
    net = tiny_attention()
    net.save_parameters(str(tmp_path / "last.param"))
    settings = {"model": "attention56_small", "dataset": "cifar10", "normalization": "imagenet"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), np.uint8)
    labels = np.arange(40, dtype=np.int32) % 10
    split = ImageData(pixels, labels)
    names = tuple("abcdefghij")
    data = Dataset("cifar10", split, split, names, (0.5,) * 3, (0.25,) * 3)
    monkeypatch.setattr(int8, "open_dataset", lambda config: data)
    return tmp_path


def test_the_script_measures_and_writes(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(run_folder / "last.param"), "--to", "onnx", "--int8", *TINY_FLAGS]
    assert export_model.main([*words, "--int8-limit", "0.5", "--int8-images", "32"]) == 0
    output = capsys.readouterr().out
    assert "accuracy over 40 test images of cifar10: " in output
    about = onnx_session((run_folder / "last.onnx").read_bytes()).get_modelmeta()
    known = json.loads(about.custom_metadata_map["preprocessing"])
    assert known["mean"] == [0.485, 0.456, 0.406]  # of the normalization, not of the data set
    assert known["class_names"][0] == "airplane"


def test_images_are_of_all_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first ones of a folder are of one class alone."""
    labels = np.repeat(np.arange(4, dtype=np.int32), 10)
    pixels = (60 * labels).astype(np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    split = ImageData(pixels, labels)
    data = Dataset("x", split, split, tuple("abcd"), (0.0,) * 3, (1.0,) * 3)
    seen = []

    def quantize(model: bytes, images: np.ndarray) -> bytes:
        seen.append(np.rint(images[:, 0, 0, 0] * 255).astype(int).tolist())
        return b""

    def accuracies(models: object, batches: object) -> list[float]:
        seen.append(np.concatenate([batch.label for batch in batches]).tolist())  # type: ignore[attr-defined]
        return [1.0, 1.0]

    monkeypatch.setattr(int8, "open_dataset", lambda config: data)
    image = {"height": 2, "width": 2, "mean": [0.0] * 3, "deviation": [1.0] * 3}
    card = {"card": 1, "data": {"name": "x"}, "image": image}
    write_params(tmp_path / "x.param", {"a": np.ones(1, "f4")}, card=card)
    monkeypatch.setattr(int8, "quantize", quantize)
    monkeypatch.setattr(int8, "accuracies", accuracies)
    found = int8.measure_int8(tmp_path / "x.param", b"", None, images=4, test=8, seed=1)
    assert seen == [[0, 60, 120, 180], [0, 0, 1, 1, 2, 2, 3, 3]]
    assert found.images == 8
    int8.measure_int8(tmp_path / "x.param", b"", None, 4, 8, 1, "0.2,0.2,0.2/1,1,1")
    assert seen[2:] == [[-51, 9, 69, 129], seen[1]]


def test_its_flags_go_with_int8(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(run_folder / "last.param"), "--to", "onnx", *TINY_FLAGS]
    assert export_model.main([*words, "--int8-test", "20", "--seed", "3"]) == 2
    assert "--int8-test, --seed: for --int8, which is not given" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--int8-limit", "0.01"], "8 bits cost"),
        (["--int8-images", "0"], "must be 1 or more"),
        (["--seed", "-1"], "--seed 0 or more"),
    ],
)
def test_a_refusal_writes_nothing(
    run_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(int8, "accuracies", lambda models, batches: [0.9, 0.8])
    words = [str(run_folder / "last.param"), "--to", "onnx", "--int8", *TINY_FLAGS]
    assert export_model.main([*words, *flags]) == 2
    assert message in capsys.readouterr().err
    assert not (run_folder / "last.onnx").exists()


def test_a_file_without_a_record_cannot_be_calibrated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_attention().save_parameters(str(tmp_path / "x.param"))
    flags: list[Any] = ["--model", "attention56_small", *TINY_FLAGS]
    assert export_model.main([str(tmp_path / "x.param"), "--to", "onnx", "--int8", *flags]) == 2
    assert "nothing is on record" in capsys.readouterr().err
