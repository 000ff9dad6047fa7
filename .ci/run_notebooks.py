"""Runs the notebooks: each must end without an error, and as it is committed.

python .ci/run_notebooks.py [--write] [NOTEBOOK ...]

``--write`` keeps what they give. Without it a cell's outputs must be of the kinds that are
committed: texts, pictures. Numbers may differ in their last digits between processors.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_SEC = 1200


def kinds(notebook: Any) -> list[list[str]]:
    """Return which kinds of output each cell of code has."""
    return [
        sorted(
            {
                kind
                for output in cell.outputs
                if output.get("name") != "stderr"
                for kind in output.get("data", {"text": ""})
            }
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def tidy(notebook: Any) -> None:
    """Take out what is another at every run: times, progress bars, names of temporary folders."""
    temporary = re.compile(re.escape(gettempdir()) + r"/tmp\w+")
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
        for output in cell.outputs:
            if "text" in output:
                output.text = temporary.sub("FOLDER", output.text)


def run(path: Path, write: bool) -> str:
    """Run a notebook; return what is wrong with it, in a line, or nothing."""
    notebook = nbformat.read(path, as_version=4)
    committed = kinds(notebook)
    place = {"metadata": {"path": str(path.parent)}}
    waits = {"timeout": TIMEOUT_SEC, "startup_timeout": TIMEOUT_SEC}
    with TemporaryDirectory() as folder:  # of sockets, instead of ports that others could reach
        private = Config({"ConnectionFileMixin": {"transport": "ipc", "ip": f"{folder}/kernel"}})
        try:
            NotebookClient(notebook, resources=place, config=private, **waits).execute()
        except CellExecutionError as error:
            return str(error)
    if write:
        tidy(notebook)
        nbformat.write(notebook, path)
    elif kinds(notebook) != committed:
        return f"its outputs are {kinds(notebook)}, committed are {committed}: run it with --write"
    return ""


def main(words: list[str]) -> int:
    """Run the notebooks that are named, or all; return the exit code."""
    os.environ["PYTHONPATH"] = str(ROOT)
    names = [word for word in words if word != "--write"]
    code = 0
    for path in map(Path, names or sorted(map(str, (ROOT / "notebooks").glob("*.ipynb")))):
        wrong = run(path, "--write" in words)
        print(f"{path.name}: {wrong or 'ok'}", flush=True)
        code = 1 if wrong else code
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
