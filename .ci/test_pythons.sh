#!/bin/sh
# Runs a core of the tests on every Python that the project supports and this machine has, pyenv's too, but for
# the one in .venv, which `make test` uses.
#
#   .ci/test_pythons.sh [ARGUMENTS OF PYTEST]
#
# Each gets an environment of its own, .venv-py39 and so on, from its lock. Exit code 1: a test failed or an
# environment could not be made. A Python that is not here is named and left out.
set -u
cd "$(dirname "$0")/.." || exit 1

# Training, resuming, loading, records, flags, export, glimpses, golden runs, and what makes MXNet run there.
core="tests/compat/test_compat.py tests/compat/test_compat_user.py tests/training/settings/test_config.py tests/training/loop/test_engine.py
tests/training/records/test_event_file.py tests/model/export/test_export.py tests/model/layers/test_glimpse.py tests/training/glimpse/test_glimpse_flags.py
tests/model/test_golden_runs.py tests/model/weights/test_loading.py tests/formats/test_param_file.py tests/training/compute/test_preload.py
tests/training/records/test_record.py tests/training/batches/test_record_io.py tests/formats/test_weight_file.py"

mine=$(.venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
status=0
for version in 3.9 3.10 3.11 3.12 3.13; do
    [ "$version" != "$mine" ] || continue
    # PYTHON names that of .venv.
    if ! python=$(PYTHON='' .ci/setup.sh find "$version" 2>/dev/null); then
        echo "test-pythons: no Python $version on this machine, so it is left out"
        continue
    fi
    folder=.venv-py$(echo "$version" | tr -d .)
    echo "test-pythons: Python $version, $python, in $folder"
    if ! PYTHON=$python .ci/setup.sh cpu "$folder"; then
        status=1
        continue
    fi
    # Two processes share the cores; without the tests marked slow, which the default Python has run.
    # shellcheck disable=SC2086 # one word for each file
    OMP_NUM_THREADS=1 "$folder/bin/python" -m pytest -q -n 2 -m "not slow" $core "$@" || status=1
done
exit $status
