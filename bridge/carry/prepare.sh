#!/bin/sh
# Here, where MXNet is: everything that a lent machine needs, into .lend, in loads below 60 MB.
#
#   sh bridge/carry/prepare.sh DATA_DIR [NAME ...]
#
# .lend/1, .lend/2, ...  one load each: the packed data sets, then code and first weights
# NAME is a network of train_cifar.py, or NAME@100 for 100 classes; default: those of the plan in
# docs/newer_gpu.md. PYTHON=... names the Python that has MXNet; DATASETS="cifar10 cifar100".
set -eu
cd "$(dirname "$0")/../.."
data=${1:?the folder with cifar10/ and cifar100/}
shift
[ $# -gt 0 ] || set -- attention92 resnet164_ram resnet164 resnet164_static attention92_paper
python=${PYTHON:-.venv/bin/python}
rm -rf .lend
mkdir -p .lend/pieces .lend/start
for name in ${DATASETS:-cifar10}; do
    "$python" -m bridge.carry.pack data "$name" --data-dir "$data" --output .lend/pieces
done
load=0
for piece in .lend/pieces/*; do
    load=$((load + 1))
    mkdir ".lend/$load"
    mv "$piece" ".lend/$load/"
done
rmdir .lend/pieces
for network in "$@"; do
    name=${network%@*}
    classes=${network#"$name"}
    classes=${classes#@}
    "$python" train_cifar.py --model "$name" --classes "${classes:-10}" --export-start ".lend/start/$network"
    # float16: half the load; rounded first weights are first weights as good as any.
    "$python" -m bridge.carry.pack half ".lend/start/$network.param"
done
load=$((load + 1))
mkdir ".lend/$load"
"$python" -m bridge.carry.pack code --output ".lend/$load"
mv .lend/start ".lend/$load/start"
du -sm .lend/*
