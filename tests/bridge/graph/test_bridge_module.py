"""`bridge.graph.symbol_module` where PyTorch is: each function of symbol_checks.py is a test here.

PyTorch is in an environment of its own, .venv-torch; without it (make test-bridge makes it) they
skip.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bridge.bridge_cases import make_case
from formats.param_file import write_params

ROOT = Path(__file__).resolve().parents[3]
CHECKS = Path(__file__).with_name("symbol_checks.py")
NAMES = [
    node.name
    for node in ast.parse(CHECKS.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]


@pytest.fixture(scope="module")
def results(torch_python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run all checks in one process and return the traceback of each, or None."""
    folder = tmp_path_factory.mktemp("symbol")
    case = make_case("resnet20_basic_ram", depth=8, channels=(4, 4, 8))
    content = json.loads(case.symbol)
    image = next(node for node in content["nodes"] if node["name"] == "image")
    image["attrs"]["__shape__"] = "(0, 3, 8, 8)"
    (folder / "small.json").write_text(json.dumps(content))
    write_params(folder / "small.param", case.arrays)
    done = subprocess.run(
        [torch_python, str(CHECKS), str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return found


@pytest.mark.parametrize("name", NAMES)
def test_the_module(name: str, results: dict[str, Any]) -> None:
    assert results[name] is None, results[name]


def test_every_check_is_run(results: dict[str, Any]) -> None:
    assert sorted(results) == sorted(NAMES)
