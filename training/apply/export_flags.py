"""The flags of ``export_model.py``, which are read without MXNet."""

from __future__ import annotations

import argparse

INT8_LIMIT = 0.005  # accuracy that 8 bits may cost, as a share
INT8_IMAGES = 256  # that ranges of activations are taken from
INT8_DEFAULTS = {"int8_limit": INT8_LIMIT, "int8_images": INT8_IMAGES, "int8_test": 0, "seed": 0}


def build_parser() -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python export_model.py",
        description="Write a trained network as MXNet symbol or ONNX, and check what was written.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="parameter file; its network is found out")
    parser.add_argument("--to", required=True, choices=("symbol", "onnx"), help="form to write")
    parser.add_argument("--output", metavar="OUT", help="without ending; default: FILE without it")
    parser.add_argument("--model", help="network, where the file does not tell")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="field of the network's spec, such as wiring=paper or height=100; may be repeated",
    )
    parser.add_argument(
        "--classes",
        metavar="NAMES",
        help="names of the classes in the order of the outputs, with commas, or @FILE with one in "
        "each line; for files that do not tell",
    )
    parser.add_argument(
        "--normalization",
        metavar="NAME|MEAN/STD",
        help="mean and standard deviation: imagenet, ram, none, or numbers as "
        "0.5,0.5,0.5/0.2,0.2,0.2; default: as the file tells",
    )
    parser.add_argument(
        "--fold-gates", action="store_true", help="fold the recurrent gates of a RAM ResNet"
    )
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    parser.add_argument("--int8", action="store_true", help="quantize to 8 bits")
    parser.add_argument(
        "--threads",
        metavar="N",
        help="threads of the CPU (default: $OMP_NUM_THREADS, else all idle cores)",
    )
    _add_int8_options(parser)
    return parser


def _add_int8_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("8 bits")
    group.add_argument("--data-dir", help="folder with the data set's files")
    group.add_argument(
        "--int8-limit",
        type=float,
        default=INT8_LIMIT,
        help="accuracy that may be lost, as a share (default: %(default)s)",
    )
    group.add_argument(
        "--int8-images",
        type=int,
        default=INT8_IMAGES,
        help="training images to calibrate on (default: %(default)s)",
    )
    group.add_argument(
        "--int8-test", type=int, default=0, help="test images to compare on; 0: all (default)"
    )
    group.add_argument(
        "--seed", type=int, default=0, help="of the choice of both, from all classes (default: 0)"
    )
