"""A page on this machine that shows where the networks look: ``python -m demo``."""

from __future__ import annotations

import importlib.util
import sys

from training.compute.thread_choice import take_threads

NEEDED = ("starlette", "uvicorn")


def require_packages() -> None:
    """End the program with exit code 2 and one line where what serves the page is not here."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"error: {' and '.join(missing)} cannot be imported in this environment: in a checkout "
            "run make demo, elsewhere install the extra `demo` of the package",
            file=sys.stderr,
        )
        sys.exit(2)


def command() -> int:
    """Run the wheel's command ``attention-demo``; return the exit code."""
    require_packages()
    take_threads(sys.argv[1:])  # before NumPy and MXNet are loaded, which read it once
    code: int = importlib.import_module("demo.__main__").main()
    return code
