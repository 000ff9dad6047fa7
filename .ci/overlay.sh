#!/bin/sh
# Makes an environment that has all of .venv and, over it, the packages of a small lock.
#
#   .ci/overlay.sh demo FOLDER       what serves the page of `make demo`, and what drives a browser over it
#   .ci/overlay.sh docs FOLDER       what makes the site of `make docs`
#   .ci/overlay.sh notebooks FOLDER  what runs the notebooks
#
# FOLDER/.complete is written last, as by .ci/setup.sh. Exit code 2: it could not be made; 3: no package index can
# be reached.
set -u
cd "$(dirname "$0")/.." || exit 1
kind=${1:?demo, docs or notebooks} folder=${2:?folder}
lock=requirements/$kind.txt

# The folder too, since what is laid over .venv holds its path.
stamp=$({ cat "$lock" .venv/.complete && pwd; } | cksum)
if [ "$(cat "$folder/.complete" 2>/dev/null)" = "$stamp" ] && "$folder/bin/python" -c '' 2>/dev/null; then
    exit 0
fi

by_uv() {
    uv=$(command -v uv) && "$uv" venv -q --no-project --python .venv/bin/python "$folder" &&
        "$uv" pip install -q --require-hashes --no-deps --no-build --python "$folder/bin/python" -r "$lock"
}

by_pip() {
    rm -rf "$folder"
    .venv/bin/python -m venv "$folder" &&
        "$folder/bin/python" -m pip install -qq --no-user --no-input --disable-pip-version-check --no-compile \
            --no-deps --only-binary :all: --require-hashes -r "$lock"
}

echo "set-up: fetching the packages of $lock into $folder, once" >&2
rm -rf "$folder"
by_uv || by_pip || {
    echo "error: the packages of $lock could not be installed; pip's message is above." >&2
    # Where pip itself can be had, the index is there and the lock is wrong.
    "$folder/bin/python" -m pip download -qq --no-input --no-deps -d "$folder/probe" pip >/dev/null 2>&1 && exit 2
    exit 3
}
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') &&
    base=$(cd "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" && pwd) || exit 2
# Not the path alone: the patches of compat/ are in a .pth file there.
echo "import site; site.addsitedir('$base')" >"$site/over_venv.pth"
echo "$stamp" >"$folder/.complete"
