"""The operators are built where they can be, kept per machine, and never needed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mxnet as mx
import pytest

from machine.processor import Unavailable
from model.native import build as operators
from model.native.build import UNITS, BuildFailed, Operators
from model.native.onednn import OneDNN, find_onednn

ROOT = Path(__file__).resolve().parents[3]

# Notes each call, makes what it is asked for, fails at what FAILS names.
FAKE_COMPILER = """#!/bin/sh
echo "$@" >>"$0.calls"
case "$*" in *--version) echo "fake 1"; exit 0;; esac
[ -z "$FAILS" ] || { echo "unit.cc:1: error: $FAILS" >&2; exit 1; }
while [ $# -gt 1 ]; do [ "$1" = -o ] && echo built >"$2"; shift; done
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A compiler and a oneDNN that do nothing, and folders of their own."""
    compiler = tmp_path / "bin" / "g++"
    compiler.parent.mkdir()
    compiler.write_text(FAKE_COMPILER)
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.delenv("FAILS", raising=False)
    sources = tmp_path / "units"
    sources.mkdir()
    (sources / "unit.cc").write_text("int unit;")
    monkeypatch.setattr(operators, "NATIVE", tmp_path)
    monkeypatch.delenv(operators.SWITCH, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library = tmp_path / "libdnnl.so.3"
    library.write_bytes(b"library")
    return OneDNN(library, tmp_path, "3.2")


def build(onednn: OneDNN, of: Operators = UNITS) -> Path:
    return operators.build(of, onednn)


def calls(tmp_path: Path) -> list[str]:
    lines = (tmp_path / "bin" / "g++.calls").read_text().splitlines()
    return [line for line in lines if not line.endswith("--version")]


def test_it_is_built_once(machine: OneDNN, tmp_path: Path) -> None:
    made = build(machine)
    assert made.read_text() == "built\n"
    before = calls(tmp_path)
    assert any("unit.cc" in line for line in before)
    assert build(machine) == made
    assert calls(tmp_path) == before
    assert [file.name for file in made.parent.iterdir()] == [made.name]  # nothing half-built


def test_another_processor_gets_its_own(machine: OneDNN, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build(machine)
    monkeypatch.setattr(operators, "cpu_identity", lambda: "model name: another\nflags: sse2")
    assert build(machine) != made


def test_changed_sources_are_built_anew(machine: OneDNN) -> None:
    made = build(machine)
    (operators.NATIVE / "units" / "unit.cc").write_text("int other;")
    assert build(machine) != made


def test_another_onednn_is_built_for_anew(machine: OneDNN) -> None:
    made = build(machine)
    assert build(machine._replace(version="3.3")) != made


def test_other_options_are_built_anew(machine: OneDNN) -> None:
    assert build(machine, UNITS._replace(flags=("-O1",))) != build(machine)


def test_other_words_of_the_compiler_are_built_anew(
    machine: OneDNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = build(machine)
    monkeypatch.setenv("CXX", f"{os.environ['CXX']} -fsanitize=address")
    assert build(machine) != made


def test_what_lies_beside_the_sources_is_none(machine: OneDNN) -> None:
    made = build(machine)
    sources = operators.NATIVE / "units"
    (sources / ".unit.cc.swp").write_text("an editor's")
    (sources / ".ipynb_checkpoints").mkdir()
    (sources / ".#unit.cc").symlink_to("someone@somewhere.1")
    assert build(machine) == made


def test_a_folder_that_may_not_be_searched_has_no_library(
    machine: OneDNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refused)  # as it does, but for the superuser
    monkeypatch.setattr(operators, "_key", lambda *_: "key")
    assert build(machine).read_text() == "built\n"


def test_what_a_killed_build_has_left_is_removed(machine: OneDNN) -> None:
    folder = operators.NATIVE / "build"
    for name, age in (("old", 3600), ("new", 0)):
        (folder / f".build-{name}").mkdir(parents=True)
        (folder / f".build-{name}" / "unit.o").touch()
        then = time.time() - age
        os.utime(folder / f".build-{name}", (then, then))
    made = build(machine)
    assert {path.name for path in folder.iterdir()} == {".build-new", made.name}


def test_the_language_of_the_user_does_not_matter(
    machine: OneDNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the compiler says is read: its version for the name, and which line is an error."""
    compiler = Path(os.environ["CXX"])
    compiler.write_text(compiler.read_text().replace("fake 1", "fake 1 $LC_ALL"))
    found = []
    for language in ("de_DE.UTF-8", "C"):
        monkeypatch.setenv("LC_ALL", language)
        found.append(build(machine))
    assert found[0] == found[1]


def test_another_mxnet_is_built_for_anew(machine: OneDNN, monkeypatch: pytest.MonkeyPatch) -> None:
    made = build(machine)
    monkeypatch.setattr(mx, "__version__", "2")
    assert build(machine) != made


def test_switched_off(machine: OneDNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(operators.SWITCH, "0")
    with pytest.raises(Unavailable, match="ATTENTION_NATIVE=0"):
        operators.load(UNITS)
    assert not (tmp_path / "build").exists()


def test_a_library_that_cannot_be_loaded(machine: OneDNN, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "_loaded", {})
    with pytest.raises(BuildFailed, match="cannot be loaded"):
        operators.load(Operators("units"))  # the fake compiler makes no library


def test_a_read_only_package_is_built_in_the_cache(
    machine: OneDNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (operators.NATIVE / "build").write_text("a file, so no folder can be made here")
    made = build(machine)
    assert made.parent == tmp_path / "cache" / operators.CACHE_NAME


def test_a_failing_compiler_is_quoted_and_leaves_nothing(
    machine: OneDNN, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILS", "no such thing")
    with pytest.raises(BuildFailed, match=r"error: no such thing"):
        build(machine)
    assert list((operators.NATIVE / "build").iterdir()) == []


def test_a_compiler_that_is_named_is_taken_or_told(
    machine: OneDNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", f"env 'WORD=a b' {tmp_path}/bin/g++")  # as ccache is put before one
    build(machine)
    assert calls(tmp_path)
    for wrong in (f"{tmp_path}/typo/g++ -m64", f"'{tmp_path}/bin/g++"):
        monkeypatch.setenv("CXX", wrong)
        with pytest.raises(Unavailable, match=re.escape(f"CXX={wrong} is no program here")):
            build(machine)


def test_a_full_disk_leaves_them_out(machine: OneDNN, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(operators.os, "replace", full)
    with pytest.raises(Unavailable, match=r"cannot be written into .*: No space left on device"):
        build(machine)


def test_no_compiler(machine: OneDNN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="no C\\+\\+ compiler"):
        build(machine)


def test_no_onednn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTENTION_ONEDNN", str(tmp_path))
    with pytest.raises(Unavailable, match=f"no oneDNN 3 in ATTENTION_ONEDNN={tmp_path}"):
        find_onednn()


def test_the_program_says_why_and_does_not_fail(tmp_path: Path) -> None:
    usual = {name: value for name, value in os.environ.items() if name != operators.SWITCH}
    done = subprocess.run(
        [sys.executable, "-m", "model.native"],
        env={**usual, "ATTENTION_ONEDNN": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "units: not built: no oneDNN 3" in done.stdout


def test_the_program_is_switched_off_too(
    machine: OneDNN, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(operators.SWITCH, "0")
    assert operators.main() == 0
    assert capsys.readouterr().out.count("not built: ATTENTION_NATIVE=0") == 2
