"""Locks PyTorch's CPU build with what it needs: ``python3.11 .ci/lock_bench_torch.py``.

Writes requirements/bench-torch-py311.txt, for Linux on x86_64. pip must find the CPU build: in a
folder that PIP_FIND_LINKS names, or in PyTorch's own index in PIP_EXTRA_INDEX_URL. Other builds
want several GB of CUDA libraries, and cannot be imported without them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

WANTED = ("torch==2.13.0+cpu", "numpy")
LOCK = Path(__file__).resolve().parent.parent / "requirements" / "bench-torch-py311.txt"


def main() -> None:
    """Resolve without installing, and write name, version and hash of each package."""
    if sys.version_info[:2] != (3, 11):
        sys.exit("error: the lock is for Python 3.11; run this script with that")
    command = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--ignore-installed"]
    command += ["--only-binary", ":all:", "--report", "-", *WANTED]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    lines = ["# Made by 'python3.11 .ci/lock_bench_torch.py'; do not edit."]
    for package in sorted(report["install"], key=lambda item: item["metadata"]["name"].lower()):
        about = package["metadata"]
        name = about["name"].lower().replace("_", "-")
        digest = package["download_info"]["archive_info"]["hashes"]["sha256"]
        lines += [f"{name}=={about['version']} \\", f"    --hash=sha256:{digest}"]
    LOCK.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
