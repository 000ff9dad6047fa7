"""The table of bench_networks.py, from its file of figures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Optional

from benchmarks import network_rows as rows
from benchmarks.report import headline

TRAIN_PASSES, INFER_PASSES = 3, 1  # a backward pass costs twice a forward pass
COLUMNS = (
    "network", "mode", "batch", "ours: ms (min to max)", "images/s", "PyTorch nchw",
    "channels_last", "compiled", "x eager", "x best", "GFLOP/s", "of peak", "MiB, ours / PyTorch",
)  # fmt: skip
LEGEND = (
    "Ours and PyTorch: milliseconds of one step. x eager: PyTorch's faster eager layout over ours. "
    "x best: with torch.compile too. For int8: our float32 over our int8. Medians of interleaved "
    "rounds; least and most of each round for ours. MiB: largest resident memory of a process that "
    "only trains."
)


def page_name(known: Mapping[str, Any]) -> str:
    """Return the path of the page for this processor."""
    name = re.sub(r"[^a-z0-9]+", "-", str(known["cpu"]).lower()).strip("-")
    return f"docs/speed/{name}.md"


def peak_flops(peak: Mapping[str, float], precision: str) -> Optional[float]:
    """Return the measured FLOP/s of convolutions, the faster system's; None: not measured."""
    work = 2.0 * 9 * rows.PEAK_CHANNELS**2 * rows.SIZE**2 * rows.PEAK_BATCH * rows.PEAK_LAYERS
    times = [seconds for name, seconds in peak.items() if name.startswith(f"{precision}/")]
    return work / min(times) if times else None


def markdown(record: Mapping[str, Any]) -> str:
    """Return the page: table, peak and what the columns mean."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    places = []
    for row in record["rows"].values():
        mode = rows.modes_of(rows.NETWORKS[row["network"]]).get(row["mode"])
        if mode is not None:
            lines.append(_line(record, row, mode))
            place = f"{headline(row['environment'])}; {row['threads']} threads"
            place += "; quick, says nothing of speed" if row["quick"] else ""
            places += [place] if place not in places else []
    peaks = []
    for precision in ("float32", "bfloat16"):
        flops = peak_flops(record["peak"], precision)
        if flops is not None:
            peaks.append(f"{flops / 1e9:.0f} GFLOP/s in {precision}")
    parity = max(record["parity"].values(), default=0.0)
    notes = [
        *(f"{place}." for place in places),
        "",
        f"Measured peak of 3x3 convolutions, the faster system's: {', '.join(peaks) or 'none'}.",
        f"Largest difference of PyTorch's logits from ours: {parity:.2g} of the largest logit.",
        "",
        LEGEND,
        "",
    ]
    return "\n".join(["# Speed against PyTorch", "", *notes, *lines, ""])


def _line(record: Mapping[str, Any], row: Mapping[str, Any], mode: rows.Mode) -> str:
    systems = row["systems"]
    ours = systems["ours"]
    eager = [systems[form]["median"] for form in rows.EAGER if form in systems]
    best = [*eager, *([systems[rows.COMPILED]["median"]] if rows.COMPILED in systems else [])]
    factor, factor_best = (
        _ratio(min(times, default=None), ours["median"]) for times in (eager, best)
    )
    if mode.precision == "int8":
        wide = record["rows"].get(f"{row['network']}/{row['mode'].replace('int8', 'fp32')}")
        factor = _ratio(wide["systems"]["ours"]["median"] if wide else None, ours["median"])
    passes = TRAIN_PASSES if mode.kind == "train" else INFER_PASSES
    flops = 2.0 * record["macs"][row["network"]] * passes * mode.batch / ours["median"]
    peak = peak_flops(record["peak"], mode.precision)
    memory = "-"
    if mode.kind == "train":
        theirs = min(
            (systems[form]["peak_mib"] for form in rows.EAGER if form in systems), default=0
        )
        memory = f"{ours['peak_mib']:.0f} / {theirs:.0f}"
    cells = [
        row["network"],
        row["mode"].split(",")[0],
        str(mode.batch),
        f"{_ms(ours['median'])} ({_ms(ours['min'])} to {_ms(ours['max'])})",
        _digits(mode.batch / ours["median"]),
        *(
            _ms(systems[form]["median"]) if form in systems else "-"
            for form in (*rows.EAGER, rows.COMPILED)
        ),
        factor,
        factor_best,
        _digits(flops / 1e9),
        f"{flops / peak:.0%}" if peak else "-",
        memory,
    ]
    return "| " + " | ".join(cells) + " |"


def _ratio(theirs: Optional[float], ours: float) -> str:
    return "-" if theirs is None else f"{theirs / ours:.2f}"


def _ms(seconds: float) -> str:
    return _digits(1e3 * seconds)


def _digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
