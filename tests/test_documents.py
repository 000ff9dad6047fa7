"""The README is short, and what it and docs/ name and say is there and so."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path

import pytest

import train_cifar
from formats.param_file import read_shapes
from model.registry import list_models
from model.weights.published import GLIMPSE_INDEX, INDEX, read_index
from training.apply.pretrained import with_weights
from training.classifier.recipes import RECIPES
from training.glimpse.config import GlimpseConfig
from training.settings.config import parse_overrides
from training.settings.pretrained import CLASSIFIER_ACTIONS, GLIMPSE_ACTIONS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SPEED_PAGE = ROOT / "docs" / "speed_tables" / "amd-epyc-zen-5-2-cores-avx512.md"
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "*_param/*.md", "compat/*.md")
    for path in ROOT.glob(pattern)
)
MOST_WORDS = 1800


def tables(page: str) -> list[list[dict[str, str]]]:
    """Return the Markdown tables of a page: a list of rows each, cells by the column's name."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", page, re.MULTILINE):
        head, _, *rows = [
            [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            for line in block.splitlines()
        ]
        found.append([dict(zip(head, row)) for row in rows])
    return found


def without_code(page: str) -> str:
    return re.sub(r"^( *)```.*?^ *```", "", page, flags=re.MULTILINE | re.DOTALL)


def anchors(page: str) -> set[str]:
    """Return the anchors that GitHub gives to a page's headings."""
    titles = re.findall(r"^#+ +(.*?) *$", without_code(page), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", re.sub(r"\]\(.*?\)", "", title)) for title in titles)
    return {word.lower().replace(" ", "-") for word in words}


def broken_links(path: Path) -> list[str]:
    """Return the links of a page to files or headings that are not there, not those to the web."""
    page = without_code(path.read_text(encoding="utf-8"))
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)|\bsrc=\"([^\"]+)\"", page):
        name, _, anchor = "".join(link).partition("#")
        if re.match(r"[a-z]+:", name):
            continue
        target = path.parent / name if name else path
        if not target.exists():
            broken.append(name)
        elif anchor and anchor not in anchors(target.read_text(encoding="utf-8")):
            broken.append(f"{name}#{anchor}")
    return broken


def networks() -> list[dict[str, str]]:
    """Return the rows of the README's table of networks."""
    return next(table for table in tables(README) if "take it for" in table[0])


def published(name: str, dataset: str) -> dict[str, str]:
    """Return the index's row of a network, with its file's path and its accuracy as a number."""
    for index in (INDEX, GLIMPSE_INDEX):
        for row in read_index(index):
            if (row["model"], row["dataset"]) == (name, dataset):
                error = float(row["single_error"]) / 100 if "single_error" in row else None
                acc = row["test_acc"] if error is None else str(1 - error)
                return {**row, "path": str(index.parent / row["file"]), "test_acc": acc}
    raise AssertionError(f"no published file of {name} on {dataset}")


def test_readme_is_short() -> None:
    assert len(README.split()) <= MOST_WORDS


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_link_to_what_is_there(path: Path) -> None:
    assert broken_links(path) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` c: d\n[x](#a-b-c-d) [y](#other) [z](none.md) [w](https://a.b/c) [v](page.md#e)\n"
        '<img src="none.png">\n```sh\n# e\n[t](in_code.md)\n```\n'
    )
    assert broken_links(page) == ["#other", "none.md", "page.md#e", "none.png"]


def test_readme_leads_to_every_page() -> None:
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages == set(re.findall(r"\]\((docs/\w+\.md)", README))


@pytest.mark.parametrize("row", networks(), ids=lambda row: f"{row['network']}-{row['data']}")
def test_networks_are_as_the_index_says(row: dict[str, str]) -> None:
    known = published(row["network"].strip("`"), row["data"])
    assert row["accuracy"] == f"{100 * float(known['test_acc']):.2f} %"
    assert (row["epochs"], row["hours"]) == (known["epochs"], known["hours"])
    shapes = read_shapes(known["path"])
    trained = sum(
        math.prod(shape) for name, (shape, _) in shapes.items() if ".running_" not in name
    )
    assert row["parameters"] == f"{trained / 1e6:.2f} M"


def test_speeds_are_those_of_the_page_of_speeds() -> None:
    rows = tables(SPEED_PAGE.read_text(encoding="utf-8"))[0]
    speeds = {(row["network"], row["mode"]): row["images/s"] for row in rows}
    named = [row for row in networks() if row["images/s"]]
    assert len(named) >= 3
    for row in named:
        measured = (
            speeds[row["network"].strip("`"), f"train {precision}"]
            for precision in ("fp32", "bf16")
        )
        assert row["images/s"] == " / ".join(f"{float(speed):.0f}" for speed in measured)


def test_glimpse_errors_are_those_of_the_index() -> None:
    errors = {row["file"]: float(row["single_error"]) for row in read_index(GLIMPSE_INDEX)}
    for file in ("glimpse_mnist_0.71_d216985f.param", "glimpse_cluttered8_2.91_6f19ef3e.param"):
        assert f"{errors[file]:.2f} %" in README


def test_numbers_of_networks_and_files() -> None:
    assert f"all {len(list_models())} networks" in README
    files = len(read_index(INDEX)) + len(read_index(GLIMPSE_INDEX))
    assert f"| trained files | {files} |" in README


def test_best_accuracy_is_that_of_the_index() -> None:
    best = max(float(row["test_acc"]) for row in read_index(INDEX) if row["dataset"] == "cifar10")
    assert f"| best CIFAR-10 accuracy | {100 * best:.2f} % " in README


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_published_files_that_are_named_are_there(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    named = re.findall(r"\b(?:cifar|mnist)_param/(\w[\w.]*\.param)\b", page)
    files = {
        file.name for folder in ("cifar_param", "mnist_param") for file in (ROOT / folder).iterdir()
    }
    assert [name for name in named if name not in files | {"FILE.param"}] == []


def test_results_are_compared_as_the_index_says() -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    rows = next(table for table in tables(page) if "published" in table[0])
    known = {
        (f"{100 * float(row['test_acc']):.2f} %", f"{row['epochs']} epochs")
        for row in read_index(INDEX)
    }
    for row in rows:
        ours = row["here"].split(", ")
        assert (ours[0], ours[-1]) in known
        assert row["published"] in README


FOLDERS = "benchmarks|bridge|compat|formats|machine|model|tests|training"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_commands_that_are_named_are_there(path: Path) -> None:
    if path.name == "CHANGELOG.md":  # it tells of what was, too
        return
    page = path.read_text(encoding="utf-8")
    named = re.findall(rf"(?<![\w./])((?:{FOLDERS})/[\w/]+\.(?:py|cc|h|md))\b", page)
    ran = re.findall(rf"python -m ((?:{FOLDERS})[\w.]*\w)", page)
    modules = [name.replace(".", "/") for name in ran]
    named += [f"{name}/__main__.py" if (ROOT / name).is_dir() else f"{name}.py" for name in modules]
    assert [name for name in named if not (ROOT / name).exists()] == []


def commands(page: str, script: str) -> list[list[str]]:
    """Return the words after `script` in a page's blocks of commands."""
    blocks = "".join(re.findall(r"^ *```sh\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE))
    joined = re.sub(r"\\\n *", " ", blocks)
    lines = (shlex.split(line, comments=True) for line in joined.splitlines())
    return [words[2:] for words in lines if words[1:2] == [script]]


def test_readme_commands_are_understood() -> None:
    classifiers = commands(README, "train_cifar.py")
    glimpses = commands(README, "train_mnist_glimpse.py")
    assert len(classifiers) >= 6
    assert len(glimpses) >= 2
    for words in classifiers:
        given = parse_overrides(train_cifar.CifarConfig, words)
        train_cifar.CifarConfig(**{**RECIPES[given.get("recipe", "pistony")], **given}).check()
    for words in glimpses:
        GlimpseConfig(**parse_overrides(GlimpseConfig, words)).check()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_flags_in_documents_exist(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    for words in commands(page, "train_cifar.py"):
        if not {"--arch", "--help"} & set(
            words
        ):  # zhongshsh/RAM's: training/classifier/test_ram_flags.py
            words = with_weights(words, CLASSIFIER_ACTIONS)
            parse_overrides(train_cifar.CifarConfig, words)
    for words in commands(page, "train_mnist_glimpse.py"):
        if not any("_" in word.split("=")[0] for word in words if word.startswith("--")):
            # kevinzakka's: training/glimpse/test_glimpse_flags.py
            words = with_weights(words, GLIMPSE_ACTIONS)
            parse_overrides(GlimpseConfig, words)
