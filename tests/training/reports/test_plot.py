"""Curves from metrics.jsonl alone: what is drawn, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Optional

import numpy as np
import pytest
from PIL import Image

from formats.errors import UserError
from training.reports import plot
from training.reports.plot import main, plot_runs

ROOT = Path(__file__).resolve().parents[3]


def write_run(folder: Path, epochs: int, config: Optional[dict[str, Any]] = None) -> Path:
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    rows = [
        {
            "epoch": epoch,
            "lr": 0.1 * (1 - epoch / epochs),
            "train_loss": 2.0 / epoch,
            "train_acc": 1 - 0.5 / epoch,
            "test_loss": None if epoch == 2 else 2.2 / epoch,  # NaN on record
            "test_acc": 1 - 0.6 / epoch,
            "images_per_sec": 300.0,
        }
        for epoch in range(1, epochs + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def panels(folders: list[Path]) -> list[Any]:
    names = [folder.name for folder in folders]
    figure = plot._figure([plot._load(folder, name) for folder, name in zip(folders, names)])
    return [figure, *figure.axes]


def test_one_run_is_drawn_into_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", 3)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 4, "lr')  # killed while writing
    assert main([str(run)]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == run / "curves.png"
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert np.asarray(image.convert("L")).std() > 5  # not blank
    assert sorted(entry.name for entry in run.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_the_panels_show_the_numbers_of_the_file(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 4, {"model": "attention56", "dataset": "shapes"})
    figure, loss, error, rate, speed = panels([run])
    lines = {line.get_linestyle(): line.get_xydata().tolist() for line in loss.lines}
    assert lines["--"] == [[epoch, 2.0 / epoch] for epoch in (1, 2, 3, 4)]
    assert lines["-"] == [[epoch, 2.2 / epoch] for epoch in (1, 3, 4)]
    lines = {line.get_linestyle(): line.get_xydata() for line in error.lines}
    np.testing.assert_allclose(lines["-"], [[e, 60 / e] for e in (1, 2, 3, 4)])
    np.testing.assert_allclose(rate.lines[0].get_ydata(), [0.075, 0.05, 0.025, 0], atol=1e-12)
    assert speed.lines[0].get_ydata().tolist() == [300.0] * 4
    assert figure.get_suptitle() == "attention56, shapes, 85.00% test accuracy after epoch 4"


def test_several_runs_share_a_figure_and_differ_in_colour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [write_run(tmp_path / f"seed{seed}" / "run", 3) for seed in range(8)]
    monkeypatch.chdir(tmp_path)
    assert plot_runs(runs) == Path("curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 0
    assert plot._short_names(runs)[0] == str(Path("seed0") / "run")
    for count in (2, 8):
        figure, _, _, rate, _ = panels(runs[:count])
        assert len({str(line.get_color()) for line in rate.lines}) == count
        assert len(figure.legends[0].get_texts()) == count


def test_the_error_axis_is_logarithmic_when_it_falls_far(tmp_path: Path) -> None:
    assert panels([write_run(tmp_path / "long", 8)])[2].get_yscale() == "log"
    assert panels([write_run(tmp_path / "short", 2)])[2].get_yscale() == "linear"
    perfect = write_run(tmp_path / "perfect", 8)
    with open(perfect / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 9, "test_acc": 1.0}\n')
    assert panels([perfect])[2].get_yscale() == "linear"


def test_odd_runs_can_be_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "$odd_{name$", 1, {"model": "$x_{$", "dataset": None})
    (run / "metrics.jsonl").write_text('{"epoch": 1, "lr": 0.0}\n')
    assert plot_runs([run, run], tmp_path / "two.PNG").exists()
    assert plot_runs([run]).exists()
    (run / "config.json").write_text("damaged")
    assert plot_runs([run]).exists()


def test_what_cannot_be_drawn_is_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run", 3)
    empty = write_run(tmp_path / "empty", 0)
    for arguments, words in [
        ([str(tmp_path / "missing")], "missing"),
        ([str(empty)], "no finished epoch"),
        ([str(run), "--output", str(tmp_path / "no" / "a.png")], "cannot write"),
        ([str(run), "--output", str(tmp_path / "a.txt")], r"ends in .png"),
    ]:
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert words in error
        assert error.count("\n") == 1
    with pytest.raises(UserError, match="no run is given"):
        plot_runs([])


def test_the_module_runs_without_mxnet(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 2)
    code = (
        "import sys, training.reports.plot as plot; plot.main(sys.argv[1:]); "
        "sys.exit('mxnet' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(run)], cwd=ROOT).returncode == 0
