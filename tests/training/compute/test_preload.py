"""The preload of the CUDA libraries: what it finds, when it loads, that it can be idle."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from training.compute import gpu_preload

ROOT = Path(__file__).resolve().parents[3]
# A small shared library that loads anywhere: one of NumPy's own.
SHARED_LIBRARY = next(Path(np.__file__).parent.glob("fft/_pocketfft*.so"))


@pytest.fixture
def site_packages(tmp_path: Path) -> Path:
    """A folder as the gpu extra leaves it, with two CUDA libraries, one of which is damaged."""
    (tmp_path / "mxnet").mkdir()
    (tmp_path / "mxnet" / "libmxnet.so").touch()
    for package in ("cuda_runtime", "cudnn"):
        (tmp_path / "nvidia" / package / "lib").mkdir(parents=True)
    shutil.copy(SHARED_LIBRARY, tmp_path / "nvidia/cuda_runtime/lib/libcudart.so.11.0")
    (tmp_path / "nvidia/cudnn/lib/libcudnn.so.8").write_text("no library")
    return tmp_path


@pytest.fixture(autouse=True)
def _restore_meta_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))


def finders() -> list[gpu_preload.PreloadFinder]:
    return [each for each in sys.meta_path if isinstance(each, gpu_preload.PreloadFinder)]


@pytest.mark.parametrize("missing", ["nvidia", "mxnet"])
def test_without_the_wheels_nothing_is_installed(site_packages: Path, missing: str) -> None:
    shutil.rmtree(site_packages / missing)
    before = list(sys.meta_path)
    assert gpu_preload.install(str(site_packages)) is False
    assert sys.meta_path == before


def test_the_finder_comes_first_and_once(site_packages: Path) -> None:
    assert gpu_preload.install(str(site_packages)) is True
    assert gpu_preload.install(str(site_packages)) is True
    assert len(finders()) == 1
    assert sys.meta_path[0] is finders()[0]


def test_libraries_are_loaded_once_and_only_for_mxnet(
    site_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(gpu_preload, "load_libraries", calls.append)
    gpu_preload.install(str(site_packages))
    finder = finders()[0]
    for name in ("numpy", "mxnet_tools", "mxnet.gluon"):
        finder.find_spec(name)
    assert calls == []
    finder.find_spec("mxnet")
    finder.find_spec("mxnet")
    assert calls == [str(site_packages)]


def test_present_libraries_are_found_in_loading_order(site_packages: Path) -> None:
    found = gpu_preload.find_libraries(str(site_packages))
    assert [Path(path).name for path in found] == ["libcudart.so.11.0", "libcudnn.so.8"]


def test_cublas_comes_before_what_needs_it() -> None:
    names = [name for _, name in gpu_preload.LIBRARIES]
    assert names.index("libcublasLt.so.11") < names.index("libcublas.so.11")
    assert names.index("libcublas.so.11") < names.index("libcusolver.so.11")
    assert names.index("libcublas.so.11") < names.index("libcudnn.so.8")


def test_a_damaged_library_does_not_stop_the_others(site_packages: Path) -> None:
    loaded = gpu_preload.load_libraries(str(site_packages))
    assert [Path(path).name for path in loaded] == ["libcudart.so.11.0"]


def test_every_library_has_its_wheel_in_the_gpu_extra() -> None:
    wheels = set(re.findall(r'"nvidia-([a-z-]+)-cu11==', (ROOT / "pyproject.toml").read_text()))
    assert wheels == {package.replace("_", "-") for package, _ in gpu_preload.LIBRARIES}


@pytest.mark.parametrize("has_wheels", [True, False])
def test_the_installed_pth_file_serves_any_script(site_packages: Path, has_wheels: bool) -> None:
    shutil.copy(
        ROOT / "training/compute/gpu_preload.py", site_packages / "attention_gpu_preload.py"
    )
    shutil.copy(
        ROOT / "training/compute/gpu_preload.pth", site_packages / "attention_gpu_preload.pth"
    )
    (site_packages / "mxnet/__init__.py").write_text(
        "import sys\nprint('libcudart.so.11.0' in open('/proc/self/maps').read())\n"
    )
    if not has_wheels:
        shutil.rmtree(site_packages / "nvidia")
    script = (
        "import site, sys; site.addsitedir(sys.argv[1]); sys.path.insert(0, sys.argv[1]);"
        "print('ctypes' in sys.modules, any(type(f).__name__ == 'PreloadFinder' for f in"
        " sys.meta_path)); import mxnet; print('ctypes' in sys.modules)"
    )
    answer = subprocess.run(
        [sys.executable, "-I", "-c", script, str(site_packages)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert answer.stderr == ""
    assert answer.stdout.split() == ["False", str(has_wheels), str(has_wheels), str(has_wheels)]
