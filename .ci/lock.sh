#!/bin/sh
# Resolves pyproject.toml anew into requirements/*.txt, one hash lock for each extra and Python version.
#
#   .ci/lock.sh              keep the versions that are locked now where pyproject.toml still allows them
#   .ci/lock.sh --upgrade    take the newest allowed ones; run `make test` on every Python afterwards
#
# Uses uv: the one on PATH, else one that it installs into a temporary folder.
set -eu
cd "$(dirname "$0")/.."

uv=$(command -v uv) || uv=
if [ -z "$uv" ]; then
    temporary=$(mktemp -d)
    "$(.ci/setup.sh find)" -m venv "$temporary"
    "$temporary/bin/python" -m pip install -q --disable-pip-version-check uv
    uv=$temporary/bin/uv
fi

# MXNet's metadata wants numpy<2.0.0, and 3.13 has no wheel of that. The lock is installed without the resolver.
overrides=$(mktemp)
trap 'rm -rf "$overrides" "${temporary:-}"' EXIT
mkdir -p requirements
for version in 3.9 3.10 3.11 3.12 3.13; do
    : >"$overrides"
    [ "$version" != 3.13 ] || grep -o 'numpy==2[0-9.]*' pyproject.toml >"$overrides"
    # Horovod itself is built from source: its version and hash are in requirements/horovod-source.txt, by hand.
    for kind in cpu gpu $([ "$version" != 3.10 ] || echo horovod); do
        lock=requirements/$kind-py$(echo "$version" | tr -d .).txt
        # No index and no find-links line: a lock names packages and hashes, where they come from is the
        # machine's business.
        extras="--extra $kind --extra export $([ "$kind" != horovod ] || echo --extra cpu)"
        # shellcheck disable=SC2086 # four words or six
        "$uv" pip compile -q pyproject.toml $extras --extra dev --python-version "$version" --override "$overrides" \
            --python-platform x86_64-manylinux_2_28 --only-binary :all: --generate-hashes --no-annotate \
            --no-header --no-emit-index-url --no-emit-find-links -o "$lock" "$@"
        # uv reads the old file for its preferences, so the note goes on top afterwards, once.
        { echo "# Made by 'make lock' from pyproject.toml for Python $version; do not edit."; grep -v '^#' "$lock"; } \
            >"$lock.part"
        mv "$lock.part" "$lock"
        echo "$lock: $(grep -c '==' "$lock") packages"
    done
done

# What .ci/overlay.sh lays over .venv: one lock each for all Pythons.
for kind in demo docs notebooks; do
    lock=requirements/$kind.txt
    "$uv" pip compile -q --group "$kind" --universal --python-version 3.9 --only-binary :all: --generate-hashes \
        --no-annotate --no-header --no-emit-index-url --no-emit-find-links -o "$lock" "$@"
    { echo "# Made by 'make lock' from pyproject.toml; do not edit."; grep -v '^#' "$lock"; } >"$lock.part"
    mv "$lock.part" "$lock"
    echo "$lock: $(grep -c '==' "$lock") packages"
done
