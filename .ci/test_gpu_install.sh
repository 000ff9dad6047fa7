#!/bin/sh
# Checks that MXNet in the environment FOLDER finds its CUDA libraries without LD_LIBRARY_PATH, and that
# it does so by its preload.
#
#   .ci/test_gpu_install.sh FOLDER
#
# Without an NVIDIA driver a stand-in for libcuda.so.1 is compiled that reports no device. It is all that
# LD_LIBRARY_PATH then leads to.
set -eu
python=$(cd "$1" && pwd)/bin/python
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
unset LD_LIBRARY_PATH

if ! "$python" -c 'import ctypes; ctypes.CDLL("libcuda.so.1")' 2>/dev/null; then
    echo "no NVIDIA driver here: compiling a stand-in for libcuda.so.1"
    # What libmxnet.so takes from the driver, and what libcudart asks first; 100 is CUDA_ERROR_NO_DEVICE.
    for name in cuInit cuDriverGetVersion cuDeviceGet cuDevicePrimaryCtxRetain cuGetErrorString \
        cuGraphKernelNodeGetParams cuGraphNodeGetType cuLaunchKernel cuModuleGetFunction cuModuleLoadData \
        cuModuleLoadDataEx cuModuleUnload; do
        echo "int $name(void) { return 100; }"
    done >stub.c
    "${CC:-cc}" -shared -fPIC -Wl,-soname,libcuda.so.1 -o libcuda.so.1 stub.c
    export LD_LIBRARY_PATH="$work"
fi

cat >without.py <<'END'
import sys
sys.meta_path[:] = [each for each in sys.meta_path if type(each).__name__ != "PreloadFinder"]
import mxnet
END
if "$python" without.py 2>error.txt; then
    echo "MXNet was imported without the preload: this machine's own CUDA libraries are in use" >&2
    exit 1
fi
echo "without the preload, as expected: $(tail -n 1 error.txt)"

cat >user_script.py <<'END'
import mxnet as mx
from mxnet.gluon import nn

count = mx.context.num_gpus()
context = mx.gpu() if count else mx.cpu()
net = nn.HybridSequential()
net.add(nn.Conv2D(4, 3), nn.BatchNorm(), nn.Dense(2))
net.initialize(ctx=context)
with mx.autograd.record():
    loss = (net(mx.nd.ones((2, 3, 8, 8), ctx=context)) ** 2).mean()
loss.backward()
assert loss.asscalar() >= 0
print(f"with the preload: MXNet {mx.__version__} imported, {count} GPU(s), a training step ran on {context}")
END
"$python" user_script.py
