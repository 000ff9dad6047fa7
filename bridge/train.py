"""Train a network exported from MXNet with PyTorch, by the recipes of ``train_cifar.py``.

    python -m bridge.train --symbol net-symbol.json                 PistonY's 97.14 % recipe
    python -m bridge.train --symbol net-symbol.json --recipe quick --epochs 3
    python -m bridge.train --symbol ... --stop-after 540            ends itself, exit code 75
    python -m bridge.train --resume runs/NAME                       goes on, on any machine

The symbol and its weights come from ``python -m model.export.export_symbol``, where MXNet is. Here
PyTorch and NumPy suffice. The run folder is that of ``train_cifar.py``: ``last.param`` and
``best.param`` are MXNet's files, and ``training.reports.plot`` and ``training.reports.compare``
read its records.
"""

from __future__ import annotations

import time

STARTED = time.monotonic()  # before PyTorch, which takes seconds to import

import importlib  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from collections.abc import Mapping, Sequence  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, Optional  # noqa: E402

if __name__ == "__main__":  # before NumPy and PyTorch are loaded, which read it once
    from training.compute.thread_choice import take_threads

    take_threads(sys.argv[1:], wait_policy={})

from bridge.graph.symbol_graph import SymbolError  # noqa: E402
from bridge.loop.settings import LEFT_OUT, RESUMABLE, BridgeConfig, check_resume  # noqa: E402
from formats.errors import UserError, first_line, quoted  # noqa: E402
from training.classifier.config import OVERRIDES  # noqa: E402
from training.classifier.recipes import NO_SMALL, with_recipe  # noqa: E402
from training.records.interruption import lasting_streams  # noqa: E402
from training.records.run_folder import LAST_FILE, read_config, weight_files  # noqa: E402
from training.settings.config import from_dict, parse_overrides  # noqa: E402
from training.settings.exit_code import INTERRUPTED_EXIT, exit_code  # noqa: E402
from training.settings.idle import check_idle  # noqa: E402
from training.settings.run_config import words_of  # noqa: E402

PROG = "python -m bridge.train"
# Of a process, not of its run: what a resume does not say has its default, threads the run's.
OF_PROCESS: Mapping[str, Any] = {
    "stop_after": 0.0,
    "device": "auto",
    "compile": "auto",
    "threads": None,
}
UNFINISHED_EXIT = 75  # --stop-after ended it: EX_TEMPFAIL of sysexits.h, try again


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    given = parse_overrides(BridgeConfig, argv, PROG, __doc__, LEFT_OUT)
    return exit_code(lambda: _run(given, argv), SymbolError)


@lasting_streams()
def _run(given: Mapping[str, Any], argv: Sequence[str]) -> int:
    check_resume(given)
    config = _saved(given) if given.get("resume") else chosen_settings(given)
    config.check()
    if not config.resume:
        check_idle(config, given)
    if config.tensorboard:
        _require_board()
    from bridge.loop.prepare import prepare, with_start

    prepared = prepare(with_start(config, given), argv, STARTED)
    with prepared.run:
        result = prepared.fit.run_epochs()
    folder = prepared.run.folder
    if result.signal is not None or result.out_of_time:
        # A first start's other settings are in config.json.
        again = [name for name in RESUMABLE if name != "data_changed"]
        again = again if config.resume else [name for name in again if name in OF_PROCESS]
        told = [word for name in again for word in words_of(name, given)]
        print(
            f"saved; go on with: {' '.join([PROG, '--resume', quoted(folder), *told])}", flush=True
        )
        if result.out_of_time:
            return UNFINISHED_EXIT
        return INTERRUPTED_EXIT if result.signal == signal.SIGINT else 0
    _report(result.scores, prepared.fit.progress, folder, bool(prepared.fit.job.valid))
    return 0


def _require_board() -> None:
    """Refuse ``--tensorboard`` at the start where event files cannot be written."""
    try:
        importlib.import_module("mxboard.summary")
    except ImportError as error:
        raise UserError(
            "--tensorboard needs MXBoard and MXNet in this environment "
            f"({first_line(error)}). Leave it out; a run goes on with --no-tensorboard"
        ) from error


def chosen_settings(given: Mapping[str, Any]) -> BridgeConfig:
    """Return the settings of a recipe with the user's; the network is the symbol's."""
    recipe = given.get("recipe", "pistony")
    # What a recipe says of the network itself is not for a network that is there already.
    whole = with_recipe(recipe, given)
    settings = {k: v for k, v in whole.items() if k in given or k not in OVERRIDES}
    if settings.get("small_epochs") and "small_epochs" not in given:
        settings |= NO_SMALL
        print(
            f"--recipe {recipe}: all epochs are on whole images, because --small-epochs is not "
            "done here",
            flush=True,
        )
    settings["model"] = given.get("model", "")
    return BridgeConfig(**settings)


def _saved(given: Mapping[str, Any]) -> BridgeConfig:
    """Return the settings of a run, with what may be another at a resume."""
    folder = str(given["resume"])
    settings = dict(read_config(folder))
    settings.pop("max_file_mb", None)  # of older records: files in pieces
    saved = from_dict(BridgeConfig, settings)
    saved = replace(saved, **OF_PROCESS, data_changed=False)
    here = {name: given[name] for name in RESUMABLE if name in given}
    return replace(saved, **here, resume=folder)


def _report(scores: Any, progress: Any, folder: Path, held_out: bool) -> None:
    if scores:
        print(
            f"last epoch: test loss {scores.loss:.4f}, accuracy {scores.acc:.5f} "
            f"over {scores.images} images"
        )
    print(progress.best_line(held_out))
    print(f"wrote {', '.join(weight_files(folder))}; where MXNet is:")
    print(f"  python train_cifar.py --test {quoted(folder / LAST_FILE)}")
    print(f"  python -m training.reports.plot {quoted(folder)}")


if __name__ == "__main__":
    sys.exit(main())
