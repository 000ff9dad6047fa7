"""All networks against PyTorch, one table: ``python -m benchmarks.networks.bench_networks``.

Each row is a network and a mode; both systems take turns, round by round. Before anything is timed
PyTorch's network must give the same logits with the same parameters. Rows are written as they are
done: a run that was stopped goes on where it was, ``--again`` measures anew what is there already.
``--scaling`` and ``--epoch`` add what grows with what, and whether a network waits for its data.

The whole table takes about 15 minutes with 2 threads, on a quiet machine. torch.compile takes
minutes for each row of inference, so that it is measured where ``--prepare`` has compiled it into a
cache, which may be done on a busy machine. PyTorch runs in .venv-torch, which is set up when it is
missing. docs/speed.md has the method.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Union

from benchmarks.glimpse import bench_glimpse
from benchmarks.glimpse.bench_glimpse import find_torch
from benchmarks.harness.report import begin, headline
from benchmarks.networks import bench_scaling
from benchmarks.networks import network_rows as rows
from benchmarks.networks.network_report import markdown
from benchmarks.networks.network_table import Config, Table
from benchmarks.networks.network_workers import (
    Inference,
    Machines,
    Training,
    measure_peak,
    warm_up,
)
from benchmarks.pipeline import bench_epoch
from formats.atomic import write_atomically
from formats.errors import UserError
from machine.cores import physical_cores
from training.settings.config import parse
from training.settings.exit_code import exits


def fill(config: Config, machines: Machines, table: Table) -> None:
    """Measure all rows that are wanted and not there, as long as time allows."""
    end = time.monotonic() + 60 * config.budget_min
    record = table.record
    known = record["peak"] and record.get("peak_threads", machines.threads) == machines.threads
    if config.networks and not config.prepare and (config.again or not known):
        record.update(measure_peak(machines, config.networks[0]), peak_threads=machines.threads)
    for network in config.networks:
        known = rows.NETWORKS[network]
        table.record["macs"][network] = bench_scaling.macs(network, rows.SIZE, known.overrides)
        for name, mode in [] if config.prepare else table.todo(network, "train"):
            if time.monotonic() < end:
                measure_row(table, Training(machines, network), name, mode)
        infer = table.todo(network, "infer")
        if infer and time.monotonic() < end:
            fill_inference(machines, table, network, infer, end)
    if config.prepare:
        return
    if config.glimpse and (config.again or "glimpse" not in table.record):
        table.keep("glimpse", measure_glimpse(config, machines.torch_python))
    if config.scaling:
        table.keep("scaling", bench_scaling.measure(bench_scaling.Config()))
    if config.epoch:
        table.keep("epoch", bench_epoch.measure_apart(config.data_dir, config.threads))


def fill_inference(
    machines: Machines,
    table: Table,
    network: str,
    todo: Sequence[tuple[str, rows.Mode]],
    end: float,
) -> None:
    """Compare the forward passes of a network, then measure its rows of inference."""
    weights = os.path.join(machines.folder, f"{network}.npz")
    with ExitStack() as stack:
        ours = stack.enter_context(machines.ours(network))
        torch, difference = machines.parity(network, ours, weights)
        stack.enter_context(torch)
        table.record["parity"][network] = difference
        print(f"{network}: PyTorch's logits differ by {difference:.2g} of the largest", flush=True)
        if table.config.prepare:
            if machines.compile:
                warm_up(machines, ours, torch, network, todo)
            return
        pair = Inference(machines, network, ours, torch)
        for name, mode in todo:
            if time.monotonic() < end:
                measure_row(table, pair, name, mode)


def measure_row(table: Table, pair: Union[Training, Inference], name: str, mode: rows.Mode) -> None:
    """Measure a row; one that fails, or that the processor cannot compute, costs no other."""
    try:
        found = pair.measure(mode)
    except UserError as error:
        table.leave_out(pair.network, name, error)
    else:
        table.add(pair.network, name, *found)


def measure_glimpse(config: Config, torch_python: str) -> list[dict[str, Any]]:
    """Return the figures of bench_glimpse.py, with our operator where there is a compiler."""
    bench_glimpse.compile_operators()
    rounds, round_sec = (1, 0.0) if config.quick else (config.rounds, config.round_sec)
    settings = bench_glimpse.Config(rounds=rounds, round_sec=round_sec)
    return [
        bench_glimpse.measure_task(settings, torch_python, task, config.threads)
        for task in settings.tasks
    ]


@exits()
def main(argv: Sequence[str]) -> int:
    """Measure, print the table and store the figures; 2 for bad input or a worker that failed."""
    config = parse(Config, argv, "bench_networks.py", __doc__)
    config = replace(config, threads=config.threads or physical_cores().number)
    known = begin()
    print(headline(known), flush=True)
    table = Table(config, known)
    torch_python = find_torch(config.torch_python)
    with tempfile.TemporaryDirectory() as folder:
        machines = Machines(torch_python, folder, config.threads, config.plan, config.compile)
        fill(config, machines, table)
    if config.prepare:
        return 0
    text = markdown(table.record)
    print("\n" + text)
    os.makedirs(os.path.dirname(os.path.abspath(table.page)), exist_ok=True)
    write_atomically(table.page, text.encode())
    print(f"stored in {table.path} and {table.page}")
    left_out, missing = table.lacking()
    if left_out:
        print(f"{left_out} rows are left out, for the reasons on the page")
    if missing:
        print(f"{missing} rows are missing, as time was over; the same command goes on")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
