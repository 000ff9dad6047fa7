"""Says what is patched in this environment and why, or puts this package into it.

python -m compat             what is patched here when MXNet, GluonCV or MXBoard is imported
python -m compat --install   make every start of this environment's Python do so
python -m compat --remove    undo that
"""

from __future__ import annotations

import argparse
import shutil
import sys
import sysconfig
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from . import is_installed
from .table import ENTRIES
from .versions import version_of

INSTALLED_NAME = "attention_compat"  # a project's own module may be called compat
PACKAGES = (
    "numpy",
    "mxnet",
    "mxnet-cu117",
    "gluoncv",
    "mxboard",
    "protobuf",
    "tensorboard",
    "onnx",
)


def report() -> str:
    """Return the versions here and the table, each entry with whether it is needed here."""
    found = [(name, version_of(name)) for name in PACKAGES]
    versions = [f"{name} {version}" for name, version in found if version]
    python = "Python {}.{}.{}".format(*sys.version_info[:3])
    lines = [", ".join([python, *versions]), ""]
    for entry in ENTRIES:
        mark = "patched" if entry.is_needed() else "not needed here"
        lines += [f"{entry.name}: {mark} (since {entry.since})"]
        text = f"{entry.what}. Without it: {entry.why}"
        lines += textwrap.wrap(text, 96, initial_indent="    ", subsequent_indent="    ")
    lines += ["", state()]
    return "\n".join(lines)


def state() -> str:
    """Return one sentence: whether the patches are applied by themselves in this environment."""
    if is_installed():
        return "Active: applied when one of the three packages is imported, in every Python here."
    return (
        "Not active in this environment. `python -m compat --install` makes it so; a single script"
        " can call compat.install() before `import mxnet`."
    )


def install_into(site_packages: Path) -> None:
    """Copy this package and its .pth file into a folder of installed packages."""
    here = Path(__file__).resolve().parent
    target = site_packages / INSTALLED_NAME
    if here != target.resolve():
        remove_from(site_packages)
        shutil.copytree(here, target, ignore=shutil.ignore_patterns("__pycache__", "*.pth"))
        # Last, so that no Python starts with a package that is half there.
        shutil.copy(here / f"{INSTALLED_NAME}.pth", site_packages)


def remove_from(site_packages: Path) -> None:
    """Undo `install_into`."""
    (site_packages / f"{INSTALLED_NAME}.pth").unlink(missing_ok=True)
    shutil.rmtree(site_packages / INSTALLED_NAME, ignore_errors=True)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m compat",
        description="What MXNet, GluonCV and MXBoard get patched in this environment, and why.",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--install", action="store_true", help="patch them in every Python of this environment"
    )
    group.add_argument("--remove", action="store_true", help="undo --install")
    options = parser.parse_args(argv)
    site_packages = Path(sysconfig.get_path("purelib"))
    try:
        if options.install:
            install_into(site_packages)
            print(f"installed as {site_packages / INSTALLED_NAME}")
        elif options.remove:
            remove_from(site_packages)
            print(f"removed from {site_packages}")
        else:
            print(report())
    except OSError as error:
        print(f"error: {error.filename or site_packages}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
