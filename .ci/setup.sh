#!/bin/sh
# Makes a virtual environment from the hash lock that fits its Python.
#
#   .ci/setup.sh cpu FOLDER     what training and the tests need, MXNet for the CPU
#   .ci/setup.sh gpu FOLDER     the same with MXNet for CUDA and the CUDA libraries
#   .ci/setup.sh bench-torch FOLDER  PyTorch for the CPU, which benchmarks measure against; nothing else
#   .ci/setup.sh horovod FOLDER      what `cpu` has, and Horovod built from source against its MXNet (JOBS=N: N
#                                    compilers at once, 1 GB of memory each)
#   .ci/setup.sh find [3.12]    print the Python that would be used; exit code 2: there is none of that version
#
# PYTHON=... names the interpreter. FOLDER/.complete is written last and holds the lock's checksum: a set-up
# that was interrupted, or whose lock has changed since, is made anew; a finished one costs nothing.
# Exit code 2: this machine lacks something that a person has to install. 3, `horovod` alone: what it lacks is
# Python 3.10 or the platform, so that Horovod cannot be had here as it is.
set -u
cd "$(dirname "$0")/.." || exit 1

fail() {
    echo "error: $*" >&2
    exit "${code:-2}"
}

# Prints 3.11 for a CPython 3.11 that really runs: a pyenv shim of a version that is not selected does not.
version_of() {
    "$1" -c 'import sys
if sys.implementation.name == "cpython": print("%d.%d" % sys.version_info[:2])' </dev/null 2>/dev/null
}

is_fitting() {
    [ -z "$only" ] || [ "$only" = "$1" ] || return 1
    case "$kind $1" in
    "bench-torch 3.11" | "horovod 3.10") return 0 ;;
    "bench-torch "* | "horovod "*) return 1 ;;
    *" 3.9" | *" 3.10" | *" 3.11" | *" 3.12" | *" 3.13") return 0 ;;
    *) return 1 ;;
    esac
}

can_make_venv() {
    [ -n "$uv" ] || "$1" -c 'import ensurepip, venv' </dev/null >/dev/null 2>&1
}

# Every place where a fitting Python may be, best first, one path a line. 3.11 is tested most; up to there MXNet
# runs on the NumPy it was made for, as it is, and from 3.12 on by the patches of compat/.
candidates() {
    root=
    ! command -v pyenv >/dev/null 2>&1 || root=$(pyenv root 2>/dev/null)
    for version in 3.11 3.10 3.9 3.12 3.13; do
        command -v "python$version"
        [ -z "$root" ] || ls -d "$root"/versions/"$version"*/bin/python 2>/dev/null
        [ -z "$uv" ] || "$uv" python find --no-python-downloads "$version" 2>/dev/null
    done
    command -v python3
    command -v python
}

# Sets `python`; leaves it empty when uv has to bring one.
find_python() {
    python=
    if [ -n "${PYTHON:-}" ]; then
        version=$(version_of "$PYTHON") || version=
        is_fitting "$version" || fail "PYTHON=$PYTHON is ${version:-no CPython that runs}, but this project" \
            "needs Python 3.9 to 3.13."
        can_make_venv "$PYTHON" || fail "$PYTHON has no venv module with pip: install its venv package" \
            "(Debian and Ubuntu: python$version-venv), or uv."
        python=$PYTHON
        return
    fi
    other= bare=
    # Split at line ends only: a path may contain a space.
    old_ifs=$IFS
    IFS='
'
    for candidate in $(candidates); do
        version=$(version_of "$candidate") || version=
        if [ -z "$version" ]; then
            continue
        elif ! is_fitting "$version"; then
            case "$other" in *"$version "*) ;; *) other="$other$version ($candidate), " ;; esac
        elif ! can_make_venv "$candidate"; then
            bare="${bare:-$candidate}" bare_version="${bare_version:-$version}"
        else
            python=$candidate
            break
        fi
    done
    IFS=$old_ifs
    if [ -n "$python" ] || [ -n "$uv" ]; then
        return
    fi
    if [ -n "$bare" ]; then
        fail "$bare has no venv module with pip: install its venv package" \
            "(Debian and Ubuntu: python$bare_version-venv), or uv."
    fi
    no_python
}

no_python() {
    [ "$kind" != horovod ] || code=3 fail "Python 3.10 is needed, the one that Horovod was built on with MXNet, and this" \
        "machine has ${other:+only }${other:-none, }so install it, or name it: PYTHON=/path/to/python3.10." \
        "Without Horovod, python -m training.launch trains with several processes too."
    [ "$kind" != bench-torch ] || fail "Python 3.11 is needed, for the locked PyTorch, and this machine" \
        "has ${other:+only }${other:-none, }so install it, or name it: PYTHON=/path/to/python3.11"
    [ -z "$only" ] || fail "Python $only is needed, and this machine has ${other:+only }${other:-none, }so it is" \
        "missing."
    fail "Python 3.9 to 3.13 is needed, 3.11 before the others, and this machine" \
        "has ${other:+only }${other:-none, }so install one of them, or name it: make PYTHON=/path/to/python3.11"
}

check_platform() {
    case "$kind $(uname -s) $(uname -m)" in
    "cpu Linux x86_64" | "gpu Linux x86_64" | "bench-torch Linux x86_64" | "horovod Linux x86_64") ;;
    "horovod "*) code=3 fail "Horovod is built here on Linux on x86_64 only, not on $(uname -s) on $(uname -m);" \
        "python -m training.launch trains with several processes too." ;;
    "bench-torch "*) fail "PyTorch to measure against is locked for Linux on x86_64 only, not for" \
        "$(uname -s) on $(uname -m)." ;;
    "cpu Linux aarch64") fail "Linux on x86_64 is needed: MXNet 1.9.1 can be installed on aarch64 but not imported, as it" \
        "wants the Arm Performance Libraries (libarmpl_lp64_mp.so, libamath.so, libastring.so), which no package brings." ;;
    "cpu Darwin x86_64") fail "Linux on x86_64 is needed: MXNet 1.9.1 has a package for macOS on Intel processors, but" \
        "oneDNN, which the lock names too, has none, and this project was never tried there." ;;
    *) fail "Linux on x86_64 is needed: MXNet 1.9.1 has no $kind package for $(uname -s) on $(uname -m) that this" \
        "project runs on." ;;
    esac
}

lock_of() {
    echo "requirements/$kind-py$(echo "$1" | tr -d .).txt"
}

# What .complete of a finished environment holds.
stamp_of() {
    echo "$1 $(cat "$(lock_of "$1")" $([ "$kind" != horovod ] || echo "$HOROVOD_LOCK") | cksum)"
}

is_complete() {
    [ -f "$folder/.complete" ] && made_with=$(version_of "$folder/bin/python") && is_fitting "$made_with" &&
        [ "$(cat "$folder/.complete")" = "$(stamp_of "$made_with")" ] &&
        { [ -z "${PYTHON:-}" ] || [ "$(version_of "$PYTHON")" = "$made_with" ]; }
}

make_venv() {
    rm -rf "$folder"
    if [ -n "$uv" ]; then
        [ -n "$python" ] || echo "set-up: no fitting Python here, asking uv to bring one" >&2
        "$uv" venv -q --no-project --python "${python:-$newest}" "$folder" 2>/dev/null && return
        rm -rf "$folder"
        [ -n "$python" ] || no_python
    fi
    "$python" -m venv "$folder" || fail "$python could not make a virtual environment in $folder."
}

# uv makes environments without pip, which the tests of the wheel and make horovod run.
bring_pip() {
    ls -d "$folder"/lib/python*/site-packages/pip >/dev/null 2>&1 || "$folder/bin/python" -m ensurepip >/dev/null 2>&1 ||
        echo "note: $folder has no pip: make horovod and make test-wheel need one" >&2
}

install_packages() {
    lock=$(lock_of "$version")
    case "$kind" in gpu) size="about 2 GB" ;; bench-torch) size="about 220 MB" ;; *) size="about 250 MB" ;; esac
    echo "set-up: fetching $(grep -c '==' "$lock") packages ($size) into $folder, once;" \
        "their hashes are in $lock" >&2
    if [ -n "$uv" ]; then
        "$uv" pip sync -q --require-hashes --no-build --python "$folder/bin/python" "$lock" && {
            bring_pip
            return 0
        }
        echo "set-up: uv failed, trying pip" >&2
        [ -n "$python" ] || python=$("$folder/bin/python" -c 'import sys; print(sys._base_executable)')
        uv=
        make_venv
    fi
    # --no-compile: what is imported later gets compiled then, and the rest never, which is much quicker.
    # -qq: errors only; a machine's own index settings may make pip warn once for every package.
    "$folder/bin/python" -m pip install -qq --no-user --no-input --disable-pip-version-check --no-compile \
        --no-deps --only-binary :all: --require-hashes -r "$lock" && return
    [ "$kind" != bench-torch ] || fail "$lock could not be installed; pip's message is above. It names PyTorch's" \
        "build for the CPU, which not every package index has: name PyTorch's own index of CPU builds in" \
        "PIP_EXTRA_INDEX_URL, or a folder with the file in PIP_FIND_LINKS."
    fail "the packages of $lock could not be installed; pip's message is above. Run make again to go on."
}

# Everything that a compiler needs is looked for before minutes are spent.
check_compiler() {
    for tool in g++ make; do
        command -v $tool >/dev/null 2>&1 || fail "Horovod is built from source and needs $tool: install a C++" \
            "compiler and make (Debian and Ubuntu: build-essential), then run make horovod again."
    done
    include=$("${python:-python3.10}" -c 'import sysconfig; print(sysconfig.get_path("include"))' 2>/dev/null)
    [ -z "$python" ] || [ -f "$include/Python.h" ] || fail "Horovod is built from source and needs the headers of" \
        "$python: install them (Debian and Ubuntu: python3.10-dev), or name another PYTHON=/path/to/python3.10."
}

# cmake is one of the locked packages. Only MXNet and Gloo are built in: no other framework, no MPI, no CUDA.
build_horovod() {
    jobs=${JOBS:-$(getconf _NPROCESSORS_ONLN)}
    log=$folder/horovod-build.log
    echo "set-up: building Horovod into $folder, once; some minutes on $jobs cores (fewer: JOBS=1); log: $log" >&2
    PATH="$(pwd)/$folder/bin:$PATH" MAKEFLAGS="-j$jobs" MAKELEVEL= \
        HOROVOD_WITH_MXNET=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_PYTORCH=1 HOROVOD_WITHOUT_MPI=1 \
        HOROVOD_WITH_GLOO=1 HOROVOD_CPU_OPERATIONS=GLOO \
        "$folder/bin/python" -m pip install -v --no-user --no-input --disable-pip-version-check --no-deps \
        --no-build-isolation --no-binary :all: --require-hashes -r "$HOROVOD_LOCK" >"$log" 2>&1 && return
    grep -iE 'error|killed|no space' "$log" | tail -n 3 >&2
    fail "Horovod could not be built; the whole output is in $log. Out of memory: JOBS=1 make horovod." \
        "Without Horovod, python -m training.launch trains with several processes too."
}

# MXNet, GluonCV and MXBoard must work for any script of this environment, on newer Pythons and NumPy too.
install_compat() {
    "$folder/bin/python" -m compat --install >/dev/null || exit 1
}

# A finished environment follows when compat/ or the preload changes; all else in it comes from the lock.
refresh_compat() {
    bring_pip
    [ "$kind" = bench-torch ] ||
        [ "$(cat compat/*.py compat/*.pth 2>/dev/null | cksum)" = "$(cd "$folder"/lib/python*/site-packages 2>/dev/null &&
            cat attention_compat/*.py attention_compat.pth 2>/dev/null | cksum)" ] || install_compat
    [ "$kind" != gpu ] ||
        [ "$(cat training/compute/gpu_preload.p* | cksum)" = "$(cat \
            "$folder"/lib/python*/site-packages/attention_gpu_preload.p* 2>/dev/null | cksum)" ] || install_preload
}

# MXNet for CUDA must find the libraries of the nvidia wheels without LD_LIBRARY_PATH.
install_preload() {
    site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') &&
        cp training/compute/gpu_preload.py "$site/attention_gpu_preload.py" &&
        cp training/compute/gpu_preload.pth "$site/attention_gpu_preload.pth" || exit 1
}

check_import() {
    modules="mxnet, gluoncv, mxboard"
    [ "$kind" != bench-torch ] || modules="numpy, torch"
    [ "$kind" != horovod ] || modules="mxnet, horovod.mxnet"
    message=$("$folder/bin/python" -c "import $modules" 2>&1 >/dev/null) && return
    case "$message" in
    *libcuda.so.1*)
        echo "set-up: no NVIDIA driver on this machine, so this MXNet cannot be imported here;" \
            "it was installed all the same" >&2
        ;;
    *libgomp.so* | *libquadmath.so*)
        fail "MXNet needs two system libraries: install libgomp1 and libquadmath0 (Debian's names), then run make again."
        ;;
    *) fail "the installed packages cannot be imported: $(echo "$message" | tail -n 1)" ;;
    esac
}

kind=${1:-}
only=
newest=3.11
HOROVOD_LOCK=requirements/horovod-source.txt
uv=$(command -v uv) || uv=
case "$kind" in
find)
    only=${2:-}
    find_python
    [ -n "$python" ] || [ -z "$only" ] || fail "there is no Python $only on this machine."
    echo "${python:-brought by uv}"
    exit 0
    ;;
cpu | gpu) folder=${2:?folder} ;;
bench-torch | horovod)
    folder=${2:?folder}
    [ "$kind" != horovod ] || newest=3.10
    # PYTHON names what the project runs in, which may be another version.
    [ -z "${PYTHON:-}" ] || is_fitting "$(version_of "$PYTHON")" || PYTHON=
    ;;
*) fail "usage: .ci/setup.sh cpu FOLDER | gpu FOLDER | bench-torch FOLDER | horovod FOLDER | find" ;;
esac

is_complete && refresh_compat && exit 0
check_platform
find_python
# Two calls of make at once: the second waits for the first and finds its work done.
if command -v flock >/dev/null 2>&1; then
    exec 9>"$folder.lock" && flock 9
    is_complete && refresh_compat && exit 0
fi
[ "$kind" != horovod ] || check_compiler
[ -z "$python" ] || echo "set-up: taking $(version_of "$python"), $python" >&2
make_venv
version=$(version_of "$folder/bin/python") || fail "the Python in $folder does not run."
install_packages
[ "$kind" = bench-torch ] || install_compat
case "$kind" in
gpu) install_preload ;;
horovod) build_horovod ;;
esac
check_import
stamp_of "$version" >"$folder/.complete.part" && mv "$folder/.complete.part" "$folder/.complete" || exit 1
echo "set-up: done, Python $version" >&2
