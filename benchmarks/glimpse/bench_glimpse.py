"""The glimpse model against PyTorch: ``python -m benchmarks.glimpse.bench_glimpse --threads 1 2``.

Time of a training step and of an evaluated image, ours, PyTorch with the seed's loop over the
images and PyTorch batched, batch 128. Before anything is timed, all must agree on one forward pass
with the same parameters, first locations and noise. PyTorch runs in .venv-torch, which is set up
when it is missing; our operator in C++ is compiled first, where there is a compiler. Takes about
four minutes on a quiet machine; use no other.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np

from benchmarks.glimpse.glimpse_inputs import OUTPUTS, TASKS, parity_inputs
from benchmarks.harness.interleave import Plan, Worker, measure
from benchmarks.harness.report import begin, check_threads, header, headline, row, store
from formats.errors import UserError
from machine.cores import physical_cores
from training.settings.config import parse
from training.settings.exit_code import exits
from training.settings.fields import option
from training.settings.run_config import check_least

ROOT = Path(__file__).resolve().parents[2]
CASES = ("train", "evaluate")
TOLERANCE = 1e-5  # between the forward passes of two workers
TORCH_FOLDER = ".venv-torch"


@dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    tasks: tuple[str, ...] = option(tuple(TASKS), "what is learned", choices=tuple(TASKS))
    threads: tuple[int, ...] = option(
        (), "threads of one operator, measured one by one; default: 1 and all physical cores"
    )
    rounds: int = option(15, "timed rounds of each worker and case")
    round_sec: float = option(0.5, "about how long a round lasts, seconds")
    operator: bool = option(True, "measure our operator in C++; false: our graph alone")
    compile: bool = option(False, "also PyTorch with torch.compile (needs a C++ compiler)")
    torch_python: Optional[str] = option(
        None, f"interpreter that has PyTorch; default: that of {TORCH_FOLDER}"
    )
    out: str = option("runs/bench/glimpse.json", "file that the figures are stored in")

    def check(self) -> None:
        """Refuse what measures nothing, or more threads than there are cores."""
        check_least(self, 1, "rounds")
        check_threads(self.threads)


def find_torch(named: Optional[str]) -> str:
    """Return the interpreter with PyTorch, after setting up its environment where none is named."""
    if named:
        return os.path.abspath(named)
    done = subprocess.run([ROOT / ".ci/setup.sh", "bench-torch", TORCH_FOLDER], check=False)
    if done.returncode:
        raise UserError(
            f"{TORCH_FOLDER} could not be set up, for the reason above; --torch-python names an "
            "interpreter that has PyTorch"
        )
    return str(ROOT / TORCH_FOLDER / "bin" / "python")


def compile_operators() -> None:
    """Compile our operators where that is not done, or say why the graph is measured instead."""
    from machine.processor import Unavailable
    from model.native.build import GLIMPSE, build

    try:
        build(GLIMPSE)
    except Unavailable as error:
        print(f"ours is the graph without own operators: {error}", flush=True)


def commands(config: Config, torch_python: str, task: str, threads: int) -> dict[str, list[str]]:
    """Name and command of each worker; ours is the first, to which the ratios are."""
    torch = [torch_python, "-m", "benchmarks.glimpse.torch_glimpse", "--worker", "--task", task]
    torch += ["--threads", str(threads), "--form"]
    ours = [sys.executable, "-m", "benchmarks.glimpse.mxnet_glimpse", "--worker", "--task", task]
    found = {
        "ours": [*ours, *([] if config.operator else ["--no-operator"])],
        "PyTorch looped": [*torch, "looped"],
        "PyTorch batched": [*torch, "batched"],
    }
    if config.compile:
        found["PyTorch batched, compiled"] = [*torch, "batched", "--compile"]
    return found


def check_parity(workers: Sequence[Worker], task: str) -> dict[str, float]:
    """Compare one forward pass of all workers with the first one's.

    Returns
    -------
    dict
        Largest difference of any output, by worker.

    Raises
    ------
    UserError
        When one is above the tolerance, or an output has another shape.
    """
    differences: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        inputs = os.path.join(folder, "inputs.npz")
        np.savez(inputs, **parity_inputs(TASKS[task]))
        results = []
        for number, worker in enumerate(workers):
            path = os.path.join(folder, f"{number}.npz")
            worker.ask(do="forward", inputs=inputs, outputs=path)
            with np.load(path) as file:
                results.append({name: file[name] for name in OUTPUTS})
    for worker, result in zip(workers[1:], results[1:]):
        for name in OUTPUTS:
            expected, found = results[0][name], result[name]
            if expected.shape != found.shape:
                raise UserError(f"{name} of {worker.name}: {found.shape}, not {expected.shape}")
            difference = float(np.abs(found - expected).max())
            if not difference < TOLERANCE:
                raise UserError(
                    f"{name} of {worker.name} on {task} differs by {difference:.2g}, allowed is "
                    f"{TOLERANCE}: it is another model, and its speed says nothing"
                )
            differences[worker.name] = max(difference, differences.get(worker.name, 0.0))
    return differences


def measure_task(config: Config, torch_python: str, task: str, threads: int) -> dict[str, Any]:
    """Start the workers of one task, check their parity, and measure all cases."""
    variables = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(name, command, variables))
            for name, command in commands(config, torch_python, task, threads).items()
        ]
        differences = check_parity(workers, task)
        how = "operator in C++" if workers[0].about.get("operator") else "graph"
        print(f"{task}, {threads} threads: ours is computed by the {how}")
        for name, difference in differences.items():
            print(f"{task}, {threads} threads: {name} differs from ours by {difference:.2g}")
        for worker in workers:
            if "retina_difference" in worker.about:
                print(f"  {worker.name}: retinas differ by {worker.about['retina_difference']:.2g}")
        return {
            "task": task,
            "threads": threads,
            "workers": {worker.name: worker.about for worker in workers},
            "forward_difference": differences,
            "cases": measure(workers, CASES, Plan(config.rounds, round_sec=config.round_sec)),
        }


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return the table: ms of a training step, ms of an evaluated image."""
    lines = [header(["task", "threads", "what", "system"], "ms")]
    for record in records:
        for case, rows in record["cases"].items():
            count = TASKS[record["task"]].batch_size
            what, scale = ("step", 1e3) if case == "train" else ("evaluated image", 1e3 / count)
            for system, found in rows.items():
                names = [record["task"], str(record["threads"]), what, system]
                lines.append(row(names, found, scale))
    return "\n".join(lines)


@exits()
def main(argv: Sequence[str]) -> int:
    """Measure, print the table and store the figures; 2 for bad input or a worker that failed."""
    config = parse(Config, argv, "bench_glimpse.py", __doc__)
    known = begin()
    print(headline(known), flush=True)
    if config.operator:
        compile_operators()
    torch_python = find_torch(config.torch_python)
    records = [
        measure_task(config, torch_python, task, threads)
        for threads in config.threads or sorted({1, physical_cores().number})
        for task in config.tasks
    ]
    print("\n" + table(records))
    store(config.out, {"environment": known, "records": records})
    print(f"\nstored in {config.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
