"""Let `import mxnet` of the CUDA wheel find the libraries of the nvidia-*-cu11 wheels.

libmxnet.so of mxnet-cu117 asks the system's loader for libcudart.so.11.0, libcudnn.so.8 and others,
which its wheel does not bring. The NVIDIA wheels put them into site-packages/nvidia/*/lib, where
the loader does not look. Loading them by their full path first answers the question: the loader
takes a library that is in memory already for one of the same soname. So nobody has to set
LD_LIBRARY_PATH.

This file is installed as site-packages/attention_gpu_preload.py and called from the .pth file
beside it at the start of every Python, so it serves a user's own script too. At that time it only
looks for two files; nothing is loaded, and ctypes is not imported, before `import mxnet`. Without
the NVIDIA wheels it does nothing at all.
"""

from __future__ import annotations

# Nothing but modules that every Python has loaded already: this runs at each start.
import os
import sys

# In the order of their dependencies: what is loaded first is there for the ones below it.
LIBRARIES = (
    ("cuda_runtime", "libcudart.so.11.0"),
    ("cuda_nvrtc", "libnvrtc.so.11.2"),
    ("cublas", "libcublasLt.so.11"),
    ("cublas", "libcublas.so.11"),
    ("cufft", "libcufft.so.10"),
    ("curand", "libcurand.so.10"),
    ("cusparse", "libcusparse.so.11"),
    ("cusolver", "libcusolver.so.11"),
    ("nvtx", "libnvToolsExt.so.1"),
    ("nccl", "libnccl.so.2"),
    ("cudnn", "libcudnn.so.8"),
)


def find_libraries(site_packages: str) -> list[str]:
    """Full paths of the CUDA libraries below ``site_packages``, in the order to load them."""
    paths = (
        os.path.join(site_packages, "nvidia", package, "lib", name) for package, name in LIBRARIES
    )
    return [path for path in paths if os.path.exists(path)]


def load_libraries(site_packages: str) -> list[str]:
    """Load the CUDA libraries below ``site_packages`` into this process; return those that loaded.

    One that does not load is left out without a word: `import mxnet` then names it itself.
    """
    import ctypes

    loaded = []
    for path in find_libraries(site_packages):
        try:
            ctypes.CDLL(path)
        except OSError:
            continue
        loaded.append(path)
    return loaded


class PreloadFinder:
    """Sees the import of mxnet coming and loads the CUDA libraries; it finds no module itself."""

    def __init__(self, site_packages: str) -> None:
        self.site_packages = site_packages
        self.is_done = False

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Find nothing, ever; load the CUDA libraries when ``name`` is mxnet."""
        # It stays in sys.meta_path: Python is walking that list, and would skip the next entry.
        if name == "mxnet" and not self.is_done:
            self.is_done = True
            load_libraries(self.site_packages)


def install(site_packages: str = "") -> bool:
    """Have the CUDA libraries loaded when mxnet is imported; return whether there are any.

    Parameters
    ----------
    site_packages
        The folder that holds ``mxnet`` and ``nvidia``; this file's own by default.
    """
    if not site_packages:
        site_packages = os.path.dirname(os.path.abspath(__file__))
    needed = (("nvidia", "cuda_runtime", "lib"), ("mxnet", "libmxnet.so"))
    if not all(os.path.exists(os.path.join(site_packages, *parts)) for parts in needed):
        return False
    if not any(isinstance(finder, PreloadFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, PreloadFinder(site_packages))
    return True
