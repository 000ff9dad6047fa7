"""What the processor at hand can compute, for tests of what is refused elsewhere.

It is read from the processor's instructions, not from what the code under test says of them, so
that a wrong refusal is seen. ``ATTENTION_ISA`` leaves instructions out here as it does there.
"""

from __future__ import annotations

from typing import Optional

from machine.processor import Unavailable, cpu_identity
from model.execution.quantization import DOT_PRODUCTS
from model.native.build import UNITS, BuildFailed, load

INSTRUCTIONS = frozenset(cpu_identity().split())
# oneDNN's convolutions in bfloat16 take these; avx512_bf16 makes them faster.
BFLOAT16 = INSTRUCTIONS.issuperset({"avx512f", "avx512bw", "avx512vl", "avx512dq"})
BYTES = DOT_PRODUCTS in INSTRUCTIONS
LANES = 16 if BFLOAT16 else 8  # float32 numbers of a vector: channels of a block


def without_operators() -> Optional[str]:
    """Return why the operators of residual units cannot be had; None: they can."""
    try:
        load(UNITS)
    except BuildFailed:
        raise
    except Unavailable as error:
        return str(error)
    return None


def without_bytes() -> Optional[str]:
    """Return why no own operators quantize here; None: they do."""
    missing = without_operators()
    if missing is None and not BYTES:
        return f"the processor has no {DOT_PRODUCTS}"
    return missing
