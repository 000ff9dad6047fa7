"""Carry data, code and runs to a machine without a network and back, in files of a bounded size.

    python -m bridge.carry.pack data cifar10 --data-dir DIR --output carry      pieces below 55 MB
    python -m bridge.carry.pack code --output carry                             code.zip
    python -m bridge.carry.pack run runs/NAME --output back --max-file-mb 15    weights and records
    python -m bridge.carry.pack run runs/NAME --output back --what state        what a resume needs
    python -m bridge.carry.pack half net.param                              first weights as float16
    python -m bridge.carry.pack unpack carry --output DIR                  whatever is in the pieces

Data becomes ``DIR/cifar10/*.bin``, for ``--data-dir DIR``; a run becomes ``DIR/NAME``. The code is
unpacked by ``python -m zipfile -e code.zip DIR`` and runs in that folder. Digests are checked
throughout. Python's standard library and NumPy suffice.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Optional

import numpy as np

from bridge.carry.image_codec import pack_images, unpack_images
from bridge.carry.pieces import MB, PieceError, piece_names, read_pieces, write_pieces
from formats.atomic import write_atomically
from formats.digest import digest_line, digest_path
from formats.param_file import read_params, write_params
from training.data.cifar import search_places
from training.downloads.cifar_files import FORMATS, PIXELS, Format, find_source, read_source
from training.records.environment import describe
from training.settings.errors import UserError
from training.settings.exit_code import exit_code

PROJECT = Path(__file__).resolve().parents[2]
META = "packed.json"
BLOCK = 5_000  # images that are coded at once
MAX_CONTENT = 2 * 2**30
PLAIN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
RECORDS = ("config.json", "env.json", "metrics.jsonl", "preprocessing.json", "label_noise.json")
WHAT = {
    "weights": (*RECORDS, "symbol.json", "last.param"),
    "best": (*RECORDS, "symbol.json", "best.param"),
    "state": (*RECORDS, "symbol.json", "resume.state"),
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code."""
    options = _parser().parse_args(argv)
    return exit_code(lambda: _run(options), PieceError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bridge.carry.pack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    data = commands.add_parser("data", help="pack a data set")
    data.add_argument("name", choices=tuple(FORMATS))
    data.add_argument("--data-dir", help="folder with its files")
    code = commands.add_parser("code", help="zip the code that training needs")
    run = commands.add_parser("run", help="pack files of a run folder")
    run.add_argument("folder", type=Path)
    run.add_argument("--what", choices=tuple(WHAT), default="weights")
    unpack = commands.add_parser("unpack", help="unpack all pieces of a folder")
    unpack.add_argument("folder", type=Path)
    half = commands.add_parser("half", help="round a file of weights to float16, in place")
    half.add_argument("file", type=Path)
    for command in (data, code, run, unpack):
        command.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    data.add_argument("--max-file-mb", type=float, default=55.0)
    run.add_argument("--max-file-mb", type=float, default=15.0)
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.command == "half":
        return _halve(options.file)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        if options.command == "data":
            content = pack_data(options.name, options.data_dir)
            name = f"{options.name}.data.zip"
        elif options.command == "run":
            content = pack_run(options.folder, WHAT[options.what])
            name = f"{options.folder.resolve().name}.{options.what}.run.zip"
        elif options.command == "code":
            path = options.output / "code.zip"
            write_atomically(path, pack_code())
            print(f"wrote {path}, {path.stat().st_size / MB:.1f} MB")
            return 0
        else:
            return _unpack(options.folder, options.output)
        largest = int(options.max_file_mb * MB)
        for path in write_pieces(options.output, name, content, largest):
            print(f"wrote {path}, {path.stat().st_size / MB:.1f} MB")
    except OSError as error:
        where = error.filename or options.output
        raise UserError(f"{where}: {error.strerror or error}") from error
    return 0


def pack_data(name: str, data_dir: Optional[str]) -> bytes:
    """Return a zip with every ``.bin`` file of CIFAR-10 or CIFAR-100, images coded.

    Raises
    ------
    UserError
        When the data is not there or is damaged.
    """
    form = FORMATS[name]
    notes = []
    for place in search_places(name, data_dir):
        source, note = find_source(form, place)
        if source:
            break
        notes.append(f"{place}: {note}")
    else:
        raise UserError(f"{form.title} was not found ({'; '.join(notes)}). Name it with --data-dir")
    files: dict[str, bytes] = {}
    described = {}
    for file, records in read_source(form, source).items():
        labels, images = records[:, :-PIXELS], records[:, -PIXELS:].reshape(-1, 3, 32, 32)
        files[f"{file}.labels"] = labels.tobytes()
        for number, start in enumerate(range(0, len(images), BLOCK)):
            files[f"{file}.images.{number:02d}"] = pack_images(images[start : start + BLOCK])
        digest = hashlib.sha256(records.tobytes()).hexdigest()
        described[file] = {"images": len(records), "sha256": digest}
    files[META] = json.dumps({"dataset": name, "files": described}).encode()
    return _zip(files)


def unpack_data(files: Mapping[str, bytes], output: Path) -> list[Path]:
    """Write the ``.bin`` files of `pack_data`; returns their paths.

    Raises
    ------
    UserError
        When something is missing or is not what it was.
    """
    try:
        meta = json.loads(files[META])
        form, described = FORMATS[meta["dataset"]], meta["files"]
        contents = {name: _records(form, name, described[name], files) for name in form.files}
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"the packed data is damaged ({error}). Pack it again") from error
    folder = output / form.name
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_atomically(folder / name, content)
    return [folder / name for name in contents]


def _records(form: Format, name: str, about: Mapping, files: Mapping[str, bytes]) -> bytes:
    count = int(about["images"])
    if not 0 < count <= 100_000:
        raise ValueError(f"{count} images in {name}")
    labels = np.frombuffer(files[f"{name}.labels"], np.uint8).reshape(count, len(form.label_limits))
    blocks = []
    for number, start in enumerate(range(0, count, BLOCK)):
        shape = (min(BLOCK, count - start), 3, 32, 32)
        blocks.append(unpack_images(files[f"{name}.images.{number:02d}"], shape))
    pixels = np.concatenate(blocks).reshape(count, PIXELS)
    content = np.concatenate([labels, pixels], axis=1).tobytes()
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise ValueError(f"the SHA-256 of {name} is another")
    return content


def pack_code() -> bytes:
    """Return a zip of `bridge`, `formats` and `training`, which run without the rest, and their
    commit.
    """
    files = {
        str(path.relative_to(PROJECT)): path.read_bytes()
        for package in ("bridge", "formats", "training")
        for path in sorted((PROJECT / package).rglob("*"))
        if path.suffix in (".py", ".npz")
    }
    files["bridge/packed_from.json"] = json.dumps(describe()["git"]).encode()
    return _zip(files, zipfile.ZIP_DEFLATED)


def pack_run(folder: Path, names: Sequence[str]) -> bytes:
    """Return a zip of those files of a run that are there; weights and state must be.

    A file that the training wrote in pieces is taken whole.
    """
    files = {}
    for name in names:
        path = folder / name
        content = path.read_bytes() if path.is_file() else read_pieces(folder, name)
        if content is not None:
            files[name] = content
            if name.endswith(".param"):
                digest = digest_line(name, hashlib.sha256(content).hexdigest())
                files[digest_path(name)] = digest
    if names[-1] not in files or "config.json" not in files:
        raise UserError(f"{folder} has no config.json or no {names[-1]}; name the folder of a run")
    return _zip(files)


def _halve(path: Path) -> int:
    arrays = read_params(path)
    with np.errstate(over="ignore"):  # looked for below
        halved = {name: array.astype(np.float16) for name, array in arrays.items()}
    wrong = next((name for name, array in halved.items() if not np.isfinite(array).all()), None)
    if wrong:
        raise UserError(f"{path}: {wrong} has values beyond float16's 65,504; keep it as it is")
    write_params(path, halved)
    print(f"wrote {path}, {path.stat().st_size / MB:.1f} MB")
    return 0


def _unpack(folder: Path, output: Path) -> int:
    names = piece_names(folder)
    if not names:
        raise UserError(f"{folder} has no pieces (files *.piece-*); name the folder that has them")
    for name in names:
        content = read_pieces(folder, name)
        assert content is not None
        if not name.endswith(".zip"):
            write_atomically(output / name, content)
            print(f"wrote {output / name}")
        elif name.endswith(".data.zip"):
            for path in unpack_data(dict(_members(name, content)), output):
                print(f"wrote {path}")
        else:
            target = output / name[: -len(".run.zip")].rpartition(".")[0]
            target.mkdir(parents=True, exist_ok=True)
            for member, data in _members(name, content):
                write_atomically(target / member, data)
                print(f"wrote {target / member}")
    return 0


def _members(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a zip of ours; none of them can name a place outside of its folder."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = archive.infolist()
            if sum(info.file_size for info in infos) > MAX_CONTENT:
                raise UserError(f"{name} unpacks to more than {MAX_CONTENT:,} bytes")
            for info in infos:
                if not PLAIN_NAME.fullmatch(info.filename):
                    raise UserError(f"{name} holds {info.filename!r}, which is no plain file name")
                yield info.filename, archive.read(info)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{name} cannot be unpacked: {error}. Pack it again") from error


def _zip(files: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in files.items():
            # A fixed time: the same files make the same zip.
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.compress_type, info.external_attr = method, 0o644 << 16
            archive.writestr(info, content)
    return stream.getvalue()


if __name__ == "__main__":
    sys.exit(main())
