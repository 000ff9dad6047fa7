"""Set-up: the locks agree with pyproject.toml, and a machine that lacks something is told what."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
LOCKS = [*((kind, version) for kind in ("cpu", "gpu") for version in VERSIONS), ("horovod", "3.10")]
OVERLAYS = ("demo", "docs", "notebooks")  # over .venv, one lock each for all Pythons
TOOLS = ("sh", "cat", "cksum", "cp", "dirname", "flock", "grep", "ls", "mkdir", "mv", "rm", "tail")

# `-m venv FOLDER` makes a folder that holds a copy of this script. A file pip_fails makes its pip
# fail; what pip was called with goes to pip_calls.
FAKE_PYTHON = """#!/bin/sh
here={here}
case "$*" in
*version_info*) echo {version} ;;
*ensurepip*) {ensurepip} ;;
"-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m compat --install") echo "$*" >>"$here/compat_calls" ;;
"-m pip"*) echo "$*" >>"$here/pip_calls"; [ ! -e "$here/pip_fails" ] ;;
esac
"""


def read_lock(kind: str, version: str) -> dict[str, str]:
    """Name and version of every package of a lock."""
    text = (ROOT / f"requirements/{kind}-py{version.replace('.', '')}.txt").read_text()
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", text, flags=re.M))


def read_toml() -> dict[str, Any]:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    content: dict[str, Any] = toml.loads((ROOT / "pyproject.toml").read_text())
    return content


def read_project() -> dict[str, Any]:
    project: dict[str, Any] = read_toml()["project"]
    return project


@pytest.mark.parametrize(("kind", "version"), LOCKS)
def test_lock_fulfils_the_project_file(kind: str, version: str) -> None:
    project = read_project()
    extras = project["optional-dependencies"]
    locked = read_lock(kind, version)
    needed = extras["cpu"] + extras[kind] if kind == "horovod" else extras[kind]
    needed += extras["export"] + extras["dev"]
    for line in project["dependencies"] + needed:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"python_version": version}):
            continue
        name = canonicalize_name(requirement.name)
        assert name in locked, f"{name} is missing: run make lock"
        assert requirement.specifier.contains(locked[name]), f"{line}, but {locked[name]} is locked"


@pytest.mark.parametrize(("kind", "version"), LOCKS)
def test_lock_holds_packages_and_hashes_and_nothing_else(kind: str, version: str) -> None:
    path = ROOT / f"requirements/{kind}-py{version.replace('.', '')}.txt"
    first, *lines = path.read_text().splitlines()
    assert first.startswith("# Made by")
    package = re.compile(r"[a-z0-9._-]+==[A-Za-z0-9.]+ \\")
    digest = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
    kinds = ["p" if package.fullmatch(x) else "h" if digest.fullmatch(x) else "?" for x in lines]
    assert [line for line, found in zip(lines, kinds) if found == "?"] == []
    assert re.fullmatch("(ph+)+", "".join(kinds))


@pytest.mark.parametrize("kind", OVERLAYS)
def test_overlay_lock_fulfils_the_project_file_on_every_python(kind: str) -> None:
    groups = read_toml()["dependency-groups"]
    assert set(groups) == set(OVERLAYS)
    first, *lines = (ROOT / f"requirements/{kind}.txt").read_text().splitlines()
    assert first.startswith("# Made by")
    digest = re.compile(r"    --hash=sha256:[0-9a-f]{64}( \\)?")
    packages = [Requirement(x.rstrip(" \\")) for x in lines if not digest.fullmatch(x)]
    for version in VERSIONS:
        here = {"python_version": version, "python_full_version": f"{version}.0"}
        here.update(sys_platform="linux", platform_system="Linux", platform_machine="x86_64")
        locked = {
            canonicalize_name(one.name): str(one.specifier)[2:]
            for one in packages
            if not one.marker or one.marker.evaluate(here)
        }
        for wanted in map(Requirement, groups[kind]):
            assert wanted.specifier.contains(locked[canonicalize_name(wanted.name)])
        assert not {"mxnet", "numpy"} & set(locked)  # .venv's are used


def test_the_demo_is_tested_on_what_its_extra_names() -> None:
    extra = read_project()["optional-dependencies"]["demo"]
    assert {line.split("#")[0] for line in extra} < set(read_toml()["dependency-groups"]["demo"])


@pytest.mark.parametrize("version", VERSIONS)
def test_the_gpu_lock_is_the_cpu_lock_with_another_mxnet(version: str) -> None:
    cpu, gpu = read_lock("cpu", version), read_lock("gpu", version)
    assert cpu.pop("mxnet") == gpu.pop("mxnet-cu117")
    assert not [name for name in cpu if name.startswith(("mxnet", "nvidia"))]
    assert "mxnet" not in gpu
    for name in ("onednn-cpu-gomp", "onednn-devel-cpu-gomp"):  # the fused operators are for CPUs
        assert cpu.pop(name) == "2023.2.0"
        assert name not in gpu
    assert cpu.items() <= gpu.items()


def test_setup_files_name_no_registry_host_and_no_machine_path() -> None:
    names = ["Makefile", "pyproject.toml", ".pre-commit-config.yaml", ".gitignore"]
    files = [ROOT / name for name in names] + sorted(ROOT.glob(".ci/*"))
    files += sorted(ROOT.glob("requirements/*.txt"))
    unwanted = re.compile(
        r"(?i)pypi|pythonhosted|index-url|--find-links|(?<![\w.~/-])/(home|root|opt|work)/"
    )
    found = [
        f"{path.name}: {line}"
        for path in files
        for line in path.read_text().splitlines()
        if unwanted.search(line.replace("--no-emit-index-url --no-emit-find-links", ""))
    ]
    assert len(files) > 10
    assert found == []


class Machine:
    """A pretended machine: a copy of the set-up script, and a PATH that a test fills."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "my bin"
        self.bin.mkdir()
        for name in TOOLS:
            if found := shutil.which(name):
                (self.bin / name).symlink_to(found)
        self.add_command("tr", f'exec {shutil.which("tr")} "$@"')
        self.add_command("uname", '[ "$1" = -s ] && echo Linux || echo x86_64')
        (folder / ".ci").mkdir()
        shutil.copy(ROOT / ".ci/setup.sh", folder / ".ci/setup.sh")
        (folder / "requirements").mkdir()
        for version in VERSIONS:
            lock = folder / f"requirements/cpu-py{version.replace('.', '')}.txt"
            lock.write_text("mxnet==1.9.1\n")

    def add_command(self, name: str, body: str) -> Path:
        path = self.bin / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    def add_python(self, name: str, version: str, ensurepip: bool = True) -> Path:
        path = self.add_command(name, "")
        path.write_text(
            FAKE_PYTHON.format(
                here=f"'{self.folder}'", version=version, ensurepip="true" if ensurepip else "false"
            )
        )
        return path

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.folder / ".ci/setup.sh"), *arguments],
            env={"PATH": str(self.bin), **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def pip_calls(self) -> int:
        calls = self.folder / "pip_calls"
        return len(calls.read_text().splitlines()) if calls.exists() else 0


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def assert_one_sentence(
    answer: subprocess.CompletedProcess[str], *parts: str, code: int = 2
) -> None:
    assert answer.returncode == code
    assert answer.stdout == ""
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error: ")
    for part in parts:
        assert part in line


def test_the_python_that_is_tested_most_is_taken(machine: Machine) -> None:
    """3.11, then the older ones, whose NumPy is the one MXNet was made for, then 3.12 and 3.13."""
    machine.add_python("python3", "3.14")
    for version in ("3.13", "3.12", "3.9", "3.10", "3.11"):
        wanted = machine.add_python(f"python{version}", version)
        assert machine.run("find").stdout.strip() == str(wanted)


@pytest.mark.parametrize("version", ["3.12", "3.13"])
def test_a_new_machine_with_one_new_python_is_enough(machine: Machine, version: str) -> None:
    path = machine.add_python("python3", version)
    answer = machine.run("cpu", ".venv")
    assert answer.returncode == 0, answer.stderr
    assert f"taking {version}, {path}\n" in answer.stderr
    calls = (machine.folder / "pip_calls").read_text()
    assert f"-r requirements/cpu-py{version.replace('.', '')}.txt" in calls


def test_a_python_of_one_version_is_found(machine: Machine) -> None:
    machine.add_python("python3.11", "3.11")
    wanted = machine.add_python("python3.13", "3.13")
    assert machine.run("find", "3.13").stdout.strip() == str(wanted)
    assert_one_sentence(machine.run("find", "3.12"), "Python 3.12 is needed", "only 3.11")
    machine.add_command("uv", "exit 1")
    assert_one_sentence(machine.run("find", "3.12"), "no Python 3.12")


def test_a_plain_python3_is_taken_when_it_fits(machine: Machine) -> None:
    wanted = machine.add_python("python3", "3.10")
    assert machine.run("find").stdout.strip() == str(wanted)


def test_a_shim_that_does_not_run_is_passed_over(machine: Machine) -> None:
    machine.add_command("python3.11", "echo 'pyenv: python3.11: command not found' >&2; exit 127")
    machine.add_command("pyenv", f"echo '{machine.folder}/py env'")
    wanted = machine.add_python("../py env/versions/3.10.4/bin/python", "3.10")
    answer = machine.run("find")
    assert Path(answer.stdout.strip()).resolve() == wanted.resolve()
    assert answer.stderr == ""


def test_a_too_new_python_gets_one_sentence(machine: Machine) -> None:
    path = machine.add_python("python3", "3.14")
    assert_one_sentence(machine.run("cpu", ".venv"), "Python 3.9 to 3.13", f"only 3.14 ({path})")
    assert not (machine.folder / ".venv").exists()


def test_no_python_gets_one_sentence(machine: Machine) -> None:
    assert_one_sentence(machine.run("cpu", ".venv"), "Python 3.9 to 3.13", "has none")


@pytest.mark.parametrize("version", ["3.8", "3.14", ""])
def test_a_named_python_must_fit(machine: Machine, version: str) -> None:
    machine.add_python("python3.11", "3.11")
    named = machine.add_python("mine", version)
    answer = machine.run("cpu", ".venv", PYTHON=str(named))
    assert_one_sentence(answer, f"PYTHON={named}", version or "no CPython that runs")


def test_a_python_without_venv_gets_one_sentence_unless_there_is_uv(machine: Machine) -> None:
    path = machine.add_python("python3.11", "3.11", ensurepip=False)
    assert_one_sentence(machine.run("find"), str(path), "python3.11-venv")
    machine.add_command("uv", "exit 1")
    assert machine.run("find").stdout.strip() == str(path)


@pytest.mark.parametrize(
    ("kind", "system", "processor", "reason"),
    [
        ("cpu", "Linux", "aarch64", "not imported, as it wants the Arm Performance Libraries"),
        ("cpu", "Darwin", "x86_64", "this project was never tried there"),
        ("cpu", "Darwin", "arm64", "no cpu package for Darwin on arm64"),
        ("gpu", "Linux", "aarch64", "no gpu package for Linux on aarch64"),
        ("gpu", "Darwin", "x86_64", "no gpu package for Darwin on x86_64"),
        ("bench-torch", "Linux", "aarch64", "for Linux on x86_64 only"),
    ],
)
def test_a_platform_without_mxnet_gets_one_sentence(
    machine: Machine, kind: str, system: str, processor: str, reason: str
) -> None:
    machine.add_python("python3.11", "3.11")
    machine.add_command("uname", f'[ "$1" = -s ] && echo {system} || echo {processor}')
    assert_one_sentence(machine.run(kind, ".venv"), "Linux on x86_64", reason)
    assert not (machine.folder / ".venv").exists()


def test_what_is_said_of_platforms_is_what_the_setup_accepts(machine: Machine) -> None:
    machine.add_python("python3.11", "3.11")
    for kind in ("cpu", "gpu"):
        (machine.folder / f"requirements/{kind}-py311.txt").write_text("mxnet==1.9.1\n")
        answer = machine.run(kind, f".venv-{kind}")
        assert "Linux on x86_64 is needed" not in answer.stderr
        assert machine.pip_calls() == 1 + (kind == "gpu")
    systems = [
        word for word in read_project()["classifiers"] if word.startswith("Operating System")
    ]
    assert systems == ["Operating System :: POSIX :: Linux"]
    assert "Linux on x86-64" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_a_machine_that_cannot_have_horovod_gets_one_sentence(machine: Machine) -> None:
    path = machine.add_python("python3.11", "3.11")
    machine.add_python("python3.9", "3.9")
    # PYTHON names what the project runs in; Horovod needs its own.
    answer = machine.run("horovod", ".venv-horovod", PYTHON=str(path))
    wanted = ("Python 3.10 is needed", f"3.11 ({path})", "training.launch")
    assert_one_sentence(answer, *wanted, code=3)
    machine.add_command("uname", '[ "$1" = -s ] && echo Linux || echo aarch64')
    answer = machine.run("horovod", ".venv-horovod")
    assert_one_sentence(answer, "Linux on x86_64 only, not on Linux on aarch64", code=3)


def test_horovod_needs_a_compiler(machine: Machine) -> None:
    machine.add_python("python3.10", "3.10")
    assert_one_sentence(machine.run("horovod", ".venv-horovod"), "needs g++", "build-essential")
    assert not (machine.folder / ".venv-horovod").exists()


def test_a_finished_setup_is_not_repeated_until_the_lock_changes(machine: Machine) -> None:
    machine.add_python("python3.11", "3.11")
    assert machine.run("cpu", ".venv").returncode == 0
    assert machine.pip_calls() == 1
    assert machine.run("cpu", ".venv").returncode == 0
    assert machine.pip_calls() == 1
    (machine.folder / "requirements/cpu-py311.txt").write_text("mxnet==1.9.2\n")
    assert machine.run("cpu", ".venv").returncode == 0
    assert machine.pip_calls() == 2


def test_an_interrupted_setup_is_made_anew(machine: Machine) -> None:
    machine.add_python("python3.11", "3.11")
    (machine.folder / "pip_fails").touch()
    assert machine.run("cpu", ".venv").returncode == 2
    (machine.folder / ".venv/half_a_package").touch()
    (machine.folder / "pip_fails").unlink()
    assert machine.run("cpu", ".venv").returncode == 0
    assert not (machine.folder / ".venv/half_a_package").exists()
    assert machine.pip_calls() == 2


def test_every_environment_gets_the_patches_and_follows_them(machine: Machine) -> None:
    machine.add_python("python3.11", "3.11")
    calls = machine.folder / "compat_calls"
    (machine.folder / "compat").mkdir()
    (machine.folder / "compat/table.py").write_text("first")
    assert machine.run("cpu", ".venv").returncode == 0
    assert len(calls.read_text().splitlines()) == 1
    copy = machine.folder / ".venv/lib/python3.11/site-packages/attention_compat"
    copy.mkdir(parents=True)
    for text, count in (("first", 1), ("second", 2)):
        (machine.folder / "compat/table.py").write_text(text)
        (copy / "table.py").write_text("first")
        assert machine.run("cpu", ".venv").returncode == 0
        assert len(calls.read_text().splitlines()) == count
    (copy / "table.py").write_text("second")
    assert machine.run("cpu", ".venv").returncode == 0
    assert len(calls.read_text().splitlines()) == 2
    (machine.folder / "compat/attention_compat.pth").write_text("import attention_compat")
    assert machine.run("cpu", ".venv").returncode == 0
    assert len(calls.read_text().splitlines()) == 3
    assert machine.pip_calls() == 1  # the environment itself was not made anew


def test_naming_another_python_makes_the_environment_anew(machine: Machine) -> None:
    machine.add_python("python3.11", "3.11")
    older = machine.add_python("python3.9", "3.9")
    for environment in ({}, {"PYTHON": str(older)}, {"PYTHON": str(older)}, {}):
        assert machine.run("cpu", ".venv", **environment).returncode == 0
    # The last call names none and is content with what is there.
    assert machine.pip_calls() == 2


def test_a_uv_that_fails_gives_way_to_pip(machine: Machine) -> None:
    machine.add_python("python3.11", "3.11")
    machine.add_command("uv", "exit 1")
    answer = machine.run("cpu", ".venv")
    assert answer.returncode == 0, answer.stderr
    assert machine.pip_calls() == 1


def test_an_environment_that_uv_makes_has_pip(machine: Machine) -> None:
    path = machine.add_python("python3.11", "3.11")
    asked = machine.folder / "ensurepip_calls"
    text = path.read_text().replace("*ensurepip*) true", f"*ensurepip*) echo $* >>'{asked}'")
    path.write_text(text)
    machine.add_command(
        "uv", f"[ $1 = pip ] || {{ mkdir -p .venv/bin; cp '{path}' .venv/bin/python; }}"
    )
    assert machine.run("cpu", ".venv").returncode == 0
    assert machine.pip_calls() == 0
    assert "-m ensurepip" in asked.read_text().splitlines()


@pytest.fixture
def make(tmp_path: Path, machine: Machine) -> Any:
    """Run make in a copy of the tree whose set-up and training do nothing but leave a folder."""
    shutil.copy(ROOT / "Makefile", tmp_path / "Makefile")
    (tmp_path / ".ci/setup.sh").write_text("#!/bin/sh\n")
    machine.add_command("../.venv/bin/python", 'for last; do :; done; mkdir -p "$last"; ls runs')
    return lambda *arguments: subprocess.run(
        ["make", "--no-print-directory", *arguments],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_make_train_takes_a_new_run_folder_each_time(make: Any) -> None:
    assert make("train").stdout.split() == ["shapes"]
    answer = make("train")
    assert answer.stdout.split() == ["shapes", "shapes-2"]
    assert answer.returncode == 0


@pytest.mark.parametrize("code", [0, 2, 3])
def test_horovod_is_tested_where_it_can_be_had(make: Any, tmp_path: Path, code: int) -> None:
    (tmp_path / ".ci/setup.sh").write_text(f'[ "$1" = cpu ] || exit {code}')
    machine_python = 'case "$*" in *"-k horovod"*) echo both ;; *) echo one ;; esac'
    for name in (".venv", ".venv-horovod"):
        path = tmp_path / name / "bin/python"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{machine_python}\n")
        path.chmod(0o755)
    answer = make("test-distributed")
    said = [line for line in answer.stdout.splitlines() if line in ("one", "both")]
    assert said == (["one", "both"] if code == 0 else ["one"])
    assert ("NOT TESTED: Horovod" in answer.stderr) == (code == 3)
    assert (answer.returncode == 0) == (code != 2)


def test_make_alone_lists_every_target(make: Any) -> None:
    listed = re.findall(r"^make ([a-z-]+)", make().stdout, flags=re.M)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.M)
    assert phony is not None
    assert sorted(listed) == sorted(phony.group(1).split())
