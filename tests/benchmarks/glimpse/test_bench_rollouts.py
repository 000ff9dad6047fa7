"""The benchmark of rollouts: its tables, where they go, which rows are kept, and a real row."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.glimpse import bench_rollouts
from benchmarks.glimpse.bench_rollouts import (
    BEGIN,
    END,
    PAGE,
    Config,
    epochs_table,
    kept_rows,
    main,
    table,
    write_docs,
)
from formats.errors import UserError


def row(threads: int = 1, isa: str = "native") -> dict[str, Any]:
    found = {
        "1": {"median": 0.02, "ratio": {"ratio": 1.0}},
        "10": {"median": 0.128, "ratio": {"ratio": 6.4}},
    }
    return {
        "task": "mnist",
        "weights": "trained",
        "isa": isa,
        "threads": threads,
        "instructions": "capped to AVX2 (ATTENTION_ISA)",
        "batch_size": 128,
        "rollouts": found,
    }


def test_the_table_has_times_and_their_ratio_to_the_fewest_rollouts() -> None:
    lines = table([row(2)]).splitlines()
    assert lines[0].endswith("| threads | 1, ms | 10, ms | 10 / 1 |")
    assert lines[2:] == ["| mnist | trained | capped to AVX2 | 2 | 20.0 | 128.0 | 6.40 |"]


def test_epochs_are_those_of_one_thread_with_all_instructions() -> None:
    lines = epochs_table([row(), row(2), row(isa="avx2")]).splitlines()
    assert lines[2:] == ["| mnist | trained | 6,400 (9) | 1,000 (60) |"]
    assert epochs_table([row(2)]) == ""


def test_the_tables_go_between_the_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_docs("new", page)
    assert page.read_text() == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(UserError, match="lacks the lines"):
        write_docs("new", page)
    assert BEGIN in PAGE.read_text()
    assert END in PAGE.read_text()


def test_rows_of_another_commit_are_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "rollouts.json"
    known = {"git": {"commit": "a"}, "cpu": "one", "isa": "AVX2", "usable_cores": 2}
    rows = {"key": {**row(), "rounds": 5, "data": "mnist"}}
    path.write_text(json.dumps({"environment": known, "rows": rows}))
    config = Config(rollouts=(1, 10), rounds=5, data="mnist")
    assert kept_rows(str(path), known, config) == rows
    assert kept_rows(str(path), {**known, "git": {"commit": "b"}}, config) == {}
    assert kept_rows(str(path), {**known, "cpu": "another"}, config) == {}
    assert kept_rows(str(tmp_path / "none.json"), known, config) == {}
    for change in ({"rollouts": (1, 4, 10)}, {"rounds": 3}, {"data": "digits"}):
        assert kept_rows(str(path), known, replace(config, **change)) == {}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rollouts", "0"], "--rollouts"),
        (["--tasks", "svhn"], "svhn"),
        (["--threads", "0"], "--threads"),
    ],
)
def test_what_measures_nothing_is_refused(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert says in capsys.readouterr().err


def test_native_and_a_cap_from_outside_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ATTENTION_ISA", "avx2")
    with pytest.raises(SystemExit, match="2"):
        main(["--isa", "native"])
    assert "ATTENTION_ISA" in capsys.readouterr().err


def test_a_row_is_measured_and_the_next_one_added(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("ATTENTION_ISA", raising=False)
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    monkeypatch.setattr(bench_rollouts, "write_docs", lambda text: write_docs(text, page))
    out = tmp_path / "rollouts.json"
    words = ["--weights", "initial", "--data", "digits", "--rollouts", "1", "3", "--rounds", "1"]
    words += ["--round-sec", "0.01", "--out", str(out), "--docs"]
    for task in ("mnist", "cluttered100"):
        assert main([*words, "--tasks", task]) == 0
    assert list(json.loads(out.read_text())["rows"]) == [
        "mnist initial native 1",
        "cluttered100 initial native 1",
    ]
    lines = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines] == [
        *("| task", "| ---", "| mnist", "| cluttered100"),
        *("| task", "| ---", "| mnist", "| cluttered100"),
    ]
    assert "medians of 1 rounds, `--data digits`" in page.read_text()
