"""What the parts may know of each other, and how large they may get."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Union

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the ground up: a package imports from itself and from those before it. "" are the scripts.
FLOORS = (
    *("compat", "formats", "formats/images", "formats/downloads", "machine"),
    *("model/layers", "model/native", "model", "model/execution", "model/weights"),
    *("model/pretrained", "model/export"),
    *("training/settings", "training/downloads", "training/compute", "training/records"),
    *("training/data", "training/augmentation", "training/reports", "training/batches"),
    *("training/distributed", "training/loop", "training/launch", "training/classifier"),
    *("training/glimpse/pictures", "training/glimpse", "training/apply", "training"),
    *("bridge/graph", "bridge/loop", "bridge", "", "demo"),
    *("benchmarks/harness", "benchmarks/glimpse", "benchmarks/pipeline", "benchmarks/networks"),
    *("benchmarks/bridge", "benchmarks/export", "benchmarks"),
)
# What `from model import ...` gives is built of all that is below this floor.
ENTRANCES = {"model/__init__.py": "model/pretrained"}
PACKAGES = sorted({floor.split("/")[0] for floor in FLOORS if floor and (ROOT / floor).is_dir()})
SOURCES = [
    *ROOT.glob("*.py"),
    *(f for name in [*PACKAGES, "examples"] for f in (ROOT / name).rglob("*.py")),
]
SCRIPTS = {"train_cifar", "train_imagenet", "train_mnist_glimpse", "export_model"}
FIRST_NAMES = {*PACKAGES, *SCRIPTS, "examples", "tests"}
# These run without MXNet and what needs it, so nothing that they reach imports it at its top.
WITHOUT_MXNET = (
    *("formats/", "machine/", "training/settings/", "training/downloads/", "training/data/"),
    *("training/augmentation/", "training/launch/", "bridge/"),
)
MXNET = {"mxnet", "gluoncv", "mxboard"}
# What of MXNet is slow to import or is not in every build of it.
PARTS_IMPORTED_LATE = ("mxnet.contrib", "mxnet.onnx", "mxnet.gluon.contrib")
# Places that documents have shown, and nothing here uses: each hands on what is elsewhere now.
OLD_PATHS = {
    "model/loading.py",
    "model/gate_report.py",
    "model/convert.py",
    "model/inference.py",
    "model/gate_folding.py",
    "model/quantization.py",
    "model/export_symbol.py",
    "model/export/__main__.py",
    "training/plot.py",
    "training/compare.py",
    "training/repeat.py",
    "training/gpu_checklist.py",
    "training/glimpse_loaders.py",
    "training/glimpse_tasks.py",
    "bridge/symbol_module.py",
}
MAX_FILES, MAX_OLD_PATH_LINES = 14, 20
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 400, 50, 7
# Gluon calls these by name; they say in their class what they do.
CALLED_BY_GLUON = {"hybrid_forward", "forward"}
# The readers behind this file are inner workings, and are documented at their entrance only.
INNER_WORKINGS, ENTRANCE = ("bridge/", "formats/"), "formats/param_file.py"
# What takes more: a block's settings, and MXNet's attributes, by name only.
MANY_PARAMETERS = {
    "model/layers/attention_module.py __init__",
    "bridge/graph/symbol_layers.py batch_norm",
    "bridge/graph/symbol_layers.py bilinear_resize",
    "bridge/graph/symbol_layers.py convolution",
    "bridge/graph/symbol_layers.py pooling",
}

Function = Union[ast.FunctionDef, ast.AsyncFunctionDef]
Trees = dict[Path, ast.Module]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def folder_of(path: Path) -> str:
    return name_of(path).rpartition("/")[0]


def floor_of(path: Path) -> str:
    return ENTRANCES.get(name_of(path), folder_of(path))


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
def trees() -> Trees:
    found = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {path.relative_to(ROOT).parts[0] for path in found} >= {
        *PACKAGES,
        *(f"{script}.py" for script in SCRIPTS),
    }
    return found


@pytest.fixture(scope="module")
def needs(trees: Trees) -> dict[Path, dict[Path, int]]:
    """Which files of the project a file imports, wherever in it, and in which line."""
    modules = {module_of(path): path for path in trees}
    return {
        path: {
            modules[name]: line
            for name, line in imports(tree, module_of(path))
            if name in modules and modules[name] != path
        }
        for path, tree in trees.items()
    }


def functions(tree: ast.AST) -> list[Function]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


# ------------------------------------------------------------------------------------- arrows


def test_every_package_has_a_floor(trees: Trees) -> None:
    assert {folder_of(path) for path in trees} <= {*FLOORS, "examples"}


def test_arrows_run_down(needs: dict[Path, dict[Path, int]]) -> None:
    wrong = [
        f"{name_of(path)}:{line} imports {name_of(target)}"
        for path, targets in needs.items()
        if folder_of(path) in FLOORS and name_of(path) not in OLD_PATHS
        for target, line in targets.items()
        # A package may be imported for a module in it: its __init__ is no arrow of its own.
        if target.name != "__init__.py" or ast.parse(target.read_text()).body[1:]
        if folder_of(target) not in FLOORS
        or FLOORS.index(folder_of(target)) > FLOORS.index(floor_of(path))
    ]
    assert not wrong


def test_examples_know_nothing_of_the_project(trees: Trees) -> None:
    """They are copied to machines without it."""
    assert not [
        f"{name_of(path)}:{line} imports {name}"
        for path, tree in trees.items()
        if folder_of(path) == "examples"
        for name, line in imports(tree, module_of(path))
        if name.split(".")[0] in {*FIRST_NAMES, *MXNET}
    ]


def test_no_module_imports_itself_through_others(needs: dict[Path, dict[Path, int]]) -> None:
    left = {path: set(targets) for path, targets in needs.items() if path.name != "__init__.py"}
    while ready := [path for path, targets in left.items() if not targets & set(left)]:
        for path in ready:
            del left[path]
    assert not {name_of(path): sorted(map(name_of, left[path] & set(left))) for path in left}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("import training.fit as x", {"training.fit"}),
        ("def f():\n    from training import fit", {"training", "training.fit"}),
        ("if True:\n    from . import loading", {"model", "model.loading"}),
        ("importlib.import_module('training')", {"training"}),
    ],
)
def test_every_kind_of_import_is_seen(code: str, found: set[str]) -> None:
    assert {name for name, _ in imports(ast.parse(code), "model.registry")} == found


# -------------------------------------------------------------------------------------- MXNet


def with_packages(path: Path, trees: Iterable[Path]) -> list[Path]:
    """Return a file and the files that importing it runs before: those of its packages."""
    return [path, *(up / "__init__.py" for up in path.parents if up / "__init__.py" in trees)]


def at_import(tree: ast.Module) -> ast.Module:
    """Return the module without the bodies of its functions."""
    copy = ast.parse(ast.unparse(tree))
    for function in functions(copy):
        function.body = [ast.Pass()]
    return copy


def test_what_runs_without_mxnet_never_reaches_it(
    trees: Trees, needs: dict[Path, dict[Path, int]]
) -> None:
    starts = [p for p in trees if name_of(p).startswith(WITHOUT_MXNET)]
    came_from = {path: "" for path in starts}
    for path in starts:  # grows
        for target in needs[path]:
            for one in with_packages(target, trees):
                if one not in came_from:
                    came_from[one] = name_of(path)
                    starts.append(one)
    wrong = [
        f"{name_of(path)}, which {came_from[path] or 'runs without it'} imports"
        for path in starts
        for name, _ in imports(at_import(trees[path]), module_of(path))
        if name.split(".")[0] in MXNET
    ]
    assert not wrong


def test_mxnet_is_imported_at_the_top(trees: Trees) -> None:
    wrong = [
        f"{name_of(path)}:{line} {function.name}"
        for path, tree in trees.items()
        if name_of(path).startswith(("model/", "training/"))
        for function in functions(tree)
        for name, line in imports(function, module_of(path))
        if name.split(".")[0] == "mxnet"
        and not name.startswith(PARTS_IMPORTED_LATE)
        # The base of such a part, which is yielded too.
        and not any(f"{name}.{part}" in PARTS_IMPORTED_LATE for part in ("contrib", "onnx"))
    ]
    assert not wrong


# ---------------------------------------------------------------------------------- old places


def test_old_places_only_hand_on(trees: Trees) -> None:
    for name in OLD_PATHS:
        body = trees[ROOT / name].body[1:]
        kinds = {type(node) for node in body}
        assert kinds <= {ast.Import, ast.ImportFrom, ast.Assign, ast.If}, name
        assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= MAX_OLD_PATH_LINES


def test_nothing_here_uses_old_places(needs: dict[Path, dict[Path, int]]) -> None:
    assert not [
        f"{name_of(path)} imports {name_of(target)}"
        for path, targets in needs.items()
        for target in targets
        if name_of(target) in OLD_PATHS
    ]


def test_names_come_from_the_file_that_defines_them(trees: Trees) -> None:
    """Only a package's ``__init__``, and old places, hand on names of other files."""
    modules = {module_of(path): path for path in trees}
    handed_on = {
        module: {
            alias.asname or alias.name
            for node in trees[path].body
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES
            for alias in node.names
            if f"{node.module}.{alias.name}" not in modules
        }
        for module, path in modules.items()
        if path.name != "__init__.py" and name_of(path) not in OLD_PATHS
    }
    wrong = [
        f"{name_of(path)}:{node.lineno} imports {alias.name} from {node.module}"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name in handed_on.get(node.module or "", ())
    ]
    assert not wrong


# ---------------------------------------------------------------------------------------- size


def test_folders_are_small(trees: Trees) -> None:
    folders = {path.parent for path in trees if path.parent != ROOT}
    folders |= {path.parent for path in (ROOT / "model/native").rglob("*.cc")}
    sizes = {
        f"{folder.relative_to(ROOT)}": len(
            [f for f in folder.iterdir() if f.is_file() and f.suffix not in (".pyc", ".so")]
        )
        for folder in folders
    }
    assert not {name: size for name, size in sizes.items() if size > MAX_FILES}


def test_tests_lie_as_their_sources(trees: Trees) -> None:
    places = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    names = {folder.relative_to(ROOT / "tests").as_posix() for folder in places}
    assert not [name for name in names if name != "." and not (ROOT / name).is_dir()]


def test_files_are_short(trees: Trees) -> None:
    lengths = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in trees}
    assert not {name: n for name, n in lengths.items() if n > MAX_FILE_LINES}


def test_functions_are_short(trees: Trees) -> None:
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


def test_functions_take_few_parameters(trees: Trees) -> None:
    def count(node: Function) -> int:
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        return len([a for a in arguments if a.arg not in ("self", "cls")])

    assert not [
        f"{name_of(path)}:{node.lineno} {node.name} takes {count(node)}"
        for path, tree in trees.items()
        for node in functions(tree)
        if count(node) > MAX_PARAMETERS and f"{name_of(path)} {node.name}" not in MANY_PARAMETERS
    ]


def test_everything_public_is_documented(trees: Trees) -> None:
    wrong = []
    for path, tree in trees.items():
        if not ast.get_docstring(tree) and path.read_text(encoding="utf-8").strip():
            wrong.append(f"{name_of(path)}: no docstring")
        if name_of(path).startswith(INNER_WORKINGS) and name_of(path) != ENTRANCE:
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


def test_annotations_are_not_evaluated(trees: Trees) -> None:
    line = "from __future__ import annotations"
    assert not [
        name_of(path)
        for path, tree in trees.items()
        if tree.body[1:] and line not in [ast.unparse(node) for node in tree.body]
    ]
