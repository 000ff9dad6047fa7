"""Export a trained network, knowing the data it was trained on.

    python export_model.py FILE --to onnx           FILE.onnx, with normalization and class names
    python export_model.py FILE --to onnx --int8    the same with 8 bit convolutions, if they are
                                                    as accurate
    python export_model.py FILE --to symbol         for gluon.SymbolBlock

``python -m training.apply.export`` is the same command.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # before NumPy and MXNet are loaded, which read it once
    from training.compute.thread_choice import take_threads

    take_threads(sys.argv[1:], needs=("numpy", "mxnet"))

    from training.apply.export_flags import build_parser

    build_parser().parse_args()  # --help and wrong flags do not wait for MXNet

from training.apply.export import main

if __name__ == "__main__":
    sys.exit(main())
