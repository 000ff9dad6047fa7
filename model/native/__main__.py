"""``python -m model.native`` builds the operators in C++ ahead."""

from __future__ import annotations

import sys

from model.native.build import main

if __name__ == "__main__":
    sys.exit(main())
