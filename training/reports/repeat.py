"""One training with several seeds, one after the other: mean and spread of the last epoch.

    python -m training.reports.repeat --seeds 5 -- --recipe ram --model resnet20_ram --epochs 30

What follows ``--`` goes to ``train_cifar.py``, or another ``--script``. The runs are ``seed-0`` to
``seed-4`` in one folder, which also gets ``summary.json`` and ``summary.csv``; all have the
precision and operators that the first one chooses. The same command goes on where it was stopped:
finished seeds are not run again, an unfinished one is resumed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import math
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from formats.atomic import write_atomically
from formats.errors import UserError
from training.records.run_folder import CONFIG_FILE, STATE_FILE
from training.records.state_file import load_state
from training.reports.run_results import RunResult, read_result, spread
from training.settings.exit_code import exits

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "train_cifar.py"
COMMAND_FILE = "repeat.json"
SUMMARY_FILE, TABLE_FILE = "summary.json", "summary.csv"
COLUMNS = ("seed", "epoch", "test_acc", "test_loss", "train_acc", "train_loss", "wall_sec")
CHOSEN = ("precision", "fused")  # by the time of some steps, where they are ``auto``
# What is different in each run, and a run that is named already.
OWN = ("--seed", "--manualSeed", "--run-dir", "--run_dir", "--resume")


def repeat(
    script: Path, words: Sequence[str], seeds: Sequence[int], folder: Path
) -> list[RunResult]:
    """Train with every seed whose run in `folder` is not finished, and return all results.

    Parameters
    ----------
    script
        A training script of this project.
    words
        Its command line, without seed and run folder.
    seeds
        Each gets its run in ``folder/seed-SEED``.
    folder
        Made if need be.

    Raises
    ------
    UserError
        `words` name what differs between the runs, the folder is of another command, or a run
        failed or was stopped.
    """
    named = sorted({word.partition("=")[0] for word in words} & set(OWN))
    if named:
        raise UserError(f"{', '.join(named)}: every run gets its own here; leave it out after --")
    if not script.is_file():
        raise UserError(f"--script {script}: there is no such file")
    _remember(folder, script, words)
    results = []
    for seed in seeds:
        run = folder / f"seed-{seed}"
        if not _finished(run):
            going = (run / CONFIG_FILE).exists()
            once = [*words, *_chosen(words, folder), f"--seed={seed}"]
            more = ["--resume", str(run)] if going else once
            place = [] if going else [f"--run-dir={run}"]
            print(f"seed {seed}: {'goes on' if going else 'starts'} in {run}", flush=True)
            code = _call([sys.executable, str(script), *more, *place])
            if code or not _finished(run):
                raise UserError(
                    f"seed {seed} did not come to its end (exit code {code}). Run the same command "
                    f"again to go on; finished seeds in {folder} are kept"
                )
        results.append(read_result(run))
    return results


def summarize(results: Sequence[RunResult], seeds: Sequence[int], folder: Path) -> str:
    """Write ``summary.json`` and ``summary.csv``; return the line to print."""
    accuracy = spread([result.last("test_acc") for result in results])
    rows = [{**result.rows[-1], "seed": seed} for seed, result in zip(seeds, results)]
    summary = {
        "test_acc_mean": accuracy.mean,
        "test_acc_std": None if math.isnan(accuracy.std) else accuracy.std,
        "n": accuracy.n,
        "seeds": list(seeds),
        "test_acc": [row["test_acc"] for row in rows],
        "precision": results[0].config.get("precision"),
        **json.loads((folder / COMMAND_FILE).read_bytes()),
    }
    write_atomically(folder / SUMMARY_FILE, json.dumps(summary, indent=2).encode() + b"\n")
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomically(folder / TABLE_FILE, text.getvalue().encode())
    epochs = sorted({result.epoch for result in results})
    return (
        f"test accuracy after epoch {'/'.join(map(str, epochs))}: {accuracy.percent()}, mean ± "
        f"sample standard deviation over seeds {', '.join(map(str, seeds))}"
    )


@exits()
def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    place = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        prog="python -m training.reports.repeat",
        usage="%(prog)s [--flag value ...] -- ARGS...",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds (default: 5)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first one (default: 0)")
    parser.add_argument("--script", default=SCRIPT, help=f"training script (default: {SCRIPT})")
    parser.add_argument("--output", help="folder of the runs (default: runs/repeat-DIGEST)")
    options, words = parser.parse_args(given[:place]), given[place + 1 :]
    if "--" not in given:
        raise UserError("what shall be repeated? Give its flags after --, as: -- --recipe quick")
    if options.seeds < 1 or options.first_seed < 0:
        raise UserError("--seeds must be 1 or more and --first-seed 0 or more")
    script = Path(options.script)
    if not script.exists() and not script.is_absolute():
        script = ROOT / script
    folder = Path(options.output or _default_folder(script, words))
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    results = repeat(script, words, seeds, folder)
    print(summarize(results, seeds, folder))
    print(f"wrote {folder / SUMMARY_FILE}, {folder / TABLE_FILE}")
    return 0


def _default_folder(script: Path, words: Sequence[str]) -> str:
    """A name that the same command finds again."""
    text = "\0".join([script.name, *words])
    return f"runs/repeat-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _remember(folder: Path, script: Path, words: Sequence[str]) -> None:
    """Write down what is repeated in `folder`, or compare it with what is written there."""
    command = {"script": script.name, "arguments": list(words)}
    path = folder / COMMAND_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists() or not _begun(folder):
            write_atomically(path, json.dumps(command, indent=2).encode() + b"\n")
            return
        saved: Any = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot use the folder {folder}: {error}. Name another one") from error
    if saved != command:
        raise UserError(
            f"{folder} holds the runs of another command ({saved}); name another folder with "
            "--output FOLDER"
        )


def _chosen(words: Sequence[str], folder: Path) -> list[str]:
    """Return the flags that give a run what the first one has measured and chosen for itself."""
    begun = _begun(folder)
    config = read_result(begun[0]).config if begun else {}
    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in CHOSEN:
        flags.add_argument(f"--{name}", nargs="?", default="auto")
    named = vars(flags.parse_known_args(words)[0])
    return [
        f"--{name}={config[name]}"
        for name in CHOSEN
        if named[name] == "auto" and config.get(name, "auto") != "auto"
    ]


def _begun(folder: Path) -> list[Path]:
    """Return the runs in `folder` that have been started."""
    return sorted(path.parent for path in folder.glob(f"seed-*/{CONFIG_FILE}"))


def _finished(run: Path) -> bool:
    """Return whether all epochs are on record, and saved: a full disk can stop what follows."""
    if not (run / CONFIG_FILE).exists():
        return False
    result, kept = read_result(run), (run / STATE_FILE).exists()
    return result.finished and (not kept or load_state(run)[0].epoch >= result.epoch)


def _call(command: Sequence[str]) -> int:
    """Run a training; a request to stop is handed on to it, which saves first."""
    process = subprocess.Popen(command)
    earlier = signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # the training got it from the terminal too
    finally:
        signal.signal(signal.SIGTERM, earlier)


if __name__ == "__main__":
    sys.exit(main())
