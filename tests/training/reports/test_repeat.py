"""Several seeds of one training, their mean and spread, and the comparison of settings."""

from __future__ import annotations

import csv
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest

from formats.errors import UserError
from training.records.run_progress import Progress
from training.reports import compare, repeat
from training.reports.compare import comparison_csv, comparison_table, group_runs
from training.reports.compare_plot import curves, draw_groups
from training.reports.run_results import RunResult, find_runs, read_result, spread

ROOT = Path(__file__).resolve().parents[3]
# A training without a network: it can fail, or be stopped, after the first epoch of some seeds.
TRAINER = """
import json, pathlib, signal, sys, time
words = dict(word.split("=") for word in sys.argv[1:] if "=" in word)
going = "--resume" in sys.argv
folder = pathlib.Path(sys.argv[sys.argv.index("--resume") + 1] if going else words["--run-dir"])
folder.mkdir(parents=True, exist_ok=True)
if not going:
    config = {"seed": int(words["--seed"]), "epochs": 2, "lr": float(words.get("--lr", 1))}
    for name in ("precision", "fused"):
        config[name] = words.get(f"--{name}", f"chosen by seed {config['seed']}")
    (folder / "config.json").write_text(json.dumps({**config, "model": "m", "dataset": "d"}))
seed = json.loads((folder / "config.json").read_text())["seed"]
with open(folder.parent / "calls", "a") as calls:
    calls.write(f"{seed}{'r' if going else ''} ")
path = folder / "metrics.jsonl"
lines = path.read_text().splitlines() if path.exists() else []
def stop(number, frame):
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
for epoch in range(len(lines) + 1, 3):
    if epoch == 2 and not going and f"--stop-{seed}" in sys.argv:
        sys.exit(3)
    if epoch == 2 and not going and f"--wait-{seed}" in sys.argv:
        time.sleep(60)
    row = {"epoch": epoch, "train_loss": 1 / epoch, "train_acc": 0.5, "test_loss": 1.0,
           "test_acc": 0.1 * epoch + 0.01 * seed, "wall_sec": 1800.0}
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\\n")
if f"--fail-{seed}" in sys.argv and not going:
    sys.exit(2)
"""


@pytest.fixture
def trainer(tmp_path: Path) -> Path:
    path = tmp_path / "trainer.py"
    path.write_text(TRAINER)
    return path


def run(trainer: Path, folder: Path, *words: str, seeds: int = 3, first: int = 0) -> int:
    flags = [f"--script={trainer}", f"--output={folder}", f"--seeds={seeds}"]
    return repeat.main([*flags, f"--first-seed={first}", "--", *words])


def test_mean_and_sample_deviation() -> None:
    assert spread([0.94, 0.95, 0.96]) == pytest.approx((0.95, 0.01, 3))
    assert spread([0.94, 0.95, 0.96]).percent() == "95.00 ± 1.00 % (n = 3)"
    assert math.isnan(spread([0.5]).std)
    assert spread([0.5]).percent() == "50.00 % (n = 1)"


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], "chosen by seed 4"),
        (["--precision=bfloat16"], "bfloat16"),
        (["--precision=auto"], "auto"),
        (["--precision", "auto"], "chosen by seed 4"),
    ],
)
def test_all_seeds_have_one_precision_and_the_same_operators(
    trainer: Path, tmp_path: Path, words: list[str], wanted: str
) -> None:
    assert run(trainer, tmp_path / "out", *words, first=4) == 0
    found = [read_result(tmp_path / "out" / f"seed-{seed}").config for seed in (4, 5, 6)]
    assert [config["precision"] for config in found] == [wanted] * 3
    assert [config["fused"] for config in found] == ["chosen by seed 4"] * 3
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["precision"] == wanted


def test_every_seed_is_run_once_and_summed_up(
    trainer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(trainer, out, "--lr=0.5") == 0
    shown = capsys.readouterr().out
    wanted = "test accuracy after epoch 2: 21.00 ± 1.00 % (n = 3), mean ± sample standard deviation"
    assert f"{wanted} over seeds 0, 1, 2" in shown
    summary = json.loads((out / "summary.json").read_text())
    assert summary["test_acc"] == pytest.approx([0.2, 0.21, 0.22])
    assert (summary["test_acc_mean"], summary["test_acc_std"]) == pytest.approx((0.21, 0.01))
    assert (summary["n"], summary["seeds"], summary["arguments"]) == (3, [0, 1, 2], ["--lr=0.5"])
    with open(out / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["epoch"]) for row in rows] == [("0", "2"), ("1", "2"), ("2", "2")]
    assert [float(row["test_acc"]) for row in rows] == pytest.approx([0.2, 0.21, 0.22])
    # Finished seeds are not run again, further ones are.
    assert run(trainer, out, "--lr=0.5", seeds=4) == 0
    assert (out / "calls").read_text() == "0 1 2 3 "
    assert "(n = 4)" in capsys.readouterr().out


def test_a_seed_that_stopped_is_resumed(
    trainer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(trainer, out, "--stop-1") == 2
    assert "seed 1 did not come to its end (exit code 3)" in capsys.readouterr().err
    assert not (out / "summary.json").exists()
    assert run(trainer, out, "--stop-1") == 0
    assert (out / "calls").read_text() == "0 1 1r 2 "


def test_a_seed_that_failed_after_its_last_epoch_is_not_counted(
    trainer: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The row of the last epoch is written, and then the disk is full."""
    out = tmp_path / "out"
    assert run(trainer, out, "--fail-0") == 2
    assert "seed 0 did not come to its end (exit code 2)" in capsys.readouterr().err
    (out / "seed-0" / "resume.state").write_bytes(b"")
    monkeypatch.setattr(repeat, "load_state", lambda _: (Progress(epoch=1), {}, {}))
    assert run(trainer, out, "--fail-0", seeds=1) == 2
    monkeypatch.setattr(repeat, "load_state", lambda _: (Progress(epoch=2), {}, {}))
    assert run(trainer, out, "--fail-0", seeds=1) == 0
    assert (out / "calls").read_text() == "0 0r "


def test_a_request_to_stop_reaches_the_training(trainer: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = [f"--script={trainer}", f"--output={out}", "--seeds=2", "--", "--wait-0"]
    command = [sys.executable, "-m", "training.reports.repeat", *flags]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    metrics = out / "seed-0" / "metrics.jsonl"
    for _ in range(600):
        if metrics.exists() and metrics.read_text():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=30)
    assert process.returncode == 2
    assert b"seed 0 did not come to its end (exit code 0)" in error
    assert (out / "calls").read_text() == "0 "


def test_other_commands_and_own_flags_are_refused(
    trainer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(trainer, out, seeds=1) == 0
    for words, message in (
        (["--lr=2"], "holds the runs of another command"),
        (["--seed", "3"], "--seed: every run gets its own"),
        (["--run-dir=x", "--resume"], "--resume, --run-dir: every run gets its own"),
    ):
        assert run(trainer, out, *words) == 2
        assert message in capsys.readouterr().err
    assert run(tmp_path / "none.py", out) == 2
    assert "there is no such file" in capsys.readouterr().err
    assert repeat.main(["--output", str(out)]) == 2
    assert "Give its flags after --, as: -- --recipe quick" in capsys.readouterr().err
    assert run(trainer, out, seeds=0) == 2
    assert "--seeds must be 1 or more" in capsys.readouterr().err


def test_one_command_has_one_folder() -> None:
    names = {repeat._default_folder(Path("a/t.py"), words) for words in (["--lr", "1"], ["--lr=1"])}
    assert len(names) == 2
    assert repeat._default_folder(Path("b/t.py"), ["--lr=1"]) in names


# ------------------------------------------------------------------------------------ comparison


def fake(
    folder: Path,
    seed: int,
    acc: float,
    epochs: int = 2,
    run_epochs: Optional[int] = None,
    **more: Any,
) -> Path:
    folder.mkdir(parents=True)
    config = {"model": "net", "dataset": "d", "seed": seed, "epochs": epochs, **more}
    (folder / "config.json").write_text(json.dumps({**config, "run_dir": str(folder)}))
    rows = [
        {"epoch": n, "test_acc": acc * n / epochs, "test_loss": 0.5, "train_loss": 1 / n}
        for n in range(1, (epochs if run_epochs is None else run_epochs) + 1)
    ]
    lines = [json.dumps({**row, "train_acc": 0.75, "wall_sec": 3600.0}) for row in rows]
    (folder / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in range(3):
        fake(tmp_path / "runs" / f"a{seed}", seed, 0.90 + 0.01 * seed, lr=0.1, lr_steps=[1, 2])
        fake(
            tmp_path / "runs" / f"b{seed}", seed, 0.80, lr=0.2, lr_steps=[1, 2], data_dir=f"/{seed}"
        )
    fake(tmp_path / "runs" / "b3", 3, 0.1, run_epochs=1, lr=0.2, lr_steps=[1, 2])
    return tmp_path / "runs"


def test_runs_that_differ_in_the_seed_are_one_row(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, table = runs.parent / "c.png", runs.parent / "c.csv"
    assert compare.main([str(runs), "--output", str(output), "--csv", str(table)]) == 0
    shown = capsys.readouterr().out
    assert "| lr 0.1 | 91.00 ± 1.00 % (n = 3) | 0.5000 | 75.00% | 2 | 1.00 |" in shown
    assert "| lr 0.2 | 80.00 ± 0.00 % (n = 3) |" in shown
    assert f"left out: {runs / 'b3'} stands at epoch 1 of 2" in shown
    assert output.read_bytes()[:4] == b"\x89PNG"
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["seeds"] for row in rows] == ["0 1 2", "0 1 2"]
    assert float(rows[0]["test_acc_std"]) == pytest.approx(0.01)


def test_gates_are_shown_where_runs_have_them(tmp_path: Path) -> None:
    gated = [fake(tmp_path / f"g{seed}", seed, 0.5, model="gated") for seed in range(2)]
    for share, run in zip((0.5, 0.25), gated):
        *before, last = (run / "metrics.jsonl").read_text().splitlines()
        more = json.dumps({**json.loads(last), "gate_alive": share, "gate_std": share / 10})
        (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in (*before, more)))
    plain = fake(tmp_path / "plain", 0, 0.5)
    titles, _, first, second = comparison_table(compare.compare([*gated, plain])[0]).split("\n")
    assert titles.endswith("| hours a run | gates alive | gate's spread |")
    assert first.endswith("| 1.00 | 37.5% | 0.0375 |")
    assert second.endswith("| 1.00 | - | - |")
    assert comparison_table(compare.compare([plain])[0]).split("\n")[0].endswith("hours a run |")


def test_seeds_that_ended_at_other_epochs_are_all_told(tmp_path: Path) -> None:
    paths = [fake(tmp_path / str(n), n, 0.5, epochs=3, early_stopping=1) for n in range(2)]
    rows = [json.loads(line) for line in (paths[1] / "metrics.jsonl").read_text().splitlines()]
    kept = (json.dumps({**row, "valid_acc": 0.5}) for row in rows[:2])
    (paths[1] / "metrics.jsonl").write_text("".join(f"{line}\n" for line in kept))
    groups, _ = compare.compare(paths)
    assert "| 2/3 |" in comparison_table(groups)
    assert ",2/3," in comparison_csv(groups)


def test_rows_are_named_by_what_differs(tmp_path: Path) -> None:
    paths = [
        fake(tmp_path / "a", 0, 0.5, w_init=0.0, lr_steps=[1]),
        fake(tmp_path / "b", 0, 0.5, w_init=0.1, lr_steps=[1, 2]),
        fake(tmp_path / "c", 0, 0.5, lr_steps=[1]),
    ]
    groups, _ = compare.compare(paths)
    labels = ["w_init 0.0, lr_steps 1", "w_init 0.1, lr_steps 1 2", "w_init -, lr_steps 1"]
    assert [group.label for group in groups] == labels
    older = [fake(tmp_path / "d", 1, 0.5, w_init=0.0, lr_steps=[1], kvstore="device")]
    assert len(compare.compare([paths[0], *older])[0]) == 1  # what it did before it was an option
    other = [fake(tmp_path / "e", 1, 0.5, w_init=0.0, lr_steps=[1], kvstore="nccl")]
    labels = [group.label for group in compare.compare([paths[0], *other])[0]]
    assert labels == ["kvstore device", "kvstore nccl"]
    (only,), _ = compare.compare(paths[:1])
    assert only.label == "net, d"
    assert "50.00 % (n = 1)" in comparison_table([only])
    assert "nan" in comparison_csv([only])


def test_what_cannot_be_compared_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(tmp_path / "again", 0, 0.9, lr=0.1, lr_steps=[1, 2])
    for words, message in (
        ([str(runs), str(tmp_path / "again")], "seed 0 is there twice with the same settings"),
        ([str(runs / "b3")], "none of the runs is finished"),
        ([str(tmp_path / "nowhere")], "is no run and holds none"),
        ([str(runs), "--output", "curves.gif"], "curves are PNG images"),
    ):
        assert compare.main(words) == 2
        assert message in capsys.readouterr().err
    # One run named twice is one run.
    groups, _ = compare.compare([runs, runs / "a0"])
    assert [len(group.runs) for group in groups] == [3, 3]


def test_photographs_of_two_places_are_two_groups(tmp_path: Path) -> None:
    """``train_imagenet.py`` calls all of them by one name; other data is known by its own."""
    for dataset, groups in (("imagenet", 2), ("cifar10", 1)):
        runs = [
            read_result(fake(tmp_path / dataset / place, n, 0.5, data_dir=place, dataset=dataset))
            for n, place in enumerate(("cats", "flowers"))
        ]
        assert len(group_runs(runs)) == groups


def test_a_run_that_stopped_early_is_finished(tmp_path: Path) -> None:
    folder = fake(tmp_path / "a", 0, 0.5, epochs=9, run_epochs=4, early_stopping=2)
    (folder / "curves.png").write_bytes(b"")  # which can be drawn at any time
    assert not read_result(folder).finished
    for accuracies, finished in (
        ([0.5, 0.6, 0.6, 0.5], True),
        ([0.5, 0.4, 0.6, 0.6], False),
        ([0.5, None, 0.4, None], True),
    ):
        rows = [{"epoch": n, "valid_acc": acc} for n, acc in enumerate(accuracies, 1)]
        assert RunResult(folder, {"epochs": 9, "early_stopping": 2}, rows).finished == finished
    folder = fake(tmp_path / "b", 0, 0.5, epochs=2)
    assert read_result(folder).finished
    assert find_runs(folder) == [folder]
    with pytest.raises(UserError, match="has no valid_acc in its last epoch"):
        read_result(folder).last("valid_acc")


def test_curves_are_of_the_epochs_that_all_runs_have() -> None:
    one: list[dict[str, Any]] = [
        {"epoch": 1, "test_acc": 0.5},
        {"epoch": 2, "test_acc": None},
        {"epoch": 3, "test_acc": 1},
    ]
    two: list[dict[str, Any]] = [
        {"epoch": 1, "test_acc": 0.7},
        {"epoch": 2, "test_acc": 0.8},
        {"epoch": 3, "test_acc": 0.9},
    ]
    epochs, errors = curves([one, two], "test_acc")
    assert list(epochs) == [1, 3]
    np.testing.assert_allclose(errors, [[50, 0], [30, 10]])
    group = group_runs([RunResult(Path("a"), {"seed": 0}, one)])
    assert len(group) == 1
    assert draw_groups([("$x", [one, two]), ("y", [two])] * 5)[:4] == b"\x89PNG"
