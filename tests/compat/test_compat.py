"""The compatibility layer: every patch is needed and works, and nothing else is touched."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import compat
from compat import __main__ as command
from compat import distutils_version, patching, table, versions
from compat.numpy_names import OTHER_NAMES, VALUES, numpy_view
from compat.parameter_text import ParameterText, parameter_text

ROOT = Path(__file__).resolve().parents[2]
CHECKS = ROOT / "tests/compat/compat_checks.py"
NAMES = [entry.name for entry in table.ENTRIES]
IS_NUMPY_2 = int(np.__version__.split(".")[0]) >= 2
# What a Python says that lacks the patch.
MISSING = {
    "numpy-bool": "has no attribute 'bool'",
    "numpy-int-float": "has no attribute 'float'",
    "numpy-2-names": "AttributeError",
    "numpy-2-numbers": "Invalid Parameter format",
    "recordio-tostring": "tostring",
    "onnx-mapping": "onnx",
    "distutils-version": "",
    "mxboard-messages": "Descriptors cannot be created directly",
    "mxboard-float": "has no attribute 'float'",
    "mxboard-scalar": "only 0-dimensional arrays",
}


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )


def last_lines(answer: subprocess.CompletedProcess[str]) -> str:
    return answer.stderr[-2000:]


GREEDY = """
import sys
from importlib.machinery import PathFinder
import compat
class Greedy:  # as the finder of pytest, which rewrites the asserts of test_*.py
    def find_spec(self, name, path=None, target=None):
        return PathFinder.find_spec(name, path) if "test_" in name else None
sys.meta_path[:] = [f for f in sys.meta_path if type(f).__name__ != "CompatFinder"]
assert compat.install()
sys.meta_path.insert(0, Greedy())
import mxnet
print(type(sys.meta_path[0]).__name__, len(mxnet.test_utils.default_rtols()) > 5)
"""


def test_a_finder_that_came_later_does_not_take_a_module_before_it_is_patched() -> None:
    answer = run_python("-c", GREEDY, PYTHONPATH=str(ROOT))
    assert answer.stdout.split() == ["CompatFinder", "True"], last_lines(answer)


def test_all_patches_work_together() -> None:
    answer = run_python(str(CHECKS), "all", *NAMES)
    assert answer.returncode == 0, last_lines(answer)
    assert answer.stdout.split() == NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_without_one_patch_its_check_fails(name: str) -> None:
    answer = run_python(str(CHECKS), "without", name)
    if name == "numpy-bool" and IS_NUMPY_2:  # which has np.bool again
        assert answer.returncode == 0, last_lines(answer)
        return
    assert answer.returncode == 1
    assert MISSING[name] in answer.stderr


def test_every_entry_has_its_check_and_its_reason() -> None:
    assert set(MISSING) == set(NAMES)
    assert len(set(NAMES)) == len(NAMES)
    for entry in table.ENTRIES:
        assert entry.what
        assert entry.why
        assert any(digit.isdigit() for digit in entry.since)


def versions_of(monkeypatch: pytest.MonkeyPatch, **found: str) -> set[str]:
    """Names of the entries that are needed where these versions are installed."""
    monkeypatch.setattr(versions, "version_of", found.get)
    return {entry.name for entry in table.ENTRIES if entry.is_needed()} - {"distutils-version"}


def test_what_is_needed_where(monkeypatch: pytest.MonkeyPatch) -> None:
    old = {"numpy": "1.23.5", "onnx": "1.17.0", "protobuf": "3.20.3"}
    assert versions_of(monkeypatch, **old) == set()
    middle = {"numpy": "1.26.4", "onnx": "1.18.0", "protobuf": "7.36.2"}
    expected = {"numpy-bool", "numpy-int-float", "mxboard-float", "mxboard-scalar"}
    assert versions_of(monkeypatch, **middle) == {*expected, "mxboard-messages"}
    assert versions_of(monkeypatch, numpy="1.24.0") == expected - {"mxboard-scalar"}
    newer = versions_of(monkeypatch, numpy="2.2.6", onnx="1.23.2", protobuf="4.21.0rc1")
    assert newer == set(NAMES) - {"numpy-bool", "recordio-tostring", "distutils-version"}
    assert "recordio-tostring" in versions_of(monkeypatch, numpy="2.3.0")
    assert versions_of(monkeypatch) == set()


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python has no distutils")
def test_distutils_of_python_itself_is_left_alone() -> None:
    (entry,) = (each for each in table.ENTRIES if each.name == "distutils-version")
    assert not entry.is_needed()


def test_what_needs_no_patch_is_untouched() -> None:
    """NumPy lacks the same names before and after; others import no stand-in."""
    script = (
        "import sys, compat; assert compat.install()\n"
        "from compat.numpy_names import OTHER_NAMES, VALUES\n"
        "import numpy; names = {*OTHER_NAMES, *VALUES} & {*vars(numpy)}\n"
        "import mxnet, mxboard; print(mxnet.__version__)\n"
        "print(names == {*OTHER_NAMES, *VALUES} & {*vars(numpy)})\n"
        "print(sys.modules['numpy'] is numpy, type(numpy).__name__)\n"
        "specs = [getattr(sys.modules.get(name, sys), '__spec__', None)"
        " for name in ('onnx.mapping', 'distutils.version')]\n"
        "print([spec for spec in specs if spec is None or 'compat' in spec.name])\n"
    )
    answer = run_python("-c", script, PYTHONPATH=str(ROOT))
    assert answer.stderr == ""
    assert answer.stdout.splitlines() == ["1.9.1", "True", "True module", "[]"]


def test_importing_numpy_alone_looks_nothing_up() -> None:
    script = (
        "import sys, compat; before = set(sys.modules); assert compat.install()\n"
        "print(sorted(set(sys.modules) - before)); import numpy, json, email.message\n"
        "print([name for name in sys.modules if name.startswith('compat.')])"
    )
    answer = run_python("-c", script, PYTHONPATH=str(ROOT))
    assert answer.stdout.splitlines() == ["[]", "[]"], answer.stderr


def test_it_comes_too_late_once_mxnet_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [])
    monkeypatch.setitem(sys.modules, "mxnet", types.ModuleType("mxnet"))
    assert compat.install() is False
    assert sys.meta_path == []
    for name in compat.PACKAGES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert compat.install() is True
    assert compat.install() is True
    assert len(sys.meta_path) == 1


def test_a_missing_package_stays_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    finder = compat.CompatFinder()
    monkeypatch.setattr(sys, "meta_path", [finder])
    patch = patching.OwnNames({})
    finder._patches = {"mxnet.io": [patch]}  # type: ignore[assignment]
    assert finder.find_spec("mxnet.io", [str(ROOT)]) is None
    assert finder.find_spec("mxnet.nd", [str(ROOT)]) is None


def test_every_passage_is_in_the_source_it_replaces() -> None:
    for entry in table.ENTRIES:
        for name, patch in entry.patches.items():
            if isinstance(patch, patching.NewLines):
                package, *rest = name.split(".")
                spec = importlib.util.find_spec(package)
                assert spec is not None
                assert spec.origin is not None
                source = Path(spec.origin).with_name(f"{rest[-1]}.py").read_text(encoding="utf-8")
                assert all(old in source for old in patch.passages)
                assert not any(old in patch.rewrite(source) for old in patch.passages)


class Newer(np.int64):
    def __repr__(self) -> str:
        return f"np.int64({int(self)})"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Newer(3), "3"),
        ((Newer(2), 3), "(2, 3)"),
        ((Newer(2),), "(2,)"),
        ([Newer(2), (Newer(1),)], "[2, (1,)]"),
        ({"a": Newer(2)}, "{'a': 2}"),
        ((np.float32(0.1), "x", None, True), "(0.1, 'x', None, True)"),
        ((np.bool_(True), np.float64(2)), "(True, 2.0)"),
        ((), "()"),
        ((1, "a"), "(1, 'a')"),
        ("text", "text"),
        (None, "None"),
        (0.25, "0.25"),
    ],
)
def test_text_of_parameters(value: Any, text: str) -> None:
    assert parameter_text(value) == text
    stand_in: Any = ParameterText
    assert stand_in(value) == text


def test_the_text_class_answers_for_str() -> None:
    assert isinstance("text", ParameterText)
    assert not isinstance(3, ParameterText)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1.17", "1.23.5"), ("1.9", "1.10"), ("1.0rc1", "1.0.1"), ("2.0.0", "10.0"), ("1.2", "1.2.1")],
)
def test_versions_are_in_order(one: str, other: str) -> None:
    for kind in (distutils_version.LooseVersion, distutils_version.StrictVersion):
        assert kind(one) < kind(other)
        assert kind(other) >= one
        assert kind(one) == kind(one)


def numpy_names(source: str) -> set[str]:
    """Names that a source takes from NumPy: np.X of every ``import numpy as np``."""
    tree = ast.parse(source)
    aliases = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "numpy"
    }
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in aliases
    }


def test_no_name_of_numpy_is_left_out() -> None:
    """Whatever mxnet, gluoncv and mxboard ask NumPy for is there, in the modules that ask."""
    patched = {
        name
        for entry in table.ENTRIES
        if entry.is_needed()
        for name, patch in entry.patches.items()
        if patch is table.NUMPY
    }
    rewritten = {"mxboard.summary": {"float"}}
    left_out, seen = [], 0
    for package in compat.PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        for path in sorted(folder.rglob("*.py")):
            module = ".".join(path.relative_to(folder.parent).with_suffix("").parts)
            if module.startswith(("gluoncv.torch", "mxnet.tools")):
                continue
            seen += 1
            names = {n for n in numpy_names(path.read_text(encoding="utf-8")) if not has(n)}
            names -= rewritten.get(module, set())
            if module in patched:
                names -= {*OTHER_NAMES, *VALUES}
            left_out += [f"{module}: np.{name}" for name in sorted(names)]
    assert seen > 300
    assert left_out == []


def has(name: str) -> bool:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hasattr(np, name)


@pytest.mark.parametrize("name", sorted({*OTHER_NAMES, *VALUES}))
def test_the_view_has_every_lost_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(vars(np), name, raising=False)
    monkeypatch.setitem(vars(np), "trapezoid", getattr(np, "trapezoid", sum))  # new in 2.0
    assert getattr(numpy_view(), name) is not None
    assert name in dir(numpy_view())


def test_the_view_is_numpy_for_all_else() -> None:
    assert numpy_view().dot is np.dot
    with pytest.raises(AttributeError):
        _ = numpy_view().nothing_of_this_name


def test_financial_functions_say_where_they_are() -> None:
    with pytest.raises(RuntimeError, match="numpy-financial"):
        numpy_view().npv(0.1, [1, 2])


def test_the_command_says_what_is_patched(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main([]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Python {}.{}.{}, numpy ".format(*sys.version_info[:3]))
    for entry in table.ENTRIES:
        mark = "patched" if entry.is_needed() else "not needed here"
        assert f"\n{entry.name}: {mark} (since {entry.since})\n" in text


def test_installing_makes_any_script_work_and_removing_undoes_it(tmp_path: Path) -> None:
    script = (
        "import site, sys; site.addsitedir(sys.argv[1]);"
        "print([type(each).__name__ for each in sys.meta_path].count('CompatFinder'));"
        "import mxnet, mxboard; print(mxnet.nd.ones((2,)).sum().asscalar())"
    )
    command.install_into(tmp_path)
    command.install_into(tmp_path)
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "attention_compat",
        "attention_compat.pth",
    ]
    answer = run_python("-c", script, str(tmp_path))
    assert answer.stdout.split() == ["1", "2.0"], answer.stderr
    command.remove_from(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_it_stands_by_itself(tmp_path: Path) -> None:
    """Nothing but the standard library is imported at the top of a file, nothing of ours at all."""
    for path in sorted((ROOT / "compat").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            name.split(".")[0]
            for node in tree.body
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom) and not node.level
                else []
            )
        }
        assert names <= {*getattr(sys, "stdlib_module_names", names), "__future__"}, path
        everything = {
            (node.module or "").split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and not node.level
        }
        assert not everything & {"model", "training", "bridge", "benchmarks", "tests"}
