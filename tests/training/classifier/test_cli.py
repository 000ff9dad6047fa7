"""``train_cifar.py`` as a user runs it: results, signals, wrong input, and importing it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import mxnet as mx
import numpy as np
import pytest
from PIL import Image

import train_cifar
from formats.errors import UserError
from formats.param_file import read_params, write_params
from model import create_model
from model.execution.gate_report import gate_statistics
from model.weights.loading import load_parameters
from tests.model.native.processor import BFLOAT16, without_operators
from training.classifier import graph_choice
from training.classifier.graph_choice import Choice
from training.classifier.loaders import evaluation_batches, open_dataset
from training.downloads.cifar_files import FORMATS
from training.loop.announce import python_word
from training.records.metrics import read_metrics
from training.records.state_file import load_state

ROOT = Path(__file__).resolve().parents[3]
EPOCHS = 8
TIMES = ("images_per_sec", "wall_sec")
FILES = [
    "config.json",
    "env.json",
    "metrics.jsonl",
    "last.param",
    "best.param",
    "resume.state",
    "curves.png",
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of images, 12 to train and 3 to test of each."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 3)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = rng.integers(0, 256, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return folder


def flags(photos: Path, run: Path, epochs: int = EPOCHS) -> list[str]:
    text = (
        f"--dataset folder:{photos} --model attention56_small --gpus cpu --run-dir {run} "
        f"--epochs {epochs} --batch-size 6 --micro-batch 0 --lr 0.05 --warmup-epochs 1 "
        "--mixup-off-epochs 3 --checkpoint-minutes 0.004 --precision float32"
    )
    return text.split()


@pytest.fixture(scope="module")
def whole(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train_cifar.main(flags(photos, folder)) == 0
    return folder


def test_a_val_folder_judges_a_run(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(photos, data)
    words = [*flags(data, run, 2), "--early-stopping", "1", "--mixup-off-epochs", "1"]
    assert train_cifar.main(words) == 2
    assert "--early-stopping needs held-out images to judge by" in capsys.readouterr().err
    assert not run.exists()
    shutil.copytree(photos / "test", data / "val")
    assert train_cifar.main(words) == 0
    said = capsys.readouterr().out
    assert "24 images to train, 6 held out, 6 to test" in said
    assert "leaves out" not in said
    assert "best held-out accuracy" in said
    assert {"valid_acc", "test_acc"} <= set(read_metrics(run)[0])


def without_times(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in read_metrics(run)]


def test_a_run_leaves_the_documented_files(whole: Path) -> None:
    assert {name for name in FILES if (whole / name).is_file()} == set(FILES)
    assert list(whole.glob("events.out.tfevents.*"))
    rows = read_metrics(whole)
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    assert list(rows[0]) == [
        *("epoch", "step", "lr", "train_loss", "train_acc"),
        *("test_loss", "test_acc", "images_per_sec", "wall_sec"),
    ]
    config = json.loads((whole / "config.json").read_text())
    assert (config["model"], config["batch_size"]) == ("attention56_small", 6)


def test_a_saved_file_scores_what_the_run_recorded(
    whole: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--test", str(whole / "last.param"), "--gpus", "cpu"]
    assert train_cifar.main([*argv, "--dataset", f"folder:{photos}"]) == 0
    row = read_metrics(whole)[-1]
    shown = capsys.readouterr().out
    assert f"test loss {row['test_loss']:.4f}, test accuracy {row['test_acc']:.5f} (6 im" in shown


def test_finetuning_with_a_frozen_trunk(whole: Path, photos: Path, tmp_path: Path) -> None:
    start = ["--finetune", str(whole / "last.param"), "--freeze", "trunk", "--classes", "3"]
    start += ["--recipe", "pistony"]  # with the mixup that the flags are about
    assert train_cifar.main([*flags(photos, tmp_path / "run", epochs=2), *start]) == 0
    before, after = (read_params(run / "last.param") for run in (whole, tmp_path / "run"))
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"fc.weight", "fc.bias"}
    assert len(after["fc.weight"]) == 3


def test_a_resume_goes_on_in_the_precision_that_was_measured_first(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fastest = "bfloat16" if BFLOAT16 else "float32"
    measured = iter([fastest])  # asked again it has no answer
    told = f"{fastest}: faster today"
    if without_operators():
        fastest = told = "float32"  # MXNet's own operators are not measured
    monkeypatch.setattr(
        graph_choice,
        "probe",
        lambda net, fused, compare: Choice(fused, "", next(measured), "faster today", net),
    )
    run = tmp_path / "run"
    argv = flags(photos, run, epochs=2)[:-2]  # without --precision
    assert train_cifar.main(argv) == 0
    assert json.loads((run / "config.json").read_text())["precision"] == fastest
    assert json.loads((run / "env.json").read_text())["precision"] == told
    assert train_cifar.main(["--resume", str(run)]) == 0
    assert json.loads((run / "config.json").read_text())["precision"] == fastest
    assert len(read_metrics(run)) == 2


@pytest.mark.usefixtures("unit_operators")
def test_a_resume_goes_on_by_the_operators_that_were_faster_first(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = {graph_choice.OWN_GRAPH: 1.0, "float32": 2.0, "bfloat16": 3.0}
    monkeypatch.setattr(graph_choice, "_step_seconds", lambda net, way, enough=0.0: times[way])
    run = tmp_path / "run"
    assert train_cifar.main(flags(photos, run, epochs=2)[:-2]) == 0  # without --precision
    said = "training steps by MXNet's own operators (faster here: a step takes 0.50 of the time"
    assert said in capsys.readouterr().out
    assert json.loads((run / "config.json").read_text())["fused"] == "off"
    assert "takes 0.50" in json.loads((run / "env.json").read_text())["training_steps"]
    times[graph_choice.OWN_GRAPH] = 9.0
    assert train_cifar.main(["--resume", str(run)]) == 0
    assert "by MXNet's own operators (as the run began), float32" in capsys.readouterr().out


def test_a_changed_network_and_wrong_labels_are_remembered(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    changes = ["--learning", "nal", "--attention", "spatial", "--label-noise", "0.6"]
    assert train_cifar.main([*flags(photos, run, epochs=2), *changes]) == 0
    noise = json.loads((run / "label_noise.json").read_text())
    assert noise["images"] == 24
    assert 0 < noise["wrong_labels"] < 24
    row = read_metrics(run)[-1]
    for argv in (["--test", str(run / "last.param"), "--gpus", "cpu"], ["--resume", str(run)]):
        capsys.readouterr()
        assert train_cifar.main(argv) == 0
    # The other learning and activation have the same parameters, and another loss.
    argv = ["--test", str(run / "last.param"), "--gpus", "cpu"]
    assert train_cifar.main(argv) == 0
    assert f"test loss {row['test_loss']:.4f}" in capsys.readouterr().out
    assert train_cifar.main([*argv, "--learning", "arl"]) == 2
    assert "its card says learning nal; learning arl was asked for" in capsys.readouterr().err


def test_predictions_need_the_parameter_file_only(
    whole: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("last.param", "last.param.sha256", "config.json", "preprocessing.json"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    config["dataset"] = "folder:no longer there"
    (tmp_path / "config.json").write_text(json.dumps(config))
    Image.new("RGBA", (50, 80), (9, 99, 199, 50)).save(tmp_path / "x.png")
    words = [str(tmp_path / "x.png"), str(photos / "test" / "cat" / "0.png")]
    argv = ["--predict", str(tmp_path / "last.param"), *words, "--gpus", "cpu"]
    assert train_cifar.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[3]] == words
    assert {line.split()[1] for line in lines if line.startswith("  ")} == {"cat", "dog"}


def test_masks_are_drawn_and_scored(
    whole: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, picture = str(whole / "last.param"), str(photos / "test" / "cat" / "0.png")
    argv = ["--masks", file, picture, "test:5", "--gpus", "cpu", "--mask-output"]
    assert train_cifar.main([*argv, str(tmp_path / "drawn")]) == 0
    assert train_cifar.main([*argv, str(tmp_path / "sheet.PNG")]) == 0
    drawn = {path.name for path in (tmp_path / "drawn").iterdir()}
    assert drawn == {"0-masks.png", "test-5-masks.png"}
    paths = (tmp_path / "sheet.PNG", tmp_path / "drawn" / "0-masks.png")
    with Image.open(paths[0]) as sheet, Image.open(paths[1]) as one:
        assert sheet.height > 1.5 * one.height

    capsys.readouterr()
    argv = ["--mask-score", file, "--dataset", "shapes", "--mask-images", "20", "--gpus", "cpu"]
    assert train_cifar.main(argv) == 0
    shown = capsys.readouterr().out
    assert "20 images; the object covers" in shown
    rows = [line.split("|")[1].strip() for line in shown.splitlines() if line.startswith("| ")]
    modules = [f"attention_module{stage}" for stage in (1, 1, 2, 2, 3, 3)]
    assert rows == ["module", *modules, "a uniform map", "the centre of the image"]


# ----------------------------------------------------------------------------------------- signals


def launch(argv: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train_cifar.py"), *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def saved_step(run: Path) -> int:
    """Return the step of the last checkpoint; 0 without one, or while it is being replaced."""
    try:
        return load_state(run)[0].step
    except (UserError, OSError):
        return 0


def interrupt(argv: Sequence[str], run: Path, number: int) -> tuple[int, str]:
    """Start a run, send it a signal after a further checkpoint; return exit code and stdout."""
    before = saved_step(run)
    process = launch(argv)
    try:
        deadline = time.monotonic() + 120
        while saved_step(run) <= before:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        output, error = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in error
    return process.returncode, output


@pytest.mark.timeout(1200)  # half a minute, but many processes in turn on a busy machine
def test_killed_terminated_interrupted_and_resumed(
    whole: Path, photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    resume = ["--resume", str(run)]
    assert interrupt(flags(photos, run), run, signal.SIGKILL)[0] == -signal.SIGKILL
    killed = load_state(run)[0]
    assert 0 < killed.step < EPOCHS * 4

    code, output = interrupt(resume, run, signal.SIGTERM)
    terminated = load_state(run)[0]
    assert code == 0
    assert f"go on with: {python_word()} {ROOT / 'train_cifar.py'} --resume {run}" in output
    assert killed.step < terminated.step < EPOCHS * 4
    assert read_params(run / "last.param").keys() == read_params(whole / "last.param").keys()

    code, output = interrupt(resume, run, signal.SIGINT)
    interrupted = load_state(run)[0]
    assert code == 130
    assert terminated.step < interrupted.step < EPOCHS * 4

    assert train_cifar.main(resume) == 0
    assert (run / "last.param").read_bytes() == (whole / "last.param").read_bytes()
    assert (run / "best.param").read_bytes() == (whole / "best.param").read_bytes()
    assert without_times(run) == without_times(whole)


# ------------------------------------------------------------------------------------- wrong input

Refuse = Callable[..., str]


@pytest.fixture
def refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refuse:
    """A function that runs arguments which must fail cleanly, and returns the message."""
    monkeypatch.chdir(tmp_path)
    # Gluon's own folder is searched too, and must not have the data of this machine.
    monkeypatch.setenv("MXNET_HOME", str(tmp_path / "no mxnet"))

    def run(*argv: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        try:
            code = train_cifar.main(argv)
        except SystemExit as end:
            code = end.code  # type: ignore[assignment]
        error = capsys.readouterr().err
        assert code == 2
        assert error.startswith("error: ")
        assert error.endswith("\n")
        assert error.count("\n") == 1, error
        assert "Traceback" not in error
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return run


@pytest.fixture(scope="module")
def glimpse_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parameters of a glimpse model."""
    net = create_model("glimpse_mnist")
    net.initialize()
    path = tmp_path_factory.mktemp("glimpse") / "last.param"
    net.save_parameters(str(path))
    return path


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--model attention57", "did you mean 'attention56'"),
        ("--modle attention56", "unknown option --modle; did you mean --model?"),
        ("--summary attention57", "did you mean 'attention56'"),
        ("attention56", "unexpected word 'attention56'"),
        ("--optimizer rmsprop", "nag"),
        ("--epochs -1", "--epochs -1: must be 1 or more"),
        ("--batch-size 0", "--batch-size 0: must be 1 or more"),
        ("--lr -0.1", "--lr -0.1: must be a positive number"),
        ("--wd=-1", "--wd -1.0: must be 0 or more"),
        ("--lr much", "--lr"),
        ("--epochs 3", "a warm-up of 5 epochs does not fit into 3 epochs"),
        ("--classes -1 --dataset folder:PHOTOS", "classes"),
        ("--classes 1 --dataset folder:PHOTOS", "--classes 1: "),
        ("--batch-size 25 --dataset folder:PHOTOS", "a batch of 25 images does not fit"),
        ("--dataset cifar11", "cifar10"),
        ("--dataset folder:nowhere", "'nowhere' does not exist"),
        ("--dataset cifar10 --data-dir nowhere --no-download", "nowhere"),
        ("--resume nowhere", "nowhere"),
        ("--resume .", "holds no run"),
        ("--finetune nowhere.param --dataset folder:PHOTOS -b 8", "nowhere.param: no such file"),
        ("--test nowhere.param", "nowhere.param: no such file"),
        ("--test .", "this is a folder"),
        ("--predict nowhere.param", "nowhere.param: no such file"),
        ("--masks nowhere.param x.png", "nowhere.param: no such file"),
        ("--test a.param --predict b.param x.png", "--test and --predict: one thing at a time"),
        ("--resume . --summary attention56", "--resume and --summary: one thing at a time"),
        ("--export-start x --list-models", "--list-models and --export-start: one thing"),
        ("--masks x.param x.png --mask-output m.JPG", "m.JPG: give a folder, or a .png file"),
        (
            f"--masks x.param --mask-output m.png {'x.png ' * 301}",
            "301 pictures do not fit into one",
        ),
        ("--model glimpse_mnist", "glimpse_mnist is a glimpse model: use train_mnist_glimpse.py"),
        ("--summary glimpse_mnist", "glimpse_mnist is a glimpse model"),
        ("--export-start x --model glimpse_mnist", "glimpse_mnist is a glimpse model"),
        ("--test GLIMPSE", "is a glimpse model: use train_mnist_glimpse.py"),
        ("--predict GLIMPSE x.png", "is a glimpse model: use train_mnist_glimpse.py"),
        ("--label-noise 0", "--label-noise 0.0: give the share of labels that stay true"),
        ("--learning naive", "is not one of arl, nal"),
        (
            "--summary attention56_small --w-init 0.1 --steps 3",
            "--steps, --w-init: not for attention56_small, which takes --wiring, --learning, ",
        ),
        (
            "--summary resnet20_ram --wiring paper",
            "--wiring: not for resnet20_ram, which takes --depth, --steps, --w-init, --b-init. ",
        ),
        ("--summary resnet20 --attention mixed", "--attention: not for resnet20, which takes"),
    ],
)
def test_wrong_input_is_one_clear_error(
    refuse: Refuse, photos: Path, glimpse_file: Path, argv: str, message: str
) -> None:
    for word, path in (("PHOTOS", photos), ("GLIMPSE", glimpse_file)):
        argv = argv.replace(word, str(path))
    error = refuse(*argv.split(), "--gpus", "cpu")
    assert message in error


def test_a_gpu_that_is_not_there(refuse: Refuse) -> None:
    import mxnet as mx

    if mx.context.num_gpus():
        pytest.skip("there is a GPU")
    assert "--gpus 0: this MXNet sees no GPU" in refuse("--gpus", "0")
    assert "give numbers such as 0 or 0,1, or cpu" in refuse("--gpus", "all")


def test_images_without_colour(refuse: Refuse) -> None:
    error = refuse("--dataset", "digits", "--model", "resnet20", "--gpus", "cpu")
    assert "digits has images of 1 channel, resnet20 takes 3" in error
    assert "train_mnist_glimpse.py" in error


def test_a_damaged_data_file(refuse: Refuse, tmp_path: Path) -> None:
    for file in FORMATS["cifar10"].files:
        (tmp_path / file).write_bytes(b"too short")
    error = refuse("--data-dir", str(tmp_path), "--no-download", "--gpus", "cpu")
    assert FORMATS["cifar10"].files[0] in error


def cut(path: Path, source: Path) -> None:
    path.write_bytes(source.read_bytes()[:-5000])


def flip(path: Path, source: Path) -> None:
    data = bytearray(source.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))
    Path(f"{path}.sha256").write_bytes(Path(f"{source}.sha256").read_bytes())


def other_network(path: Path, source: Path) -> None:
    arrays = read_params(source)
    del arrays["conv1.0.weight"]
    write_params(path, arrays)


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "corrupt": flip,
    "garbage": lambda path, _: path.write_bytes(os.urandom(5000)),
    "truncated": cut,
    "empty": lambda path, _: path.write_bytes(b""),
    "wrong architecture": other_network,
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("flag", ["--test", "--finetune"])
def test_a_wrong_parameter_file(
    refuse: Refuse, photos: Path, whole: Path, tmp_path: Path, kind: str, flag: str
) -> None:
    path = tmp_path / "x.param"
    DAMAGE[kind](path, whole / "last.param")
    words = [*flags(photos, tmp_path / "run"), "--recipe", "pistony"]
    assert str(path) in refuse(flag, str(path), *words)


def test_a_folder_that_holds_a_run(
    refuse: Refuse, photos: Path, whole: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    assert f"{whole} already holds a run" in refuse(*flags(photos, whole))
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


def test_a_run_whose_files_are_damaged(refuse: Refuse, whole: Path, tmp_path: Path) -> None:
    for name in (".lock", "config.json", "resume.state", "metrics.jsonl"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())
    cut(tmp_path / "resume.state", whole / "resume.state")
    assert "resume.state" in refuse("--resume", str(tmp_path))
    (tmp_path / "resume.state").unlink()
    assert "no resume.state to continue from" in refuse("--resume", str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert "config.json is damaged" in refuse("--resume", str(tmp_path))


# --------------------------------------------------------------------------------------- importing

IMPORT_ALL = """
import importlib, pkgutil, sys

def refuse(event, arguments):
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if watching and (writes or event.split(".")[0] in ("socket", "subprocess", "shutil")
                     or event in ("os.mkdir", "os.rename", "os.remove", "os.system", "os.fork")):
        seen.append((event, str(arguments)))

watching, seen, argv = False, [], list(sys.argv)
sys.addaudithook(refuse)
import mxnet as mx  # what it does is its own business; from here on it is watched
import socket, subprocess, tqdm
arrays = []
create = mx.nd.NDArray.__init__
mx.nd.NDArray.__init__ = lambda *a, **k: (arrays.append(a), create(*a, **k))[1]
mx.context.num_gpus = lambda: seen.append("num_gpus")
handlers = {n: __import__("signal").getsignal(n) for n in (2, 15)}
watching = True
import train_cifar
count = 0
for name in ("formats", "model", "training", "bridge"):
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:  # PyTorch is in an environment of its own
            assert error.name == "torch" and module.name.startswith("bridge."), error
        count += 1
watching = False
assert count > 150, count
assert not seen, seen
assert not arrays
assert sys.argv == argv
assert handlers == {n: __import__("signal").getsignal(n) for n in (2, 15)}
assert "matplotlib" not in sys.modules and "gluoncv" not in sys.modules
"""


def test_importing_does_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-B", "-W", "ignore", "-c", IMPORT_ALL, "--not-a-flag"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_the_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert train_cifar.main(["--list-models"]) == 0
    shown = capsys.readouterr().out
    assert {"attention56", "attention92"} <= set(shown.split())


def test_a_run_records_what_its_gates_do(photos: Path, tmp_path: Path) -> None:
    argv = [*flags(photos, tmp_path / "run", 2), "--model", "resnet20_basic_ram", "--w-init", "0.1"]
    assert train_cifar.main([*argv, "--eval-every", "2"]) == 0
    first, last = read_metrics(tmp_path / "run")
    keys = [f"gate_{what}{k}" for what in ("mean", "std", "alive") for k in ("1", "2", "3", "")]
    assert set(keys) <= set(last)
    assert "gate_alive" not in first
    net = create_model("resnet20_basic_ram", 2)
    load_parameters(net, str(tmp_path / "run" / "last.param"), [mx.cpu()])
    config = train_cifar.CifarConfig(dataset=f"folder:{photos}")
    data = open_dataset(config)
    image = next(iter(evaluation_batches(data.test, data))).image
    expected = gate_statistics(net, mx.nd.array(image))
    assert {key: last[key] for key in keys} == pytest.approx(expected, rel=1e-4)
