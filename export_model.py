"""Export a trained network, knowing the data it was trained on.

    python export_model.py FILE --to onnx           FILE.onnx, with normalization and class names
    python export_model.py FILE --to onnx --int8    the same with 8 bit convolutions, if they are
                                                    as accurate
    python export_model.py FILE --to symbol         for gluon.SymbolBlock

Takes every option of ``python -m training.apply.export``, which does the same without any data set.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Optional

if __name__ == "__main__":  # before NumPy and MXNet are loaded, which read it once
    from training.compute.thread_choice import take_threads

    take_threads(sys.argv[1:], needs=("numpy", "mxnet"))

from training.apply.export import Knowledge, add_options, expected
from training.apply.export import main as export
from training.apply.int8 import quantize_file
from training.settings.exit_code import exit_code


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code."""
    return exit_code(lambda: export(argv, Knowledge(expected, quantize_file, add_options)))


if __name__ == "__main__":
    sys.exit(main())
