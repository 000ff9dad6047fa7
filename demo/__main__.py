"""Show where the networks look, on a page of this machine.

    python -m demo                               http://127.0.0.1:8765/
    python -m demo --data-dir DIR                with test images of MNIST and CIFAR-10
    python -m demo --classifier runs/NAME/last.param

Nothing on the page comes from elsewhere, and nothing leaves this machine.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

if __name__ == "__main__":  # before NumPy and MXNet are loaded, which read it once
    from demo import require_packages
    from training.compute.thread_choice import take_threads

    require_packages()
    take_threads(sys.argv[1:])

from demo.server import UNUSABLE, Demo, build_app
from formats.errors import UserError, first_line
from machine.processor import limit_onednn
from model.registry import list_models
from model.weights.published import GLIMPSE_INDEX, INDEX, read_index
from training.data.catalogue import load_dataset
from training.data.dataset import ImageData
from training.settings.config import parse
from training.settings.exit_code import exits
from training.settings.fields import option

LOCAL = "127.0.0.1"
# What the page calls the glimpse models of published files.
SINGLE, CLUTTERED = "one digit", "cluttered"
GLIMPSE_FILES = {
    SINGLE: "glimpse_mnist_0.88_54162b4c.param",
    CLUTTERED: "glimpse_cluttered8_2.91_6f19ef3e.param",
}
SHOWN_FIRST = "attention56_paper"


@dataclass(frozen=True)
class DemoConfig:
    """Options of ``python -m demo``."""

    host: str = option(LOCAL, "address to answer at; 0.0.0.0: to other machines too")
    port: int = option(8765, "port; 0 takes a free one")
    data_dir: Optional[str] = option(None, "folder with MNIST and CIFAR-10, for test images")
    glimpse: Optional[str] = option(None, "a further glimpse model's file", metavar="FILE")
    classifier: Optional[str] = option(
        None, "a further file of a network with soft masks", metavar="FILE"
    )
    threads: Optional[int] = option(
        None, "threads of the CPU; default: $OMP_NUM_THREADS, else all idle physical cores"
    )

    def check(self) -> None:
        """Raise UserError for what cannot be."""
        if not 0 <= self.port < 65536:
            raise UserError(f"--port must be 0 to 65535, got {self.port}")
        if self.data_dir and not Path(self.data_dir).is_dir():
            raise UserError(f"--data-dir {self.data_dir}: there is no such folder")
        for flag, path in (("--glimpse", self.glimpse), ("--classifier", self.classifier)):
            if path and not Path(path).is_file():
                raise UserError(f"{flag} {path}: there is no such file")


def test_digits(data_dir: Optional[str]) -> tuple[ImageData, str]:
    """Return the test images of MNIST where it is on this disk, else the embedded digits."""
    try:
        return load_dataset("mnist", data_dir, download=False).test, "MNIST"
    except UserError as error:
        name = "the embedded digits"
        why = f"{first_line(error)} (--data-dir FOLDER)"
        print(f"test digits are {name}, not MNIST: {why}", file=sys.stderr)
        return load_dataset("digits").test, name


def published() -> tuple[dict[str, Path], dict[str, Path]]:
    """Return the files in the checkout: glimpse models, and networks with soft masks, by name."""
    glimpses = {name: GLIMPSE_INDEX.parent / file for name, file in GLIMPSE_FILES.items()}
    masked = [row for row in read_index(INDEX) if row["model"].startswith("attention")]
    masked.sort(key=lambda row: (row["model"] != SHOWN_FIRST, row["model"]))
    classifiers = {
        f"{row['model']}, {row['dataset']}, {100 * float(row['test_acc']):.2f} %": (
            INDEX.parent / row["file"]
        )
        for row in masked
        if row["model"] in list_models()
    }
    found = (
        {name: path for name, path in files.items() if path.is_file()}
        for files in (glimpses, classifiers)
    )
    return next(found), next(found)


def build_demo(config: DemoConfig) -> Demo:
    """Return the networks and digits that the page shows.

    Raises
    ------
    UserError
        When there is no file for one of the page's sides.
    """
    glimpses, classifiers = published()
    if config.glimpse:
        glimpses = {Path(config.glimpse).name: Path(config.glimpse), **glimpses}
    if config.classifier:
        classifiers = {Path(config.classifier).name: Path(config.classifier), **classifiers}
    for flag, files, place in (
        ("--glimpse", glimpses, GLIMPSE_INDEX.parent),
        ("--classifier", classifiers, INDEX.parent),
    ):
        if not files:
            raise UserError(f"there are no published files in {place}: name one with {flag} FILE")
    demo = Demo(glimpses, classifiers, *test_digits(config.data_dir), config.data_dir)
    demo.glimpse(next(iter(glimpses)))  # a file that cannot be used ends the program here
    demo.classifier(next(iter(classifiers)))
    return demo


@exits(*UNUSABLE)
def main(argv: Optional[Sequence[str]] = None) -> int:
    """Serve until Ctrl-C; return the exit code."""
    config = parse(DemoConfig, sys.argv[1:] if argv is None else argv, "python -m demo", __doc__)
    import uvicorn

    limit_onednn()
    try:
        listening = socket.create_server((config.host, config.port))
    except OSError as error:
        raise UserError(
            f"cannot answer at {config.host} port {config.port}: {error.strerror}; another "
            "--port, or 0 for a free one"
        ) from error
    with listening:
        app = build_app(build_demo(config), _hosts(config))
        port = listening.getsockname()[1]
        print(f"serving on http://{config.host}:{port}/ until Ctrl-C", flush=True)
        settings = uvicorn.Config(app, log_level="warning", access_log=False, limit_concurrency=32)
        uvicorn.Server(settings).run(sockets=[listening])
    return 0


def _hosts(config: DemoConfig) -> tuple[str, ...]:
    """Return the names of this machine that a request may name; "*": any."""
    local = config.host in (LOCAL, "localhost")
    if local:
        return LOCAL, "localhost"
    print(
        f"note: whoever reaches {config.host} can use this page; it has no password",
        file=sys.stderr,
    )
    return ("*",)


if __name__ == "__main__":
    sys.exit(main())
