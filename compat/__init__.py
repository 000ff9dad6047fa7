"""Let MXNet 1.9.1, GluonCV and MXBoard run on the Python, NumPy and protobuf that machines have.

``install()`` puts a finder at the head of ``sys.meta_path``. It does nothing until one of the three
is imported. Then it hands modified copies of a few names to those of their modules that ask for
what NumPy, onnx, protobuf or Python no longer have; nothing else in the process sees a change.
``python -m compat`` says what is patched here and why; the list is in ``table.py``.

A ``.pth`` file calls ``install()`` at the start of every Python of an environment, so this file
imports nothing but what every Python has loaded already.
"""

from __future__ import annotations

import sys

PACKAGES = ("mxnet", "gluoncv", "mxboard")


class CompatFinder:
    """Sees MXNet's modules being imported and has those patched that need it here."""

    def __init__(self) -> None:
        self._patches = None  # by the module's name; looked up when the first package is imported

    def find_spec(self, name, path=None, target=None):  # type: ignore[no-untyped-def]
        """Return the module's own spec, with patches around its execution; None: none is needed."""
        # Every import of the process comes by here: one test of a string is what it costs.
        if name.partition(".")[0] not in PACKAGES:
            return None
        from . import patching, table

        if self._patches is None:
            self._patches = table.patches_by_module()
            # A finder that came later and takes modules by their names alone, as pytest's does for
            # test_*.py, would take mxnet.test_utils before it is patched.
            if sys.meta_path[0] is not self and self in sys.meta_path:
                sys.meta_path.remove(self)
                sys.meta_path.insert(0, self)
        patches = self._patches.get(name)
        return patches and patching.patched_spec(self, patches, name, path, target)


def is_installed() -> bool:
    """Whether the finder is in place, this copy's or another copy's of this package."""
    return any(type(each).__name__ == CompatFinder.__name__ for each in sys.meta_path)


def install() -> bool:
    """Have MXNet, GluonCV and MXBoard patched when they are imported; call it before that.

    Returns
    -------
    Whether the patches will be there: False when one of the three was imported before.
    """
    if is_installed():
        return True
    if any(name in sys.modules for name in PACKAGES):
        return False
    sys.meta_path.insert(0, CompatFinder())
    return True
