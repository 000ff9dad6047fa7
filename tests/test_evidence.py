"""What the documents say about repeated runs follows from docs/evidence/runs.csv."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.test_documents import tables
from training.classifier.config import CifarConfig
from training.reports.run_results import Spread, spread
from training.settings.config import from_dict, parse_overrides, to_dict

DOCS = Path(__file__).resolve().parent.parent / "docs"
with (DOCS / "evidence" / "runs.csv").open(encoding="utf-8", newline="") as table:
    RUNS = list(csv.DictReader(table))
# Each is at its default where a document's command does not name it; others come with the recipe.
VARIED = ("model", "depth", "wiring", "learning", "attention", "w_init", "label_noise")

Run = dict[str, str]
Claim = tuple[str, str]


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def settings(run: Run) -> dict[str, object]:
    return to_dict(from_dict(CifarConfig, json.loads(run["settings"])))


def runs_of(command: str) -> list[Run]:
    """Return the runs, by seed, of what follows ``repeat ... --``."""
    named = parse_overrides(CifarConfig, shlex.split(command))
    wanted = {**{name: to_dict(CifarConfig())[name] for name in VARIED}, **named}
    found = [run for run in RUNS if wanted.items() <= settings(run).items()]
    assert [int(run["seed"]) for run in found] == list(range(len(found))), command
    assert len(found) >= 3, command
    return found


def score(runs: Sequence[Run], column: str = "test_acc") -> Spread:
    return spread([float(run[column]) for run in runs])


def share(runs: Sequence[Run], column: str = "train_acc") -> str:
    return f"{100 * score(runs, column).mean:.2f} %"


def welch(a: Spread, b: Spread) -> str:
    return f"{(a.mean - b.mean) / math.sqrt(a.std**2 / a.n + b.std**2 / b.n):.1f}"


def documented(text: str) -> str:
    """Return what a page's command for several seeds repeats."""
    return next(iter(re.findall(r"repeat --seeds 3 --output OUT -- ([^`]+)`", text)))


def flags(cell: str) -> str:
    """Return the code of a table's cell."""
    return " ".join(re.findall(r"`([^`]+)`", cell))


def of_variants() -> Iterator[Claim]:
    text = page("variants.md")
    command = documented(text)
    first = score(runs_of(command))
    variants, labels = (
        next(t for t in tables(text) if name in t[0]) for name in ("variant", "true labels")
    )
    for row in variants:
        runs = runs_of(f"{command} {flags(row['flags'])}")
        yield row["test accuracy"], score(runs).percent()
        yield row["training accuracy"], share(runs)
    for row in labels:
        true = row["true labels"]
        noise = "" if true == "all" else f" --label-noise {int(true.split()[0]) / 100}"
        ours = score(runs_of(command + noise))
        plain = score(runs_of(f"{command}{noise} --model preresnet20 --depth 47"))
        yield row["attention56_small"], ours.percent()
        yield row["preresnet20, depth 47"], plain.percent()
        told = re.match(r"(\S+) \(t = (\S+),", row["difference"])
        assert told is not None
        yield told[1], f"{100 * (ours.mean - plain.mean):.1f}"
        yield told[2], welch(ours, plain)
    for flag, found in (
        ("learning nal", re.findall(r"Welch's t = (\S+),", text)),
        ("wiring paper", re.findall(r"Wiring \(t = (\S+)\)", text)),
        ("attention spatial", re.findall(r"spatial attention \(t = (\S+)\)", text)),
        ("attention channel", re.findall(r"points\s+\(t = (\S+), open", text)),
    ):
        yield "".join(found), welch(first, score(runs_of(f"{command} --{flag}"))).lstrip("-")


def of_channel_attention() -> Iterator[Claim]:
    text = page("channel_attention.md")
    command = documented(text).replace("--model NETWORK", "")
    for row in next(t for t in tables(text) if "gates alive" in t[0]):
        runs = runs_of(f"{command} --model {flags(row['network'])}")
        yield row["test accuracy"], score(runs).percent()
        yield row["training accuracy"], share(runs)
        alive, width = "-", "-"
        if runs[0]["gate_alive"]:
            alive = f"{100 * score(runs, 'gate_alive').mean:.1f} %"
            width = f"{score(runs, 'gate_std').mean:.4f}"
        yield row["gates alive"], alive
        yield row["gate's spread"], width
    for name, told in (
        ("resnet20", re.search(r"Welch's t = (\S+) and (\S+)\)", text)),
        ("resnet20_static", re.search(r"constant gate \(t = (\S+) and (\S+),", text)),
    ):
        assert told is not None
        other = score(runs_of(f"{command} --model {name}"))
        gates = ("resnet20_ie", "resnet20_ram --w-init 0.1")
        values = [welch(score(runs_of(f"{command} --model {gate}")), other) for gate in gates]
        yield " ".join(told.groups()), " ".join(values)


def of_bfloat16() -> Iterator[Claim]:
    text = page("speed.md")
    for row in next(t for t in tables(text) if {"n", "float32", "bfloat16"} <= set(t[0])):
        (command,) = (cell for name, cell in row.items() if "repeat" in name)
        for precision in ("float32", "bfloat16"):
            runs = runs_of(f"{flags(command)} --precision {precision}")
            yield f"{row[precision]} (n = {row['n']})", score(runs).percent()
    told = re.search(r"After three runs .*\((.* ± .*) and (.* ± .*) %\)", text)
    assert told is not None
    for number, precision in ((1, "float32"), (2, "bfloat16")):
        runs = runs_of(f"{flags(command)} --precision {precision}")
        yield f"{told[number]} % (n = 3)", score(runs[:3]).percent()


@pytest.mark.parametrize(
    ("claims", "number"), [(of_variants, 26), (of_channel_attention, 22), (of_bfloat16, 6)]
)
def test_documents_say_what_the_runs_scored(
    claims: Callable[[], Iterator[Claim]], number: int
) -> None:
    pairs = list(claims())
    assert len(pairs) == number
    assert [told for told, _ in pairs] == [computed for _, computed in pairs]


@pytest.mark.parametrize(
    ("document", "records", "network"),
    [
        ("results.md", "short_search.csv", "model"),
        ("glimpse.md", "glimpse_search.csv", "dataset"),
    ],
)
def test_what_a_search_found_follows_from_its_runs(
    document: str, records: str, network: str
) -> None:
    with (DOCS / "evidence" / records).open(encoding="utf-8", newline="") as file:
        runs = list(csv.DictReader(file))
    rows = [
        row for table in tables(page(document)) if "better than `base`" in table[0] for row in table
    ]
    accuracy: dict[tuple[str, str], dict[str, float]] = {}
    for run in runs:
        one = accuracy.setdefault((run[network], run["setting"]), {})
        assert run["seed"] not in one
        one[run["seed"]] = float(run["valid_acc"])
    assert sorted((row[network].strip("`"), row["setting"].strip("`")) for row in rows) == sorted(
        accuracy
    )
    for row in rows:
        key = row[network].strip("`"), row["setting"].strip("`")
        assert row["held-out accuracy"] == spread(list(accuracy[key].values())).percent()
        of_this = [run for run in runs if (run[network], run["setting"]) == key]
        assert {run["epochs"] for run in of_this} == {row["epochs"]}
        assert all(row["options"].strip("`") in run["command"] for run in of_this)
        if key[1] != "base":
            base = accuracy[key[0], "base"]
            better = spread([a - base[seed] for seed, a in accuracy[key].items()])
            wanted = f"{100 * better.mean:.2f} ± {100 * better.std:.2f} points"
            assert row["better than `base`"] == wanted


def test_every_run_is_there_once() -> None:
    names = [(run["group"], run["setting"], run["seed"]) for run in RUNS]
    assert len(set(names)) == len(names) == 60


@pytest.mark.parametrize("run", RUNS, ids=lambda run: f"{run['setting']}-{run['seed']}")
def test_settings_are_those_of_the_command(run: Run) -> None:
    given = parse_overrides(CifarConfig, shlex.split(run["command"])[1:])
    seed, folder = given.pop("seed"), given.pop("run_dir")
    assert (str(seed), folder) == (run["seed"], f"runs/{run['group']}/{run['setting']}/seed-{seed}")
    known = settings(run)
    assert given.items() <= known.items()
    assert (known["model"], known["precision"]) == (run["model"], run["precision"])
    epochs = [run[f"{name}_by_epoch"].split() for name in ("train_acc", "train_loss", "wall_sec")]
    assert {len(one) for one in epochs} == {known["epochs"], int(run["epochs"])}
    assert float(epochs[0][-1]) == pytest.approx(float(run["train_acc"]), abs=1e-5)
