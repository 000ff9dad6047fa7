#!/bin/sh
# There, on the lent machine, which has PyTorch and NumPy. LEND is a folder that outlasts a command.
#
#   sh on_machine.sh receive LOAD                     take a load of prepare.sh
#   sh on_machine.sh bench NAME ...                   measure the speed of networks
#   sh on_machine.sh train RUN NAME SECONDS FLAG ...  begin a run, or go on with it, for so long
#   sh on_machine.sh state LOAD                       take a run's state that an earlier machine gave
#   sh on_machine.sh back RUN WHAT FIRST              weights, best or state: four pieces from FIRST
#
# `train` and `bench` leave in $OUT what comes back: at most 8 files of 16 MB. Exit code 75 of
# `train`: the run is not finished; give the same command again.
set -eu
lend=${LEND:-/tmp/lend}
out=${OUT:?the folder that comes back}
python=${PYTHON:-python3}
mkdir -p "$lend/pieces" "$lend/code" "$lend/data" "$lend/runs"

back() { # RUN WHAT FIRST
    rm -rf "$lend/back"
    (cd "$lend/code" && "$python" -m bridge.carry.pack run "$lend/runs/$1" --what "$2" --output "$lend/back")
    ls "$lend/back" | tail -n "+$3" | head -n 4 | while read -r piece; do
        cp "$lend/back/$piece" "$out/"
    done
    echo "pieces of $2 of $1: $(ls "$lend/back" | wc -l), in OUT from number $3: $(ls "$out" | wc -l) files"
}

command=$1
shift
case "$command" in
receive)
    load=$1
    for file in "$load"/*.piece-*; do
        [ ! -e "$file" ] || cp "$file" "$lend/pieces/"
    done
    if [ -e "$load/code.zip" ]; then
        "$python" -m zipfile -e "$load/code.zip" "$lend/code"
        cp -r "$load/start" "$lend/"
        (cd "$lend/code" && "$python" -m bridge.carry.pack unpack "$lend/pieces" --output "$lend/data")
    fi
    ;;
bench)
    cd "$lend/code"
    for name in "$@"; do
        "$python" -m bridge.bench "$lend/start/$name-symbol.json" ${BENCH_FLAGS:-} \
            --output "$out/bench-$name.json"
    done
    ;;
train)
    run=$1 name=$2 seconds=$3
    shift 3
    cd "$lend/code"
    code=0
    if [ -e "$lend/runs/$run/config.json" ]; then
        "$python" -m bridge.train --resume "$lend/runs/$run" --data-dir "$lend/data" \
            --stop-after "$seconds" || code=$?
    else
        "$python" -m bridge.train --symbol "$lend/start/$name-symbol.json" --data-dir "$lend/data" \
            --run-dir "$lend/runs/$run" --stop-after "$seconds" "$@" || code=$?
    fi
    # Whole, or in pieces as --max-file-mb leaves it.
    for file in "$lend/runs/$run"/last.param "$lend/runs/$run"/last.param.piece-*; do
        [ ! -e "$file" ] || { back "$run" weights 1 && break; }
    done
    exit "$code"
    ;;
state)
    mkdir -p "$lend/state"
    cp "$1"/*.piece-* "$lend/state/"
    cd "$lend/code"
    "$python" -m bridge.carry.pack unpack "$lend/state" --output "$lend/runs"
    ;;
back)
    back "$1" "$2" "$3"
    ;;
*)
    echo "error: $command is none of receive, bench, train, state, back" >&2
    exit 2
    ;;
esac
