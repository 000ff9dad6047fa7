"""Which devices to compute on, found by computing on them, and the precision to compute in."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Optional

import mxnet as mx
from mxnet.gluon.contrib.nn import SyncBatchNorm

from formats.errors import UserError, last_line
from model.execution.threads import copy_on_one_thread
from training.compute.gpu_info import advice_for

PROBE_TIMEOUT_SEC = 120
# A convolution and a product: a GPU without kernels in this build fails here, not in the training.
PROBE = """
import mxnet as mx
ctx = mx.gpu({index})
x = mx.nd.ones((2, 8, 8, 8), ctx=ctx)
w = mx.nd.ones((8, 8, 3, 3), ctx=ctx)
y = mx.nd.Convolution(x, w, kernel=(3, 3), num_filter=8, no_bias=True)
if not (y * y).sum().asscalar() > 0:
    raise SystemExit("it computes wrong numbers")
"""


def choose_contexts(gpus: Optional[str] = None) -> list[Any]:
    """Return the MXNet contexts to train on; copies to them are made by one thread from then on.

    Parameters
    ----------
    gpus
        ``"0,1"``: these GPUs. ``"cpu"``: the CPU. ``"cpu:2"``: two contexts on the CPU, to try the
        code of several devices. None: every GPU that really computes, or else the CPU.

    Raises
    ------
    UserError
        When a GPU was asked for by number and is not there or cannot compute with this build.
    """
    copy_on_one_thread()
    word, colon, number = (gpus or "").strip().lower().partition(":")
    if word == "cpu" and (not colon or (number.isdecimal() and int(number) > 0)):
        return [mx.cpu(i) for i in range(int(number or 1))]
    count = gpu_count()
    if gpus is None:
        return usable_contexts([mx.gpu(i) for i in range(count)] or [mx.cpu()])
    try:
        indices = [int(word) for word in gpus.split(",")]
    except ValueError as error:
        raise UserError(f"--gpus {gpus}: give numbers such as 0 or 0,1, or cpu") from error
    if len(set(indices)) != len(indices):
        raise UserError(f"--gpus {gpus}: a number is given twice")
    for index in indices:
        _require_gpu(index, count, gpus)
    return [mx.gpu(index) for index in indices]


def gpu_count() -> int:
    """Return how many GPUs MXNet sees."""
    try:
        return int(mx.context.num_gpus())
    except mx.MXNetError:  # a CUDA build whose driver does not answer
        return 0


def _require_gpu(index: int, count: int, gpus: str) -> None:
    if not 0 <= index < count:
        found = f"{count} GPU(s), numbered from 0" if count else "no GPU"
        raise UserError(
            f"--gpus {gpus}: this MXNet sees {found}. Leave --gpus out to train on what is there, "
            "or set up the CUDA build with make gpu on a machine with an NVIDIA driver."
        )
    reason = probe_gpu(index)
    if reason is not None:
        about = advice_for(index) or "Its kernels are for compute capability 5.0 to 8.9"
        raise UserError(
            f"--gpus {gpus}: GPU {index} is there but cannot compute with this MXNet ({reason}). "
            f"{about}. Leave --gpus out to use the CPU."
        )


def usable_contexts(contexts: Sequence[Any]) -> list[Any]:
    """Return the contexts that compute; the CPU when none of them does; warn of what is left out.

    Old scripts say ``ctx = mx.gpu()``; without a GPU they are to run all the same.
    """
    count = gpu_count()
    usable, faults = [], []
    for context in contexts:
        fault = None if context.device_type != "gpu" else _fault(context.device_id, count)
        if fault is None:
            usable.append(context)
        else:
            faults.append(f"{device_names([context])} cannot be used here ({fault})")
    usable = usable or [mx.cpu()]
    if faults:
        warning = f"warning: {'; '.join(faults)}; going on with {device_names(usable)}"
        print(warning, file=sys.stderr)
    return usable


def _fault(index: int, count: int) -> Optional[str]:
    return probe_gpu(index) if index < count else "this MXNet sees no such GPU"


def probe_gpu(index: int) -> Optional[str]:
    """Return None when GPU `index` computes, or else the last line of the failure.

    The probe is a process of its own: a missing kernel leaves CUDA unusable in the one it hits.
    """
    return run_apart(["-c", PROBE.format(index=index)], PROBE_TIMEOUT_SEC)[0]


def run_apart(words: Sequence[str], timeout: int) -> tuple[Optional[str], str]:
    """Run Python in a process of its own; return what failed, or None, and what it printed."""
    try:
        done = subprocess.run(
            [sys.executable, *words], capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout} s", ""
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return lines[-1] if done.returncode else None, done.stdout.strip()


def use_precision(precision: str, contexts: list[Any]) -> None:
    """Switch on mixed precision; call it before any network is built. It cannot be undone.

    Parameters stay float32 and so do files. bfloat16 has float32's range, so no loss scaling;
    float16 needs it, see `training.compute.loss_scaling`.

    Raises
    ------
    UserError
        When bfloat16 is asked for on a GPU, or on a processor that cannot, or float16 on the CPU,
        for which MXNet has no kernels.
    """
    if precision in ("float32", "auto"):
        return
    from mxnet.contrib import amp

    on_gpu = [context.device_type == "gpu" for context in contexts]
    if precision == "float16":
        if not all(on_gpu):
            raise UserError(
                "--precision float16 is for GPUs: MXNet has no float16 matrix product for the CPU "
                "(FP16 gemm on cpu not implemented). Use --precision bfloat16, or float32"
            )
        # Positions along an edge would be rounded in float16, near 50 to 1/32 of a pixel. From
        # float32 positions on, everything up to the interpolation itself stays float32.
        float32_ops = [*amp.lists.symbol_fp16.FP32_FUNCS, "_contrib_arange_like"]
        amp.init(target_dtype="float16", fp32_ops=float32_ops)
        return
    if any(on_gpu):
        raise UserError("--precision bfloat16 is for the CPU; use float16, or float32, with --gpus")
    check_bfloat16()
    # A product of two bfloat16 tensors runs in a scalar software loop, 20 times slower.
    float32_ops = [*amp.lists.symbol_bf16.FP32_FUNCS, "elemwise_mul"]
    amp.init(target_dtype="bfloat16", fp32_ops=float32_ops)


def check_bfloat16() -> None:
    """Raise UserError when oneDNN has no bfloat16 convolution for this processor."""
    from mxnet.contrib.amp.amp import bfloat16

    one = mx.nd.amp_cast(mx.nd.ones((1, 1, 1, 1)), dtype=bfloat16)
    product = mx.nd.Convolution(one, one, kernel=(1, 1), num_filter=1, no_bias=True)
    try:
        product.wait_to_read()
    except mx.MXNetError as error:
        raise UserError(
            "--precision bfloat16: oneDNN has no bfloat16 convolution for this processor, which "
            f"takes AVX-512 ({last_line(error)}). Use float32, or auto"
        ) from error


def check_kvstore(name: str, contexts: Sequence[Any]) -> None:
    """Raise UserError when gradients on `contexts` cannot be added up by the kvstore `name`."""
    if name != "nccl":
        return
    if any(context.device_type != "gpu" for context in contexts):
        raise UserError(
            f"--kvstore nccl adds up gradients of GPUs, the training is on {device_names(contexts)}"
            ": leave --kvstore out"
        )
    if not mx.runtime.Features().is_enabled("NCCL"):
        raise UserError("--kvstore nccl: this MXNet is built without NCCL; leave --kvstore out")


def norm_arguments(sync_batch_norm: bool, contexts: Sequence[Any]) -> dict[str, Any]:
    """Return the arguments that give a network normalisation over the images of all `contexts`.

    Raises
    ------
    UserError
        When a context is on the CPU.
    """
    if not sync_batch_norm:
        return {}
    if any(context.device_type != "gpu" for context in contexts):
        raise UserError(
            "--sync-batch-norm is for GPUs: on several CPU contexts MXNet 1.9.1's SyncBatchNorm "
            "waits for good, and a single one has nothing to synchronize. Leave it out; "
            "--micro-batch 0 takes the statistics over a device's whole share"
        )

    return {"norm_layer": SyncBatchNorm, "norm_kwargs": {"num_devices": len(contexts)}}


def hybridize_options(precision: str) -> dict:
    """Return the arguments of ``net.hybridize``; bfloat16 alternates fast and slow if static."""
    return {"static_alloc": True, "static_shape": precision in ("float32", "auto")}


def device_names(contexts: Sequence[Any]) -> str:
    """Return the contexts as people write them, such as ``gpu(0), gpu(1)``."""
    return ", ".join(f"{context.device_type}({context.device_id})" for context in contexts)
