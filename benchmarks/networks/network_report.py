"""The page of bench_networks.py, from its file of figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Optional

from benchmarks.glimpse import bench_glimpse
from benchmarks.harness.report import headline
from benchmarks.networks import bench_scaling
from benchmarks.networks import network_rows as rows
from benchmarks.pipeline import bench_epoch
from machine.processor import instructions_slug

TRAIN_PASSES, INFER_PASSES = 3, 1  # a backward pass costs twice a forward pass
COLUMNS = (
    "network", "mode", "batch", "ours, ms", "images/s", "PyTorch nchw, ms", "channels_last, ms",
    "compiled, ms", "x eager", "x best", "GFLOP/s", "of peak", "MiB, ours / PyTorch",
)  # fmt: skip
LEGEND = (
    "Milliseconds of one step: median of interleaved rounds (least to most). x eager: PyTorch's "
    "faster eager layout over ours; x best: with torch.compile too. For int8 both are our float32 "
    "over our int8, timed in turn. of peak: of the convolutions of that precision, int8 of "
    "bfloat16's. MiB: largest resident memory of a process that only trains."
)
GRAPH = "MXNet's own operators"  # how the workers begin to say why no own ones are used
SECTIONS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "glimpse": ("Glimpse model", bench_glimpse.table),
    "scaling": ("Cost and work", bench_scaling.table),
    "epoch": ("Does the network wait for its data?", bench_epoch.table),
}


def processor(known: Mapping[str, Any]) -> str:
    """Return the name of the files for this processor: its own, cores, and instruction sets."""
    name = re.sub(r"[^a-z0-9]+", "-", str(known["cpu"]).lower()).strip("-")
    plain = "-plain" if known.get("variables", {}).get("ATTENTION_NATIVE") == "0" else ""
    slug = instructions_slug(known.get("isa") or "")
    return f"{name}-{known['usable_cores']}-cores-{slug}{plain}"


def peak_flops(peak: Mapping[str, float], precision: str) -> Optional[float]:
    """Return the measured FLOP/s of convolutions, the faster system's; None: not measured."""
    work = 2.0 * 9 * rows.PEAK_CHANNELS**2 * rows.SIZE**2 * rows.PEAK_BATCH * rows.PEAK_LAYERS
    times = [seconds for name, seconds in peak.items() if name.startswith(f"{precision}/")]
    return work / min(times) if times else None


def markdown(record: Mapping[str, Any]) -> str:
    """Return the page: the table, the peak, what the columns mean, and the further tables."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    places, ratios, unsteady = [], [], []
    for key, mode in _modes(record):
        if key not in record["rows"]:
            lines.append(_left_out(key, mode, record["left_out"][key]))
            continue
        row = record["rows"][key]
        lines.append(_line(record, row, mode))
        if any(one["max"] > rows.STEADY * one["min"] for one in row["systems"].values()):
            unsteady.append(key)
        place = f"{headline(row['environment'])}; {row['threads']} threads"
        place += "; quick, says nothing of speed" if row["quick"] else ""
        places += [place] if place not in places else []
        ratio = judged(row, mode)
        ratios += [] if ratio is None else [ratio]
    parity = max(record["parity"].values(), default=0.0)
    notes = [
        "Written by `make bench`; docs/speed.md has the method.",
        "",
        *(f"- {place}" for place in places),
        "",
        f"The least ratio, x best or in training x eager: {min(ratios, default=0.0):.2f}.",
        f"Measured peak of 3x3 convolutions, the faster system's: {_peaks(record)}.",
        f"Largest difference of PyTorch's logits from ours: {parity:.2g} of the largest logit.",
        LEGEND,
        *(
            f"- not steady, its rounds differ by more than {rows.STEADY:g}: {key}"
            for key in unsteady
        ),
        *_graphs(record),
        "",
    ]
    return "\n".join(["# Speed against PyTorch", "", *notes, *lines, "", *_sections(record)])


def _modes(record: Mapping[str, Any]) -> Iterator[tuple[str, rows.Mode]]:
    """Yield the rows that are there or left out, in the order of the table."""
    known = {*record["rows"], *record.get("left_out", {})}
    for network, about in rows.NETWORKS.items():
        for name, mode in rows.modes_of(about).items():
            if f"{network}/{name}" in known:
                yield f"{network}/{name}", mode


def _left_out(key: str, mode: rows.Mode, reason: str) -> str:
    """Return the line of a row that cannot be computed."""
    network, _, name = key.partition("/")
    cells = [network, name.split(",")[0], str(mode.batch), "left out: " + reason.replace("|", "/")]
    return "| " + " | ".join(cells + ["-"] * (len(COLUMNS) - len(cells))) + " |"


def _graphs(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each reason why rows of training were not computed by own operators."""
    found: dict[str, list[str]] = {}
    for key, row in record["rows"].items():
        for step in (row.get("how") or {}).get("steps", ()):
            if step.startswith(GRAPH):
                found.setdefault(step, []).append(key)
    for step, keys in found.items():
        yield f"- {step}: {', '.join(keys)}"


def judged(row: Mapping[str, Any], mode: rows.Mode) -> Optional[float]:
    """Return the ratio that a row is judged by; None: not measured."""
    eager, best = _factors(row, mode)
    return eager if mode.kind == "train" else best


def _peaks(record: Mapping[str, Any]) -> str:
    found = {name: peak_flops(record["peak"], name) for name in ("float32", "bfloat16")}
    told = [f"{v / 1e9:.0f} GFLOP/s in {n}" for n, v in found.items() if v]
    left_out = record.get("peak_left_out", {}).items()
    return ", ".join(told + [f"{n} left out ({reason})" for n, reason in left_out]) or "none"


def _sections(record: Mapping[str, Any]) -> list[str]:
    lines = []
    for name, (title, table) in SECTIONS.items():
        if name in record:
            kept = record[name]
            lines += [f"## {title}", "", headline(kept["environment"]) + ".", ""]
            lines += [table(kept["found"]), ""]
    return lines


def _factors(row: Mapping[str, Any], mode: rows.Mode) -> tuple[Optional[float], Optional[float]]:
    """Return how many times ours is as fast as the faster eager form, and as the fastest form."""
    systems = row["systems"]
    ours = systems["ours"]["median"]
    if mode.precision == "int8":
        factor = systems[rows.WIDE]["median"] / ours if rows.WIDE in systems else None
        return factor, factor
    eager = [systems[form]["median"] for form in rows.EAGER if form in systems]
    best = eager + [systems[form]["median"] for form in (rows.COMPILED,) if form in systems]
    return (min(eager) / ours if eager else None), (min(best) / ours if best else None)


def _line(record: Mapping[str, Any], row: Mapping[str, Any], mode: rows.Mode) -> str:
    systems = row["systems"]
    ours = systems["ours"]["median"]
    passes = TRAIN_PASSES if mode.kind == "train" else INFER_PASSES
    flops = 2.0 * record["macs"][row["network"]] * passes * mode.batch / ours
    peak = peak_flops(record["peak"], "bfloat16" if mode.precision == "int8" else mode.precision)
    cells = [
        row["network"],
        row["mode"].split(",")[0],
        str(mode.batch),
        _times(systems["ours"]),
        _digits(mode.batch / ours),
        *(_times(systems[f]) if f in systems else "-" for f in (*rows.EAGER, rows.COMPILED)),
        *("-" if each is None else f"{each:.2f}" for each in _factors(row, mode)),
        _digits(flops / 1e9),
        f"{flops / peak:.0%}" if peak else "-",
        _memory(systems) if mode.kind == "train" else "-",
    ]
    return "| " + " | ".join(cells) + " |"


def _memory(systems: Mapping[str, Any]) -> str:
    theirs = [systems[form]["peak_mib"] for form in rows.EAGER if form in systems]
    return f"{systems['ours']['peak_mib']:.0f} / {min(theirs):.0f}" if theirs else "-"


def _times(one: Mapping[str, float]) -> str:
    median, least, most = (_digits(1e3 * one[key]) for key in ("median", "min", "max"))
    return f"{median} ({least} to {most})"


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
