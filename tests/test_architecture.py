"""What the parts may know of each other, and how large they may get."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Union

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("formats", "compat", "model", "training", "bridge", "benchmarks", "examples")
SOURCES = [*ROOT.glob("*.py"), *(f for name in PACKAGES for f in (ROOT / name).rglob("*.py"))]
SCRIPTS = {"train_cifar", "train_imagenet", "train_mnist_glimpse", "export_model"}
# The first names that a package may not import.
FORBIDDEN = {
    "model": {"compat", "training", "benchmarks", "tests", *SCRIPTS},
    "training": {"compat", "model", "benchmarks", "tests", *SCRIPTS},
    # Taken without the rest by other users of MXNet, so nothing of ours is in it.
    "compat": {"model", "training", "bridge", "benchmarks", "tests", *SCRIPTS},
    "bridge": {"model", "training", "benchmarks", "tests", "mxnet", "gluoncv", *SCRIPTS},
    # Examples are copied to machines without this project.
    "examples": {"model", "training", "bridge", "benchmarks", "tests", "mxnet", *SCRIPTS},
}
# What trains with PyTorch knows settings and records of `training`, unlike the rest of `bridge`.
BRIDGE_TRAINING = (
    "bridge/loop/",
    "bridge/train.py",
    "bridge/bench.py",
    "bridge/carry/pack.py",
    "bridge/score.py",
)
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 400, 50, 7
# Gluon calls these by name; they say in their class what they do.
CALLED_BY_GLUON = {"hybrid_forward", "forward"}
# The readers behind this file are inner workings, and are documented at their entrance only.
BRIDGE_ENTRANCE = "formats/param_file.py"
# What takes more: a schedule's and a block's settings, and MXNet's attributes, by name only.
MANY_PARAMETERS = {
    "training/settings/schedules.py build_schedule",
    "model/layers/attention_module.py __init__",
    "bridge/graph/symbol_layers.py batch_norm",
    "bridge/graph/symbol_layers.py bilinear_resize",
    "bridge/graph/symbol_layers.py convolution",
    "bridge/graph/symbol_layers.py pooling",
}

Function = Union[ast.FunctionDef, ast.AsyncFunctionDef]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, module: str) -> Iterator[tuple[str, int]]:
    """Yield the full name and line of every import, those within functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base, node.lineno
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("importlib.import_module", "__import__")
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value), node.lineno


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    found = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {path.relative_to(ROOT).parts[0] for path in found} >= {
        *PACKAGES,
        *(f"{script}.py" for script in SCRIPTS),
    }
    return found


def functions(tree: ast.AST) -> list[Function]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_packages_keep_apart(package: str, trees: dict[Path, ast.Module]) -> None:
    wrong = [
        f"{name_of(path)}:{line} imports {name}"
        for path, tree in trees.items()
        if path.relative_to(ROOT).parts[0] == package
        for name, line in imports(tree, module_of(path))
        if name.split(".")[0] in FORBIDDEN[package]
        and not (name_of(path).startswith(BRIDGE_TRAINING) and name.split(".")[0] == "training")
    ]
    assert not wrong


def test_reading_files_needs_no_training(trees: dict[Path, ast.Module]) -> None:
    """What `training` imports of the bridge does not import `training`, not even in a function."""
    wrong = [
        f"{name_of(path)}:{line} imports {name}"
        for path, tree in trees.items()
        if path.relative_to(ROOT).parts[0] == "training"
        for name, line in imports(tree, module_of(path))
        if (name.replace(".", "/") + ".py").startswith(BRIDGE_TRAINING)
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import training.loop.fit as x", {"training.loop.fit"}),
        ("def f():\n    from training.loop import fit", {"training", "training.loop.fit"}),
        ("if True:\n    from . import loading", {"model", "model.weights.loading"}),
        ("importlib.import_module('training')", {"training"}),
    ],
)
def test_every_kind_of_import_is_seen(code: str, found: set[str]) -> None:
    assert {name for name, _ in imports(ast.parse(code), "model.registry")} == found


def at_import(tree: ast.Module) -> ast.Module:
    """Return the module without the bodies of its functions."""
    copy = ast.parse(ast.unparse(tree))
    for function in functions(copy):
        function.body = [ast.Pass()]
    return copy


def test_no_module_imports_itself_through_others(trees: dict[Path, ast.Module]) -> None:
    modules = {module_of(path): path for path in trees if path.name != "__init__.py"}
    needs = {
        module: {name for name, _ in imports(at_import(trees[path]), module) if name in modules}
        for module, path in modules.items()
    }
    while ready := [module for module, names in needs.items() if not names & set(needs)]:
        for module in ready:
            del needs[module]
    assert not needs


def test_files_are_short(trees: dict[Path, ast.Module]) -> None:
    lengths = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in trees}
    assert not {name: n for name, n in lengths.items() if n > MAX_FILE_LINES}


def test_functions_are_short(trees: dict[Path, ast.Module]) -> None:
    def code_lines(node: Function) -> int:
        """Lines without the documentation."""
        text = node.body[0]
        documented = ast.get_docstring(node) is not None
        written = int(text.end_lineno or 0) - text.lineno + 1 if documented else 0
        return int(node.end_lineno or 0) - node.lineno + 1 - written

    assert not [
        f"{name_of(path)}:{node.lineno} {node.name} has {code_lines(node)} lines"
        for path, tree in trees.items()
        for node in functions(tree)
        if code_lines(node) > MAX_FUNCTION_LINES
    ]


def test_functions_take_few_parameters(trees: dict[Path, ast.Module]) -> None:
    def count(node: Function) -> int:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return len([a for a in arguments if a.arg not in ("self", "cls")])

    assert not [
        f"{name_of(path)}:{node.lineno} {node.name} takes {count(node)}"
        for path, tree in trees.items()
        for node in functions(tree)
        if count(node) > MAX_PARAMETERS and f"{name_of(path)} {node.name}" not in MANY_PARAMETERS
    ]


def test_everything_public_is_documented(trees: dict[Path, ast.Module]) -> None:
    wrong = []
    for path, tree in trees.items():
        if not ast.get_docstring(tree) and path.read_text(encoding="utf-8").strip():
            wrong.append(f"{name_of(path)}: no docstring")
        if name_of(path).startswith("bridge/") and name_of(path) != BRIDGE_ENTRANCE:
            continue
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        members = [node for cls in classes if not cls.name.startswith("_") for node in cls.body]
        for node in [*tree.body, *members]:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                continue
            private = node.name.startswith("_") or node.name in CALLED_BY_GLUON
            if not private and not ast.get_docstring(node):
                wrong.append(f"{name_of(path)} {node.name}")
    assert not wrong


def test_annotations_are_not_evaluated(trees: dict[Path, ast.Module]) -> None:
    line = "from __future__ import annotations"
    assert not [
        name_of(path)
        for path, tree in trees.items()
        if tree.body[1:] and line not in [ast.unparse(node) for node in tree.body]
    ]
