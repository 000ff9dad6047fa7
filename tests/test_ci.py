"""CI: a step that fails makes it fail, and what cannot be had here is left out with a note."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STEPS = (
    *("lint", "types", "test-pythons", "test-wheel", "docs", "test-notebooks", "test-demo"),
    "test",
)
# `-m venv FOLDER` makes a folder that holds a copy of this script. Its pip installs nothing;
# whether it finds an index is INDEX.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
"-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
*" install "*) exit 1 ;;
*" download "*) exit "$INDEX" ;;
esac
"""


def program(path: Path, text: str = "#!/bin/sh\n") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def run_ci(folder: Path, broken: str = "", overlay: int = 0) -> subprocess.CompletedProcess[str]:
    """Run .ci/run where `make broken` fails and overlays end with an exit code."""
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", folder / ".ci/run")
    program(folder / ".ci/setup.sh")
    program(folder / ".ci/overlay.sh", f"#!/bin/sh\nexit {overlay}\n")
    program(folder / "bin/chromium")
    (folder / "Makefile").write_text(f"Makefile: ;\n%:\n\t@echo made $@; [ $@ != '{broken}' ]\n")
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(folder / ".ci/run")],
        env={"PATH": path}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_ci_runs_every_step(tmp_path: Path) -> None:
    done = run_ci(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("made ")[1:] == [f"{name}\n" for name in ("setup", *STEPS)]


@pytest.mark.parametrize("broken", ["setup", *STEPS])
def test_ci_fails_where_a_step_does(tmp_path: Path, broken: str) -> None:
    assert run_ci(tmp_path, broken).returncode == 1


@pytest.mark.parametrize(("code", "ends"), [(2, 1), (3, 0)])
def test_ci_leaves_out_what_no_index_has_and_fails_for_a_wrong_lock(
    tmp_path: Path, code: int, ends: int
) -> None:
    done = run_ci(tmp_path, overlay=code)
    assert done.returncode == ends
    assert "made docs" not in done.stdout
    assert ("cannot be had here, so make docs is left out" in done.stderr) == (code == 3)


@pytest.mark.parametrize(("index", "code"), [("0", 2), ("1", 3)])
def test_an_overlay_tells_a_wrong_lock_from_a_missing_index(
    tmp_path: Path, index: str, code: int
) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/overlay.sh", tmp_path / ".ci/overlay.sh")
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements/docs.txt").write_text("mkdocs==1\n")
    program(tmp_path / ".venv/bin/python", FAKE_PYTHON)
    (tmp_path / ".venv/.complete").write_text("stamp")
    program(tmp_path / "bin/uv", "#!/bin/sh\nexit 1\n")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", str(tmp_path / ".ci/overlay.sh"), "docs", ".venv-docs"],
        env={"PATH": path, "INDEX": index}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "could not be installed" in done.stderr
    assert not (tmp_path / ".venv-docs/.complete").exists()
