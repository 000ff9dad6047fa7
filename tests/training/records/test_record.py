"""The record of a run: three views of one dict, resume, locks, SIGKILL."""

from __future__ import annotations

import base64
import io
import json
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from formats.errors import UserError
from training.records import environment
from training.records.metrics import MetricsTable, read_metrics
from training.records.run import Run
from training.records.run_folder import read_config

ROOT = Path(__file__).resolve().parents[3]
CONFIG = {"model": "attention56", "epochs": 5}


def values(epoch: int, **more: Any) -> dict[str, Any]:
    row = {
        "test_acc": 0.5 + epoch / 100,
        "step": 10 * epoch,
        "lr": 0.1,
        "train_loss": 1 / epoch,
        "train_acc": np.float32(0.5),
        "test_loss": 2 / epoch,
        "images_per_sec": 123.0,
        "wall_sec": 61.0 * epoch,
    }
    return {**row, **more}


def record(folder: Path, epochs: int) -> None:
    with Run.create(folder, CONFIG, ["train"]) as run:
        for epoch in range(1, epochs + 1):
            run.histograms(epoch, {"conv1.weight": np.arange(6.0) * epoch})
            run.scalars(epoch, values(epoch))


# tensorboard and mxboard register the same protobuf names: one process can import only one of them.
READER = """
import base64, json, os, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
board = {}
for folder, _, names in os.walk(sys.argv[1]):
    if any("tfevents" in name for name in names):
        reader = EventAccumulator(folder)
        reader.Reload()
        tags = reader.Tags()
        board[os.path.relpath(folder, sys.argv[1])] = {
            "scalars": {
                tag: [[event.step, event.value] for event in reader.Scalars(tag)]
                for tag in tags["scalars"]
            },
            "histograms": {
                tag: [[event.step, event.histogram_value.sum] for event in reader.Histograms(tag)]
                for tag in tags["histograms"]
            },
            "images": {
                tag: base64.b64encode(reader.Images(tag)[0].encoded_image_string).decode()
                for tag in tags["images"]
            },
            "texts": {
                tag: reader.Tensors(tag)[0].tensor_proto.string_val[0].decode()
                for tag in tags["tensors"]
                if reader.SummaryMetadata(tag).plugin_data.plugin_name == "text"
            },
            "graph": str(reader.Graph()) if tags["graph"] else "",
        }
json.dump(board, sys.stdout)
"""


def read_board(folder: Path) -> dict[str, Any]:
    """What TensorBoard reads from a folder: run -> kind -> tag -> values."""
    done = subprocess.run(
        [sys.executable, "-c", READER, str(folder)], capture_output=True, text=True, check=True
    )
    assert "out of order" not in done.stderr
    return dict(json.loads(done.stdout))


def test_the_terminal_shows_held_out_scores_from_the_first_on() -> None:
    table = MetricsTable(4)
    of_test = {"valid_loss": 0.25, "valid_acc": 0.75}
    rows = enumerate((values(1), values(2, **of_test), values(3)), 1)
    first, second, third = (table.lines({"epoch": epoch, **row}) for epoch, row in rows)
    assert len(first) == len(second) == 2
    assert "valid loss" not in first[0]
    assert second[0].index("valid loss") < second[0].index("test loss")
    assert "75.00%" in second[1]
    assert len(third) == 1
    assert len(third[0]) == len(second[1])


def test_one_dict_reaches_metrics_and_every_chart(tmp_path: Path) -> None:
    with Run.create(tmp_path, CONFIG, ["train"]) as run:
        for epoch in (1, 2):
            more = {"reward": 3, "gate_alive": 0.5, "gate_mean1": 0.25}
            run.scalars(epoch, values(epoch, valid_loss=0.25, valid_acc=0.75, **more))
    board = read_board(tmp_path)
    rows = read_metrics(tmp_path)
    assert list(rows[0]) == [
        "epoch", "step", "lr", "train_loss", "train_acc", "valid_loss", "valid_acc",
        "test_loss", "test_acc", "images_per_sec", "wall_sec", "reward", "gate_alive", "gate_mean1",
    ]  # fmt: skip
    assert [row["epoch"] for row in rows] == [1, 2]
    for chart, split, key in [
        ("loss", "train", "train_loss"),
        ("loss", "valid", "valid_loss"),
        ("loss", "test", "test_loss"),
        ("accuracy", "train", "train_acc"),
        ("accuracy", "valid", "valid_acc"),
        ("accuracy", "test", "test_acc"),
    ]:
        expected = [[row["epoch"], pytest.approx(row[key])] for row in rows]
        assert board[f"{chart}/{split}"]["scalars"] == {chart: expected}
    assert board["."]["scalars"] == {
        "lr": [[1, pytest.approx(0.1)], [2, pytest.approx(0.1)]],
        "throughput": [[1, 123.0], [2, 123.0]],
        "wall_sec": [[1, 61.0], [2, 122.0]],
        "reward": [[1, 3.0], [2, 3.0]],
        "gates/alive": [[1, 0.5], [2, 0.5]],
        "gates/mean1": [[1, 0.25], [2, 0.25]],
    }


def test_weights_and_settings_have_their_groups(tmp_path: Path) -> None:
    settings = {**CONFIG, "note": "a|b\nc", "resume": None}
    with Run.create(tmp_path, settings, ["train"]) as run:
        for epoch in (1, 2):
            arrays = {"module1.conv.weight": np.arange(6.0), "fc.bias": np.ones(2)}
            run.histograms(epoch, arrays)
            run.scalars(epoch, values(epoch))
    board = read_board(tmp_path)["."]
    assert list(board["histograms"]) == ["weights/module1/conv/weight", "weights/fc/bias"]
    table = board["texts"].pop("settings").splitlines()
    assert table == [
        "| setting | value |", "|---|---|", "| model | attention56 |", "| epochs | 5 |",
        "| note | a\\|b c |", "| resume |  |",
    ]  # fmt: skip
    assert board["texts"] == {}


def test_the_terminal_shows_an_aligned_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record(tmp_path, 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == [
        "epoch", "step", "lr", "train", "loss", "acc", "test", "loss", "acc", "images/s", "time",
    ]  # fmt: skip
    assert lines[2].split() == [
        "2/5", "20", "0.1", "0.5000", "50.00%", "1.0000", "52.00%", "123.0", "0:02:02",
    ]  # fmt: skip
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1


def test_values_that_are_not_finite_stay_strict_json(tmp_path: Path) -> None:
    with Run.create(tmp_path, CONFIG, []) as run:
        run.scalars(1, values(1, train_loss=float("nan"), test_loss=np.inf, lr=None))
        run.histograms(1, {"all_nan": np.full(3, np.nan), "some": np.array([1.0, np.inf])})
    text = (tmp_path / "metrics.jsonl").read_text()
    row = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in {text}"))
    assert row["train_loss"] is None
    assert row["test_loss"] is None
    assert row["lr"] is None


def test_wrong_values_are_refused(tmp_path: Path) -> None:
    with Run.create(tmp_path, CONFIG, []) as run:
        with pytest.raises(TypeError, match="lr must be a number"):
            run.scalars(1, values(1, lr="fast"))
        run.scalars(1, values(1))
        with pytest.raises(ValueError, match="on record already"):
            run.scalars(1, values(1))
        with pytest.raises(ValueError, match="uint8"):
            run.images("sample", 0, np.zeros((2, 8, 8, 3), np.float32))
    assert len(read_metrics(tmp_path)) == 1


def test_config_and_environment_are_written(tmp_path: Path) -> None:
    Run.create(tmp_path / "a" / "b", CONFIG, ["train_cifar.py", "--seed", "3"]).close()
    assert read_config(tmp_path / "a" / "b") == CONFIG
    env = json.loads((tmp_path / "a" / "b" / "env.json").read_text())
    assert env["command"] == ["train_cifar.py", "--seed", "3"]
    assert env["packages"]["numpy"] == np.__version__
    assert env["resumes"] == []


def test_a_module_is_recorded_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/me/tool/__main__.py", "--seed", "3"])
    for spec, first in (
        (SimpleNamespace(name="tool.__main__"), ["-m", "tool"]),
        (SimpleNamespace(name="tool.part"), ["-m", "tool.part"]),
        (None, ["/home/me/tool/__main__.py"]),
    ):
        monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))
        assert environment.describe()["command"] == [*first, "--seed", "3"]


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    record(tmp_path, 1)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"--resume .*--run-dir"):
        Run.create(tmp_path, CONFIG, [])
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    Run.resume(tmp_path, 1).close()  # the refused attempt left no lock


def test_bad_folders_are_user_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot make the run folder"):
        Run.create(tmp_path / "file" / "run", CONFIG, [])
    with pytest.raises(UserError, match="holds no run"):
        Run.resume(tmp_path / "missing", 1)
    with pytest.raises(UserError, match="holds no run"):
        Run.resume(tmp_path, 1)
    for text in ("{", "[]", "\udcff"):
        (tmp_path / "config.json").write_text(text, errors="surrogateescape")
        with pytest.raises(UserError, match="damaged"):
            Run.resume(tmp_path, 1)


def test_two_processes_cannot_share_a_folder(tmp_path: Path) -> None:
    code = "import sys; from training.records.run import Run; Run.resume(sys.argv[1], 1)"
    with Run.create(tmp_path, CONFIG, []):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
        )
    assert "UserError: another process has the run" in done.stderr


def test_resume_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    record(tmp_path / "whole", 4)
    record(tmp_path / "resumed", 3)
    with open(tmp_path / "resumed" / "metrics.jsonl", "ab") as file:
        file.write(b'{"epoch": 4, "lr"')  # what SIGKILL leaves
    with Run.resume(tmp_path / "resumed", 2) as run:
        assert run.config == CONFIG
        for epoch in (3, 4):
            run.histograms(epoch, {"conv1.weight": np.arange(6.0) * epoch})
            run.scalars(epoch, values(epoch))
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert (resumed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert read_board(resumed) == read_board(whole)
    env = json.loads((resumed / "env.json").read_text())
    assert [entry["epoch"] for entry in env["resumes"]] == [2]
    assert env["resumes"][0]["command"] == environment.describe()["command"]


def test_metrics_that_are_damaged_in_the_middle_are_not_resumed(tmp_path: Path) -> None:
    record(tmp_path, 3)
    path = tmp_path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"?" + lines[1] + lines[2])
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"line 2 of .* is damaged"):
        Run.resume(tmp_path, 3)
    assert path.read_bytes() == before


@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_back_as_they_were(tmp_path: Path, channels: int) -> None:
    images = np.random.RandomState(0).randint(0, 256, (9, 8, 8, channels)).astype(np.uint8)
    with Run.create(tmp_path, CONFIG, []) as run:
        run.images("train_sample", 0, images)
    png = base64.b64decode(read_board(tmp_path)["."]["images"]["train_sample"])
    grid = np.asarray(Image.open(io.BytesIO(png)))
    assert grid.shape == (22, 82, 3)  # 2 x 8 pictures with a border of 2
    np.testing.assert_array_equal(grid[2:10, 12:20], np.broadcast_to(images[1], (8, 8, 3)))
    np.testing.assert_array_equal(grid[12:20, 2:10], np.broadcast_to(images[8], (8, 8, 3)))


def test_graph_is_written_or_skipped_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import mxnet as mx

    net = mx.gluon.nn.HybridSequential()
    net.add(mx.gluon.nn.Conv2D(2, 3), mx.gluon.nn.Dense(3))
    net.initialize()
    with Run.create(tmp_path, CONFIG, []) as run:
        run.graph(net)
        assert capsys.readouterr().err.count("warning: no graph for TensorBoard") == 1
        net.hybridize()
        net(mx.nd.ones((1, 3, 8, 8)))
        run.graph(net)
        assert capsys.readouterr().err == ""
    assert "Convolution" in read_board(tmp_path)["."]["graph"]


def test_sigkill_loses_nothing_that_metrics_has(tmp_path: Path) -> None:
    code = f"""
        import os, signal
        from training.records.run import Run
        run = Run.create({str(tmp_path)!r}, {{}}, [])
        for epoch in (1, 2, 3):
            run.scalars(epoch, dict(train_loss=1.0, lr=0.1))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    assert [row["epoch"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    board = read_board(tmp_path)
    assert [step for step, _ in board["."]["scalars"]["lr"]] == [1, 2, 3]
    assert [step for step, _ in board["loss/train"]["scalars"]["loss"]] == [1, 2, 3]
    Run.resume(tmp_path, 3).close()


def test_a_full_disk_is_one_user_error(tmp_path: Path) -> None:
    code = f"""
        import resource
        from formats.errors import UserError
        from training.records.run import Run
        try:
            with Run.create({str(tmp_path)!r}, {{}}, []) as run:
                resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))  # any larger write fails
                for epoch in range(1, 100):
                    run.histograms(epoch, {{"a": [1.0, 2.0], "b": [3.0, 4.0]}})
                    run.scalars(epoch, dict(train_loss=1.0))
        except UserError as error:
            print("error:", error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "error: cannot write to the run folder" in done.stdout
    assert done.stderr == ""
    finished = [row["epoch"] for row in read_metrics(tmp_path)]
    assert finished
    Run.resume(tmp_path, finished[-1]).close()


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_recorded_only_for_the_repository_itself(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *author, *arguments], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "inner").mkdir()
    (tmp_path / "file").write_text("1")
    git("init")
    git("add", "file")
    git("commit", "-m", "first")
    state = environment._git_state(tmp_path)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "file").write_text("2")
    assert environment._git_state(tmp_path) == {"commit": state["commit"], "dirty": True}
    assert environment._git_state(tmp_path / "inner") is None


def test_import_is_free() -> None:
    loaded = "'mxnet' in sys.modules or 'mxboard' in sys.modules"
    code = f"import sys, training.records.run; sys.exit({loaded})"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
